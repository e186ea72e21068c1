"""What a block will run of the tasks that wait, and the block that has most use for its nodes. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parsl_balsam.model.blocks import BlockRequest, BlockSupply
from parsl_balsam.model.demand import Demand
from parsl_balsam.providers.lots import Lot, share_of
from parsl_balsam.providers.policy import LAST_CALL_MIN, Offer, QueuePolicy
from parsl_balsam.providers.strip import Bar, Bars, Fit

#: Blocks whose use differs by less than this part of it are equally good.
_ALIKE = 0.02

#: Numbers of nodes that are tried: each so many times the one before.
_STEP = 1.5

#: Of a task that a block has claimed, so much is still to come, as long as nobody tells when it started.
_TO_COME = 0.5

#: Sums of fractions of minutes may be off by less.
_DRIFT = 1e-9


@dataclass(frozen=True, slots=True)
class Sized:
    """A block that may be requested."""

    request: BlockRequest
    counts: dict[int, int]  #: how many tasks of which lots it is sized for, by key


@dataclass(frozen=True, slots=True)
class _Try:
    """Blocks of one number of nodes, up to a walltime."""

    offer: Offer
    bars: Bars
    nodes: int
    least_min: int  #: walltime, whole minutes
    most_min: int
    at_best: float  #: their use is not more, node-minutes


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of a try."""

    offer: Offer
    bars: Bars
    fit: Fit
    nodes: int
    walltime_min: int
    use: float  #: node-minutes that are given to tasks, less those that are not


def size(policy: QueuePolicy, rest: Sequence[Lot], largest: Lot, offers: Sequence[Offer]) -> Sized:
    """Return the block that has most use for its nodes.

    Of those that are about equally good it is the one that ends first, and then the smallest. Where one block could
    serve everything it is chosen, unless two of them would ask for less.

    Parameters
    ----------
    rest
        All tasks that the block may be sized for, the largest first.
    largest
        Those of them that it must be able to run.
    offers
        What may be requested; some of them admit the largest.
    """
    best = _best(*_results(policy, rest, largest, offers), policy, rest, offers)
    # Counted again as for a block that waits, so that no other one is requested for the same tasks.
    fit = best.bars.fit(best.nodes, policy.usable_min(best.walltime_min))
    return Sized(BlockRequest(best.nodes, best.walltime_min, best.offer.queue.name), fit.counts)


def _best(
    whole: Sequence[_Result],
    part: Sequence[_Result],
    policy: QueuePolicy,
    rest: Sequence[Lot],
    offers: Sequence[Offer],
) -> _Result:
    if not part or not whole:
        return _first_of_the_good(whole or part)
    one, first = _first_of_the_good(whole), _first_of_the_good(part)
    if first.use <= one.use:
        return one
    others = (lot.less(first.fit.counts.get(lot.key, 0)) for lot in _admitted(rest, offers))
    left = [lot for lot in others if lot.count]
    seconds, _ = _results(policy, left, left[0], offers)
    if not seconds:
        return one
    second = _first_of_the_good(seconds)
    two_min = first.nodes * first.walltime_min + second.nodes * second.walltime_min
    return first if two_min < (1 - _ALIKE) * one.nodes * one.walltime_min else one


def _first_of_the_good(results: Sequence[_Result]) -> _Result:
    enough = max(_enough(result) for result in results)
    good = (result for result in results if result.use >= enough)
    return min(good, key=lambda result: (result.walltime_min, result.nodes))


def _enough(result: _Result) -> float:
    """Return what is about as good as a result."""
    return result.use - _ALIKE * result.fit.area


def _results(
    policy: QueuePolicy, rest: Sequence[Lot], largest: Lot, offers: Sequence[Offer]
) -> tuple[list[_Result], list[_Result]]:
    """Return the best blocks that serve everything, and the best of the others."""
    all_tasks = sum(lot.count for lot in _admitted(rest, offers))
    admitting = [offer for offer in offers if offer.admits(largest.nodes, largest.minutes)]
    tries = [each for offer in admitting for each in _tries(policy, rest, largest, offer)]
    whole: list[_Result] = []
    part: list[_Result] = []
    enough_whole = enough_part = -math.inf
    served: set[tuple[int, int]] = set()  # bars and numbers of nodes that need no longer block
    for each in sorted(tries, key=lambda each: -each.at_best):
        shape = id(each.bars), each.nodes
        may_be_whole = each.bars.area <= each.nodes * policy.usable_min(each.most_min)
        if shape in served or each.at_best < (min(enough_part, enough_whole) if may_be_whole else enough_part):
            continue
        fit = each.bars.fit(each.nodes, policy.usable_min(each.most_min))
        walltime_min = max(each.least_min, _walltime(fit.minutes, policy))
        use = 2 * fit.area - each.nodes * walltime_min
        result = _Result(each.offer, each.bars, fit, each.nodes, walltime_min, use)
        if fit.all:
            served.add(shape)
        if sum(fit.counts.values()) == all_tasks:
            whole.append(result)
            enough_whole = max(enough_whole, _enough(result))
        else:
            part.append(result)
            enough_part = max(enough_part, _enough(result))
    return whole, part


