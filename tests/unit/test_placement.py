"""Tasks of all sizes share a block: nothing is given twice, nothing idles without need, nobody starves."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_balsam.launcher.placement import PATIENCE_S, STARVING_S, Queue
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share

SERIAL = ResourceSpec()
MINUTE = 60.0

#: Free for what is asked, GB: sums of fractions may drift by less.
DRIFT_GB = 1e-6


def nodes(count: int, cores: int = 4, memory_gb: float | None = None, gpus: int = 0, first: int = 0) -> list[Node]:
    names = tuple(str(number) for number in range(gpus))
    return [Node(f"n{first + n}", f"n{first + n}", tuple(range(cores)), memory_gb, names) for n in range(count)]


def cores(count: int, minutes: float | None = None) -> ResourceSpec:
    return ResourceSpec(cores_per_rank=count, walltime_min=minutes)


def wide(count: int, minutes: float | None = None) -> ResourceSpec:
    return ResourceSpec(num_nodes=count, walltime_min=minutes)


@dataclass
class Running:
    spec: ResourceSpec
    shares: tuple[Share, ...]
    started: float


class Block:
    """A block under a virtual clock, with a second account of what its tasks have."""

    def __init__(self, members: list[Node], *, whole_nodes: bool = False, ends_at: float | None = None) -> None:
        self.space = Space(whole_nodes)
        self.queue = Queue(self.space)
        self.whole_nodes = whole_nodes
        self.ends_at = ends_at
        self.now = 0.0
        self.present: dict[str, Node] = {}
        self.waiting: dict[int, ResourceSpec] = {}
        self.running: dict[int, Running] = {}
        self.started: dict[int, float] = {}
        self.ends: list[tuple[float, int]] = []
        self.promises: dict[int, float] = {}
        self.hands_over = False  # whether one that ends leaves what it had to the next that needs the same
        self.keeps_promises = False  # whether all end when they are expected to, and none come later
        self._lasts: dict[int, float] = {}
        self._numbers = itertools.count()
        for node in members:
            self.join(node)

    def join(self, node: Node) -> None:
        self.space.add(node)
        self.present[node.name] = node

    def submit(self, spec: ResourceSpec = SERIAL, lasts: float | None = None) -> int:
        """Let a task wait that ends after a time in seconds; None = as it is expected, or never by itself."""
        task_id = next(self._numbers)
        self._lasts[task_id] = expected_s(spec) if lasts is None else lasts
        self.waiting[task_id] = spec
        self.queue.add(task_id, spec, self.now)
        return task_id

    def place(self) -> list[int]:
        """Start what can start; return it in order."""
        left = None if self.ends_at is None else self.ends_at - self.now
        placed = self.queue.place(self.now, left)
        for task_id, shares in placed:
            self.begin(task_id, shares, left)
        self.check()
        self.check_waiting(math.inf if left is None else left)
        return [task_id for task_id, _ in placed]

    def begin(self, task_id: int, shares: tuple[Share, ...], left: float | None) -> None:
        spec = self.waiting.pop(task_id)
        assert left is None or spec.walltime_min is None or spec.walltime_min * MINUTE <= left
        self.running[task_id] = Running(spec, shares, self.now)
        self.started[task_id] = self.now
        if self._lasts[task_id] < math.inf:
            heapq.heappush(self.ends, (self.now + self._lasts[task_id], task_id))

    def check_waiting(self, left: float) -> None:
        """Nothing idles without need, and the task that nodes are kept for starts as soon as it was promised."""
        free = [
            spec
            for spec in self.waiting.values()
            if self.fits(spec) and (spec.walltime_min is None or spec.walltime_min * MINUTE <= left)
        ]
        assert not free or (self.running and self.queue.reserved is not None)
        if self.keeps_promises:
            for task_id in self.promises.keys() & self.started.keys():
                assert self.started[task_id] <= self.promises.pop(task_id)
            if self.queue.reserved is not None and self.queue.reserved not in self.promises:
                self.promises = {self.queue.reserved: self.promise(self.waiting[self.queue.reserved])}

    def promise(self, spec: ResourceSpec) -> float:
        """Return when a task can start if nothing else starts and all end as they are expected to."""
        ends = {task_id: task.started + expected_s(task.spec) for task_id, task in self.running.items()}
        times = sorted({end for end in ends.values() if end < math.inf})
        return next((time for time in times if self.fits(spec, [t for t in ends if ends[t] <= time])), math.inf)

    def end(self, *tasks: int) -> None:
        left = None if self.ends_at is None else self.ends_at - self.now
        for task_id in tasks:
            over = self.running.pop(task_id)
            following = self.queue.next_like(over.spec, left) if self.hands_over and len(over.shares) == 1 else None
            if following is None:
                self.space.give_back(task_id)
                continue
            self.queue.start(following)
            expected = expected_s(self.waiting[following])
            self.space.hand_over(task_id, following, self.now + expected if expected < math.inf else None)
            self.begin(following, over.shares, left)
            self.check()

    def lose(self, name: str) -> set[int]:
        """Lose a node; the tasks that have a share of it crash."""
        victims = self.space.remove(name)
        hands_over, self.hands_over = self.hands_over, False
        assert victims == {task_id for task_id, task in self.running.items() if name in where(task.shares)}
        del self.present[name]
        self.end(*victims)
        self.hands_over = hands_over
        return victims

    def wait_until(self, time: float) -> list[int]:
        """Let time pass, end what ends, and start what can start; return that."""
        started = []
        while self.ends and self.ends[0][0] <= time:
            self.now = self.ends[0][0]
            while self.ends and self.ends[0][0] == self.now:
                task_id = heapq.heappop(self.ends)[1]
                if task_id in self.running:
                    self.end(task_id)
            started += self.place()
        self.now = max(self.now, time)
        return started + self.place()

    def needs(self, spec: ResourceSpec, node: Node) -> int:
        """Return the cores of a task's share of a node."""
        return max(spec.cores_on(len(node.cores)), len(node.cores) if self.whole_nodes else 0)

    def free(self, spec: ResourceSpec, node: Node, without: Collection[int] = ()) -> bool:
        """Tell whether a task's share of a node would be free, if some of the running tasks had ended."""
        others = [task for number, task in self.running.items() if number not in without]
        mine = [(task.spec, share) for task in others for share in task.shares if share.node == node.name]
        used = sum(other.memory_gb or 0.0 for other, _ in mine)
        return (
            self.needs(spec, node) <= len(node.cores) - sum(len(share.cores) for _, share in mine)
            and spec.gpus_on_node <= len(node.gpus) - sum(len(share.gpus) for _, share in mine)
            and (node.memory_gb is None or (spec.memory_gb or 0.0) + used <= node.memory_gb + DRIFT_GB)
        )

    def fits(self, spec: ResourceSpec, without: Collection[int] = ()) -> bool:
        return sum(self.free(spec, node, without) for node in self.present.values()) >= spec.num_nodes

    def check(self) -> None:
        """Nothing is given twice, every task has what it asked for, and what is free adds up."""
        taken: dict[str, list[int]] = {name: [] for name in self.present}
        gpus: dict[str, list[str]] = {name: [] for name in self.present}
        memory = dict.fromkeys(self.present, 0.0)
        for task in self.running.values():
            assert len(set(where(task.shares))) == task.spec.num_nodes == len(task.shares)
            for share in task.shares:
                assert len(share.cores) == self.needs(task.spec, self.present[share.node])
                assert len(share.gpus) == task.spec.gpus_on_node
                assert share.cores == tuple(sorted(share.cores))
                taken[share.node] += share.cores
                gpus[share.node] += share.gpus
                memory[share.node] += task.spec.memory_gb or 0.0
        free = {}
        for name, node in self.present.items():
            free[name] = set(node.cores).difference(taken[name])
            assert len(free[name]) == len(node.cores) - len(taken[name])
            assert len(set(node.gpus).difference(gpus[name])) == len(node.gpus) - len(gpus[name])
            assert node.memory_gb is None or memory[name] <= node.memory_gb + DRIFT_GB
        members = self.present.values()
        assert self.space.total_cores == sum(len(node.cores) for node in members)
        assert self.space.free_cores == sum(map(len, free.values()))
        assert self.space.idle_nodes == sum(not cores for cores in taken.values())
        assert self.space.most_free_cores == max(map(len, free.values()), default=0)
        assert self.space.most_free_gpus == max((len(n.gpus) - len(gpus[n.name]) for n in members), default=0)
        assert sorted(self.queue) == sorted(self.waiting)
        assert len(self.queue) == len(self.waiting)
        assert self.queue.reserved is None or self.queue.reserved in self.waiting
        largest = max((node for node in members), key=lambda node: len(node.cores), default=Node("", "", ()))
        others = [spec for task_id, spec in self.waiting.items() if task_id != self.queue.reserved]
        assert self.queue.cores == sum(spec.num_nodes * self.needs(spec, largest) for spec in others)


