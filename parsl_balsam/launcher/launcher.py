"""The event loop of a block: claim, place, start, collect, record, drain."""

from __future__ import annotations

import logging
import os
import platform
import selectors
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from parsl_balsam.db.blocks import close_block, open_block
from parsl_balsam.db.connect import Database
from parsl_balsam.db.lifeline import Lifeline
from parsl_balsam.db.outage import until_it_answers
from parsl_balsam.db.wakeup import Bell
from parsl_balsam.launcher import signals
from parsl_balsam.launcher.agents import LocalAgents
from parsl_balsam.launcher.attempts import Attempts, Running
from parsl_balsam.launcher.block import BlockParts
from parsl_balsam.launcher.demand import Demand
from parsl_balsam.launcher.dispatch import Dispatch
from parsl_balsam.launcher.ledger import Answer, Ledger, Request
from parsl_balsam.launcher.messages import LEASE_SHARE, Hello
from parsl_balsam.launcher.outbox import Outbox
from parsl_balsam.launcher.placement import Queue
from parsl_balsam.launcher.processes import inherit_orphans
from parsl_balsam.launcher.rank_files import forget_forbidden
from parsl_balsam.launcher.space import Space
from parsl_balsam.launcher.tenure import Tenure
from parsl_balsam.launcher.term import Term
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.launch import JobMode, LaunchOrder
from parsl_balsam.model.signing import Signer
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, BlockShape, ClaimedTask, Release, Wish

logger = logging.getLogger(__name__)

#: A start is recorded alone only if its end has not come within this time, seconds: short tasks cost one write less.
_START_PATIENCE_S = 0.005

#: How soon after a change in the database a launcher that needs nothing looks at it, seconds.
_HEAR_S = 0.1

#: While tasks that were claimed ahead keep the nodes busy, the database is left alone after an exchange for so many
#: times as long as that took, and for a time at least, seconds. Ends are then recorded more at a time, which costs less
#: for each.
_QUIET = 2.0
_QUIET_S = 0.02

#: How long tasks that were told to end may take, seconds.
_DRAIN_S = 5.0

#: If the database does not answer so soon at the end, what was not recorded is written to disk, seconds.
_ANSWER_S = 1.0

#: How long nodes that are there wait for the others, so that the largest tasks find their nodes, seconds.
_GATHER_S = 10.0

#: A block that can run nothing of what is ready ends after this time, seconds.
_UNSERVED_S = 5.0


