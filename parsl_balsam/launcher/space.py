"""What is free on the nodes of a block. Pure: cores and GPUs are given exactly, each to one task at a time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
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


class SetAside(Enum):
    """Whether a task may have nodes that are set aside."""

    AVOID = "avoid"  # it may not
    LAST = "last"  # where others do not suffice
    FIRST = "first"  # rather than others


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the block."""

    name: str  #: unique within the block
    host: str  #: what MPI launchers call it; several pretend nodes may share a host
    cores: tuple[int, ...]  #: numbers, ascending
    memory_gb: float | None = None  #: None where it is not known, and not counted
    gpus: tuple[str, ...] = ()  #: names, as the variables that select GPUs take them
    pin: bool = True  #: whether `cores` are numbers that the operating system knows


@dataclass(slots=True)
class _Need:
    """What a task takes of each of its nodes."""

    cores: dict[int, int]  #: by how many the node has
    gpus: int
    memory: float  #: GB


@dataclass(frozen=True, slots=True)
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
    place: tuple[int, int] | None = None  #: in its pool; None among those that are wholly free


class _Pool:
    """Nodes: those that are wholly free, and the others by how many GPUs and cores are free on them."""

    def __init__(self) -> None:
        self.idle: dict[str, _State] = {}
        self._partly: defaultdict[tuple[int, int], dict[str, _State]] = defaultdict(dict)
        self._masks: list[int] = [0]  # by free GPUs: has the bit n where some node has n free cores besides

    def put(self, state: _State) -> None:
        """Take a node in."""
        state.pool = self
        if not state.held:
            state.place = None
            self.idle[state.node.name] = state
            return
        gpus, cores = state.place = len(state.gpus), len(state.cores)
        while gpus >= len(self._masks):
            self._masks.append(0)
        self._masks[gpus] |= 1 << cores
        self._partly[state.place][state.node.name] = state

    def drop(self, state: _State) -> None:
        """Take a node out."""
        if state.place is None:
            del self.idle[state.node.name]
            return
        bucket = self._partly[state.place]
        del bucket[state.node.name]
        if not bucket:
            gpus, cores = state.place
            self._masks[gpus] &= ~(1 << cores)

    @property
    def most_free(self) -> int:
        """Free cores of the node that has most, of those in use."""
        return max(map(int.bit_length, self._masks)) - 1

    def partly_free(self, gpus: int, cores: int) -> Iterator[_State]:
        """Return nodes in use with so many free GPUs and cores at least, those with the fewest first."""
        for free_gpus in range(gpus, len(self._masks)):
            mask = self._masks[free_gpus] >> cores
            free_cores = cores - 1
            while mask:
                step = (mask & -mask).bit_length()
                free_cores += step
                mask >>= step
                yield from self._partly[free_gpus, free_cores].values()

    def freest(self) -> Iterator[_State]:
        """Return all nodes, those with the most free GPUs and cores first."""
        yield from self.idle.values()
        for free_gpus in reversed(range(len(self._masks))):
            mask = self._masks[free_gpus]
            while mask:
                free_cores = mask.bit_length() - 1
                mask ^= 1 << free_cores
                yield from self._partly[free_gpus, free_cores].values()


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
        self._pools = {
            SetAside.AVOID: (self._open,),
            SetAside.LAST: (self._open, self._aside),
            SetAside.FIRST: (self._aside, self._open),
        }
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

    def take(
        self, task_id: int, spec: ResourceSpec, until: float | None = None, *, aside: SetAside = SetAside.LAST
    ) -> tuple[Share, ...] | None:
        """Give a task its share of one node or several, in the order of their addition; None if it does not fit now.

        Tasks of one node go where they leave least; nodes that are wholly free are kept for those that need them.

        Parameters
        ----------
        until
            When it is expected to end; None = not known.
        """
        need = self._need(spec)
        chosen = self._find(spec, need, self._pools[aside])
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

    def fits(self, name: str, spec: ResourceSpec) -> bool:
        """Tell whether a task's share of one node is free on a node."""
        return _fits(self._states[name], self._need(spec))

    def ready_at(self, name: str, spec: ResourceSpec, now: float) -> float:
        """Return when a task's share of one node will be free on a node: now, later, or infinity if nobody knows."""
        return _ready_at(self._states[name], self._need(spec), now)

    def soonest(self, spec: ResourceSpec, now: float) -> dict[str, float]:
        """Return nodes for a task that does not fit now, as it can start on them soonest, and when each will be ready.

        Of those that will be ready when the last is, the last ones are taken: the others are free for other tasks until
        then. In large blocks only the nodes that have most to give are looked at.
        """
        kinds = {kind for kind in self._present if self._able(kind, spec)}
        able = (state for pool in self._pools[SetAside.LAST] for state in pool.freest() if state.kind in kinds)
        looked_at = itertools.islice(able, _LOOKED_AT + 4 * spec.num_nodes)
        need = self._need(spec)
        times = [(_ready_at(state, need, now), number, state) for number, state in enumerate(looked_at)]
        times.sort()
        count = spec.num_nodes
        start = times[count - 1][0]
        while start < math.inf and count < len(times) and times[count][0] == start:
            count += 1
        return {state.node.name: time for time, _, state in times[count - spec.num_nodes : count]}

    def set_aside(self, names: Iterable[str]) -> None:
        """Keep nodes from tasks that are not given nodes set aside."""
        for name in names:
            self._move(name, self._aside)

    def open_up(self, names: Iterable[str]) -> None:
        """Give nodes back to all."""
        for name in names:
            if name in self._states:
                self._move(name, self._open)

    def cores_on(self, spec: ResourceSpec, node_cores: int) -> int:
        """Return the cores that a task takes on each of its nodes, if they have so many."""
        needed = spec.cores_on(node_cores)
        return max(needed, node_cores) if self._whole_nodes else needed

    def takes_whole_nodes(self, spec: ResourceSpec) -> bool:
        """Tell whether a task needs nodes that are wholly free."""
        return self._whole_nodes or (spec.cores is None and spec.node_packing_count is None)

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
        if spec.num_nodes <= sum(count for kind, count in kinds.items() if self._able(kind, spec)):
            return None
        largest = max(kinds)
        if self.cores_on(spec, largest[0]) > largest[0]:
            return f"it needs {self.cores_on(spec, largest[0])} cores on a node, and this block has {largest[0]} on one"
        gpus = max(gpus for _, _, gpus in kinds)
        if spec.gpus_on_node > gpus:
            return f"it needs {spec.gpus_on_node} GPUs on a node, and this block has {gpus} on one"
        memory = max(memory for _, memory, _ in kinds)
        if (spec.memory_gb or 0.0) > memory:
            return f"it needs {spec.memory_gb:g} GB on a node, and this block has {memory:.1f} on one"
        return f"it needs {spec.num_nodes} nodes that are large enough, and this block has fewer"

    def _need(self, spec: ResourceSpec) -> _Need:
        cores = {cores: self.cores_on(spec, cores) for cores, _, _ in self._present}
        return _Need(cores, spec.gpus_on_node, spec.memory_gb or 0.0)

    def _able(self, kind: _Kind, spec: ResourceSpec) -> bool:
        """Tell whether a node with so many cores, memory and GPUs can take a task's share of one node."""
        cores, memory, gpus = kind
        return self.cores_on(spec, cores) <= cores and spec.gpus_on_node <= gpus and (spec.memory_gb or 0.0) <= memory

    def _find(self, spec: ResourceSpec, need: _Need, pools: tuple[_Pool, ...]) -> list[_State] | None:
        candidates: list[Iterable[_State]] = [pool.idle.values() for pool in pools]
        if self.takes_whole_nodes(spec):
            if sum(len(pool.idle) for pool in pools) < spec.num_nodes:
                return None
        else:
            least = min(need.cores.values(), default=0)
            if self.free_cores < spec.num_nodes * least:
                return None
            candidates[:0] = [pool.partly_free(need.gpus, least) for pool in pools]
        found: list[_State] = []
        for state in itertools.chain.from_iterable(candidates):
            if _fits(state, need):
                found.append(state)
                if len(found) == spec.num_nodes:
                    found.sort(key=lambda state: state.order)
                    return found
        return None

    def _give(self, task_id: int, state: _State, need: _Need, until: float) -> Share:
        pool = state.pool
        assert pool is not None
        pool.drop(state)
        count = need.cores[state.kind[0]]
        cores = tuple(state.cores[:count])
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


def _fits(state: _State, need: _Need) -> bool:
    return (
        need.cores[state.kind[0]] <= len(state.cores)
        and need.gpus <= len(state.gpus)
        and need.memory <= state.memory + _DRIFT_GB
    )


def _ready_at(state: _State, need: _Need, now: float) -> float:
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
