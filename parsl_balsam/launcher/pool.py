"""The nodes of a block by what is free on them, so that one that has enough is found at once. Pure."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share

#: Sums of fractions of a GB may be off by less.
DRIFT_GB = 1e-6

#: How many nodes are wholly free, and how many cores at most on one node. Where nodes differ, these may be fewer.
Room = tuple[int, int]

#: Cores, memory in GB, and GPUs of a node.
Kind = tuple[int, float, int]

#: Free GPUs, level of free memory, and free cores of a node in use.
_Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the block."""

    name: str  #: unique within the block
    host: str  #: what MPI launchers call it; several pretend nodes may share a host
    cores: tuple[int, ...]  #: numbers, ascending
    memory_gb: float | None = None  #: None where it is not known, and not counted
    gpus: tuple[str, ...] = ()  #: names, as the variables that select GPUs take them
    pin: bool = True  #: whether `cores` are numbers that the operating system knows
    index: int = 0  #: its place in the batch job's list: MPI launchers number ranks in this order


class CoresOn(dict[int, int]):
    """Cores that a task takes on a node, by how many the node has."""

    def __init__(self, spec: ResourceSpec, whole: bool) -> None:
        self._spec = spec
        self._whole = whole

    def __missing__(self, node_cores: int) -> int:
        needed = self._spec.cores_on(node_cores)
        self[node_cores] = max(needed, node_cores) if self._whole else needed
        return self[node_cores]


@dataclass(frozen=True, slots=True)
class Need:
    """What a task needs of the nodes of a block."""

    nodes: int
    idle_nodes: int  #: that must be wholly free
    least_cores: int  #: that must be free on every other one
    cores: CoresOn
    gpus: int  #: on each node
    memory: float  #: on each node, GB

    def may_fit(self, room: Room) -> bool:
        """Tell whether it is worth a try where so much is free."""
        return self.idle_nodes <= room[0] and self.least_cores <= room[1]


@dataclass(slots=True)
class Held:
    """What a task has of a node."""

    share: Share
    memory: float  #: GB
    until: float  #: when the task is expected to end; infinite where that is not known


@dataclass(slots=True)
class NodeState:
    """A node and what is free on it."""

    node: Node
    kind: Kind
    order: tuple[int, int]  #: place in the batch job, then order of addition
    cores: list[int]
    gpus: list[str]
    memory: float  #: GB; infinite where it is not counted
    held: dict[int, Held] = field(default_factory=dict)
    ends: list[tuple[float, int]] = field(default_factory=list)  #: when each of these tasks is expected to end, sorted
    pool: Pool | None = None  #: None when it was given up
    place: _Place | None = None  #: in its pool; None among those that are wholly free


class Pool:
    """Nodes: those that are wholly free, and the others by how many GPUs, how much memory and how many cores are."""

    def __init__(self) -> None:
        self.idle: dict[str, NodeState] = {}
        self._partly: defaultdict[_Place, dict[str, NodeState]] = defaultdict(dict)
        self._masks: defaultdict[tuple[int, int], int] = defaultdict(int)  # has the bit n for n free cores besides

    def put(self, state: NodeState) -> None:
        """Take a node in."""
        state.pool = self
        if not state.held:
            state.place = None
            self.idle[state.node.name] = state
            return
        gpus, level, cores = state.place = len(state.gpus), _level(state.memory + DRIFT_GB), len(state.cores)
        self._masks[gpus, level] |= 1 << cores
        self._partly[state.place][state.node.name] = state

    def drop(self, state: NodeState) -> None:
        """Take a node out."""
        if state.place is None:
            del self.idle[state.node.name]
            return
        bucket = self._partly[state.place]
        del bucket[state.node.name]
        if not bucket:
            gpus, level, cores = state.place
            self._masks[gpus, level] ^= 1 << cores
            if not self._masks[gpus, level]:
                del self._masks[gpus, level]

    @property
    def most_free(self) -> int:
        """Free cores of the node that has most, of those in use."""
        return max(map(int.bit_length, self._masks.values()), default=1) - 1

    def partly_free(self, need: Need) -> Iterator[NodeState]:
        """Return nodes in use that may have what a task needs, those with the least first."""
        cores, level = need.least_cores, _level(need.memory)
        for free_gpus, free_level in sorted(self._masks):
            if free_gpus < need.gpus or free_level < level:
                continue
            mask = self._masks[free_gpus, free_level] >> cores
            free_cores = cores - 1
            while mask:
                step = (mask & -mask).bit_length()
                free_cores += step
                mask >>= step
                yield from self._partly[free_gpus, free_level, free_cores].values()

    def freest(self) -> Iterator[NodeState]:
        """Return all nodes, those with the most first."""
        yield from self.idle.values()
        for gpus, level in sorted(self._masks, reverse=True):
            mask = self._masks[gpus, level]
            while mask:
                free_cores = mask.bit_length() - 1
                mask ^= 1 << free_cores
                yield from self._partly[gpus, level, free_cores].values()


def _level(memory: float) -> int:
    """Return a coarse measure of memory in GB, in eighths of an octave."""
    if 0.0 < memory < math.inf:
        return math.floor(8 * math.log2(memory))
    return sys.maxsize if memory > 0 else -sys.maxsize
