"""What is free on the nodes of a block. Pure: cores and GPUs are given exactly, each to one task at a time."""

from __future__ import annotations

import itertools
import math
import sys
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share

#: Sums of fractions of a GB may be off by less.
_DRIFT_GB = 1e-6

#: Nodes among which those of a small task are chosen, when it has to wait; more for each of its own.
_LOOKED_AT = 64

#: How many nodes are wholly free, and how many cores at most on one node. Where nodes differ, these may be fewer.
Room = tuple[int, int]

#: Cores, memory in GB, and GPUs of a node.
_Kind = tuple[int, float, int]

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


class _Cores(dict[int, int]):
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
    cores: _Cores
    gpus: int  #: on each node
    memory: float  #: on each node, GB

    def may_fit(self, room: Room) -> bool:
        """Tell whether it is worth a try where so much is free."""
        return self.idle_nodes <= room[0] and self.least_cores <= room[1]


@dataclass(slots=True)
class _Held:
    """What a task has of a node."""

    share: Share
    memory: float  #: GB
    until: float  #: when the task is expected to end; infinite where that is not known


@dataclass(slots=True)
class _State:
    """A node and what is free on it."""

    node: Node
    kind: _Kind
    order: int  #: of addition
    cores: list[int]
    gpus: list[str]
    memory: float  #: GB; infinite where it is not counted
    held: dict[int, _Held] = field(default_factory=dict)
    ends: list[tuple[float, int]] = field(default_factory=list)  #: when each of these tasks is expected to end, sorted
    pool: _Pool | None = None  #: None when it was given up
    place: _Place | None = None  #: in its pool; None among those that are wholly free


class _Pool:
    """Nodes: those that are wholly free, and the others by how many GPUs, how much memory and how many cores are."""

    def __init__(self) -> None:
        self.idle: dict[str, _State] = {}
        self._partly: defaultdict[_Place, dict[str, _State]] = defaultdict(dict)
        self._masks: defaultdict[tuple[int, int], int] = defaultdict(int)  # has the bit n for n free cores besides

    def put(self, state: _State) -> None:
        """Take a node in."""
        state.pool = self
        if not state.held:
            state.place = None
            self.idle[state.node.name] = state
            return
        gpus, level, cores = state.place = len(state.gpus), _level(state.memory + _DRIFT_GB), len(state.cores)
        self._masks[gpus, level] |= 1 << cores
        self._partly[state.place][state.node.name] = state

    def drop(self, state: _State) -> None:
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

    def partly_free(self, need: Need) -> Iterator[_State]:
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

    def freest(self) -> Iterator[_State]:
        """Return all nodes, those with the most first."""
        yield from self.idle.values()
        for gpus, level in sorted(self._masks, reverse=True):
            mask = self._masks[gpus, level]
            while mask:
                free_cores = mask.bit_length() - 1
                mask ^= 1 << free_cores
                yield from self._partly[gpus, level, free_cores].values()


