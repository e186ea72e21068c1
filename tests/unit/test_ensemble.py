"""Blocks are requested for what waits: large and long enough, within the policy, and no more of them than needed."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.packing import ensemble
from configs.theta import POLICY as THETA
from parsl_balsam.model.blocks import BlockRequest, BlockSupply
from parsl_balsam.model.demand import Demand, TaskGroup
from parsl_balsam.providers.ensemble import Plan, pack, plan_all
from parsl_balsam.providers.lots import MOST_LOTS, lots_of
from parsl_balsam.providers.policy import LAST_CALL_MIN, NodeRange, Offer, Queue, QueuePolicy
from parsl_balsam.providers.strip import Bar, Bars
from tests.unit.test_policy import policies

NOW = 1e9
ANY = QueuePolicy([Queue([NodeRange(1, 1000, 1440)])])


def waiting(*groups: TaskGroup, cores: int | None = 8, gpus: int | None = 4) -> Demand:
    return Demand(groups, cores, gpus, NOW - 3600, NOW - 60)


def tasks(count: int, nodes: int = 1, minutes: float | None = 10) -> TaskGroup:
    """Return tasks that take whole nodes."""
    return TaskGroup(count, nodes, walltime_min=minutes)


def block(request: BlockRequest, block_id: int = 1) -> BlockSupply:
    """Return a block that waits in its queue."""
    return BlockSupply(block_id, request.nodes, request.walltime_min, request.queue)


def started(request: BlockRequest, block_id: int = 1, minutes_ago: float = 0) -> BlockSupply:
    """Return a block that runs."""
    ends_at = NOW + (request.walltime_min - minutes_ago) * 60
    return replace(block(request, block_id), ends_at=ends_at, running=True)


def asked(plan: Plan) -> BlockRequest:
    assert plan.request is not None, plan.why
    return plan.request


# -- what a plan is held against


@dataclass(frozen=True)
class Task:
    nodes: int
    share: int  #: how many of them fit on the same nodes
    minutes: float


def share_of(group: TaskGroup, demand: Demand) -> int:
    if group.packing is not None:
        by_cores = group.packing
    else:
        by_cores = demand.cores_per_node // group.cores if group.cores and demand.cores_per_node else 1
    by_gpus = (demand.gpus_per_node or 0) // group.gpus if group.gpus else by_cores
    return max(1, min(by_cores, by_gpus))


def wave_after_wave_min(waiting: Sequence[Task], nodes: int) -> float:
    """Return how long it takes to start what fits, the longest first, and to start more when all of that has ended."""
    left = sorted(waiting, key=lambda task: (-task.minutes, -task.nodes, task.share))
    took = 0.0
    while left:
        free, room, later = nodes, Counter[tuple[int, int]](), []
        for task in left:
            kind = task.nodes, task.share
            if not room[kind] and task.nodes <= free:
                free -= task.nodes
                room[kind] = task.share
            if room[kind]:
                room[kind] -= 1
            else:
                later.append(task)
        took += left[0].minutes
        left = later
    return took


def one_by_one_min(waiting: Sequence[Task], nodes: int) -> float:
    """Return how long it takes to start the widest first, each as soon as it fits, and none before the one before."""
    free = [Fraction(1)] * nodes
    running: list[tuple[float, int, list[int], Fraction]] = []
    now = last = 0.0
    numbers = itertools.count()
    for task in sorted(waiting, key=lambda task: (-task.nodes, task.share, -task.minutes)):
        part = Fraction(1, task.share) if task.nodes == 1 else Fraction(1)
        while len(chosen := [number for number in range(nodes) if free[number] >= part][: task.nodes]) < task.nodes:
            now, _, ended, freed = heapq.heappop(running)
            for number in ended:
                free[number] += freed
        for number in chosen:
            free[number] -= part
        heapq.heappush(running, (now + task.minutes, next(numbers), chosen, part))
        last = max(last, now + task.minutes)
    return last


def check_possible(request: BlockRequest, policy: QueuePolicy) -> Offer:
    """A request is within a range of its queue and within the user's wish; return what admits it."""
    for queue in policy.queues:
        for each in queue.ranges:
            nodes_fit = each.min_nodes <= request.nodes <= each.max_nodes
            if queue.name == request.queue and nodes_fit:
                assert isinstance(request.walltime_min, int)
                assert each.min_walltime_min <= request.walltime_min <= each.max_walltime_min
                assert request.nodes <= (policy.max_nodes or math.inf)
                assert request.walltime_min <= (policy.max_walltime_min or math.inf)
                return next(o for o in policy.offers if o.queue == queue and o.min_nodes == each.min_nodes)
    raise AssertionError(f"no queue admits {request}")


