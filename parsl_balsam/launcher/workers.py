"""The warm processes of a node: started by forking, given one call at a time, killed with everything they started."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

from parsl_balsam.launcher import usage, worker
from parsl_balsam.launcher.capture import Capture, tail_of_file
from parsl_balsam.launcher.channel import Channel, RecentlyUsed, complaint
from parsl_balsam.launcher.messages import Ended, Start
from parsl_balsam.launcher.pace import Pace
from parsl_balsam.launcher.processes import close_sockets, descendants, die_with_parent, inherit_orphans, kill, sweep
from parsl_balsam.launcher.rank_files import forbid
from parsl_balsam.launcher.tickets import SharedLease, Tickets
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

#: How often orphans that are slow to die, and long outputs, are looked after, seconds.
_CARE_S = 0.05
_RELIEF_S = 1.0

#: How long an MPI launcher has to end its ranks when its task is stopped, seconds. What is left then is killed.
_MERCY_S = 2.0

#: A worker has so many tasks at most that it may begin by itself, and none is longer, bytes: they must find room in its
#: socket while it does not read, for the agent would wait until it does.
_MOST_AHEAD = 16
_LONGEST_AHEAD = 1 << 11


@dataclass(slots=True)
class _Worker:
    pid: int
    channel: Channel
    capture: Capture
    tickets: Tickets = field(default_factory=Tickets)
    ahead: dict[int, int] = field(default_factory=dict)  #: tasks that it begins by itself after its own: their tickets
    functions: RecentlyUsed = field(default_factory=RecentlyUsed)
    cores: tuple[int, ...] = ()  #: of its last task
    task: Start | None = None
    ticket: int = 0  #: of this task, if the worker had it before it was to begin
    since: float = 0.0  #: when it was heard that this task begins
    until: float | None = None  #: when its task is to be killed, on the monotonic clock
    verdict: Ended | None = None  #: what to report once it is dead, where the agent killed it


class Workers:
    """All workers of an agent.

    Parameters
    ----------
    selector
        Tells of what workers send.
    report
        Called with the end of each task, when all its processes on this node are gone.
    keep_out
        What a worker must close that it inherits from the agent.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        report: Callable[[Ended], None],
        keep_out: Iterable[Callable[[], object]],
    ) -> None:
        self._selector = selector
        self._report = report
        self._keep_out = list(keep_out)
        self._workers: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._by_task: dict[int, _Worker] = {}
        self._ahead: dict[int, _Worker] = {}  # of the tasks that these may begin, or have begun
        self._bodies = RecentlyUsed()
        #: Until when they may begin what was handed over to them.
        self.lease = SharedLease()
        self._pace = Pace()
        self._held_back: list[Ended] = []  # reports of tasks whose processes are not all gone yet
        self._orphans = False
        self._relieve_at = time.monotonic() + _RELIEF_S

    def warm(self, count: int) -> None:
        """Have so many idle workers."""
        while len(self._idle) < count:
            self._idle.append(self._fork())

    def running(self) -> list[int]:
        """Return the tasks that run."""
        return list(self._by_task)

    def learn(self, start: Start) -> bytes | None:
        """Keep the function of a task, which is not sent again; return it."""
        if not self._bodies.use(start.function):
            self._bodies[start.function] = start.body
        body: bytes | None = self._bodies[start.function]
        return body

    def start(self, start: Start, body: bytes | None) -> None:
        """Run a task, with its function."""
        holder = self._ahead.pop(start.task_id, None)
        ticket = 0
        if holder is not None:
            ticket = holder.ahead.pop(start.task_id)
            if self._idle and self._idle[-1] is holder:  # it has just told of its own task's end
                self._idle.pop()
        chosen = holder or self._idle_on(start.cores) or self._fork()
        chosen.task = start
        chosen.ticket = ticket
        chosen.cores = start.cores
        chosen.since = time.monotonic()
        chosen.until = None if start.timeout_s is None else chosen.since + start.timeout_s
        self._by_task[start.task_id] = chosen
        if holder is None:
            _send_start(chosen, start, body)

    def hand_over(self, task_id: int, following: Iterable[tuple[Start, bytes | None]]) -> None:
        """Let the worker of a task begin those that follow without being told again: nobody need wake it up for them.

        Parameters
        ----------
        following
            In order. It may have the first of them already.
        """
        holder = self._by_task.get(task_id)
        if holder is None or holder.verdict is not None:
            return
        for start, body in islice(following, len(holder.ahead), _MOST_AHEAD):
            new = 0 if start.function in holder.functions else len(body or b"")
            if len(start.payload) + new + len(start.stderr or "") > _LONGEST_AHEAD:
                return
            holder.ahead[start.task_id] = ticket = holder.tickets.issue()
            self._ahead[start.task_id] = holder
            _send_start(holder, start._replace(ticket=ticket), body)

    def take_back(self, task_id: int) -> bool:
        """Tell whether a task has not begun, and does not unless it is started. Others that wait come back with it."""
        holder = self._ahead.get(task_id)
        if holder is not None:
            self._take_back_from(holder)
        return task_id not in self._ahead

    def _take_back_from(self, holder: _Worker) -> None:
        """Keep a worker from beginning tasks by itself. Those that remain it has begun, after the end of its own."""
        free = holder.tickets.take_back() if holder.ahead else ()
        for task_id, ticket in list(holder.ahead.items()):
            if ticket in free:
                del holder.ahead[task_id]
                del self._ahead[task_id]
        if holder.task is not None and holder.ticket in free:
            # It was about to begin this one, which is its own by now: it gets it once more. It has the function.
            holder.ticket = 0
            _send_start(holder, holder.task, None)

    def _idle_on(self, cores: tuple[int, ...]) -> _Worker | None:
        """Return an idle worker, if there is one; best one that is bound to these cores: to bind one takes time."""
        for place in range(len(self._idle) - 1, -1, -1):
            if self._idle[place].cores == cores:
                return self._idle.pop(place)
        return self._idle.pop() if self._idle else None

    def kill(self, task_id: int, outcome: Outcome, error: str, *, gently: bool = True) -> None:
        """End a task. Its end is reported when it is gone.

        Parameters
        ----------
        gently
            Whether an MPI launcher is given the time to end its ranks by itself.
        """
        # Otherwise one that the worker has begun meanwhile would be killed for one that is over.
        if (holder := self._by_task.get(task_id) or self._ahead.get(task_id)) is not None:
            self._catch_up(holder)
        victim = self._by_task.get(task_id)
        if victim is None or victim.verdict is not None:
            return
        victim.verdict = Ended(task_id, outcome, error=error)
        victim.until = None
        assert victim.task is not None
        if victim.task.ranks is not None:
            forbid(victim.task.ranks)
        if gently and victim.task.ranks is not None and (started := descendants(victim.pid)):
            # Killed outright, an MPI launcher could not tell the other nodes.
            for pid in started:
                _send(pid, signal.SIGTERM)
            victim.until = time.monotonic() + _MERCY_S
        else:
            kill(victim.pid)

    def forbid_ranks(self) -> None:
        """Let no ranks of the tasks that run begin any more."""
        for busy in self._by_task.values():
            if busy.task is not None and busy.task.ranks is not None:
                forbid(busy.task.ranks)

    def rest(self) -> float:
        """Return for how long all workers can do without the agent, seconds."""
        if self._idle or not self._ahead:
            return 0.0
        return self._pace.rest(min((len(busy.ahead) for busy in self._by_task.values()), default=0))

    def pause(self) -> float:
        """Return for how long `care` is not needed, seconds."""
        due = [w.until for w in self._by_task.values() if w.until is not None]
        if self._by_task:
            due.append(self._relieve_at)
        pause = max(0.0, min(due, default=float("inf")) - time.monotonic())
        return min(pause, _CARE_S) if self._orphans else pause

    def care(self) -> None:
        """Do what is due by the clock."""
        now = time.monotonic()
        for overdue in [w for w in self._by_task.values() if w.until is not None and now >= w.until]:
            assert overdue.task is not None
            if overdue.verdict is not None:
                overdue.until = None
                kill(overdue.pid)
            else:
                limit = f"killed after timeout_s={overdue.task.timeout_s:g} seconds"
                self.kill(overdue.task.task_id, Outcome.TIMEOUT, limit)
        if now >= self._relieve_at:
            self._relieve_at = now + _RELIEF_S
            for busy in self._by_task.values():
                busy.capture.relieve()
        if self._orphans:
            self._sweep()

    def reap(self) -> None:
        """Take note of workers that died. What they leave behind becomes this process's children and is killed too."""
        for pid in list(self._workers):
            # Looked at before it is waited for: until then its pid, and its process group, cannot be anyone else's.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                kill(pid)
                self._catch_up(self._workers[pid])
                _, status, used = os.wait4(pid, 0)
                self._bury(self._workers.pop(pid), status, usage.of_dead_worker(used))
        self._sweep()

    def _hear(self, sender: _Worker) -> None:
        if sender.pid not in self._workers:  # it was buried a moment ago
            return
        try:
            messages = sender.channel.messages()
        except EOFError:  # its death is reported by SIGCHLD
            self._ignore(sender)
            return
        for ended in messages:
            if type(ended) is not Ended or (sender.task and sender.task.task_id != ended.task_id):
                self._distrust(sender, complaint(ended))
                return
            if sender.task is None:
                continue
            if sender.verdict is not None:  # it ended just as it was to be killed, or because its ranks were
                kill(sender.pid)
                continue
            del self._by_task[sender.task.task_id]
            self._pace.note(time.monotonic() - sender.since)
            sender.task = None
            sender.until = None
            self._idle.append(sender)
            self._report(ended)

    def _catch_up(self, holder: _Worker) -> None:
        """Take back what a worker has not begun by itself, and hear of the ends after which it has begun the others."""
        while True:
            self._take_back_from(holder)
            last = holder.task
            if holder.ahead:
                self._hear(holder)  # it may be given others
            if holder.task is last:
                return

    def _ignore(self, sender: _Worker) -> None:
        try:
            self._selector.unregister(sender.channel)
        except KeyError:  # it is ignored already
            pass

    def _distrust(self, sender: _Worker, why: str) -> None:
        """End a worker that sent what is no message: its task, or one before, has written to the worker's socket."""
        self._ignore(sender)
        self._take_back_from(sender)
        if sender in self._idle:
            self._idle.remove(sender)
        if sender.task is not None and sender.verdict is None:
            error = f"the worker was killed, because it sent what its agent cannot read: {why}"
            sender.verdict = Ended(sender.task.task_id, Outcome.CRASH, error=error)
            sender.until = None
        kill(sender.pid)

    def _sweep(self) -> None:
        """End what dead workers left behind. Reports wait for it: the cores they free are not free before."""
        self._orphans = not sweep(spare=self._workers)
        if not self._orphans:
            for ended in self._held_back:
                self._report(ended)
            self._held_back.clear()

    def _bury(self, dead: _Worker, status: int, used: Usage) -> None:
        if dead in self._idle:
            self._idle.remove(dead)
        if dead.task is not None:
            if dead.task.ranks is not None:
                forbid(dead.task.ranks)
            code = os.waitstatus_to_exitcode(status)
            ended = dead.verdict or Ended(dead.task.task_id, Outcome.CRASH, error=_cause(code))
            self._held_back.append(
                ended._replace(
                    exit_code=code if code >= 0 and dead.verdict is None else None,
                    signal=-code if code < 0 and dead.verdict is None else None,
                    usage=used,
                    output=dead.capture.take(),
                    stderr_tail=tail_of_file(Path(dead.task.stderr)) if dead.task.stderr else None,
                )
            )
            del self._by_task[dead.task.task_id]
        for task_id in dead.ahead:  # it may have begun them: what it said of that cannot be read
            del self._ahead[task_id]
            self._held_back.append(Ended(task_id, Outcome.CRASH, error=_cause(os.waitstatus_to_exitcode(status))))
        dead.ahead.clear()
        self._ignore(dead)
        dead.channel.close()
        dead.capture.close()
        dead.tickets.close()

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        born = _Worker(0, Channel(ours), Capture())
        parent = os.getpid()
        born.pid = os.fork()
        if born.pid == 0:
            self._become_worker(theirs, born, parent)
        theirs.close()
        self._workers[born.pid] = born
        self._selector.register(born.channel, selectors.EVENT_READ, lambda: self._hear(born))
        return born

    def _become_worker(self, sock: socket.socket, born: _Worker, parent: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            die_with_parent(parent)
            inherit_orphans()
            os.dup2(born.capture.fileno(), 1)
            os.dup2(born.capture.fileno(), 2)
            # Other workers' sockets must not be held open here, or their ends would go unnoticed.
            for other in self._workers.values():
                other.channel.close()
                other.capture.close()
                other.tickets.close()
            for close in (*self._keep_out, born.channel.close):
                close()
            close_sockets(spare=sock.fileno())
            worker.serve(Channel(sock), born.capture, born.tickets, self.lease)
        except BaseException as error:
            sys.stderr.write(f"worker: {error!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)


def _send_start(receiver: _Worker, start: Start, body: bytes | None) -> None:
    needed = None if receiver.functions.use(start.function) else body
    try:
        receiver.channel.send(start if start.body is needed else start._replace(body=needed))
    except OSError:  # it died: SIGCHLD tells, and its task counts as crashed
        pass


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _cause(code: int) -> str:
    if code >= 0:
        return f"the worker process ended with exit code {code} in the middle of the task"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": out of memory, if nobody sent it" if -code == signal.SIGKILL else ""
    return f"the worker process was killed by {name}{hint}"
