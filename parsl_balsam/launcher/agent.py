"""One per node: runs tasks for the launcher, and ends them when the launcher is gone.

It holds no database connection, so that it can fork: a worker is ready in milliseconds, with Parsl already imported.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from parsl_balsam.launcher.channel import Channel, complaint, wait_for_room
from parsl_balsam.launcher.guard import leave_a_guard
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.lanes import Lanes
from parsl_balsam.launcher.messages import (
    LEASE_SHARE,
    MARK,
    Beat,
    Clean,
    Cleaned,
    Ended,
    Farewell,
    Hello,
    Kill,
    Lease,
    Recall,
    Returned,
    Start,
)
from parsl_balsam.launcher.mpi import rank_of_environment
from parsl_balsam.launcher.node import this_node
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.processes import inherit_orphans, kill, marked, sweep_all
from parsl_balsam.launcher.workers import Workers
from parsl_balsam.model.errors import AllocationError, BadMessage
from parsl_balsam.model.states import Outcome

if TYPE_CHECKING:
    from parsl_balsam.launcher.curve import Line

#: How long the end of a task that looks as if someone had sent SIGTERM is held back, seconds. When a batch job is
#: cancelled, all its processes are sent that signal: the agent's own may come a moment after a task's.
_TERM_S = 0.3

#: How often the processes of a task that do not die are looked for, seconds.
_CLEAN_S = 0.05

#: So many agents end the batch job when the launcher's node is dead: thousands would be too many for Slurm.
_GIVE_UP_AGENTS = 3
_GIVE_UP_S = 30.0

#: How long ranks that do not die are looked for when the launcher is gone, seconds.
_END_RANKS_S = 1.0

#: How often an agent asks in the time of a lease.
_BEATS = 10


class Agent:
    """Runs tasks for a launcher at the other end of a line.

    Parameters
    ----------
    pulse
        A descriptor that its guard reads: it is written to with every beat.
    mark
        How the marks of all parallel tasks of the block start.
    give_up
        The command that ends the batch job when the launcher is gone without a word.
    """

    def __init__(
        self, line: Channel | Line, lease_s: float, pulse: int, mark: str = "", give_up: Sequence[str] = ()
    ) -> None:
        self._line = line
        self._pulse = pulse
        self._mark = mark
        self._give_up = give_up
        self._lease_s = lease_s
        self._selector = selectors.DefaultSelector()
        self._alarm, self._alarm_writer = socket.socketpair()
        keep_out: list[Callable[[], object]] = [self._alarm.close, self._alarm_writer.close, self._selector.close]
        keep_out.append(lambda: os.close(pulse))
        if isinstance(line, Channel):
            keep_out.append(line.close)
        # The other kind must not be touched after a fork: the thread that serves it is not there.
        self._workers = Workers(self._selector, self._report, keep_out)
        self._lanes: Lanes[tuple[Start, bytes | None]] = Lanes()
        self._held: dict[int, tuple[Start, bytes | None]] = {}  # that came when the lease was over
        self._terminated = False  # the batch job is being ended
        self._dismissed = False
        self._expired = False  # the lease is over, and all tasks were told to end
        self._doubtful: list[tuple[float, Ended]] = []
        self._cleaning: dict[int, str] = {}
        self._clean_at = float("inf")
        self._beat_at = 0.0
        self._lease_until = 0.0
        self._unanswered = 0  # beats since the launcher was last heard

    def run(self, node: Node) -> NoReturn:
        """Serve until the launcher is gone; then end all tasks, and this process."""
        self._alarm.setblocking(False)
        self._alarm_writer.setblocking(False)
        signal.set_wakeup_fd(self._alarm_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate)
        self._selector.register(self._line, selectors.EVENT_READ, self._hear_launcher)
        if not isinstance(self._line, Channel):
            self._selector.register(self._line.alarm(), selectors.EVENT_READ, self._hear_launcher)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._hear_alarm)
        _import_early()
        self._extend(time.monotonic() + self._lease_s * LEASE_SHARE)
        self._line.post(Hello(node))
        code = 0
        try:
            self._line.flush()
            self._workers.warm(len(node.cores))
            while True:
                self._care()
                wait_for_room(self._selector, self._line, not self._line.flush())
                if rest := self._workers.rest():
                    time.sleep(rest)  # to be woken up for each end takes longer than all else that is to be done for it
                pause = self._pause()
                if self._line.pending():
                    pause = 0.0
                for key, _ in self._selector.select(pause):
                    key.data()
                if self._line.pending():
                    self._hear_launcher()
        except EOFError:
            pass
        except BadMessage as error:  # the launcher lives, and is told by the code
            sys.stderr.write(f"agent of {node.name}: its launcher sent what cannot be read: {error}\n")
            code, self._dismissed = 1, True
        self._workers.forbid_ranks()
        sweep_all()
        self._end_ranks()
        os.close(self._pulse)  # its tasks are gone, so it may take its time
        if not self._dismissed and self._give_up and 0 < node.index <= _GIVE_UP_AGENTS:
            subprocess.run(self._give_up, stdin=subprocess.DEVNULL, timeout=_GIVE_UP_S, check=False)
        os._exit(code)

    def _extend(self, until: float) -> None:
        self._lease_until = until
        self._workers.lease.extend(until)

    def _pause(self) -> float:
        now = time.monotonic()
        due = min(self._beat_at, self._clean_at, float("inf") if self._expired else self._lease_until)
        if self._doubtful:
            due = min(due, self._doubtful[0][0])
        return min(max(0.0, due - now), self._workers.pause())

    def _terminate(self, *_: object) -> None:
        """Go on until the launcher says otherwise, but put down to the block what ends badly from now on."""
        self._terminated = True

    def _report(self, ended: Ended) -> None:
        """Tell the launcher of an end, and begin what was sent ahead for the cores that are free now."""
        self._tell(ended)
        if (following := self._lanes.end(ended.task_id)) is not None:
            self._begin(*following)

    def _tell(self, ended: Ended) -> None:
        if ended.outcome is not Outcome.DONE and self._terminated:
            ended = ended._replace(outcome=Outcome.ENDED, payload=None, error="stopped: the batch job is being ended")
        elif ended.outcome in (Outcome.CRASH, Outcome.EXIT) and _looks_terminated(ended):
            self._doubtful.append((time.monotonic() + _TERM_S, ended))
            return
        self._line.post(ended)

    def _hear_alarm(self) -> None:
        try:
            self._alarm.recv(4096)
        except BlockingIOError:
            return
        self._workers.reap()

    def _hear_launcher(self) -> None:
        for message in self._line.messages():
            self._unanswered = 0
            if isinstance(message, Start):
                self._start(message)
            elif isinstance(message, Kill):
                self._kill(message)
            elif isinstance(message, Recall):
                if self._lanes.waits(message.task_id) and self._workers.take_back(message.task_id):
                    self._lanes.end(message.task_id)
                    self._line.post(Returned(message.task_id))
            elif isinstance(message, Clean):
                self._cleaning[message.task_id] = message.mark
                self._clean_at = 0.0
            elif isinstance(message, Lease):
                self._extend(message.beat_at + message.seconds)
                self._expired = self._expired and time.monotonic() >= self._lease_until
                self._begin_held()
            elif isinstance(message, Farewell):
                self._dismissed = True
                raise EOFError
            else:
                raise BadMessage(complaint(message))

    def _start(self, start: Start) -> None:
        body = self._workers.learn(start)
        first = self._lanes.first(start.cores)
        if start.behind and first is not None:
            self._lanes.line_up(start.cores, start.task_id, (start, body))
            self._workers.hand_over(first, self._lanes.behind(first))
        else:
            self._lanes.begin(start.cores, start.task_id)
            self._begin(start, body)

    def _begin(self, start: Start, body: bytes | None) -> None:
        over = time.monotonic() >= self._lease_until
        if over and self._workers.take_back(start.task_id):
            # It was on its way while nothing was heard of the launcher: no lease follows if that gave this node up.
            self._held[start.task_id] = (start, body)
            return
        self._workers.start(start, body)
        if over:  # its worker has begun it by itself
            self._expired = False  # all that run are told to end, once more
        else:
            self._workers.hand_over(start.task_id, self._lanes.behind(start.task_id))

    def _begin_held(self) -> None:
        held, self._held = self._held, {}
        for start, body in held.values():
            self._begin(start, body)

    def _kill(self, order: Kill) -> None:
        waits = self._lanes.waits(order.task_id) and self._workers.take_back(order.task_id)
        if self._held.pop(order.task_id, None) or waits:
            self._report(Ended(order.task_id, order.outcome, error=order.why))
        else:
            self._workers.kill(order.task_id, order.outcome, order.why)

    def _care(self) -> None:
        """Do what is due by the clock."""
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + self._lease_s / _BEATS
            self._line.post(Beat(now))
            os.write(self._pulse, b".")
            self._unanswered += 1
        if now >= self._lease_until:
            # The launcher was not heard of: it may be frozen or cut off, and these tasks will be given to others.
            if not self._expired:
                self._expired = True
                for task_id in self._workers.running():
                    why = "stopped: nothing was heard of the launcher for its lease"
                    self._workers.kill(task_id, Outcome.ENDED, why, gently=False)
                self._end_ranks()
            # Not by the clock: an agent that was frozen itself has heard nothing, either, and must ask first.
            if self._unanswered > 2 * _BEATS:
                raise EOFError
        if now >= self._clean_at:
            self._clean()
        if self._doubtful and (self._terminated or now >= self._doubtful[0][0]):
            _, ended = self._doubtful.pop(0)
            if self._terminated:
                self._report(ended)
            else:
                self._line.post(ended)
        self._workers.care()

    def _end_ranks(self) -> None:
        """Kill the ranks on this node, also of tasks that other agents have started: those cannot reach them."""
        until = time.monotonic() + _END_RANKS_S
        while self._mark and (left := marked(MARK, self._mark, start=True)) and time.monotonic() < until:
            for pid in left:
                kill(pid)

    def _clean(self) -> None:
        """Kill what is left of parallel tasks on this node."""
        self._clean_at = time.monotonic() + _CLEAN_S
        for task_id, mark in list(self._cleaning.items()):
            left = marked(MARK, mark)
            for pid in left:
                kill(pid)
            if not left:
                del self._cleaning[task_id]
                self._line.post(Cleaned(task_id))
        if not self._cleaning:
            self._clean_at = float("inf")


def _looks_terminated(ended: Ended) -> bool:
    return ended.signal == signal.SIGTERM or ended.exit_code == 128 + signal.SIGTERM


def main() -> None:
    """Run an agent: ``python -m parsl_balsam.launcher.agent INVITATION [--descriptor FD --name NAME ...]``.

    One on the launcher's own host is told its name, and is connected by a socket that it inherits.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("invitation", type=Path)
    parser.add_argument("--descriptor", type=int)
    parser.add_argument("--name")
    parser.add_argument("--host")
    parser.add_argument("--index", type=int)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher decides; it tells by closing the line
    invitation = Invitation.read(arguments.invitation)
    if arguments.descriptor is None:
        name = host = _own_name(invitation)
        index = invitation.hosts.index(name)
    else:
        name, host, index = arguments.name, arguments.host, arguments.index
    pulse = leave_a_guard(invitation, name, arguments.descriptor)
    inherit_orphans()
    _take_environment(invitation)
    # In the script's order: a module beside it may have the name of one that is found elsewhere, too.
    path = invitation.python_path
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    line: Channel | Line
    if arguments.descriptor is None:
        from parsl_balsam.launcher.curve import connect  # not before: agents on the launcher's host do without it

        line = connect(invitation, name.encode())
    else:
        line = Channel(socket.socket(fileno=arguments.descriptor))
    Agent(line, invitation.lease_s, pulse, invitation.mark, invitation.give_up).run(
        this_node(name, host, invitation.cores_per_node, invitation.gpus_per_node, index)
    )


def _own_name(invitation: Invitation) -> str:
    """Return which of the block's nodes this is."""
    hosts = invitation.hosts
    for name in (os.environ.get("SLURMD_NODENAME"), socket.gethostname(), socket.gethostname().partition(".")[0]):
        for host in hosts:
            if name in (host, host.partition(".")[0]):
                return host
    rank = rank_of_environment(os.environ)
    if rank is None or rank >= len(hosts):
        raise AllocationError(
            f"the agent on {socket.gethostname()} cannot tell which node this is of {', '.join(hosts)}"
        )
    return hosts[rank]


def _take_environment(invitation: Invitation) -> None:
    """Put the batch job's environment in place of that which the parallel launcher made for this process.

    MPI launchers that a task starts would take the latter for orders: ranks, layout and binding of the agents.
    """
    if invitation.environ is None:
        return
    of_node = {name: os.environ[name] for name in ("HOSTNAME", "SLURMD_NODENAME", "TMPDIR") if name in os.environ}
    os.environ.clear()
    os.environ.update(invitation.environ)
    os.environ.update(of_node)


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