def check_fits(plan: Plan, demand: Demand, policy: QueuePolicy) -> None:
    """All tasks that a block is sized for end in its time, even if each takes as much longer as the slack says."""
    request = asked(plan)
    offer = check_possible(request, policy)
    usable = request.walltime_min - policy.startup_min - LAST_CALL_MIN
    listed = []
    for group in plan.groups:
        expected = policy.assumed_walltime_min if group.walltime_min is None else group.walltime_min
        longest = offer.longest_task_min
        assert group.nodes <= request.nodes
        assert min(expected, longest) <= usable + 1e-9
        given_min = min(min(expected, longest) * policy.slack, longest)
        listed += [Task(group.nodes, share_of(group, demand), given_min)] * group.count
    took = min(wave_after_wave_min(listed, request.nodes), one_by_one_min(listed, request.nodes))
    assert took <= usable + 1e-6


def counted(groups: Iterable[TaskGroup]) -> Counter[TaskGroup]:
    counts = Counter[TaskGroup]()
    for group in groups:
        counts[replace(group, count=1)] += group.count
    return counts


groups = st.builds(
    TaskGroup,
    count=st.integers(1, 12),
    nodes=st.sampled_from([1, 1, 1, 2, 3, 5, 8, 13]),
    cores=st.none() | st.sampled_from([1, 2, 3, 8, 9]),
    gpus=st.sampled_from([0, 0, 1, 4, 5]),
    walltime_min=st.none() | st.floats(0, 120) | st.integers(1, 60),
) | st.builds(TaskGroup, count=st.integers(1, 12), packing=st.integers(1, 8), walltime_min=st.floats(0, 60))
demands = st.builds(
    waiting,
    groups,
    groups,
    groups,
    groups,
    cores=st.none() | st.just(8),
    gpus=st.none() | st.just(4),
) | st.lists(groups, max_size=8).map(lambda some: waiting(*some))
unlimited = policies(st.none())


def admitted(demand: Demand, policy: QueuePolicy) -> Demand:
    return replace(demand, groups=tuple(g for g in demand.groups if policy.refusal(g.nodes, g.walltime_min) is None))


# -- whether there is a request


def test_no_block_is_requested_when_nothing_waits() -> None:
    assert pack(waiting(), ANY, (), NOW) == Plan(None, "nothing waits")


def test_no_block_is_requested_while_tasks_still_come_in() -> None:
    demand = replace(waiting(tasks(3)), oldest_at=NOW - 8, newest_at=NOW - 2)
    assert pack(demand, ANY, (), NOW) == Plan(None, "tasks still come in")
    assert pack(demand, ANY, (), NOW + 3).request is not None


def test_tasks_that_come_in_without_end_are_not_waited_for() -> None:
    demand = replace(waiting(tasks(3)), oldest_at=NOW - 31, newest_at=NOW)
    assert pack(demand, ANY, (), NOW).request is not None


def test_a_waiting_block_serves_what_it_was_requested_for() -> None:
    demand = waiting(tasks(500, 1, 20), tasks(40, 4, 50))
    request = asked(pack(demand, ANY, (), NOW))
    assert pack(demand, ANY, [block(request, 3)], NOW) == Plan(None, "block 3 will serve what waits")
    assert pack(demand, ANY, [started(request, 3)], NOW).request is None


def test_blocks_are_named_that_serve_what_waits() -> None:
    policy = QueuePolicy.fixed(10, 60)
    plan = pack(waiting(tasks(60)), policy, [block(BlockRequest(10, 60), 3), started(BlockRequest(10, 60), 4)], NOW)
    assert plan.why == "blocks 3 and 4 will serve what waits"


def test_what_a_running_block_has_no_time_for_gets_another_block() -> None:
    demand = waiting(tasks(3, 2, 30))
    held = started(BlockRequest(6, 60), minutes_ago=20)
    assert pack(demand, ANY, [held], NOW).request is None
    assert pack(demand, ANY, [replace(held, ends_at=NOW + 29 * 60)], NOW).tasks == 3
    assert pack(demand, ANY, [replace(held, nodes=4)], NOW).tasks == 1
    assert pack(waiting(tasks(1, 7, 0)), ANY, [held], NOW).tasks == 1
    assert pack(demand, ANY, [replace(held, ends_at=NOW - 60)], NOW).tasks == 3


