"""What is free on the nodes of a block. Pure: cores and GPUs are given exactly, each to one task at a time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from parsl_balsam.launcher.pool import DRIFT_GB, CoresOn, Held, Kind, Need, Node, NodeState, Pool, Room
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share

#: Nodes among which those of a small task are chosen, when it has to wait; more for each of its own.
_LOOKED_AT = 64


class Space:
    """The nodes of a block.

    Parameters
    ----------
    whole_nodes
        Whether every task takes its nodes whole, for launchers that cannot share them.
    """

    def __init__(self, whole_nodes: bool = False) -> None:
        self._whole_nodes = whole_nodes
        self._states: dict[str, NodeState] = {}
        self._nodes: dict[str, Node] = {}
        self._orders = itertools.count()
        self._known: set[str] = set()  # names of all nodes that there ever were
        self._kinds: dict[Kind, int] = {}  # of how many nodes that there ever were
        self._present: dict[Kind, int] = {}
        self._open = Pool()
        self._aside = Pool()
        self._placements: dict[int, list[NodeState]] = {}
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
        state = NodeState(node, kind, (node.index, next(self._orders)), list(node.cores), list(node.gpus), kind[1])
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
            cores=CoresOn(spec, self._whole_nodes),
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

    def hand_over(self, task_id: int, other: int, until: float | None = None) -> None:
        """Give what a task of one node had to another one that needs the same.

        Parameters
        ----------
        until
            When that is expected to end; None = not known.
        """
        (state,) = self._placements[other] = self._placements.pop(task_id)
        held = state.held.pop(task_id)
        end = math.inf if until is None else until
        state.held[other] = Held(held.share, held.memory, end)
        if state.pool is not None:  # else the node was given up
            del state.ends[bisect_left(state.ends, (held.until, task_id))]
            insort(state.ends, (end, other))

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

    def _move(self, name: str, pool: Pool) -> None:
        state = self._states[name]
        if state.pool is not None and state.pool is not pool:
            state.pool.drop(state)
            pool.put(state)

    def _lacking(self, spec: ResourceSpec, kinds: Mapping[Kind, int]) -> str | None:
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

    def _find(self, need: Need, pools: tuple[Pool, ...]) -> list[NodeState] | None:
        candidates: list[Iterable[NodeState]] = [pool.idle.values() for pool in pools]
        if need.idle_nodes:
            if sum(len(pool.idle) for pool in pools) < need.nodes:
                return None
        else:
            if self.free_cores < need.nodes * need.least_cores:
                return None
            candidates[:0] = [pool.partly_free(need) for pool in pools]
        found: list[NodeState] = []
        for state in itertools.chain.from_iterable(candidates):
            if _fits(state, need):
                found.append(state)
                if len(found) == need.nodes:
                    found.sort(key=lambda state: state.order)
                    return found
        return None

    def _give(self, task_id: int, state: NodeState, need: Need, until: float) -> Share:
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
        state.held[task_id] = Held(share, need.memory, until)
        insort(state.ends, (until, task_id))
        self.free_cores -= count
        pool.put(state)
        return share


def _able(kind: Kind, need: Need) -> bool:
    """Tell whether a node with so many cores, memory and GPUs can take a task's share of one node."""
    cores, memory, gpus = kind
    return need.cores[cores] <= cores and need.gpus <= gpus and need.memory <= memory


def _fits(state: NodeState, need: Need) -> bool:
    return (
        need.cores[state.kind[0]] <= len(state.cores)
        and need.gpus <= len(state.gpus)
        and need.memory <= state.memory + DRIFT_GB
    )


def _ready_at(state: NodeState, need: Need, now: float) -> float:
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
        if needed <= cores and need.gpus <= gpus and need.memory <= memory + DRIFT_GB:
            return end
    return math.inf