class Space:
    """The nodes of a block.

    Parameters
    ----------
    whole_nodes
        Whether every task takes its nodes whole, for launchers that cannot share them.
    """

    def __init__(self, whole_nodes: bool = False) -> None:
        self._whole_nodes = whole_nodes
        self._states: dict[str, _State] = {}
        self._nodes: dict[str, Node] = {}
        self._orders = itertools.count()
        self._known: set[str] = set()  # names of all nodes that there ever were
        self._kinds: dict[_Kind, int] = {}  # of how many nodes that there ever were
        self._present: dict[_Kind, int] = {}
        self._open = _Pool()
        self._aside = _Pool()
        self._placements: dict[int, list[_State]] = {}
        self._freed: dict[str, None] = {}
        self.free_cores = 0  #: on all nodes together
        self.total_cores = 0
        self.losses = 0  #: how often a node was given up

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes that are present, by name."""
        return MappingProxyType(self._nodes)

    @property
    def idle_nodes(self) -> int:
        """How many nodes are wholly free."""
        return len(self._open.idle) + len(self._aside.idle)

    @property
    def largest_node(self) -> int:
        """Cores of the node that has most."""
        return max((cores for cores, _, _ in self._present), default=0)

    @property
    def most_gpus(self) -> int:
        """GPUs of the node that has most."""
        return max((gpus for _, _, gpus in self._present), default=0)

    @property
    def most_free_cores(self) -> int:
        """Free cores of the node that has most."""
        return max((len(state.cores) for state in self._states.values()), default=0)

    @property
    def most_free_gpus(self) -> int:
        """Free GPUs of the node that has most."""
        if not self.most_gpus:
            return 0
        return max((len(state.gpus) for state in self._states.values()), default=0)

    def add(self, node: Node) -> None:
        """Take in a node, all of it free."""
        kind = (len(node.cores), math.inf if node.memory_gb is None else node.memory_gb, len(node.gpus))
        state = _State(node, kind, next(self._orders), list(node.cores), list(node.gpus), kind[1])
        self._states[node.name] = state
        self._nodes[node.name] = node
        self._present[kind] = self._present.get(kind, 0) + 1
        if node.name not in self._known:  # else it was lost, and is back
            self._known.add(node.name)
            self._kinds[kind] = self._kinds.get(kind, 0) + 1
        self.free_cores += len(node.cores)
        self.total_cores += len(node.cores)
        self._open.put(state)
        self._freed[node.name] = None

    def remove(self, name: str) -> set[int]:
        """Give up a node; return the tasks that have a share of it. They keep their shares of others."""
        state = self._states.pop(name)
        node = self._nodes.pop(name)
        self._freed.pop(name, None)
        self._present[state.kind] -= 1
        if not self._present[state.kind]:
            del self._present[state.kind]
        assert state.pool is not None
        state.pool.drop(state)
        state.pool = None
        self.losses += 1
        self.free_cores -= len(state.cores)
        self.total_cores -= len(node.cores)
        return set(state.held)

    def impossible(self, spec: ResourceSpec) -> str | None:
        """Tell why a task could not run even if all nodes that there ever were were free; None if it could."""
        return self._lacking(spec, self._kinds)

    def lacking(self, spec: ResourceSpec) -> str | None:
        """Tell why a task could not run even if all nodes that are present were free; None if it could."""
        return self._lacking(spec, self._present)

    def suffices(self, need: Need) -> bool:
        """Tell whether a task could run if all nodes that are present were free."""
        return need.nodes <= sum([count for kind, count in self._present.items() if _able(kind, need)])

    def need(self, spec: ResourceSpec) -> Need:
        """Return what a task needs, as the other methods take it."""
        whole = self._whole_nodes or (spec.cores is None and spec.node_packing_count is None)
        return Need(
            nodes=spec.num_nodes,
            idle_nodes=spec.num_nodes if whole else 0,
            least_cores=0 if whole else spec.cores or 1,
            cores=_Cores(spec, self._whole_nodes),
            gpus=spec.gpus_on_node,
            memory=spec.memory_gb or 0.0,
        )

    def take(
        self, task_id: int, need: Need, until: float | None = None, *, aside: bool = True
    ) -> tuple[Share, ...] | None:
        """Give a task its share of one node or several, in the order of their addition; None if it does not fit now.

        Tasks of one node go where they leave least; nodes that are wholly free are kept for those that need them.

        Parameters
        ----------
        until
            When it is expected to end; None = not known.
        aside
            Whether it may have nodes that are set aside, if others do not suffice.
        """
        chosen = self._find(need, (self._open, self._aside) if aside else (self._open,))
        if chosen is None:
            return None
        end = math.inf if until is None else until
        self._placements[task_id] = chosen
        return tuple([self._give(task_id, state, need, end) for state in chosen])

    def give_back(self, task_id: int) -> None:
        """Free what a task had."""
        for state in self._placements.pop(task_id):
            held = state.held.pop(task_id)
            pool = state.pool
            if pool is None:  # the node was given up
                continue
            pool.drop(state)
            del state.ends[bisect_left(state.ends, (held.until, task_id))]
            self.free_cores += len(held.share.cores)
            state.cores += held.share.cores
            state.cores.sort()
            if held.share.gpus:
                free = {*state.gpus, *held.share.gpus}
                state.gpus = [gpu for gpu in state.node.gpus if gpu in free]
            if held.memory:
                # Not what is left plus what it had: sums of fractions drift.
                state.memory = state.kind[1] - sum(other.memory for other in state.held.values())
            pool.put(state)
            self._freed[state.node.name] = None

    def freed(self) -> list[str]:
        """Return the nodes on which something was freed since the last time."""
        names = list(self._freed)
        self._freed.clear()
        return names

    def fits(self, name: str, need: Need) -> bool:
        """Tell whether a task's share of one node is free on a node."""
        return _fits(self._states[name], need)

    def ready_at(self, name: str, need: Need, now: float) -> float:
        """Return when a task's share of one node will be free on a node: now, later, or infinity if nobody knows."""
        return _ready_at(self._states[name], need, now)

    def soonest(self, need: Need, now: float) -> dict[str, float]:
        """Return nodes for a task that does not fit now, as it can start on them soonest, and when each will be ready.

        Of those that will be ready when the last is, the last ones are taken: the others are free for other tasks until
        then. In large blocks only the nodes that have most to give are looked at.
        """
        kinds = {kind for kind in self._present if _able(kind, need)}
        able = (state for pool in (self._aside, self._open) for state in pool.freest() if state.kind in kinds)
        looked_at = itertools.islice(able, _LOOKED_AT + 4 * need.nodes)
        times = [(_ready_at(state, need, now), number, state) for number, state in enumerate(looked_at)]
        times.sort()
        count = need.nodes
        start = times[count - 1][0]
        while start < math.inf and count < len(times) and times[count][0] == start:
            count += 1
        return {state.node.name: time for time, _, state in times[count - need.nodes : count]}

    def set_aside(self, names: Iterable[str]) -> None:
        """Keep nodes from tasks that are not given nodes set aside."""
        for name in names:
            self._move(name, self._aside)

    def open_up(self, names: Iterable[str]) -> None:
        """Give nodes back to all."""
        for name in names:
            if name in self._states:
                self._move(name, self._open)

    def room(self) -> tuple[Room, Room]:
        """Return what is free at most: on all nodes, and on those that are not set aside."""
        idle, cores = len(self._open.idle), self._open.most_free
        idle_aside, cores_aside = len(self._aside.idle), self._aside.most_free
        largest = self.largest_node if idle or idle_aside else 0
        cores = largest if idle else cores
        return (idle + idle_aside, max(cores, largest if idle_aside else cores_aside)), (idle, cores)

    def _move(self, name: str, pool: _Pool) -> None:
        state = self._states[name]
        if state.pool is not None and state.pool is not pool:
            state.pool.drop(state)
            pool.put(state)

    def _lacking(self, spec: ResourceSpec, kinds: Mapping[_Kind, int]) -> str | None:
        count = sum(kinds.values())
        if spec.num_nodes > count:
            return f"it needs {spec.num_nodes} node{'s' * (spec.num_nodes > 1)}, and this block has {count}"
        need = self.need(spec)
        if need.nodes <= sum(count for kind, count in kinds.items() if _able(kind, need)):
            return None
        largest = max(kinds)[0]
        if need.cores[largest] > largest:
            return f"it needs {need.cores[largest]} cores on a node, and this block has {largest} on one"
        gpus = max(gpus for _, _, gpus in kinds)
        if need.gpus > gpus:
            return f"it needs {need.gpus} GPUs on a node, and this block has {gpus} on one"
        memory = max(memory for _, memory, _ in kinds)
        if need.memory > memory:
            return f"it needs {need.memory:g} GB on a node, and this block has {memory:.1f} on one"
        return f"it needs {need.nodes} nodes that are large enough, and this block has fewer"

    def _find(self, need: Need, pools: tuple[_Pool, ...]) -> list[_State] | None:
        candidates: list[Iterable[_State]] = [pool.idle.values() for pool in pools]
        if need.idle_nodes:
            if sum(len(pool.idle) for pool in pools) < need.nodes:
                return None
        else:
            if self.free_cores < need.nodes * need.least_cores:
                return None
            candidates[:0] = [pool.partly_free(need) for pool in pools]
        found: list[_State] = []
        for state in itertools.chain.from_iterable(candidates):
            if _fits(state, need):
                found.append(state)
                if len(found) == need.nodes:
                    found.sort(key=lambda state: state.order)
                    return found
        return None

    def _give(self, task_id: int, state: _State, need: Need, until: float) -> Share:
        pool = state.pool
        assert pool is not None
        pool.drop(state)
        count = need.cores[state.kind[0]]
        cores = tuple(state.cores[:count]) if count < state.kind[0] else state.node.cores
        del state.cores[:count]
        gpus = tuple(state.gpus[: need.gpus])
        if gpus:
            del state.gpus[: need.gpus]
        state.memory -= need.memory
        share = Share(state.node.name, cores, gpus)
        state.held[task_id] = _Held(share, need.memory, until)
        insort(state.ends, (until, task_id))
        self.free_cores -= count
        pool.put(state)
        return share