def test_what_a_running_block_holds_comes_first() -> None:
    demand = waiting(tasks(4, 1, 30))
    held = started(BlockRequest(4, 60), minutes_ago=20)
    assert pack(demand, ANY, [held], NOW).request is None
    busy = replace(held, held=(tasks(4, 1, 39),))
    assert pack(demand, ANY, [busy], NOW).tasks == 2


def test_a_block_that_waits_is_for_what_running_ones_leave() -> None:
    demand = waiting(tasks(4, 2, 10), tasks(4, 1, 100))
    runs = started(BlockRequest(4, 60), 1, minutes_ago=29)
    plan = pack(demand, ANY, [runs], NOW)
    assert plan.groups == (tasks(4, 1, 100),)
    assert pack(demand, ANY, [block(asked(plan), 2), runs], NOW).why == "blocks 1 and 2 will serve what waits"


def test_block_without_end_serves_all_that_it_has_nodes_for() -> None:
    demand = waiting(tasks(1000, 4, 600), tasks(1, 5, 1))
    plan = pack(demand, ANY, [BlockSupply(1, 4, None, running=True)], NOW)
    assert plan.groups == (tasks(1, 5, 1),)
    assert asked(plan).nodes == 5


def test_any_rest_gets_a_block_of_its_own_size() -> None:
    demand = waiting(tasks(100, 1, 30))
    held = started(BlockRequest(99, 35))
    plan = pack(demand, ANY, [held], NOW)
    assert (plan.request, plan.tasks) == (BlockRequest(1, 36), 1)


def test_full_queue_is_named_with_its_blocks() -> None:
    large = tasks(1, 20, 10)
    blocks = [BlockSupply(7, 4, 30, "debug-cache-quad")]
    policy = QueuePolicy(THETA.queues[1:])
    assert pack(waiting(tasks(50, 1, 50)), policy, blocks, NOW).why == (
        "queue 'debug-cache-quad' may run 1 job and has block 7"
    )
    assert asked(pack(waiting(large), THETA, blocks, NOW)).queue == "default"


def test_no_more_jobs_wait_than_a_queue_may_hold() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 4, 60)], max_queued=1, max_running=3)])
    demand = waiting(tasks(100, 4, 50))
    request = BlockRequest(4, 60)
    assert pack(demand, policy, [block(request, 1)], NOW).why == "the provider's queue may hold 1 job and has block 1"
    assert pack(demand, policy, [started(request, 1), started(request, 2)], NOW).request is not None
    running = [started(request, number) for number in (1, 2, 3)]
    assert pack(demand, policy, running, NOW).why == "the provider's queue may run 3 jobs and has blocks 1, 2 and 3"


def test_closed_queue_gets_no_job() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 4, 60)], max_running=0)])
    assert pack(waiting(tasks(1)), policy, (), NOW).why == "the provider's queue may run 0 jobs and has no block"


def test_what_no_block_could_run_is_named_and_keeps_nothing_from_running() -> None:
    refused = tasks(2, 2000, 10)
    assert pack(waiting(refused), ANY, (), NOW).why == (
        "2 tasks cannot run in any block of the policy: "
        "num_nodes=2000 is more than the 1000 nodes of the largest block (the provider's queue)"
    )
    plan = pack(waiting(refused, tasks(3)), ANY, (), NOW)
    assert plan.groups == (tasks(3),)


# -- how large it is


def test_request_says_what_it_is_for() -> None:
    policy = QueuePolicy([Queue([NodeRange(200, 200, 360)], "default")])
    plan = pack(waiting(tasks(2000, 1, 6), tasks(40, 4, 60)), policy, (), NOW)
    assert plan.why == (
        "2,000 tasks of 1 node and 40 of 4 nodes, 360 node-hours: 200 nodes for 2 h 9 min of queue 'default'"
    )
    assert plan.node_min == 2000 * 6 + 40 * 4 * 60
    assert plan.fill == pytest.approx(21600 / (200 * 129))


def test_small_ensemble_goes_to_the_debug_queue_and_a_large_one_does_not() -> None:
    assert asked(pack(waiting(tasks(20, 1, 10)), THETA, (), NOW)).queue == "debug-cache-quad"
    assert asked(pack(waiting(tasks(2000, 1, 10)), THETA, (), NOW)).queue == "default"


