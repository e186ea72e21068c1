"""Who has which cores of a node, and who gets them next without asking. Pure; agents and launcher both keep one."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """Tasks that have cores, and behind each those that were sent ahead: they get the same cores, one after the other.

    What the launcher thinks is a little older than what the agent knows. Both see the same ends in the same order, so
    both have the same task begin next.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, int] = {}  # the task that has these cores
        self._behind: dict[Hashable, deque[tuple[int, T]]] = {}  # not empty
        self._lane: dict[int, Hashable] = {}  # of each task

    def waits(self, task_id: int) -> bool:
        """Tell whether a task is behind another."""
        lane = self._lane.get(task_id)
        return lane is not None and self._first[lane] != task_id

    def first(self, cores: Hashable) -> int | None:
        """Return the task that has these cores, if there is one."""
        return self._first.get(cores)

    def behind(self, task_id: int) -> Iterator[T]:
        """Return what waits behind a task that has cores, in order."""
        lane = self._lane.get(task_id)
        return (task for _, task in self._behind.get(lane, ()))

    def followed(self) -> int:
        """Return how many tasks have others behind them."""
        return len(self._behind)

    def length(self, task_id: int) -> int:
        """Return how many wait behind a task that has cores."""
        return len(self._behind.get(self._lane[task_id], ()))

    def begin(self, cores: Hashable, task_id: int) -> None:
        """Note that a task has cores. If another one has them too, nobody waits for this one."""
        if cores not in self._first:
            self._first[cores] = task_id
            self._lane[task_id] = cores

    def line_up(self, cores: Hashable, task_id: int, task: T) -> None:
        """Let a task wait for cores that another one has."""
        self._lane[task_id] = cores
        self._behind.setdefault(cores, deque()).append((task_id, task))

    def end(self, task_id: int) -> T | None:
        """Note that a task is over, or waits no more; return the one that has its cores now, if there is one."""
        lane = self._lane.pop(task_id, None)
        if lane is None:
            return None
        behind = self._behind.get(lane)
        if self._first[lane] != task_id:
            assert behind is not None
            left = deque(entry for entry in behind if entry[0] != task_id)
            self._put(lane, left)
            return None
        if behind is None:
            del self._first[lane]
            return None
        self._first[lane], task = behind.popleft()
        self._put(lane, behind)
        return task

    def _put(self, lane: Hashable, behind: deque[tuple[int, T]]) -> None:
        if behind:
            self._behind[lane] = behind
        else:
            self._behind.pop(lane, None)