def expected_s(spec: ResourceSpec) -> float:
    return math.inf if spec.walltime_min is None else spec.walltime_min * MINUTE


def where(shares: tuple[Share, ...]) -> list[str]:
    return [share.node for share in shares]


def on(block: Block, task_id: int) -> list[str]:
    """Return the nodes of a running task."""
    return where(block.running[task_id].shares)


def test_a_task_of_one_node_goes_where_it_leaves_least() -> None:
    block = Block(nodes(3, cores=8))
    half, most = block.submit(cores(4)), block.submit(cores(6))
    block.place()
    small = block.submit(cores(2))
    block.place()
    assert on(block, small) == on(block, most) != on(block, half)
    assert block.space.idle_nodes == 1


def test_several_tasks_of_several_ranks_share_a_node() -> None:
    block = Block(nodes(1, cores=8))
    tasks = [block.submit(ResourceSpec(ranks_per_node=2, cores_per_rank=2)) for _ in range(3)]
    assert block.place() == tasks[:2]
    block.end(tasks[0])
    assert block.place() == tasks[2:]


def test_a_task_of_several_nodes_has_them_whole() -> None:
    block = Block(nodes(3))
    serial = block.submit()
    block.place()
    pair, triple = block.submit(wide(2)), block.submit(wide(3))
    block.queue.remove(triple)
    del block.waiting[triple]
    assert block.place() == [pair]
    assert block.space.free_cores == 3
    assert set(on(block, pair)).isdisjoint(on(block, serial))
    assert on(block, pair) == sorted(on(block, pair))