def test_long_task_gets_a_block_that_is_larger_than_it_needs() -> None:
    request = asked(pack(waiting(tasks(1, 130, 900)), THETA, (), NOW))
    assert request == BlockRequest(802, 993, "default")


def test_largest_task_decides_though_others_have_more_work() -> None:
    plan = pack(waiting(tasks(1, 300, 5), tasks(5000, 1, 10)), THETA, (), NOW)
    assert asked(plan).nodes >= 300
    assert tasks(1, 300, 5) in plan.groups


def test_long_tasks_do_not_keep_the_nodes_of_a_short_but_large_one() -> None:
    *plans, _ = plan_all(waiting(tasks(1, 802, 10), tasks(10, 1, 120)), THETA, (), NOW)
    assert [plan.request for plan in plans] == [BlockRequest(802, 30, "default"), BlockRequest(128, 135, "default")]
    together = pack(waiting(tasks(1, 802, 10), tasks(1000, 1, 120)), THETA, (), NOW)
    assert together.tasks == 1001


def test_next_largest_task_decides_while_the_queue_of_the_largest_is_full() -> None:
    policy = QueuePolicy([Queue([NodeRange(10, 50, 60)], "large", max_running=1), Queue([NodeRange(1, 9, 60)])])
    demand = waiting(tasks(1, 20, 10), tasks(5, 2, 10))
    full = [started(BlockRequest(10, 60, "large"), 1, minutes_ago=59)]
    plan = pack(demand, policy, full, NOW)
    assert (asked(plan).queue, plan.groups) == (None, (tasks(5, 2, 10),))


def test_more_than_fits_in_a_block_is_left_to_others() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 10, 60)])], slack=1)
    plan = pack(waiting(tasks(100, 5, 25)), policy, (), NOW)
    assert (plan.request, plan.tasks) == (BlockRequest(10, 53), 4)
    assert plan.why.endswith("(96 other tasks must wait for another block)")


def test_small_tasks_share_nodes() -> None:
    one_node = QueuePolicy.fixed(1, 13, 1)
    for group, together in (
        (TaskGroup(20, cores=1, walltime_min=10), 8),
        (TaskGroup(20, cores=3, walltime_min=10), 2),
        (TaskGroup(20, cores=1, gpus=1, walltime_min=10), 4),
        (TaskGroup(20, packing=5, walltime_min=10), 5),
        (TaskGroup(20, packing=5, gpus=2, walltime_min=10), 2),
        (TaskGroup(20, cores=9, walltime_min=10), 1),
        (TaskGroup(20, walltime_min=10), 1),
    ):
        assert pack(waiting(group), one_node, (), NOW).tasks == together, group


def test_tasks_take_whole_nodes_while_nobody_knows_what_a_node_has() -> None:
    demand = waiting(TaskGroup(20, cores=1, walltime_min=10), cores=None, gpus=None)
    assert pack(demand, QueuePolicy.fixed(3, 13, 1), (), NOW).tasks == 3


def test_tasks_of_several_nodes_may_share_them() -> None:
    demand = waiting(TaskGroup(20, nodes=2, cores=4, walltime_min=10))
    assert pack(demand, QueuePolicy.fixed(5, 13, 1), (), NOW).tasks == 4


def test_tasks_that_do_not_say_how_long_they_take_fit_in_the_shortest_block() -> None:
    demand = waiting(tasks(3, 1, None))
    assert asked(pack(demand, ANY, (), NOW)).walltime_min >= 30 * ANY.slack
    short = QueuePolicy([Queue([NodeRange(1, 5, 10)])])
    request = asked(pack(demand, short, (), NOW))
    assert request == BlockRequest(3, 10)
    assert pack(demand, short, [block(request)], NOW).request is None
    assert pack(demand, short, [started(request)], NOW).request is None
    assert pack(demand, short, [started(request, minutes_ago=3)], NOW).tasks == 3


def test_tasks_that_do_not_say_how_long_they_take_are_served_by_the_queue_that_their_block_is_in() -> None:
    long = Queue([NodeRange(1, 10, 600)], "long", max_running=0)
    policy = QueuePolicy([long, Queue([NodeRange(1, 10, 20)], "short")])
    demand = waiting(tasks(3, 1, None))
    request = asked(pack(demand, policy, (), NOW))
    assert request == BlockRequest(3, 20, "short")
    assert pack(demand, policy, [block(request)], NOW).why == "block 1 will serve what waits"


