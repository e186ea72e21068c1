"""What waits, by what blocks may run it and how many share a node: few enough lots to try many blocks on. Pure."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace

from parsl_balsam.model.demand import Demand, TaskGroup
from parsl_balsam.providers.policy import QueuePolicy

#: More lots than so many are joined: times and nodes are rounded up to those of a neighbour.
MOST_LOTS = 300

#: Neighbours differ by less than such a factor, the first of these that joins enough.
_FACTORS = (1.05, 1.1, 1.2, 1.5, 2.0, 4.0, math.inf)


@dataclass(frozen=True, slots=True)
class Lot:
    """Tasks that are placed alike."""

    key: int  #: to tell it from others
    nodes: int  #: of the largest of them
    share: int  #: how many of them the same nodes have room for at once
    minutes: float | None  #: of the longest of them; None = nobody knows
    count: int
    groups: tuple[TaskGroup, ...]  #: the same tasks, the longest first

    def takes(self, policy: QueuePolicy, most_min: float) -> float:
        """Return how long each task is expected to run in blocks that have at most some minutes for a task."""
        return min(policy.assumed_walltime_min, most_min) if self.minutes is None else self.minutes

    def less(self, count: int) -> Lot:
        """Return what is left when so many tasks are served, the longest first."""
        if not count:
            return self
        return replace(self, count=self.count - count, groups=tuple(_cut(self.groups, count, self.count)))

    def first(self, count: int) -> tuple[TaskGroup, ...]:
        """Return the first so many tasks."""
        return tuple(_cut(self.groups, 0, count))


def lots_of(demand: Demand, policy: QueuePolicy) -> list[Lot]:
    """Return what waits and can run in some block of a policy, the largest and longest first."""
    alike: defaultdict[Hashable, list[TaskGroup]] = defaultdict(list)
    for group in demand.groups:
        if group.count > 0:
            alike[group.nodes, share_of(group, demand), group.walltime_min].append(group)
    admitted: dict[tuple[int, ...], list[Lot]] = defaultdict(list)
    for groups in alike.values():
        lot = _lot(groups, share_of(groups[0], demand))
        if offers := tuple(n for n, offer in enumerate(policy.offers) if offer.admits(lot.nodes, lot.minutes)):
            admitted[offers].append(lot)
    lots = list(itertools.chain.from_iterable(admitted.values()))
    for factor in _FACTORS:
        if len(lots) <= MOST_LOTS:
            break
        # What the same blocks admit may be joined: they admit the largest and the longest of it in one.
        lots = [joined for each in admitted.values() for joined in _joined(each, factor)]
    lots.sort(key=lambda lot: (-lot.nodes, lot.share, -lot.takes(policy, math.inf)))
    return [replace(lot, key=key) for key, lot in enumerate(lots)]


def share_of(group: TaskGroup, demand: Demand) -> int:
    """Return how many such tasks the same nodes have room for; 1 where that cannot be told."""
    cores, gpus = demand.cores_per_node, demand.gpus_per_node
    room = []
    if group.packing is not None:
        room.append(group.packing if cores is None else min(group.packing, cores))
    else:
        room.append(1 if group.cores is None or cores is None else cores // max(1, group.cores))
    if group.gpus:
        room.append(1 if gpus is None else gpus // group.gpus)
    return max(1, min(room))


def _lot(groups: Iterable[TaskGroup], share: int) -> Lot:
    ordered = tuple(sorted(groups, key=lambda group: -(group.walltime_min or 0.0)))
    count = sum(group.count for group in ordered)
    return Lot(0, max(group.nodes for group in ordered), share, ordered[0].walltime_min, count, ordered)


def _joined(lots: list[Lot], factor: float) -> list[Lot]:
    step = _steps(factor)
    near: defaultdict[Hashable, list[TaskGroup]] = defaultdict(list)
    for lot in lots:
        minutes = None if lot.minutes is None else step(lot.minutes)
        near[step(lot.nodes), lot.share, minutes].extend(lot.groups)
    return [_lot(groups, key[1]) for key, groups in near.items()]  # type: ignore[index]


def _steps(factor: float) -> Callable[[float], int]:
    """Return a function that is the same for values that differ by less than a factor."""
    width = math.log(factor)
    return lambda value: 0 if not value else math.ceil(math.log(value) / width)


def _cut(groups: Iterable[TaskGroup], first: int, last: int) -> Iterable[TaskGroup]:
    """Yield tasks by their place in a row of groups, from one place to before another."""
    begins = 0
    for group in groups:
        ends = begins + group.count
        count = min(ends, last) - max(begins, first)
        if count > 0:
            yield replace(group, count=count)
        begins = ends