def test_a_task_of_several_nodes_that_says_how_many_cores_it_needs_shares_them() -> None:
    block = Block(nodes(2))
    shared = block.submit(ResourceSpec(num_nodes=2, ranks_per_node=3, cores_per_rank=1))
    serial = [block.submit() for _ in range(3)]
    assert block.place() == [shared, *serial[:2]]
    assert [share.cores for share in block.running[shared].shares] == [(0, 1, 2), (0, 1, 2)]


def test_it_gathers_nodes_that_have_enough_whatever_else_they_run() -> None:
    block = Block(nodes(4, cores=8))
    for count in (7, 6, 5, 4):
        block.submit(cores(count))
    block.place()
    shared = block.submit(ResourceSpec(num_nodes=3, cores_per_rank=2))
    assert block.place() == [shared]
    assert block.space.most_free_cores == 2


def test_launchers_that_share_no_node_give_whole_ones() -> None:
    block = Block(nodes(2), whole_nodes=True)
    tasks = [block.submit() for _ in range(3)]
    assert block.place() == tasks[:2]
    assert [share.cores for share in block.running[tasks[0]].shares] == [(0, 1, 2, 3)]
    packed = block.submit(ResourceSpec(node_packing_count=2))
    block.end(*tasks[:2])
    assert block.place() == [tasks[2], packed]


def test_a_gpu_has_one_task() -> None:
    block = Block(nodes(2, cores=8, gpus=2))
    tasks = [block.submit(ResourceSpec(gpus_per_rank=1)) for _ in range(5)]
    assert block.place() == tasks[:4]
    assert block.space.free_cores == 12
    assert block.space.most_free_gpus == 0
    block.end(tasks[2])
    assert block.place() == tasks[4:]


def test_tasks_share_the_memory_of_a_node_to_the_last_part() -> None:
    block = Block(nodes(1, cores=8, memory_gb=0.6))
    tasks = [block.submit(ResourceSpec(memory_gb=0.2)) for _ in range(4)]
    assert block.place() == tasks[:3]
    block.end(tasks[1])
    assert block.place() == tasks[3:]


def test_memory_that_is_not_known_is_not_counted() -> None:
    block = Block(nodes(1))
    assert block.submit(ResourceSpec(memory_gb=1e6)) in block.place()


@pytest.mark.parametrize(("count", "node_cores", "each"), [(2, 8, 4), (3, 8, 2), (8, 8, 1)])
def test_as_many_tasks_share_a_node_as_may(count: int, node_cores: int, each: int) -> None:
    block = Block(nodes(1, cores=node_cores))
    tasks = [block.submit(ResourceSpec(node_packing_count=count)) for _ in range(node_cores + 1)]
    assert block.place()[:count] == tasks[:count]
    assert {len(task.shares[0].cores) for task in block.running.values()} == {each}


