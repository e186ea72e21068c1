"""Which batch job to request next for what waits. Pure: the caller reads the database and asks the scheduler.

The largest task that waits decides which blocks are possible, so that no size waits behind others. Among those blocks
the one is chosen that has most use for its nodes: node-minutes in which tasks run, less those in which none does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parsl_balsam.model.blocks import BlockRequest, BlockSupply
from parsl_balsam.model.demand import Demand, TaskGroup
from parsl_balsam.providers.lots import Lot, lots_of, share_of
from parsl_balsam.providers.policy import Offer, Queue, QueuePolicy, title_of
from parsl_balsam.providers.sizing import served_by, size

#: A request is not delayed for more than so many times `settle_s` after the first task came.
_MOST_SETTLING = 6

#: So many kinds of tasks at most are told apart in words.
_MOST_KINDS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to request now, if anything."""

    request: BlockRequest | None
    why: str
    groups: tuple[TaskGroup, ...] = ()  #: tasks that the block is sized for
    node_min: float = 0.0  #: node-minutes that they are expected to take

    @property
    def tasks(self) -> int:
        """How many tasks the block is sized for."""
        return sum(group.count for group in self.groups)

    @property
    def fill(self) -> float:
        """Part of the requested node-minutes in which these tasks run."""
        return 0.0 if self.request is None else self.node_min / (self.request.nodes * self.request.walltime_min)


def pack(demand: Demand, policy: QueuePolicy, blocks: Sequence[BlockSupply], now: float) -> Plan:
    """Decide whether another block is to be requested, and of what size.

    Parameters
    ----------
    demand
        All that waits, without what blocks have claimed.
    blocks
        Those that wait in a queue or run.
    now
        Seconds since the epoch, on the clock of `demand` and `blocks`.
    """
    if not demand.tasks:
        return Plan(None, "nothing waits")
    if _settling(demand, policy, now):
        return Plan(None, "tasks still come in")
    rest = lots_of(demand, policy)
    if not rest:
        return Plan(None, _refused(demand, policy))
    serving: list[int] = []
    for block in sorted(blocks, key=lambda block: not block.running):
        served = served_by(block, rest, demand, policy, now)
        if any(served.values()):
            serving.append(block.block_id)
            rest = [less for lot in rest if (less := lot.less(served.get(lot.key, 0))).count]
    if not rest:
        return Plan(None, f"{_blocks(serving)} will serve what waits")
    closed = {queue.name: why for queue in policy.queues if (why := _closed(queue, blocks))}
    offers = [offer for offer in policy.offers if offer.queue.name not in closed]
    for largest in rest:
        if any(offer.admits(largest.nodes, largest.minutes) for offer in offers):
            sized = size(policy, rest, largest, offers)
            return _plan(sized.request, sized.counts, rest, demand, policy)
    needed = {offer.queue.name for lot in rest for offer in _admitting(lot, policy)}
    return Plan(None, "; ".join(why for name, why in closed.items() if name in needed))


def plan_all(
    demand: Demand, policy: QueuePolicy, blocks: Sequence[BlockSupply], now: float, most: int = 100
) -> list[Plan]:
    """Decide again and again, as if each block had been granted and waited in its queue.

    The last plan requests nothing, and tells why. Tasks that still come in are not waited for.

    Parameters
    ----------
    most
        So many blocks are planned at most.
    """
    settled = replace(demand, newest_at=None)
    supplies = list(blocks)
    plans: list[Plan] = []
    while (request := (plan := pack(settled, policy, supplies, now)).request) is not None:
        if len(plans) == most:
            return [*plans, Plan(None, f"more would be requested after these {most}")]
        plans.append(plan)
        supplies.append(BlockSupply(-len(plans), request.nodes, request.walltime_min, request.queue))
    return [*plans, plan]


