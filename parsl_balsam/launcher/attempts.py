"""The attempts under way in a block: from a placement until everything that a task has started is gone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, takewhile

from parsl_balsam.launcher.agents import Agents
from parsl_balsam.launcher.channel import RecentlyUsed
from parsl_balsam.launcher.lanes import Lanes
from parsl_balsam.launcher.messages import Clean, Cleaned, Ended, Kill, Ranks, Recall, Returned, Start
from parsl_balsam.launcher.pace import PATIENCE_S
from parsl_balsam.launcher.parallel import MpiSite, ranks_of
from parsl_balsam.launcher.rank_files import forbid
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, AttemptStart, ClaimedTask


@dataclass(slots=True)
class Running:
    """An attempt that has a process, or had one a moment ago, or that its agent starts without being told again."""

    task: ClaimedTask
    shares: tuple[Share, ...]
    home: str  #: the node whose agent has the task's first process
    since: float  #: when it began, or was sent ahead, on the monotonic clock
    began: bool = True  #: False while it waits behind another
    ranks: Ranks | None = None
    body: bytes | None = None  #: its function, while it may come back
    called_back: bool = False
    blamed: str | None = None  #: the node that was lost under it
    ended: Ended | None = None
    ended_at: float = 0.0  #: on the monotonic clock
    unclean: set[str] = field(default_factory=set)  #: nodes that may still have processes of it

    def start(self, epoch: float) -> AttemptStart:
        """Return what is to be recorded of its start, see `Attempts.report_starts`."""
        task = self.task
        return AttemptStart(task.task_id, task.number, task.token, self.shares, epoch + self.since)

    def end(self, ended: Ended, payload: bytes | None, epoch: float) -> AttemptEnd:
        """Return what is to be recorded of its end.

        Parameters
        ----------
        ended
            What its agent has said.
        payload
            The result, signed.
        epoch
            Of the monotonic clock, on the database's.
        """
        return AttemptEnd(
            self.task.task_id,
            self.task.number,
            self.task.token,
            ended.outcome,
            host=self.blamed,
            shares=self.shares if self.began else (),
            started_at=epoch + self.since if self.began else None,
            ended_at=epoch + self.ended_at,
            payload=payload,
            exit_code=ended.exit_code,
            signal=ended.signal,
            usage=ended.usage,
            error=ended.error,
            output=ended.output,
            stderr_tail=ended.stderr_tail,
        )


class Attempts:
    """Starts tasks on their nodes, and frees the nodes when nothing of a task is left there.

    A short task is sent ahead to the agent of one that has just what it needs, so that no time is lost between them.

    Parameters
    ----------
    home
        The one agent that starts all tasks; None where the first node of each has its own.
    """

    def __init__(self, agents: Agents, space: Space, site: MpiSite, home: str | None) -> None:
        self._agents = agents
        self._space = space
        self._site = site
        self._home = home
        self._running: dict[int, Running] = {}
        self._ahead: dict[int, Running] = {}  # those that have not begun, the oldest first
        self._unrecorded: dict[int, Running] = {}  # of those that run, by start
        self._lanes: Lanes[Running] = Lanes()
        self._fresh: list[Running] = []
        self._sent: dict[str, RecentlyUsed] = {}

    def __len__(self) -> int:
        return len(self._running) + len(self._ahead)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._running or task_id in self._ahead

    def __iter__(self) -> Iterator[int]:
        return chain(self._running, self._ahead)

    def largest(self) -> int:
        """Return the cores of the largest, on all its nodes."""
        return max((sum(len(share.cores) for share in running.shares) for running in self._running.values()), default=0)

    def unrecorded_since(self) -> float:
        """Return when the first began whose start is not reported, on the monotonic clock."""
        return next((running.since for running in self._unrecorded.values()), math.inf)

    def report_starts(self, epoch: float) -> list[AttemptStart]:
        """Return, once, what is to be recorded of the starts of those that run.

        Parameters
        ----------
        epoch
            Of the monotonic clock, on the database's.
        """
        starts = [running.start(epoch) for running in self._unrecorded.values()]
        self._unrecorded.clear()
        return starts

    def begin(self, task: ClaimedTask, body: bytes, shares: tuple[Share, ...], now: float) -> None:
        """Start a task where it was placed.

        Raises
        ------
        ImpossibleTask
            It has several ranks, and there is no MPI launcher for them.
        """
        ranks = ranks_of(self._site, task, shares, self._space.nodes)
        running = Running(task, shares, self._home or shares[0].node, now, ranks=ranks)
        self._running[task.task_id] = self._unrecorded[task.task_id] = running
        if ranks is None and not shares[0].gpus:
            self._lanes.begin(_lane(running), task.task_id)
            self._fresh.append(running)
        self._send(running, body)

    def send_ahead(self, task: ClaimedTask, body: bytes, first: Running, now: float) -> None:
        """Let a task start as soon as another one, and those sent ahead before, leave it their cores."""
        running = Running(task, first.shares, first.home, now, began=False, body=body)
        self._ahead[task.task_id] = running
        self._lanes.line_up(_lane(first), task.task_id, running)
        self._send(running, body)

    def _send(self, running: Running, body: bytes) -> None:
        task, first = running.task, running.shares[0]
        sent = self._sent.setdefault(running.home, RecentlyUsed())
        self._agents.post(
            running.home,
            Start(
                task.task_id,
                task.number,
                first.cores,
                self._space.nodes[first.node].pin and self._home is None,
                task.function,
                None if sent.use(task.function) else body,
                task.payload,
                task.spec.timeout_s,
                task.stderr,
                tuple([share.node for share in running.shares]),
                first.gpus,
                running.ranks,
                not running.began,
            ),
        )

    def ahead(self) -> float:
        """Return how many wait behind one that runs, on average; 0 if nobody waits behind one of them."""
        return len(self._ahead) / len(self._running) if 0 < len(self._running) == self._lanes.followed() else 0.0

    def fresh(self) -> list[tuple[Running, int]]:
        """Return the tasks behind which others can be sent that have begun since the last time; and how many are."""
        fresh = [running for running in self._fresh if running.ended is None]
        self._fresh.clear()
        return [(running, self._lanes.length(running.task.task_id)) for running in fresh]

    def call_back(self, now: float) -> None:
        """Ask for the tasks that have waited longer than they were to."""
        late = list(takewhile(lambda running: now >= running.since + PATIENCE_S, self._ahead.values()))
        for running in reversed(late):  # the first comes back last, and is put before the others
            if not running.called_back:
                running.called_back = True
                self._agents.post(running.home, Recall(running.task.task_id))

    def look_at(self) -> float:
        """Return when `call_back` may have something to do, on the monotonic clock."""
        waiting = (running.since for running in self._ahead.values() if not running.called_back)
        return next(waiting, math.inf) + PATIENCE_S

    def stop(self, task_id: int, outcome: Outcome, why: str) -> None:
        """End an attempt, if it is under way or is to begin."""
        running = self._running.get(task_id) or self._ahead.get(task_id)
        if running is not None and running.ended is None:
            self._agents.post(running.home, Kill(task_id, outcome, why))

    def hear(self, node: str, message: object, now: float) -> list[Running]:
        """Take note of what an agent says; return the attempts that are over, whose nodes are free now.

        One that came back, and has not begun, has no `ended`.
        """
        if isinstance(message, Ended):
            running = self._running.get(message.task_id) or self._ahead.get(message.task_id)
            if running is not None and running.home == node and running.ended is None:
                return self._end(running, message, now)
        elif isinstance(message, Returned):
            ahead = self._ahead.get(message.task_id)
            if ahead is not None and ahead.home == node:
                return self._free(ahead)
        elif isinstance(message, Cleaned):
            running = self._running.get(message.task_id)
            if running is not None and node in running.unclean:
                return self._clean(running, node, now)
        return []

    def lose(self, node: str, why: str, now: float) -> list[Running]:
        """Take note that a node's agent is gone; return the attempts that are over, whose other nodes are free now."""
        self._sent.pop(node, None)
        over: list[Running] = []
        for running in [*self._ahead.values(), *self._running.values()]:
            if running.unclean:
                if node in running.unclean:
                    over += self._clean(running, node, now)
                continue
            if running.home != node and all(share.node != node for share in running.shares):
                continue
            running.blamed = node
            crash = Ended(running.task.task_id, Outcome.CRASH, error=f"node {node} was lost: {why}")
            if running.home == node:
                over += self._end(running, crash, now)
            else:
                self.stop(running.task.task_id, crash.outcome, crash.error or why)
        return over

    def _end(self, running: Running, ended: Ended, now: float) -> list[Running]:
        """Take note of the end of a task's first process. Its ranks may live on, on this node or on others."""
        running.ended = ended
        running.ended_at = now
        if running.ranks is None:
            return self._free(running)
        if ended.outcome is not Outcome.DONE:
            forbid(running.ranks)
        nodes = [running.home] if self._home is not None else [share.node for share in running.shares]
        running.unclean = {node for node in nodes if node in self._space.nodes or node == self._home}
        for node in running.unclean:
            self._agents.post(node, Clean(running.task.task_id, running.ranks.mark))
        return [] if running.unclean else self._free(running)

    def _clean(self, running: Running, node: str, now: float) -> list[Running]:
        running.unclean.discard(node)
        running.ended_at = now
        return [] if running.unclean else self._free(running)

    def _free(self, running: Running) -> list[Running]:
        following = self._lanes.end(running.task.task_id)
        task_id = running.task.task_id
        if not running.began:
            del self._ahead[task_id]
            return [running]
        del self._running[task_id]
        self._unrecorded.pop(task_id, None)
        if following is None:
            self._space.give_back(task_id)
        else:
            self._follow(running, following)
        if running.ranks is not None and running.ended is not None and running.ended.outcome is not Outcome.DONE:
            shutil.rmtree(running.ranks.scratch, ignore_errors=True)  # its worker, killed, has not done it
        return [running]

    def _follow(self, over: Running, following: Running) -> None:
        """Take note that the agent of a task has begun the next one on its cores."""
        task_id = following.task.task_id
        del self._ahead[task_id]
        following.began = True
        following.body = None
        following.since = over.ended_at
        self._running[task_id] = self._unrecorded[task_id] = following
        walltime_min = following.task.spec.walltime_min
        until = None if walltime_min is None else following.since + walltime_min * 60
        self._space.hand_over(over.task.task_id, task_id, until)
        self._fresh.append(following)


def _lane(running: Running) -> tuple[str, tuple[int, ...]]:
    return running.home, running.shares[0].cores
