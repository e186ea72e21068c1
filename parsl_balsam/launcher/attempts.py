"""The attempts under way in a block: from a placement until everything that a task has started is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

from parsl_balsam.launcher.agents import Agents
from parsl_balsam.launcher.channel import RecentlyUsed
from parsl_balsam.launcher.messages import Clean, Cleaned, Ended, Kill, Ranks, Start
from parsl_balsam.launcher.parallel import MpiSite, ranks_of
from parsl_balsam.launcher.rank_files import forbid
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptStart, ClaimedTask


@dataclass(slots=True)
class Running:
    """An attempt that has a process, or had one a moment ago."""

    task: ClaimedTask
    shares: tuple[Share, ...]
    home: str  #: the node whose agent has the task's first process
    since: float  #: on the monotonic clock
    ranks: Ranks | None = None
    recorded: bool = False  #: whether its start is
    blamed: str | None = None  #: the node that was lost under it
    ended: Ended | None = None
    ended_at: float = 0.0  #: on the monotonic clock
    unclean: set[str] = field(default_factory=set)  #: nodes that may still have processes of it

    def start(self, started_at: float) -> AttemptStart:
        """Return what is to be recorded of its start, at a time on the database's clock."""
        return AttemptStart(self.task.task_id, self.task.number, self.task.token, self.shares, started_at)


class Attempts:
    """Starts tasks on their nodes, and frees the nodes when nothing of a task is left there.

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
        self._sent: dict[str, RecentlyUsed] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._running

    def __iter__(self) -> Iterator[int]:
        return iter(self._running)

    def largest(self) -> int:
        """Return the cores of the largest, on all its nodes."""
        return max((sum(len(share.cores) for share in running.shares) for running in self._running.values()), default=0)

    def unrecorded(self) -> list[Running]:
        """Return those whose start is not recorded."""
        return [running for running in self._running.values() if not running.recorded]

    def begin(self, task: ClaimedTask, body: bytes, shares: tuple[Share, ...], now: float) -> None:
        """Start a task where it was placed.

        Raises
        ------
        ImpossibleTask
            It has several ranks, and there is no MPI launcher for them.
        """
        ranks = ranks_of(self._site, task, shares, self._space.nodes)
        first = shares[0]
        home = self._home or first.node
        sent = self._sent.setdefault(home, RecentlyUsed())
        self._running[task.task_id] = Running(task, shares, home, now, ranks)
        self._agents.post(
            home,
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
                tuple(share.node for share in shares),
                first.gpus,
                ranks,
            ),
        )

    def stop(self, task_id: int, outcome: Outcome, why: str) -> None:
        """End an attempt, if it is under way."""
        running = self._running.get(task_id)
        if running is not None and running.ended is None:
            self._agents.post(running.home, Kill(task_id, outcome, why))

    def hear(self, node: str, message: object, now: float) -> list[Running]:
        """Take note of what an agent says; return the attempts that are over, whose nodes are free now."""
        if isinstance(message, Ended):
            running = self._running.get(message.task_id)
            if running is not None and running.home == node and running.ended is None:
                return self._end(running, message, now)
        elif isinstance(message, Cleaned):
            running = self._running.get(message.task_id)
            if running is not None and node in running.unclean:
                return self._clean(running, node, now)
        return []

    def lose(self, node: str, why: str, now: float) -> list[Running]:
        """Take note that a node's agent is gone; return the attempts that are over, whose other nodes are free now."""
        self._sent.pop(node, None)
        over: list[Running] = []
        for running in list(self._running.values()):
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
        del self._running[running.task.task_id]
        self._space.give_back(running.task.task_id)
        if running.ranks is not None and running.ended is not None and running.ended.outcome is not Outcome.DONE:
            shutil.rmtree(running.ranks.scratch, ignore_errors=True)  # its worker, killed, has not done it
        return [running]