def test_a_packed_task_takes_its_part_of_each_kind_of_node() -> None:
    block = Block([*nodes(1, cores=8), *nodes(1, cores=4, first=1)])
    for _ in range(4):
        block.submit(ResourceSpec(node_packing_count=2))
    block.place()
    assert sorted(len(task.shares[0].cores) for task in block.running.values()) == [2, 2, 4, 4]


def test_what_a_lost_node_had_is_gone_for_good() -> None:
    block = Block(nodes(3))
    pair, single = block.submit(wide(2)), block.submit(cores(4))
    block.place()
    victims = block.space.remove(on(block, pair)[0])
    assert victims == {pair}
    assert block.space.free_cores == 0
    block.space.give_back(pair)  # its other node is free only now, when its ranks are gone
    assert block.space.free_cores == 4
    assert block.space.total_cores == 8
    assert len(block.space.nodes) == 2
    block.space.give_back(single)
    assert block.space.free_cores == 8


def test_nodes_keep_their_order_after_a_loss() -> None:
    block = Block(nodes(3))
    block.lose("n0")
    block.lose("n1")
    block.join(*nodes(1, first=3))
    block.join(*nodes(1, first=0))
    whole = block.submit(wide(3))
    block.place()
    assert on(block, whole) == ["n2", "n3", "n0"]


def test_what_never_fitted_is_told_from_what_fits_no_more() -> None:
    block = Block(nodes(2, cores=4, memory_gb=8, gpus=1))
    space = block.space
    assert space.impossible(wide(3)) == space.lacking(wide(3)) == "it needs 3 nodes, and this block has 2"
    assert space.impossible(cores(5)) == "it needs 5 cores on a node, and this block has 4 on one"
    assert space.impossible(ResourceSpec(memory_gb=9)) == "it needs 9 GB on a node, and this block has 8.0 on one"
    assert space.impossible(ResourceSpec(gpus_per_rank=2)) == "it needs 2 GPUs on a node, and this block has 1 on one"
    block.lose("n1")
    assert space.impossible(wide(2)) is None
    assert space.lacking(wide(2)) == "it needs 2 nodes, and this block has 1"
    block.join(*nodes(1, first=1))
    assert space.lacking(wide(2)) is None
    assert space.impossible(wide(3)) == "it needs 3 nodes, and this block has 2"
    block.lose("n0")
    block.lose("n1")
    assert space.lacking(SERIAL) == "it needs 1 node, and this block has 0"


def test_large_nodes_are_not_enough() -> None:
    block = Block([*nodes(2, cores=4), *nodes(1, cores=8, first=2)])
    spec = ResourceSpec(num_nodes=2, cores_per_rank=8)
    assert block.space.impossible(spec) == "it needs 2 nodes that are large enough, and this block has fewer"


def test_priority_goes_before_size_and_size_before_age() -> None:
    block = Block(nodes(1))
    early, short, long = block.submit(cores(1, 9)), block.submit(cores(3, 1)), block.submit(cores(3, 5))
    forever, urgent = block.submit(cores(3)), block.submit(replace(SERIAL, priority=1))
    order = [urgent, forever, early]
    assert block.place() == order[:2]
    for after in (long, short, early):
        block.end(order[-2] if after is long else order[-1])
        assert after in block.place()
        order.append(after)


def test_a_task_does_not_wait_behind_less_urgent_ones() -> None:
    block = Block(nodes(2))
    block.submit(cores(4, 10))
    block.place()
    large = block.submit(wide(2))
    block.place()
    assert block.queue.reserved == large
    urgent = block.submit(replace(cores(4, 60), priority=1))
    assert block.place() == [urgent]


def test_gaps_are_filled_with_what_ends_in_time() -> None:
    block = Block(nodes(2))
    block.submit(cores(4, 10))
    block.place()
    large = block.submit(wide(2, 30))
    late, unknown, early = block.submit(cores(1, 11)), block.submit(SERIAL), block.submit(cores(1, 10))
    assert block.place() == [early]
    assert block.wait_until(9.9 * MINUTE) == []
    assert block.wait_until(10 * MINUTE) == [large]
    assert block.wait_until(40 * MINUTE) == [unknown, late]


def test_what_is_not_reserved_is_free_for_all() -> None:
    block = Block(nodes(3))
    block.submit(cores(4, 10))
    endless = block.submit(cores(3))
    block.place()
    large = block.submit(wide(2))
    first, second = block.submit(), block.submit()
    assert block.place() == [first]
    assert on(block, first) == on(block, endless)
    assert block.wait_until(10 * MINUTE) == [large]
    assert second in block.queue


