"""The event loop of a block: claim, place, start, collect, record, drain."""

from __future__ import annotations

import logging
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parsl_balsam.db.blocks import close_block, open_block
from parsl_balsam.db.connect import Database
from parsl_balsam.db.wakeup import Bell
from parsl_balsam.launcher.channel import Channel, RecentlyUsed
from parsl_balsam.launcher.ledger import Answer, Ledger, Request
from parsl_balsam.launcher.messages import Ended, Kill, Lease, Start
from parsl_balsam.launcher.placement import Node, Space, Waiting, place
from parsl_balsam.launcher.processes import inherit_orphans, sweep_all
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.launch import LaunchOrder
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, AttemptStart, ClaimedTask

logger = logging.getLogger(__name__)

#: A start is recorded alone only if its end has not come within this time, seconds: short tasks cost one write less.
_START_PATIENCE_S = 0.005

#: Tasks are claimed ahead for so much time, at the present rate of ends, seconds; and never more than so many.
_AHEAD_S = 0.1
_AHEAD_MOST = 1000
_RATE_WINDOW_S = 0.2

#: How soon after a change in the database a launcher that needs nothing looks at it, seconds.
_HEAR_S = 0.1

#: While tasks that were claimed ahead keep the node busy, the database is left alone after an exchange for so many
#: times as long as that took. Ends are then recorded more at a time, which costs less for each.
_QUIET = 2.0

#: How soon to try again when the agent does not keep up with reading, seconds.
_CONGESTED_S = 0.002

#: How long tasks that were told to end may take on SIGTERM, seconds.
_DRAIN_S = 5.0


@dataclass(slots=True)
class _Claimed:
    task: ClaimedTask
    body: bytes
    waiting: Waiting


@dataclass(slots=True)
class _Running:
    task: ClaimedTask
    cores: tuple[int, ...]
    since: float  #: on the monotonic clock
    recorded: bool = False