def _settling(demand: Demand, policy: QueuePolicy, now: float) -> bool:
    """Tell whether other tasks are to be waited for."""
    newest_at = demand.newest_at
    if newest_at is None or now - newest_at >= policy.settle_s:
        return False
    oldest_at = newest_at if demand.oldest_at is None else demand.oldest_at
    return now - oldest_at < policy.settle_s * _MOST_SETTLING


def _admitting(lot: Lot, policy: QueuePolicy) -> list[Offer]:
    return [offer for offer in policy.offers if offer.admits(lot.nodes, lot.minutes)]


def _closed(queue: Queue, blocks: Sequence[BlockSupply]) -> str | None:
    """Tell why a queue takes no further job; None if it does."""
    own = [block for block in blocks if block.queue == queue.name]
    waiting = [block for block in own if not block.running]
    for limit, held, may in ((queue.max_running, own, "run"), (queue.max_queued, waiting, "hold")):
        if limit is not None and len(held) >= limit:
            has = _blocks([block.block_id for block in held]) if held else "no block"
            return f"{queue.title} may {may} {_number(limit, 'job')} and has {has}"
    return None


def _plan(
    request: BlockRequest, counts: dict[int, int], rest: Sequence[Lot], demand: Demand, policy: QueuePolicy
) -> Plan:
    groups: list[TaskGroup] = []
    area = 0.0
    longest_min = policy.usable_min(request.walltime_min)
    for lot in rest:
        first = lot.first(counts.get(lot.key, 0))
        groups += first
        for group in first:
            takes = group.walltime_min
            takes = min(policy.assumed_walltime_min, longest_min) if takes is None else takes
            area += group.count * group.nodes / lot.share * takes
    left = sum(lot.count for lot in rest) - sum(group.count for group in groups)
    what = f"{_tasks(groups, demand)}, {_hours(area / 60)}"
    others = f" ({_number(left, 'other task')} must wait for another block)" if left else ""
    block = f"{_number(request.nodes, 'node')} for {_time(request.walltime_min)} of {title_of(request.queue)}"
    return Plan(request, f"{what}: {block}{others}", tuple(groups), area)


def _refused(demand: Demand, policy: QueuePolicy) -> str:
    largest = max(demand.groups, key=lambda group: (group.count > 0, group.nodes, group.walltime_min or 0.0))
    why = policy.refusal(largest.nodes, largest.walltime_min)
    return f"{_number(demand.tasks, 'task')} cannot run in any block of the policy: {why}"


def _blocks(ids: Sequence[int]) -> str:
    """Return words for some blocks; those that are only planned have numbers below zero."""
    real = [str(block_id) for block_id in sorted(ids) if block_id >= 0]
    planned = len(ids) - len(real)
    named = f"block{'s' * (len(real) > 1)} {_and(real)}" if real else ""
    return _and([each for each in (named, f"{_number(planned, 'planned block')}" if planned else "") if each])


def _tasks(groups: Sequence[TaskGroup], demand: Demand) -> str:
    counts: defaultdict[tuple[int, bool], int] = defaultdict(int)
    for group in groups:
        counts[group.nodes, group.nodes == 1 and share_of(group, demand) > 1] += group.count
    kinds = sorted(counts, key=lambda kind: (kind[0], not kind[1]))
    if len(kinds) > _MOST_KINDS:
        total, (least, part), (most, _) = sum(counts.values()), kinds[0], kinds[-1]
        return f"{total:,} tasks of {'a part of a node' if part else least} to {most} nodes"
    told = []
    for number, kind in enumerate(kinds):
        size_of = "a part of a node" if kind[1] else _number(kind[0], "node")
        told.append(f"{counts[kind]:,} of {size_of}" if number else f"{_number(counts[kind], 'task')} of {size_of}")
    return _and(told)


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _hours(node_hours: float) -> str:
    return f"{node_hours:,.0f} node-hours" if node_hours >= 10 else f"{node_hours:.2g} node-hours"


def _time(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    parts = ([f"{hours} h"] if hours else []) + ([f"{rest} min"] if rest else [])
    return " ".join(parts)