def test_a_reservation_takes_in_nodes_that_are_free_sooner() -> None:
    block = Block(nodes(3))
    tasks = [block.submit(cores(4, minutes)) for minutes in (10, 20, 30)]
    block.place()
    (last, soon) = (on(block, tasks[2]), on(block, tasks[0]))
    large = block.submit(wide(2, 1))
    other = block.submit(cores(4, 100))
    block.wait_until(5 * MINUTE)
    block.end(tasks[2])  # long before it was expected to
    assert block.place() == []
    assert block.queue.reserved == large
    assert block.wait_until(10 * MINUTE) == [large]
    assert sorted(on(block, large)) == sorted(last + soon)
    assert block.wait_until(11 * MINUTE) == [other]


def test_a_reservation_leaves_nodes_that_make_it_no_sooner() -> None:
    block = Block(nodes(4))
    block.submit(wide(2, 20))
    early = block.submit(cores(4, 30))
    block.place()
    large = block.submit(wide(3))
    assert block.wait_until(5 * MINUTE) == []
    block.end(early)
    other = block.submit(cores(4, 100))
    assert block.place() == [other]
    assert block.wait_until(20 * MINUTE) == [large]


def test_a_reservation_leaves_nodes_that_are_free_long_before() -> None:
    block = Block(nodes(5))
    block.submit(wide(3, 20))
    block.place()
    large = block.submit(wide(4))
    other = block.submit(cores(4, 100))
    assert block.place() == [other]  # only one of the two that are free is needed then
    assert block.wait_until(20 * MINUTE) == [large]


def test_in_a_large_block_nodes_that_nobody_looked_at_count_when_they_are_free() -> None:
    block = Block(nodes(200, cores=3))
    for minutes in range(200):
        block.submit(cores(2, 1 + minutes))
    block.place()
    large = block.submit(wide(2))
    assert block.wait_until(MINUTE) == []
    assert block.queue.reserved == large
    assert block.wait_until(2 * MINUTE) == [large]


def test_a_reservation_stays_while_smaller_tasks_come_and_go() -> None:
    block = Block(nodes(4))
    block.submit(cores(4, 10))
    block.place()
    large = block.submit(wide(4))
    for minute in range(10):
        small = block.submit(cores(2, 1))
        assert block.wait_until(minute * MINUTE) == [small]
        assert block.queue.reserved == large
    block.submit(cores(2, 1))
    assert block.wait_until(10 * MINUTE) == [large]


def test_a_loss_makes_a_new_reservation() -> None:
    block = Block(nodes(3))
    tasks = [block.submit(cores(3, minutes)) for minutes in (10, 20, 30)]
    block.place()
    large = block.submit(wide(2))
    assert block.wait_until(5 * MINUTE) == []
    block.lose(*on(block, tasks[0]))
    fillers = [block.submit(cores(1, 25)) for _ in range(2)]
    assert block.place() == fillers  # until the third node is free, not only the second
    assert block.queue.reserved == large
    assert block.wait_until(30 * MINUTE) == [large]


def test_patience_is_bounded_where_no_end_is_known() -> None:
    block = Block(nodes(2))
    endless = block.submit(cores(4))
    block.place()
    large = block.submit(wide(2))
    small = block.submit()
    assert block.wait_until(PATIENCE_S / 2) == [small]
    block.submit()
    block.submit()
    block.now = PATIENCE_S
    block.end(small)
    assert block.place() == []
    block.end(endless)
    assert block.place() == [large]


@pytest.mark.parametrize("first", range(3))
def test_nodes_are_gathered_one_by_one_where_no_end_is_known(first: int) -> None:
    block = Block(nodes(4))
    tasks = [block.submit(cores(4)) for _ in range(3)]
    block.place()
    large = block.submit(wide(3))
    block.place()
    block.now = PATIENCE_S
    block.submit(cores(4))
    block.end(tasks[first])
    assert block.place() == []
    block.end(tasks[first - 1])
    assert block.place() == [large]


def test_an_end_that_is_overdue_lets_nobody_overtake() -> None:
    block = Block(nodes(2))
    block.submit(cores(4, 10), lasts=100 * MINUTE)
    block.place()
    large = block.submit(wide(2))
    assert block.wait_until(11 * MINUTE) == []
    block.submit(cores(1, 1))
    assert block.wait_until(99 * MINUTE) == []
    assert block.wait_until(100 * MINUTE) == [large]


