"""One per node: starts its workers, watches them, and kills them with everything they started.

It holds no database connection, so that it can fork: a worker is ready in milliseconds, with Parsl already imported.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from parsl_balsam.launcher import usage, worker
from parsl_balsam.launcher.capture import Capture, tail_of_file
from parsl_balsam.launcher.channel import Channel, RecentlyUsed
from parsl_balsam.launcher.messages import Ended, Kill, Lease, Start
from parsl_balsam.launcher.processes import die_with_parent, inherit_orphans, kill, sweep, sweep_all
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

#: How often orphans that are slow to die, and long outputs, are looked after, seconds.
_CARE_S = 0.05
_RELIEF_S = 1.0


@dataclass(slots=True)
class _Worker:
    pid: int
    channel: Channel
    capture: Capture
    functions: RecentlyUsed = field(default_factory=RecentlyUsed)
    task: Start | None = None
    until: float | None = None  #: when its task is to be killed, on the monotonic clock
    verdict: Ended | None = None  #: what to report once it is dead, where the agent killed it


class Agent:
    """Runs tasks for a launcher at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._launcher = channel
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._by_task: dict[int, _Worker] = {}
        self._bodies = RecentlyUsed()
        self._held_back: list[Ended] = []  # reports of tasks whose processes are not all gone yet
        self._orphans = False
        self._lease_until = float("inf")
        self._relieve_at = time.monotonic() + _RELIEF_S
        self._alarm, self._alarm_writer = socket.socketpair()

    def run(self, warm: int) -> None:
        """Serve until the launcher is gone; then end all tasks and return."""
        self._alarm.setblocking(False)
        self._alarm_writer.setblocking(False)
        signal.set_wakeup_fd(self._alarm_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._launcher, selectors.EVENT_READ, self._hear_launcher)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._hear_alarm)
        for _ in range(warm):
            self._idle.append(self._fork())
        try:
            while True:
                for key, _ in self._selector.select(self._pause()):
                    key.data(key.fileobj)
                self._care()
                self._launcher.flush()
        except EOFError:
            self._end_everything()

    def _pause(self) -> float | None:
        now = time.monotonic()
        due = [self._lease_until, *(w.until for w in self._by_task.values() if w.until is not None)]
        if self._by_task:
            due.append(self._relieve_at)
        pause = max(0.0, min(due) - now)
        if self._orphans:
            pause = min(pause, _CARE_S)
        return None if pause == float("inf") else pause

    def _hear_alarm(self, alarm: socket.socket) -> None:
        try:
            alarm.recv(4096)
        except BlockingIOError:
            return
        self._reap()

    def _hear_launcher(self, channel: Channel) -> None:
        for message in channel.messages():
            if isinstance(message, Start):
                self._start(message)
            elif isinstance(message, Kill):
                self._kill(message.task_id, message.outcome, f"stopped: {message.outcome.value}")
            elif isinstance(message, Lease):
                self._lease_until = time.monotonic() + message.seconds

    def _hear_worker(self, sender: _Worker) -> None:
        try:
            messages = sender.channel.messages()
        except EOFError:  # its death is reported by SIGCHLD
            self._selector.unregister(sender.channel)
            return
        for ended in messages:
            if sender.task is None or sender.verdict is not None:
                continue  # it ended just as it was to be killed; the kill stands
            del self._by_task[sender.task.task_id]
            sender.task = None
            sender.until = None
            self._idle.append(sender)
            self._launcher.post(replace(ended, output=sender.capture.take()))

    def _start(self, start: Start) -> None:
        if not self._bodies.use(start.function):
            self._bodies[start.function] = start.body
        chosen = self._idle.pop() if self._idle else self._fork()
        known = chosen.functions.use(start.function)
        chosen.task = start
        chosen.until = None if start.timeout_s is None else time.monotonic() + start.timeout_s
        self._by_task[start.task_id] = chosen
        try:
            chosen.channel.send(replace(start, body=None if known else self._bodies[start.function]))
        except OSError:  # it died while idle: SIGCHLD tells, and the task counts as crashed
            pass

    def _kill(self, task_id: int, outcome: Outcome, error: str) -> None:
        victim = self._by_task.get(task_id)
        if victim is None or victim.verdict is not None:
            return
        victim.verdict = Ended(task_id, outcome, error=error)
        victim.until = None
        kill(victim.pid)

    def _care(self) -> None:
        """Do what is due by the clock."""
        now = time.monotonic()
        if now >= self._lease_until:
            # The launcher was not heard of: it may be frozen or cut off, and these tasks will be given to others.
            self._end_everything()
        for overdue in [w for w in self._by_task.values() if w.until is not None and now >= w.until]:
            assert overdue.task is not None
            self._kill(
                overdue.task.task_id, Outcome.TIMEOUT, f"killed after timeout_s={overdue.task.timeout_s:g} seconds"
            )
        if now >= self._relieve_at:
            self._relieve_at = now + _RELIEF_S
            for busy in self._by_task.values():
                busy.capture.relieve()
        if self._orphans:
            self._sweep()

    def _reap(self) -> None:
        """Take note of workers that died. What they leave behind becomes this process's children and is killed too."""
        for pid in list(self._workers):
            # Looked at before it is waited for: until then its pid, and its process group, cannot be anyone else's.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                kill(pid)
                _, status, used = os.wait4(pid, 0)
                self._bury(self._workers.pop(pid), status, usage.of_dead_worker(used))
        self._sweep()

    def _sweep(self) -> None:
        """End what dead workers left behind. Reports wait for it: the cores they free are not free before."""
        self._orphans = not sweep(spare=self._workers)
        if not self._orphans:
            for ended in self._held_back:
                self._launcher.post(ended)
            self._held_back.clear()

    def _bury(self, dead: _Worker, status: int, used: Usage) -> None:
        if dead in self._idle:
            self._idle.remove(dead)
        if dead.task is not None:
            code = os.waitstatus_to_exitcode(status)
            ended = dead.verdict or Ended(dead.task.task_id, Outcome.CRASH, error=_cause(code))
            self._held_back.append(
                replace(
                    ended,
                    exit_code=code if code >= 0 and dead.verdict is None else None,
                    signal=-code if code < 0 and dead.verdict is None else None,
                    usage=used,
                    output=dead.capture.take(),
                    stderr_tail=tail_of_file(Path(dead.task.stderr)) if dead.task.stderr else None,
                )
            )
            del self._by_task[dead.task.task_id]
        try:
            self._selector.unregister(dead.channel)
        except KeyError:
            pass
        dead.channel.close()
        dead.capture.close()

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        capture = Capture()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(theirs, capture, parent)
        theirs.close()
        born = _Worker(pid, Channel(ours), capture)
        self._workers[pid] = born
        self._selector.register(born.channel, selectors.EVENT_READ, lambda _: self._hear_worker(born))
        return born

    def _become_worker(self, sock: socket.socket, capture: Capture, parent: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            die_with_parent(parent)
            inherit_orphans()
            os.dup2(capture.fileno(), 1)
            os.dup2(capture.fileno(), 2)
            # Other workers' sockets must not be held open here, or their ends would go unnoticed.
            for other in self._workers.values():
                other.channel.close()
                other.capture.close()
            for mine in (self._launcher, self._alarm, self._alarm_writer, self._selector, capture):
                mine.close()
            worker.serve(Channel(sock))
        except BaseException as error:
            sys.stderr.write(f"worker: {error!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _end_everything(self) -> NoReturn:
        sweep_all()
        os._exit(0)


def _cause(code: int) -> str:
    if code >= 0:
        return f"the worker process ended with exit code {code} in the middle of the task"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": out of memory, if nobody sent it" if -code == signal.SIGKILL else ""
    return f"the worker process was killed by {name}{hint}"


def main() -> None:
    """Run an agent on an inherited socket: ``python -m parsl_balsam.launcher.agent DESCRIPTOR WORKERS [PATH...]``."""
    descriptor, warm, *path = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher decides; it tells by closing the channel
    _leave_a_guard(int(descriptor))
    inherit_orphans()
    # In the script's order: a module beside it may have the name of one that is found elsewhere, too.
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    _import_early()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    Agent(Channel(socket.socket(fileno=int(descriptor)))).run(int(warm))


def _leave_a_guard(descriptor: int) -> None:
    """Go on as a child of a process that does nothing but outlive it, and end what it leaves behind.

    The agent ends its tasks when its launcher dies. Killed together with it, it cannot: the kernel then ends its
    workers, and the programs that these had started come to the guard.
    """
    guard = os.getpid()
    inherit_orphans()
    agent = os.fork()
    if agent == 0:
        die_with_parent(guard)
        return
    os.close(descriptor)  # the launcher must see the agent's end of the channel close
    os.waitpid(agent, 0)
    sweep_all()
    os._exit(0)


def _import_early() -> None:
    """Import what every worker needs, once for all of them."""
    import cloudpickle
    import dill
    import parsl.app.bash
    import parsl.app.python
    import parsl.serialize

    imported: list[Any] = [cloudpickle, dill, parsl.app.bash, parsl.app.python, parsl.serialize]
    assert all(imported)


if __name__ == "__main__":
    main()