class Launcher:
    """Runs the tasks of a workflow on the nodes of a block until there is no more work, or it is told to end."""

    def __init__(self, order: LaunchOrder, database: Database, block_id: int, parts: BlockParts) -> None:
        self._order = order
        self._database = database
        self._block_id = block_id
        self._agents = parts.agents
        self._term = Term(parts.ends_at, parts.ask_end)
        self._space = Space(whole_nodes=order.job_mode is JobMode.MPI)
        for node in parts.nodes:
            self._space.add(node)
        self._nodes_have_agents = parts.home is None
        queue = Queue(self._space)
        self._attempts = Attempts(self._agents, self._space, parts.site, parts.home)
        self._waiting = Dispatch(self._space, queue, self._attempts)
        self._demand = Demand(self._space, queue, parallel=order.job_mode is not JobMode.SERIAL)
        self._signer = Signer(bytes.fromhex(order.key))
        self._ends = Outbox(order.directory, block_id)
        self._releases: list[Release] = []
        self._lost_nodes: list[str] = []
        self._shape_changed = bool(parts.nodes)
        self._began = time.monotonic()
        self._epoch = 0.0  # of the monotonic clock, on the database's: the first exchange, before any task, tells it
        self._bell = Bell()
        self._ledger = Ledger(database, order.workflow_id, block_id, order.lease_s, self._bell, self._signer)
        self._asking = False
        self._look_at: float | None = None  # when a task's backoff is over
        self._renew_at = 0.0
        self._quiet_until = 0.0
        beside = Lifeline(order.directory, block_id) if database.is_sqlite else None
        self._tenure = Tenure(self._agents, order.lease_s, beside)
        self._idle_since = time.monotonic()
        self._superseded = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until the block is over.

        Raises
        ------
        LeaseLost
            If the launcher was not heard of for a lease. Its tasks have been killed.
        """
        # From the moment the block is open it must be closed, whatever signal comes.
        self._signal_sockets = signals.watch(self._selector, self._term.note_signal)
        inherit_orphans()
        try:
            until_it_answers(self._open, self._order.idle_timeout_s, logger, lambda: self._term.signalled)
            self._agents.open(self._selector)
            self._selector.register(self._bell, selectors.EVENT_READ, self._bell.silence)
            self._ledger.start()
            self._idle_since = time.monotonic()  # to open the block may have taken long
            while not self._over():
                self._act()
                self._turn(self._pause())
            self._drain()
        finally:
            self._agents.end()
        if self._ledger.lost:
            self._ends.acknowledge()  # nobody wants them any more
            raise self._ledger.lost
        if self._ledger.failure:
            raise self._ledger.failure
        why = self._term.over or "ended"
        try:
            close_block(self._database, self._block_id, why)
        except DatabaseUnavailable:
            self._ends.bequeath(why)
            raise
        logger.info("block %d has ended: %s", self._block_id, why)

    def _open(self) -> None:
        open_block(self._database, self._block_id, platform.node(), os.getpid(), self._order.directory)
        self._tenure.open()

    def stop(self, reason: str) -> None:
        """End the block: what runs is stopped and becomes ready again."""
        self._term.stop(reason)

    def _turn(self, pause: float) -> None:
        """Send what is to be sent, and handle what comes within a time, in seconds."""
        self._agents.flush()
        if rest := self._waiting.rest():
            time.sleep(rest)  # to be woken up for each end takes longer than all else that is to be done for it
        standing = self._stand_by()
        for key, _ in self._selector.select(0.0 if self._agents.pending() else pause):
            key.data()
        if standing:
            self._stand_down()
        now = time.monotonic()
        for node, message in self._agents.messages():
            if isinstance(message, Hello):
                if self._nodes_have_agents:
                    self._space.add(message.node)
                    self._shape_changed = True
                    self._demand.renew()
                    self._idle_since = now  # without nodes it was not idle
            else:
                for running in self._attempts.hear(node, message, now):
                    if running.ended is not None:
                        self._collect(running)
                    elif running.body is not None:  # it came back
                        self._waiting.line_up(running.task, running.body, now, again=True)
        for node, why in self._agents.lost():
            self._lose(node, why, now)

    def _over(self) -> bool:
        if self._term.look() or self._ledger.lost or self._ledger.failure:
            return True
        now = time.monotonic()
        if not self._space.nodes and not self._agents.expected:
            self.stop(f"no node is left: {'; '.join(self._lost_nodes)}")
        elif not self._asking and not self._holds_tasks():
            if self._superseded:
                self.stop("a later run drives the workflow")
            elif why := self._demand.unserved(now, _UNSERVED_S):
                self.stop(f"it can start nothing more: {why}")
            elif not self._expects(now) and now - self._idle_since >= self._order.idle_timeout_s:
                self.stop(f"no work for {self._order.idle_timeout_s:g} s")
        return self._term.over is not None

    def _expects(self, now: float) -> bool:
        """Tell whether something is awaited that may bring work."""
        return self._ledger.changed or not self._space.nodes or self._gathering(now)

    def _holds_tasks(self) -> bool:
        return bool(self._waiting or self._attempts or self._ends or self._releases)

    def _act(self) -> None:
        """React to whatever has changed."""
        self._hear_ledger()
        self._tenure.care(self._ledger.renewed_at, self._ledger.refused_at)
        now = time.monotonic()
        self._ends.keep(now)
        if self._ledger.changed:
            self._ledger.changed = False
            self._demand.renew()
            # It may be a wish to cancel something, and a launcher that has no room for more would not ask.
            self._renew_at = min(self._renew_at, now + _HEAR_S)
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._demand.renew()
        self._place(now)
        if not self._asking:
            self._exchange(now)
        if self._holds_tasks() or self._expects(now):
            self._idle_since = now

    def _pause(self) -> float:
        """Return how long to sleep if nothing happens, seconds."""
        now = time.monotonic()
        parts = (self._agents, self._attempts, self._tenure, self._ends)
        due = [now + self._order.lease_s, *(part.look_at() for part in parts)]
        if (left := self._term.time_left(now)) is not None:
            due.append(now + left)
        if self._gathering(now):
            due.append(self._began + _GATHER_S)
        if not self._asking:
            due += [self._renew_at, self._idle_since + self._order.idle_timeout_s]
            if self._look_at is not None:
                due.append(self._look_at)
            late = self._attempts.unrecorded_since() + _START_PATIENCE_S
            due.append(max(late, self._quiet_until) if self._waiting else late)
            if self._ends and self._waiting:
                due.append(self._quiet_until)
        return max(0.0, min(due) - now)

    def _gathering(self, now: float) -> bool:
        """Tell whether nodes are still awaited before anything starts."""
        return bool(self._agents.expected) and self._nodes_have_agents and now < self._began + _GATHER_S

    def _place(self, now: float) -> None:
        self._attempts.call_back(now)
        if self._gathering(now) or self._tenure.over(now):
            return
        for task, why in self._waiting.start(now, self._term.time_left(now)):
            self._refuse(task, why)
        self._agents.flush()  # what starts need not wait for what else is to be done

    def _exchange(self, now: float) -> None:
        """Tell the database what happened and ask for more, if there is reason to."""
        late = now - self._attempts.unrecorded_since() >= _START_PATIENCE_S
        renewing = now >= self._renew_at
        if not renewing and now < self._quiet_until and self._demand.enough(now):
            return
        left = self._term.time_left(now)
        if renewing:
            self._releases += self._waiting.withdraw_unfit(left)
        wishes: list[Wish] = []
        if not self._gathering(now):
            largest = self._attempts.largest() if renewing else 0
            wishes = self._demand.wishes(now, left, renewing, self._holds_tasks(), largest)
        if not (self._ends or self._releases or late or wishes or renewing or self._shape_changed):
            return
        starts = self._attempts.report_starts(self._epoch)
        ends = self._ends.send()
        releases, self._releases = self._releases, []
        shape = self._shape(now) if self._shape_changed else None
        self._shape_changed = False
        self._asking = True
        self._ledger.ask(Request(starts, ends, wishes, releases, shape, self._known((*ends, *releases))))

    def _stand_by(self) -> bool:
        """Leave to the ledger what this launcher, which is about to sleep, would ask for if it was woken up.

        Return whether there is such a thing: only where nothing is under way.
        """
        now = time.monotonic()
        if self._asking or self._holds_tasks() or self._term.over or not self._space.nodes or self._gathering(now):
            return False
        self._ledger.stand_by(Request(wishes=self._demand.standing(self._term.time_left(now))))
        return True

    def _stand_down(self) -> None:
        # Before anything else is done, which may change the room.
        if self._ledger.take_back():
            self._demand.take_back()
        else:
            self._asking = True

    def _shape(self, now: float) -> BlockShape:
        left = None if self._term.ends_at is None else self._term.ends_at - now
        space = self._space
        return BlockShape(len(space.nodes), space.largest_node, space.most_gpus, left, tuple(self._lost_nodes))

    def _known(self, reported: Iterable[AttemptEnd | Release]) -> frozenset[int]:
        """Return all tasks whose claim has been heard of."""
        return frozenset({*self._waiting, *self._attempts, *(item.task_id for item in reported)})

    def _hear_ledger(self) -> None:
        if self._asking and (answer := self._ledger.answer()):
            self._asking = False
            self._ends.acknowledge()
            self._tenure.acknowledge()
            self._take(answer)

    def _take(self, answer: Answer) -> None:
        now = time.monotonic()
        exchange = answer.exchange
        if not self._epoch:
            self._epoch = exchange.at - answer.renewed_at
        self._superseded = exchange.superseded
        if exchange.end_wish is not None:
            self.stop(f"ended by {exchange.end_wish}")
        self._renew_at = answer.renewed_at + self._order.lease_s / 5
        self._quiet_until = now + max((now - answer.renewed_at) * _QUIET, _QUIET_S)
        self._agents.lease_until = answer.renewed_at + self._order.lease_s * LEASE_SHARE
        if exchange.next_ready_s is not None:
            self._look_at = now + exchange.next_ready_s
        self._demand.learn(exchange, now)
        for end in answer.refused:
            self._ends.append(end)
        for task, body in answer.claimed:
            if reason := task.flaw or self._space.impossible(task.spec):
                self._refuse(task, f"no node of this block could run the task: {reason}")
            else:
                self._waiting.line_up(task, body, now)
        for task_id in exchange.cancelled:
            self._cancel(task_id)

    def _refuse(self, task: ClaimedTask, why: str) -> None:
        self._ends.append(AttemptEnd(task.task_id, task.number, task.token, Outcome.ERROR, error=why, hopeless=True))

    def _cancel(self, task_id: int) -> None:
        if (task := self._waiting.withdraw(task_id)) is not None:
            self._ends.append(AttemptEnd(task_id, task.number, task.token, Outcome.CANCELLED))
        else:
            self._attempts.stop(task_id, Outcome.CANCELLED, "stopped: cancelled by the user")

    def _lose(self, node: str, why: str, now: float) -> None:
        """Go on without a node whose agent is gone; where it is the only one, with another agent."""
        logger.error("node %s is lost: %s", node, why)
        agents = self._agents
        only = isinstance(agents, LocalAgents) and len(agents.nodes) == 1
        if node in self._space.nodes:
            self._space.remove(node)
        for running in self._attempts.lose(node, why, now):
            self._collect(running)
        if only and isinstance(agents, LocalAgents) and self._term.over is None:
            agents.restart(node)
        else:
            self._lost_nodes.append(f"{node}: {why}")
            self._shape_changed = True
            self._releases += self._waiting.withdraw_unfit(self._term.time_left(now))

    def _collect(self, running: Running) -> None:
        ended = running.ended
        assert ended is not None
        sealed = None if ended.payload is None else self._signer.seal_result(running.task, ended.payload)
        self._ends.append(running.end(ended, sealed, self._epoch))
        self._demand.note_end(running.ended_at)
        if running.began and ended.outcome is not Outcome.ENDED:
            self._waiting.note_end(running.ended_at - running.since)

    def _drain(self) -> None:
        """Stop what runs and record it, so that others can go on at once."""
        until = time.monotonic() + _DRAIN_S
        for task_id in self._attempts:
            self._attempts.stop(task_id, Outcome.ENDED, f"stopped: {self._term.over}")
        self._wait_for(lambda: not self._attempts, until)
        if not self._reported(time.monotonic() + _ANSWER_S) and not (self._ledger.lost or self._ledger.failure):
            kept = self._ends.bequeath(self._term.over or "ended")
            self._reported(self._term.patience_until(kept, self._order.lease_s))
        self._ledger.close()

    def _reported(self, until: float) -> bool:
        """Report what is left; return whether all of it was acknowledged by a time, on the monotonic clock."""
        while True:
            if not self._asking:
                self._asking = True
                ends = self._ends.send()
                self._ledger.ask(Request(ends=ends, known=self._known(ends)))
            self._wait_for(lambda: not self._asking, until)
            if self._asking or not self._ends:
                return not self._asking

    def _wait_for(self, condition: Callable[[], bool], until: float) -> None:
        while not condition() and (rest := until - time.monotonic()) > 0:
            if self._ledger.lost or self._ledger.failure:
                return
            self._hear_ledger()
            self._turn(min(rest, 0.1))


def run_block(order: LaunchOrder, database: Database, block_id: int, parts: BlockParts) -> None:
    """Run a block from its first claim to its end."""
    try:
        Launcher(order, database, block_id, parts).run()
        forget_forbidden(Path(parts.site.directory), parts.site.mark)
    except DatabaseUnavailable:
        logger.exception("block %d ends; what it leaves in %s is recorded after its lease", block_id, order.directory)
        raise