def test_nodes_whose_end_is_known_are_reserved_rather_than_overdue_ones() -> None:
    block = Block(nodes(3))
    block.submit(cores(4, 10), lasts=100 * MINUTE)
    block.submit(cores(4, 30))
    assert len(block.place()) == 2
    block.wait_until(11 * MINUTE)
    large, filler = block.submit(wide(2)), block.submit(cores(4, 19))
    assert block.place() == [filler]
    assert block.wait_until(30 * MINUTE) == [large]


def test_a_filler_does_not_hide_when_a_node_is_free() -> None:
    block = Block(nodes(2))
    block.submit(cores(2, 10))
    block.submit(cores(4, 8))
    block.place()
    large = block.submit(wide(2))
    first = block.submit(cores(2, 5))
    assert block.wait_until(0) == [first]  # beside the one that has 10 minutes
    second = block.submit(cores(2, 4))
    assert block.wait_until(5 * MINUTE) == [second]
    assert block.wait_until(10 * MINUTE) == [large]


def test_a_filler_counts_where_it_is_the_last_that_is_waited_for() -> None:
    block = Block(nodes(2))
    early = block.submit(cores(4, 20))
    block.place()
    large = block.submit(wide(2))
    first = block.submit(cores(3, 15))
    assert block.place() == [first]
    block.wait_until(5 * MINUTE)
    block.end(early)
    second = block.submit(cores(4, 10))
    assert block.place() == [second]
    assert block.wait_until(15 * MINUTE) == [large]


def test_a_filler_may_not_go_by_an_end_that_an_urgent_task_has() -> None:
    block = Block(nodes(2))
    block.submit(cores(4, 10))
    block.place()
    shared = block.submit(ResourceSpec(num_nodes=2, cores_per_rank=2, walltime_min=5))
    block.place()
    urgent = block.submit(replace(cores(2, 100), priority=1))
    filler = block.submit(cores(2, 50))
    assert block.place() == [urgent]
    assert block.wait_until(10 * MINUTE) == [shared, filler]


def test_an_early_end_brings_the_start_nearer() -> None:
    block = Block(nodes(2))
    tasks = [block.submit(cores(2, minutes)) for minutes in (30, 20)]
    block.submit(cores(3, 10))
    block.place()
    large = block.submit(wide(2))
    assert block.wait_until(MINUTE) == []
    block.end(tasks[0])
    block.submit(cores(1, 25))
    assert block.place() == []
    assert block.wait_until(20 * MINUTE) == [large]


def test_no_task_starts_that_the_end_of_the_block_would_cut_off() -> None:
    block = Block(nodes(2), ends_at=10 * MINUTE)
    late, exact, unknown = block.submit(wide(2, 11)), block.submit(cores(4, 10)), block.submit(cores(4))
    assert set(block.place()) == {exact, unknown}
    assert block.queue.reserved != late
    assert block.queue.unfit(10 * MINUTE) == [(late, "it needs 11 min, and the block has 10 min left")]
    assert block.queue.unfit(None) == []
    block.end(exact)
    reserved = block.submit(wide(2, 9))
    block.wait_until(MINUTE)
    assert block.queue.reserved == reserved
    block.wait_until(2 * MINUTE)
    assert block.queue.reserved != reserved
    block.queue.remove(reserved)
    del block.waiting[reserved]
    block.submit(cores(1, 0.5))
    assert block.queue.unfit(-1.0) == [
        (late, "it needs 11 min, and the block has 0 min left"),
        (4, "it needs 0.5 min, and the block has 0 min left"),
    ]


def test_a_task_for_which_too_few_nodes_are_left_hinders_nobody() -> None:
    block = Block(nodes(3))
    block.lose("n1")
    large, small = block.submit(wide(3)), block.submit(cores(4))
    assert block.place() == [small]
    assert block.queue.reserved is None
    assert block.queue.unfit(None) == [(large, "it needs 3 nodes, and this block has 2")]
    block.queue.remove(large)
    assert large not in block.queue


def test_a_reserved_task_may_be_taken_away() -> None:
    block = Block(nodes(2))
    block.submit(cores(4))
    block.place()
    large, small = block.submit(wide(2)), block.submit(cores(4))
    block.now = PATIENCE_S
    assert block.place() == []
    block.queue.remove(large)
    del block.waiting[large]
    assert block.place() == [small]


def start_under_stream(block: Block, task_id: int, stream: ResourceSpec, lasts: float, ready: int = 2) -> float:
    """Return when a task starts while so many of a stream wait at any time."""
    while task_id not in block.started:
        while sum(spec is stream for spec in block.waiting.values()) < ready:
            block.submit(stream, lasts)
        block.wait_until(block.now + lasts / 3)
        assert block.now < 10 * STARVING_S
    return block.started[task_id]