class Launcher:
    """Runs the tasks of a workflow on one node until there is no more work, or it is told to end."""

    def __init__(self, order: LaunchOrder, database: Database, block_id: int, node: Node) -> None:
        self._order = order
        self._database = database
        self._block_id = block_id
        self._node = node
        self._host = platform.node()
        self._space = Space(node)
        self._waiting: dict[int, _Claimed] = {}
        self._running: dict[int, _Running] = {}
        self._ends: list[AttemptEnd] = []
        self._sent = RecentlyUsed()
        self._bell = Bell()
        self._ledger = Ledger(database, order.workflow_id, block_id, order.lease_s, self._bell)
        self._asking = False
        self._wanted = 0  # in the exchange under way
        self._more = True  # whether the database may have ready tasks
        self._look_at: float | None = None  # when a task's backoff is over
        self._renew_at = 0.0
        self._quiet_until = 0.0
        self._refused_at = 0.0
        self._idle_since = time.monotonic()
        self._superseded = False
        self._rate = 0.0  # ends a second, lately
        self._rate_since = time.monotonic()
        self._rate_count = 0
        self._selector = selectors.DefaultSelector()
        self._stop_reason: str | None = None
        self._agent: Channel
        self._agent_process: subprocess.Popen[bytes]

    def run(self) -> None:
        """Serve until the block is over.

        Raises
        ------
        LeaseLost
            If the launcher was not heard of for a lease. Its tasks have been killed.
        """
        # From the moment the block is open it must be closed, whatever signal comes.
        self._watch_signals()
        open_block(self._database, self._block_id, self._host, os.getpid())
        inherit_orphans()
        self._start_agent()
        self._selector.register(self._bell, selectors.EVENT_READ, lambda: self._bell.silence())
        self._ledger.start()
        try:
            while not self._over():
                self._act()
                self._turn(self._pause())
            self._drain()
        finally:
            self._end_agent()
        if self._ledger.lost:
            raise self._ledger.lost
        if self._ledger.failure:
            raise self._ledger.failure
        close_block(self._database, self._block_id, self._stop_reason or "ended")

    def stop(self, reason: str) -> None:
        """End the block: what runs is stopped and becomes ready again."""
        self._stop_reason = self._stop_reason or reason

    def _turn(self, pause: float) -> None:
        """Send what is to be sent, and handle what comes within a time, in seconds."""
        try:
            if not self._agent.flush():
                pause = min(pause, _CONGESTED_S)
        except EOFError:
            self._agent_lost()
        for key, _ in self._selector.select(pause):
            key.data()

    def _over(self) -> bool:
        if self._ledger.lost or self._ledger.failure:
            return True
        if self._stop_reason is None and not self._asking and not self._holds_tasks():
            if self._superseded:
                self._stop_reason = "a later run drives the workflow"
            elif time.monotonic() - self._idle_since >= self._order.idle_timeout_s:
                self._stop_reason = f"no work for {self._order.idle_timeout_s:g} s"
        return self._stop_reason is not None

    def _holds_tasks(self) -> bool:
        return bool(self._waiting or self._running or self._ends)

    def _act(self) -> None:
        """React to whatever has changed."""
        now = time.monotonic()
        if self._asking and (answer := self._ledger.answer()):
            self._asking = False
            self._take(answer)
        if self._ledger.changed:
            self._ledger.changed = False
            self._more = True
            # It may be a wish to cancel something, and a launcher that has no room for more would not ask.
            self._renew_at = min(self._renew_at, now + _HEAR_S)
        if self._ledger.refused_at > self._refused_at:
            # Nobody can take these tasks away while the server is down, nor for a lease after it is back.
            self._refused_at = self._ledger.refused_at
            self._agent.post(Lease(self._order.lease_s * 0.9))
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._more = True
        self._place(now)
        if not self._asking:
            self._exchange(now)
        if self._holds_tasks():
            self._idle_since = now

    def _pause(self) -> float:
        """Return how long to sleep if nothing happens, seconds."""
        now = time.monotonic()
        due = [now + self._order.lease_s]
        if not self._asking:
            due += [self._renew_at, self._idle_since + self._order.idle_timeout_s]
            if self._look_at is not None:
                due.append(self._look_at)
            unrecorded = [r.since for r in self._running.values() if not r.recorded]
            if unrecorded:
                due.append(max(min(unrecorded) + _START_PATIENCE_S, self._quiet_until if self._waiting else 0.0))
            if self._ends and self._waiting:
                due.append(self._quiet_until)
        return max(0.0, min(due) - now)

    def _place(self, now: float) -> None:
        if not self._waiting or not self._space.free_cores:
            return
        for placed, cores in place(self._space, [claimed.waiting for claimed in self._waiting.values()], now):
            claimed = self._waiting.pop(placed.task_id)
            task = claimed.task
            self._running[task.task_id] = _Running(task, cores, now)
            self._agent.post(
                Start(
                    task.task_id,
                    task.number,
                    cores,
                    self._node.pin,
                    task.function,
                    None if self._sent.use(task.function) else claimed.body,
                    task.payload,
                    task.spec.timeout_s,
                    task.stderr,
                )
            )

    def _exchange(self, now: float) -> None:
        """Tell the database what happened and ask for more, if there is reason to."""
        late = [r for r in self._running.values() if not r.recorded and now - r.since >= _START_PATIENCE_S]
        renewing = now >= self._renew_at
        if self._waiting and now < self._quiet_until and not renewing:
            return
        want = self._capacity() if self._more or renewing else 0
        if not (self._ends or late or want or renewing):
            return
        starts = [
            AttemptStart(r.task.task_id, r.task.number, r.task.token, self._host, r.cores, now - r.since)
            for r in self._running.values()
            if not r.recorded
        ]
        for running in self._running.values():
            running.recorded = True
        ends, self._ends = self._ends, []
        self._asking = True
        self._wanted = want
        self._ledger.ask(Request(starts, ends, want, self._known(ends)))

    def _known(self, ends: Iterable[AttemptEnd]) -> frozenset[int]:
        """Return all tasks whose claim has been heard of."""
        return frozenset({*self._waiting, *self._running, *(end.task_id for end in ends)})

    def _capacity(self) -> int:
        """Return how many tasks to claim: what the node has room for, and some ahead where they are short."""
        ahead = min(int(self._recent_rate(time.monotonic()) * _AHEAD_S), _AHEAD_MOST)
        return max(0, self._space.free_cores + ahead - len(self._waiting))

    def _take(self, answer: Answer) -> None:
        now = time.monotonic()
        exchange = answer.exchange
        self._superseded = exchange.superseded
        self._renew_at = answer.renewed_at + self._order.lease_s / 5
        self._quiet_until = now + (now - answer.renewed_at) * _QUIET
        self._agent.post(Lease(max(0.0, answer.renewed_at + self._order.lease_s * 0.9 - now)))
        if exchange.next_ready_s is not None:
            self._look_at = now + exchange.next_ready_s
        if self._wanted and len(exchange.claimed) < self._wanted:
            self._more = False
        for task in exchange.claimed:
            if reason := self._space.impossible(task.spec):
                self._refuse(task, reason)
            else:
                waiting = Waiting(task.task_id, task.spec, now)
                self._waiting[task.task_id] = _Claimed(task, answer.bodies[task.function], waiting)
        for task_id in exchange.cancelled:
            self._cancel(task_id)

    def _refuse(self, task: ClaimedTask, reason: str) -> None:
        self._ends.append(
            AttemptEnd(
                task.task_id,
                task.number,
                task.token,
                Outcome.ERROR,
                host=self._host,
                error=f"no node of this block could run the task: {reason}",
                hopeless=True,
            )
        )

    def _cancel(self, task_id: int) -> None:
        if task_id in self._running:
            self._agent.post(Kill(task_id, Outcome.CANCELLED))
        elif task_id in self._waiting:
            task = self._waiting.pop(task_id).task
            self._ends.append(AttemptEnd(task_id, task.number, task.token, Outcome.CANCELLED, host=self._host))

    def _hear_agent(self) -> None:
        try:
            for ended in self._agent.messages():
                self._collect(ended)
        except EOFError:
            self._agent_lost()

    def _collect(self, ended: Ended) -> None:
        running = self._running.pop(ended.task_id, None)
        if running is None:
            return
        now = time.monotonic()
        self._space.give_back(ended.task_id)
        self._ends.append(
            AttemptEnd(
                running.task.task_id,
                running.task.number,
                running.task.token,
                ended.outcome,
                host=self._host,
                cores=running.cores,
                started_ago_s=now - running.since,
                payload=ended.payload,
                exit_code=ended.exit_code,
                signal=ended.signal,
                usage=ended.usage,
                error=ended.error,
                output=ended.output,
                stderr_tail=ended.stderr_tail,
            )
        )
        self._rate_count += 1
        self._recent_rate(now)

    def _recent_rate(self, now: float) -> float:
        """Return how many tasks ended in a second, lately."""
        if (elapsed := now - self._rate_since) > _RATE_WINDOW_S:
            self._rate = self._rate_count / elapsed
            self._rate_count, self._rate_since = 0, now
        return self._rate

    def _start_agent(self) -> None:
        ours, theirs = socket.socketpair()
        self._agent_process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "parsl_balsam.launcher.agent",
                str(theirs.fileno()),
                str(len(self._node.cores)),
                *self._order.python_path,
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the block's process group is for the launcher to handle
        )
        theirs.close()
        self._agent = Channel(ours)
        self._sent = RecentlyUsed()
        self._selector.register(self._agent, selectors.EVENT_READ, self._hear_agent)

    def _agent_lost(self) -> None:
        """Take the death of the agent for that of all its tasks, and go on with a new one."""
        self._end_agent()
        logger.error("the agent died; its tasks count as crashed")
        for task_id in list(self._running):
            self._collect(Ended(task_id, Outcome.CRASH, error="the agent of the node died"))
        self._start_agent()

    def _end_agent(self) -> None:
        """End the agent. What it or its workers may leave behind becomes this process's children."""
        self._selector.unregister(self._agent)
        self._agent.close()
        try:
            self._agent_process.wait(_DRAIN_S)
        except subprocess.TimeoutExpired:
            self._agent_process.kill()
            self._agent_process.wait()
        sweep_all()

    def _watch_signals(self) -> None:
        waker, sleeper = socket.socketpair()
        waker.setblocking(False)
        sleeper.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self.stop(f"received {signal.Signals(received).name}"))
        self._selector.register(sleeper, selectors.EVENT_READ, lambda: sleeper.recv(4096))
        self._signal_sockets = (waker, sleeper)

    def _drain(self) -> None:
        """Stop what runs and record it, so that others can go on at once."""
        until = time.monotonic() + _DRAIN_S
        for task_id in self._running:
            self._agent.post(Kill(task_id, Outcome.ENDED))
        self._wait_for(lambda: not self._running, until)
        if self._ledger.lost or self._ledger.failure:
            return
        self._wait_for(lambda: not self._asking, until)
        if not self._asking:
            self._ledger.ask(Request(ends=self._ends, known=self._known(self._ends)))
        self._ledger.close()

    def _wait_for(self, condition: Callable[[], bool], until: float) -> None:
        while not condition() and (rest := until - time.monotonic()) > 0:
            if self._ledger.lost or self._ledger.failure:
                return
            if self._asking and (answer := self._ledger.answer()):
                self._asking = False
                self._take(answer)
            self._turn(min(rest, 0.1))


def run_block(order: LaunchOrder, database: Database, block_id: int, node: Node) -> None:
    """Run a block from its first claim to its end."""
    try:
        Launcher(order, database, block_id, node).run()
    except DatabaseUnavailable:
        logger.exception("block %d could not say goodbye; its tasks are given to others after its lease", block_id)
        raise
