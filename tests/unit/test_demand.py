"""What a launcher asks for: what it has room for, what it must make room for, and not again what is not there."""

from __future__ import annotations

import pytest

from parsl_balsam.db.claims import Exchange
from parsl_balsam.launcher.demand import Demand
from parsl_balsam.launcher.placement import Queue
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.tasks import ClaimedTask, Unserved, Wish


class Block:
    """A launcher's idea of its block, without a launcher."""

    def __init__(self, nodes: int = 4, cores: int = 4) -> None:
        self.space = Space()
        for number in range(nodes):
            self.space.add(Node(f"n{number}", f"n{number}", tuple(range(cores))))
        self.queue = Queue(self.space)
        self.demand = Demand(self.space, self.queue, parallel=True)

    def wishes(self, now: float = 0.0, *, renewing: bool = False, busy: bool = False, largest: int = 0) -> list[Wish]:
        return self.demand.wishes(now, None, renewing, busy, largest)

    def learn(self, *nodes: int, more: bool = False, unserved: Unserved | None = None, now: float = 0.0) -> None:
        claimed = [
            ClaimedTask(number, 1, 1, b"key", 0, "app", b"", b"", ResourceSpec(num_nodes=count), None)
            for number, count in enumerate(nodes)
        ]
        self.demand.learn(Exchange(claimed, [], None, False, 0.0, more, unserved), now)

    def occupy(self, nodes: int) -> None:
        for number in range(nodes):
            assert self.space.take(100 + number, self.space.need(ResourceSpec(cores_per_rank=4)))


@pytest.fixture
def block() -> Block:
    return Block()


def test_idle_block_asks_for_all_it_can_hold_and_for_what_it_must_refuse(block: Block) -> None:
    fits, anything = block.wishes()
    assert (fits.cores, fits.most_nodes, fits.most_cores, fits.node_cores) == (16, 4, 4, 4)
    assert (anything.tasks, anything.most_nodes, anything.fallback) == (1, 4, True)
    assert anything.most_cores > 10**6


def test_busy_block_asks_for_what_is_left(block: Block) -> None:
    block.occupy(3)
    (fits, *_) = block.wishes(busy=True)
    assert (fits.cores, fits.most_nodes, fits.most_cores) == (4, 1, 4)
    block.queue.add(1, ResourceSpec(cores_per_rank=3), 0.0)
    (fits, *_) = block.wishes(busy=True)
    assert fits.cores == 1


def test_what_was_not_there_is_not_asked_for_again(block: Block) -> None:
    block.wishes()
    block.learn()
    assert block.wishes() == []
    block.demand.renew()
    assert block.wishes()


def test_what_stands_is_what_an_idle_block_would_ask_for(block: Block) -> None:
    assert block.demand.standing(None) == block.wishes()
    block.learn()
    for number in range(50):
        block.demand.note_end(1.0 + number * 0.01)
    (fits, _) = block.demand.standing(None)
    assert fits.tasks == 16  # and not what it would have claimed ahead just then


def test_what_stood_and_was_granted_is_learnt_from(block: Block) -> None:
    block.demand.standing(None)
    block.learn()
    assert block.wishes() == []


def test_what_stood_and_was_taken_back_tells_nothing(block: Block) -> None:
    block.demand.standing(None)
    block.demand.take_back()
    block.learn()  # from an exchange without wishes
    assert block.wishes()


def test_an_exchange_without_wishes_tells_nothing_of_what_is_there() -> None:
    block = Block(nodes=1, cores=2)
    one = ResourceSpec(cores_per_rank=1)
    for task in (1, 2):
        assert block.space.take(task, block.space.need(one))
    for number in range(5):
        block.demand.note_end(0.05 * number)
    block.demand.note_end(0.25)
    block.queue.add(3, one, 0.25)
    block.queue.add(4, one, 0.25)
    assert block.wishes(0.25, busy=True) == []  # all that it would claim ahead, it has
    block.learn(more=False)
    block.queue.remove(3)
    block.queue.remove(4)
    (fits,) = block.wishes(0.25, busy=True)
    assert fits.cores == 2


def test_more_room_is_a_reason_to_ask_again(block: Block) -> None:
    block.occupy(4)
    block.wishes(busy=True)
    block.learn()
    assert block.wishes(busy=True) == []
    block.space.give_back(100)
    assert block.wishes(busy=True)