@pytest.mark.parametrize("minutes", [None, 2.0])
def test_no_size_starves_under_larger_ones(minutes: float | None) -> None:
    block = Block(nodes(2))
    small = block.submit(replace(SERIAL, walltime_min=minutes))
    block.submit(wide(2, minutes), 2 * MINUTE)
    start_under_stream(block, small, wide(2, minutes), 2 * MINUTE)
    assert block.started[small] <= 1.1 * STARVING_S + 8 * MINUTE


@pytest.mark.parametrize("minutes", [None, 2.0])
def test_no_size_starves_under_smaller_ones(minutes: float | None) -> None:
    block = Block(nodes(4))
    for lasts in (20, 40, 60, 80):
        block.submit(cores(4, minutes), lasts)
    block.place()
    large = block.submit(wide(4, minutes))
    start_under_stream(block, large, replace(SERIAL, walltime_min=minutes), 2 * MINUTE, ready=20)
    assert block.started[large] <= PATIENCE_S + 2 * MINUTE


@pytest.mark.parametrize("longer", [None, 2.0])
def test_no_task_starves_under_longer_ones_of_its_size(longer: float | None) -> None:
    block = Block(nodes(1))
    short = block.submit(cores(2, 1))
    for _ in range(3):
        block.submit(cores(2, longer), 2 * MINUTE)
    start_under_stream(block, short, cores(2, longer), 2 * MINUTE)
    assert block.started[short] <= 1.1 * STARVING_S + 8 * MINUTE


def test_starving_tasks_that_cannot_start_stand_in_nobodys_way() -> None:
    block = Block(nodes(2), ends_at=4 * STARVING_S)
    block.submit(wide(2), 2 * MINUTE)
    block.place()
    block.lose("n1")
    gone, late, small = block.submit(wide(2)), block.submit(cores(3, 5 * STARVING_S)), block.submit(SERIAL)
    start_under_stream(block, small, cores(4), 2 * MINUTE)
    assert block.started[small] <= 1.1 * STARVING_S + 8 * MINUTE
    assert gone in block.queue
    assert late in block.queue


def test_many_mixed_sizes_wait_without_end_of_the_stack() -> None:
    # Parsl's MPI scheduler calls itself once for each task of its backlog, and for ever if one does not fit.
    block = Block(nodes(8))
    block.submit(wide(8, 1))
    block.place()
    for number in range(3000):
        block.submit(wide(1 + number % 8, 1))
    assert len(block.wait_until(MINUTE)) == 1
    assert block.wait_until(2 * MINUTE)


def test_the_smallest_are_not_first() -> None:
    # Parsl's MPI scheduler takes the fewest nodes first: the largest task runs last, on a block that idles around it.
    block = Block(nodes(4))
    large = block.submit(wide(3, 60))
    smalls = [block.submit(cores(4, 10)) for _ in range(6)]
    block.place()
    assert large in block.running
    block.wait_until(60 * MINUTE)
    assert max(block.started[small] for small in smalls) == 50 * MINUTE


def test_a_task_larger_than_the_block_is_told_at_once() -> None:
    # In Parsl's MPI scheduler it waits for ever, and everything behind it.
    block = Block(nodes(2))
    oversized, small = block.submit(wide(3)), block.submit()
    assert block.queue.unfit(None) == [(oversized, "it needs 3 nodes, and this block has 2")]
    assert block.place() == [small]


def test_the_next_of_the_same_kind_is_the_one_that_would_start_next() -> None:
    block = Block(nodes(2))
    first = block.submit(cores(4))
    block.submit(cores(4))
    block.place()
    assert block.queue.next_like(cores(4)) is None
    later, long = block.submit(cores(4)), block.submit(cores(4, 10))
    block.place()
    assert block.queue.next_like(cores(4)) == later
    assert block.queue.next_like(cores(2)) is None
    block.queue.remove(later)
    assert block.queue.next_like(cores(4), time_left=5 * MINUTE) is None
    assert block.queue.next_like(cores(4), time_left=10 * MINUTE) == long
    block.waiting.pop(later)
    block.hands_over = True
    block.end(first)
    assert on(block, long) == ["n0"]


def test_none_is_next_while_a_larger_one_waits_for_its_nodes() -> None:
    block = Block(nodes(2))
    block.submit(cores(4))
    block.place()
    block.submit(wide(2))
    block.submit(cores(4))
    block.place()
    assert block.queue.next_like(cores(4)) is None


