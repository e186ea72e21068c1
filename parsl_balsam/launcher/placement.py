"""Which waiting task starts on which cores of a node. Pure: time comes as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parsl_balsam.model.resources import ResourceSpec

#: How long smaller tasks may overtake one that does not fit yet, seconds. After that, the room they leave is kept for
#: it.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the block."""

    cores: tuple[int, ...]
    memory_gb: float | None  #: None where it is not known
    pin: bool  #: whether `cores` are numbers that the operating system knows


@dataclass(frozen=True, slots=True)
class Waiting:
    """A claimed task that has not started."""

    task_id: int
    spec: ResourceSpec
    since: float  #: seconds, on the clock of `now`


class Space:
    """What is free on a node. Cores and memory are given to one task at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._free = list(node.cores)
        self._memory = node.memory_gb
        self._taken: dict[int, tuple[tuple[int, ...], float]] = {}

    @property
    def free_cores(self) -> int:
        """How many cores no task has."""
        return len(self._free)

    def impossible(self, spec: ResourceSpec) -> str | None:
        """Tell why a task could not run here even if the node were empty; None if it could."""
        cores = spec.cores_on(len(self._node.cores))
        if cores > len(self._node.cores):
            return f"it needs {cores} cores on a node, and this node has {len(self._node.cores)}"
        if spec.memory_gb and self._node.memory_gb is not None and spec.memory_gb > self._node.memory_gb:
            return f"it needs {spec.memory_gb:g} GB on a node, and this node has {self._node.memory_gb:.1f}"
        if spec.gpus_per_rank:
            return "it needs GPUs, and this node has none that the launcher knows of"
        return None

    def take(self, task_id: int, spec: ResourceSpec) -> tuple[int, ...] | None:
        """Give a task its cores; None if they are not free now."""
        count = spec.cores_on(len(self._node.cores))
        memory = spec.memory_gb or 0.0
        if count > len(self._free) or (self._memory is not None and memory > self._memory):
            return None
        cores = tuple(self._free[:count])
        del self._free[:count]
        if self._memory is not None:
            self._memory -= memory
        self._taken[task_id] = (cores, memory)
        return cores

    def give_back(self, task_id: int) -> None:
        """Free what a task had."""
        cores, memory = self._taken.pop(task_id)
        self._free = sorted([*self._free, *cores])
        if self._memory is not None:
            self._memory += memory


def place(space: Space, waiting: Sequence[Waiting], now: float) -> list[tuple[Waiting, tuple[int, ...]]]:
    """Choose the tasks that start now, in their order, and take their cores.

    A task that does not fit is overtaken for `PATIENCE_S` seconds, then nobody behind it starts before it does.
    """
    placed: list[tuple[Waiting, tuple[int, ...]]] = []
    for task in waiting:
        if not space.free_cores:
            break
        cores = space.take(task.task_id, task.spec)
        if cores is not None:
            placed.append((task, cores))
        elif now - task.since > PATIENCE_S:
            break
    return placed