def test_what_did_not_fit_is_asked_for_when_there_is_more_room_only(block: Block) -> None:
    block.queue.add(1, ResourceSpec(num_nodes=3), 0.0)
    block.wishes(busy=True)
    block.learn(more=True)
    assert block.wishes(busy=True) == []
    block.queue.remove(1)
    assert block.wishes(busy=True)


def test_full_block_makes_room_for_one_larger_task(block: Block) -> None:
    block.occupy(4)
    wishes = block.wishes(now=30.0, renewing=True, busy=True, largest=4)
    assert [(wish.tasks, wish.least_cores, wish.most_nodes) for wish in wishes][-1] == (1, 5, 4)
    assert wishes[-1].waited_s > 0
    block.queue.add(1, ResourceSpec(num_nodes=4), 0.0)
    block.space.give_back(100)
    assert block.queue.place(0.0) == []
    assert block.queue.reserved == 1
    wishes = block.wishes(now=31.0, renewing=True, busy=True, largest=4)
    assert not any(wish.least_cores for wish in wishes)


def test_every_size_has_its_turn(block: Block) -> None:
    turns = []
    for minute, there in enumerate([(4,), (2,), (1,), (4,)]):
        now = 100.0 * (minute + 1)
        (turn,) = [wish for wish in block.wishes(now, renewing=True, busy=True) if wish.waited_s > 60]
        turns.append(turn.most_nodes)
        block.learn(*there)
    assert turns == [4, 3, 1, 4]


def test_block_that_can_run_nothing_says_so_after_a_while(block: Block) -> None:
    wide = Unserved(7, 5, None)
    block.wishes(busy=True)
    block.learn(unserved=wide, now=0.0)
    assert block.demand.unserved(100.0, 5.0) is None
    block.demand.renew()
    block.wishes()
    block.learn(unserved=wide, now=100.0)
    assert block.demand.unserved(104.0, 5.0) is None
    assert block.demand.unserved(105.0, 5.0) == "task 7 needs 5 nodes, and this block has 4"
    block.demand.renew()
    block.wishes()
    block.learn(1, now=106.0)
    assert block.demand.unserved(200.0, 5.0) is None


def test_task_that_another_block_was_claiming_just_then_is_no_reason_to_end(block: Block) -> None:
    block.wishes()
    block.learn(unserved=Unserved(7, 1, None), now=0.0)
    block.learn(now=1.0)  # an exchange that asked for nothing has no news of it
    assert block.demand.unserved(10.0, 5.0) == "task 7 has no place here"
    block.demand.renew()
    block.wishes()
    block.learn(now=2.0)
    assert block.demand.unserved(10.0, 5.0) is None


def test_block_without_nodes_asks_for_nothing() -> None:
    assert Block(nodes=0).wishes() == []


@pytest.mark.parametrize("ends", [0, 50])
def test_short_tasks_are_claimed_ahead(block: Block, ends: int) -> None:
    block.occupy(4)
    for number in range(ends):
        block.demand.note_end(1.0 + number * 0.01)
    ahead = [wish.tasks for wish in block.wishes(now=1.5, busy=True) if not wish.waited_s]
    assert len(ahead) == bool(ends)
    assert all(8 <= tasks <= 12 for tasks in ahead)  # of 100 that end in a second, those of a tenth of one


def test_next_ones_are_asked_for_while_half_of_those_claimed_ahead_still_wait(block: Block) -> None:
    block.occupy(4)
    for number in range(50):
        block.demand.note_end(1.0 + number * 0.01)  # 100 a second: 10 ahead
    enough = []
    for task in range(10):
        enough.append(block.demand.enough(1.5))
        block.queue.add(task, ResourceSpec(cores_per_rank=1), 1.5)
    assert enough == sorted(enough)
    assert 4 <= sum(enough) <= 5


def test_rate_of_many_short_tasks_is_known_soon_and_what_comes_at_once_is_no_rate(block: Block) -> None:
    block.occupy(4)
    block.demand.note_end(1.0)
    for _ in range(40):
        block.demand.note_end(1.001)
    assert not [wish for wish in block.wishes(1.001, busy=True) if not wish.waited_s]
    block.demand.note_end(1.021)
    (ahead,) = [wish.tasks for wish in block.wishes(1.021, busy=True) if not wish.waited_s]
    assert 190 <= ahead <= 210  # of 2,000 a second