@dataclass(frozen=True)
class Arrival:
    at: float  #: minutes
    spec: ResourceSpec
    part: float  #: of the expected time that it lasts

    @property
    def lasts(self) -> float:
        """Return how long it runs, seconds."""
        return self.part * MINUTE * (10 if self.spec.walltime_min is None else self.spec.walltime_min)


needs = {
    "ranks_per_node": st.integers(1, 3),
    "cores_per_rank": st.none() | st.integers(1, 3),
    "gpus_per_rank": st.sampled_from([0, 0, 1]),
    "memory_gb": st.none() | st.sampled_from([0.1, 0.7, 2.3, 4.0]),
    "walltime_min": st.none() | st.integers(0, 30),
    "priority": st.integers(0, 1),
}
specs = st.builds(ResourceSpec, num_nodes=st.integers(1, 4), **needs) | st.builds(
    ResourceSpec, node_packing_count=st.integers(1, 4), **needs
)
kinds = st.tuples(st.sampled_from([1, 2, 4, 7]), st.sampled_from([None, 2.4, 8.0]), st.integers(0, 2))
blocks = st.lists(kinds, min_size=1, max_size=5).map(
    lambda members: [node for n, (c, gb, gpus) in enumerate(members) for node in nodes(1, c, gb, gpus, first=n)]
)


def arrivals(latest: int, *parts: float) -> st.SearchStrategy[list[Arrival]]:
    """Generate tasks that come in some minutes, and last as long as expected or some part of it."""
    return st.lists(st.builds(Arrival, st.integers(0, latest), specs, st.sampled_from(parts)), min_size=1, max_size=25)


def live(block: Block, tasks: list[Arrival], losses: Sequence[tuple[int, int]] = ()) -> None:
    """Let tasks come and nodes go, each at its minute, until nothing runs any more."""
    for minute in sorted({*(task.at for task in tasks), *(minute for minute, _ in losses)}):
        block.wait_until(minute * MINUTE)
        for task in tasks:
            if task.at == minute:
                block.submit(task.spec, task.lasts)
        for when, number in losses:
            if when == minute and f"n{number}" in block.present:
                block.lose(f"n{number}")
        block.place()
    while block.ends:
        block.wait_until(block.ends[0][0])


@settings(max_examples=200)
@given(
    blocks,
    arrivals(90, 1.0, 0.3, 2.0),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4)), max_size=3),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 120),
)
def test_every_task_starts_that_can(
    members: list[Node],
    tasks: list[Arrival],
    losses: list[tuple[int, int]],
    whole: bool,
    hands_over: bool,
    ends_at: int | None,
) -> None:
    block = Block(members, whole_nodes=whole, ends_at=None if ends_at is None else ends_at * MINUTE)
    block.hands_over = hands_over
    live(block, tasks, losses)
    left = None if block.ends_at is None else block.ends_at - block.now
    assert not block.running
    assert sorted(block.waiting) == sorted(task_id for task_id, _ in block.queue.unfit(left))
    assert block.space.free_cores == block.space.total_cores
    for task_id, spec in block.waiting.items():
        assert (block.space.lacking(spec) is None) == block.fits(spec), task_id


@settings(max_examples=200)
@given(blocks, arrivals(0, 1.0, 0.3))
def test_nobody_starts_later_than_promised(members: list[Node], tasks: list[Arrival]) -> None:
    block = Block(members)
    block.keeps_promises = True
    live(block, tasks)
    assert block.now <= sum(task.lasts for task in tasks) + 1e-6


@settings(max_examples=60)
@given(blocks, specs, st.lists(st.tuples(specs, st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=3))
def test_no_task_starves_whatever_comes(
    members: list[Node], spec: ResourceSpec, streams: list[tuple[ResourceSpec, float]]
) -> None:
    block = Block(members)
    task = block.submit(replace(spec, priority=1), MINUTE)
    if block.space.lacking(spec) is not None:
        return
    ready: dict[int, set[int]] = {number: set() for number in range(len(streams))}
    while task not in block.started:
        for number, (stream, minutes) in enumerate(streams):
            ready[number] -= block.started.keys()
            while len(ready[number]) < 4:
                ready[number].add(block.submit(replace(stream, priority=1), minutes * MINUTE))
        block.wait_until(block.now + 0.5 * MINUTE)
        assert block.now <= 1.1 * STARVING_S + 8 * MINUTE * (len(streams) + 1)