def test_tasks_that_take_no_time_get_a_block_too() -> None:
    plan = pack(waiting(tasks(1000, 1, 0)), ANY, (), NOW)
    assert (asked(plan).walltime_min, plan.tasks, plan.fill) == (3, 1000, 0)


def test_blocks_are_planned_until_everything_is_served() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 10, 60)])], slack=1)
    *plans, last = plan_all(waiting(tasks(9, 5, 25)), policy, (), NOW)
    assert [plan.tasks for plan in plans] == [4, 4, 1]
    assert last == Plan(None, "3 planned blocks will serve what waits")


def test_plan_ends_where_queues_are_full_and_where_it_is_told_to() -> None:
    demand = waiting(tasks(100, 5, 25))
    ranges = [NodeRange(1, 10, 60)]
    *plans, last = plan_all(demand, QueuePolicy([Queue(ranges, max_running=3)]), [block(BlockRequest(5, 30), 8)], NOW)
    assert len(plans) == 2
    assert last.why == "the provider's queue may run 3 jobs and has block 8 and 2 planned blocks"
    *plans, last = plan_all(demand, QueuePolicy([Queue(ranges)]), (), NOW, most=5)
    assert len(plans) == 5
    assert last.why == "more would be requested after these 5"


def test_plan_does_not_wait_for_tasks_that_still_come_in() -> None:
    demand = replace(waiting(tasks(3)), oldest_at=NOW, newest_at=NOW)
    assert len(plan_all(demand, ANY, (), NOW)) == 2


def test_ensemble_of_many_different_tasks_is_joined_to_few_lots() -> None:
    demand = ensemble(3000, 1, 64, 0.001)
    demand = replace(demand, groups=(*demand.groups, *(tasks(1, 17 + number, 20) for number in range(500))))
    lots = lots_of(demand, THETA)
    assert len(lots) <= MOST_LOTS < len(demand.groups)
    assert sum(lot.count for lot in lots) == demand.tasks
    for lot in lots:
        assert lot.nodes == max(group.nodes for group in lot.groups)
        assert lot.minutes == max(group.walltime_min or 0 for group in lot.groups)
    *plans, _ = plan_all(demand, THETA, (), NOW)
    assert sum((counted(plan.groups) for plan in plans), Counter()) == counted(demand.groups)
    for plan in plans:
        assert plan.fill > 0.5 or plan is plans[-1]


def test_joined_tasks_stay_possible() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 16, 1000), NodeRange(17, 100, 60)])])
    several = [tasks(1, nodes, 50 + 3 * number) for nodes in range(1, 17) for number in range(40)]
    several += [tasks(1, nodes, 57 - number / 3) for nodes in range(17, 101) for number in range(20)]
    lots = lots_of(waiting(*several), policy)
    assert len(lots) <= MOST_LOTS
    assert all(policy.refusal(lot.nodes, lot.minutes) is None for lot in lots)
    assert sum(lot.count for lot in lots) == len(several)


def test_large_tasks_leave_room_for_small_ones_beside_and_after_them() -> None:
    fit = Bars([Bar(0, 2, 10, 1, 30), *(Bar(minutes, 1, 1, 1, minutes) for minutes in range(5, 125))]).fit(10, 10**6)
    assert fit.all
    assert fit.area / (10 * fit.minutes) > 0.98


# -- whatever waits


bars = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([1, 1, 1, 2, 4]), st.sampled_from([1, 2, 3, 8]), st.integers(0, 60)),
    max_size=6,
).map(lambda some: [Bar(key, *values) for key, values in enumerate(some)])


@settings(max_examples=500, deadline=None)
@given(bars, st.integers(1, 6), st.integers(1, 400))
def test_what_fits_in_a_block_can_be_run_in_it(several: list[Bar], nodes: int, minutes: int) -> None:
    fit = Bars(several).fit(nodes, minutes)
    listed = [Task(bar.nodes, bar.share, bar.minutes) for bar in several for _ in range(fit.counts.get(bar.key, 0))]
    took = min(wave_after_wave_min(listed, nodes), one_by_one_min(listed, nodes))
    assert took <= fit.minutes + 1e-6 <= minutes + 2e-6
    assert fit.area == pytest.approx(sum(task.nodes / task.share * task.minutes for task in listed))
    assert fit.all == (len(listed) == sum(bar.count for bar in several))
    admitted = [bar for bar in several if bar.nodes <= nodes and bar.minutes <= minutes]
    if admitted:
        largest = max(admitted, key=lambda bar: (bar.nodes, -bar.share, bar.minutes))
        assert Task(largest.nodes, largest.share, largest.minutes) in listed