def served_by(
    block: BlockSupply, rest: Sequence[Lot], demand: Demand, policy: QueuePolicy, now: float
) -> dict[int, int]:
    """Return how many tasks of which lots a block that waits or runs will run, by key.

    Parameters
    ----------
    now
        Seconds since the epoch.
    """
    offer = _offer_of(block, policy)
    if block.running and block.ends_at is not None:
        left = (block.ends_at - now) / 60 - LAST_CALL_MIN
        return _served_in_time(block, rest, demand, policy, left, left if offer is None else offer.longest_task_min)
    if block.running or block.walltime_min is None:
        return {lot.key: lot.count for lot in rest if lot.nodes <= block.nodes}
    usable = policy.usable_min(block.walltime_min)
    bars = _bars(rest, block.nodes, usable if offer is None else offer.longest_task_min, policy)
    return bars.fit(block.nodes, usable).counts


def _served_in_time(
    block: BlockSupply, rest: Sequence[Lot], demand: Demand, policy: QueuePolicy, left: float, longest_min: float
) -> dict[int, int]:
    """Return what a running block will run in the minutes that it has left, by the area of what it holds and takes."""
    area = block.nodes * left
    for group in block.held:
        takes = policy.assumed_walltime_min if group.walltime_min is None else group.walltime_min
        area -= group.count * group.nodes / share_of(group, demand) * min(takes, left) * _TO_COME
    served: dict[int, int] = {}
    for lot in rest:
        takes = lot.takes(policy, longest_min)
        if lot.nodes > block.nodes or area < 0:
            continue
        each = lot.nodes / lot.share * takes
        count = lot.count
        if each:
            in_turn = int(min(count, left / takes))
            count = int(min(count, block.nodes // lot.nodes * lot.share * in_turn, area / each + _DRIFT))
        served[lot.key] = count
        area -= count * each
    return served


def _offer_of(block: BlockSupply, policy: QueuePolicy) -> Offer | None:
    """Return the offer that a block was requested by; None if it is none of this policy."""
    walltime_min = block.walltime_min
    if walltime_min is None:
        return None
    for offer in policy.offers:
        nodes_fit = offer.min_nodes <= block.nodes <= offer.max_nodes
        if offer.queue.name == block.queue and nodes_fit and walltime_min <= offer.max_walltime_min:
            return offer
    return None


def _bars(rest: Sequence[Lot], most_nodes: int, longest_min: float, policy: QueuePolicy) -> Bars:
    """Return what a block admits. No task is given more time than the longest that is admitted, for all its slack."""
    return Bars(
        Bar(lot.key, lot.count, lot.nodes, lot.share, _given_min(lot, longest_min, policy))
        for lot in rest
        if lot.nodes <= most_nodes and (lot.minutes is None or lot.minutes <= longest_min)
    )


def _given_min(lot: Lot, longest_min: float, policy: QueuePolicy) -> float:
    return min(lot.takes(policy, longest_min) * policy.slack, longest_min)


def _admitted(lots: Sequence[Lot], offers: Sequence[Offer]) -> list[Lot]:
    return [lot for lot in lots if any(offer.admits(lot.nodes, lot.minutes) for offer in offers)]


def _tries(policy: QueuePolicy, rest: Sequence[Lot], largest: Lot, offer: Offer) -> Iterator[_Try]:
    bars = _bars(rest, offer.max_nodes, offer.longest_task_min, policy)
    least_min = max(offer.min_walltime_min, _walltime(_given_min(largest, offer.longest_task_min, policy), policy))
    fewest = max(offer.min_nodes, largest.nodes)
    for nodes in _node_counts(fewest, max(fewest, min(offer.max_nodes, bars.width)), largest.nodes):
        for most_min in _walltimes(least_min, offer.max_walltime_min):
            area = min(bars.area, nodes * policy.usable_min(most_min))
            asked = max(nodes * least_min, area - nodes * policy.usable_min(0))
            yield _Try(offer, bars, nodes, least_min, most_min, 2 * area - asked)


def _node_counts(fewest: int, most: int, largest: int) -> Iterator[int]:
    """Yield numbers of nodes between two, both included, those between them multiples of what the largest task has."""
    nodes = fewest
    while nodes < most:
        yield nodes
        more = max(nodes + 1, int(nodes * _STEP))
        nodes = max(nodes + 1, more // largest * largest)
    yield most


def _walltimes(least: int, most: int) -> Iterator[int]:
    while least < most:
        yield least
        least *= 2
    yield most


def _walltime(minutes: float, policy: QueuePolicy) -> int:
    """Return the walltime of a block that has so much time for tasks, whole minutes."""
    return math.ceil(minutes - policy.usable_min(0) - _DRIFT)