def _able(kind: _Kind, need: Need) -> bool:
    """Tell whether a node with so many cores, memory and GPUs can take a task's share of one node."""
    cores, memory, gpus = kind
    return need.cores[cores] <= cores and need.gpus <= gpus and need.memory <= memory


def _fits(state: _State, need: Need) -> bool:
    return (
        need.cores[state.kind[0]] <= len(state.cores)
        and need.gpus <= len(state.gpus)
        and need.memory <= state.memory + _DRIFT_GB
    )


def _level(memory: float) -> int:
    """Return a coarse measure of memory in GB, in eighths of an octave."""
    if 0.0 < memory < math.inf:
        return math.floor(8 * math.log2(memory))
    return sys.maxsize if memory > 0 else -sys.maxsize


def _ready_at(state: _State, need: Need, now: float) -> float:
    if _fits(state, need):
        return now
    needed = need.cores[state.kind[0]]
    overdue = bisect_right(state.ends, (now, math.inf))  # these may go on for any time
    if needed == state.kind[0]:
        return math.inf if overdue else state.ends[-1][0]
    cores, gpus, memory = len(state.cores), len(state.gpus), state.memory
    for end, task_id in itertools.islice(state.ends, overdue, None):
        held = state.held[task_id]
        cores += len(held.share.cores)
        gpus += len(held.share.gpus)
        memory += held.memory
        if needed <= cores and need.gpus <= gpus and need.memory <= memory + _DRIFT_GB:
            return end
    return math.inf