@settings(max_examples=200, deadline=None)
@given(demands, policies())
def test_request_is_within_the_policy_and_can_run_what_it_is_for(demand: Demand, policy: QueuePolicy) -> None:
    plan = pack(demand, policy, (), NOW)
    possible = admitted(demand, policy)
    if not possible.tasks:
        assert plan.request is None
        return
    check_fits(plan, demand, policy)
    largest = max(possible.groups, key=lambda group: (group.nodes, -share_of(group, demand)))
    assert largest.nodes <= asked(plan).nodes
    assert (largest.nodes, share_of(largest, demand)) in [(g.nodes, share_of(g, demand)) for g in plan.groups]
    assert not counted(plan.groups) - counted(possible.groups)
    assert 0 <= plan.fill <= 1 + 1e-9


@settings(max_examples=300, deadline=None)
@given(demands, unlimited)
def test_everything_is_served_at_last(demand: Demand, policy: QueuePolicy) -> None:
    possible = admitted(demand, policy)
    *plans, last = plan_all(possible, policy, (), NOW, most=possible.tasks)
    assert last.request is None
    assert sum((counted(plan.groups) for plan in plans), Counter()) == counted(possible.groups)
    for plan in plans:
        check_fits(plan, demand, policy)


@settings(max_examples=150, deadline=None)
@given(demands, policies(st.integers(0, 3)), st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=3))
def test_queues_never_hold_more_jobs_than_they_may(
    demand: Demand, policy: QueuePolicy, had: list[tuple[int, bool]]
) -> None:
    name = policy.queues[0].name
    blocks = [
        started(BlockRequest(nodes, 60, name), number, 50) if running else block(BlockRequest(nodes, 60, name), number)
        for number, (nodes, running) in enumerate(had)
    ]
    *plans, last = plan_all(demand, policy, blocks, NOW)
    assert last.why
    for queue in policy.queues:
        new = sum(plan.request is not None and plan.request.queue == queue.name for plan in plans)
        own = [each for each in blocks if each.queue == queue.name]
        if new:
            assert queue.max_running is None or len(own) + new <= queue.max_running
            assert queue.max_queued is None or sum(not each.running for each in own) + new <= queue.max_queued


@settings(max_examples=150, deadline=None)
@given(groups, policies())
def test_a_task_gets_a_block_unless_it_is_refused(group: TaskGroup, policy: QueuePolicy) -> None:
    plan = pack(waiting(group), policy, (), NOW)
    if (why := policy.refusal(group.nodes, group.walltime_min)) is not None:
        assert plan.request is None
        assert why in plan.why
        return
    request = asked(plan)
    assert request.nodes >= group.nodes
    if group.walltime_min is not None:
        assert request.walltime_min >= policy.startup_min + group.walltime_min + LAST_CALL_MIN - 1e-9
    assert plan.tasks >= 1


@settings(max_examples=150, deadline=None)
@given(demands, st.integers(13, 40), st.floats(1, 3), st.floats(1, 3))
def test_more_slack_never_asks_for_less(demand: Demand, nodes: int, one: float, other: float) -> None:
    assume(demand.tasks)
    less, more = sorted((one, other))
    queues = [Queue([NodeRange(nodes, nodes, 10**6)])]
    careless = pack(demand, QueuePolicy(queues, slack=less), (), NOW)
    careful = pack(demand, QueuePolicy(queues, slack=more), (), NOW)
    assert careless.tasks == careful.tasks == demand.tasks
    assert asked(careless).walltime_min <= asked(careful).walltime_min


@settings(max_examples=150, deadline=None)
@given(demands, st.integers(13, 200), st.integers(150, 10**5), st.sampled_from([1, 1.1, 3]))
def test_what_a_block_was_requested_for_is_not_requested_again(
    demand: Demand, most_nodes: int, most_min: int, slack: float
) -> None:
    assume(demand.tasks)
    policy = QueuePolicy([Queue([NodeRange(1, most_nodes, most_min)])], slack=slack)
    plan = pack(demand, policy, (), NOW)
    later = pack(demand, policy, [block(asked(plan))], NOW)
    assert plan.tasks + later.tasks <= demand.tasks
    if plan.tasks == demand.tasks:
        assert later.request is None
        assert pack(demand, policy, [started(asked(plan))], NOW).request is None
