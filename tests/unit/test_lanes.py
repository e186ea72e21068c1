"""Tasks that wait for the cores of others get them in their order, whatever becomes of those before them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parsl_balsam.launcher.lanes import Lanes
from parsl_balsam.launcher.pace import Pace

CORES = ((0,), (1,), (2, 3))


class Story(RuleBasedStateMachine):
    """Lanes, and what they should be: a list for each."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[str] = Lanes()
        self.tasks: dict[tuple[int, ...], list[int]] = {cores: [] for cores in CORES}
        self.count = 0

    @rule(cores=st.sampled_from(CORES))
    def send(self, cores: tuple[int, ...]) -> None:
        self.count += 1
        if self.tasks[cores]:
            self.lanes.line_up(cores, self.count, f"task {self.count}")
        else:
            self.lanes.begin(cores, self.count)
        self.tasks[cores].append(self.count)

    @rule(cores=st.sampled_from(CORES), place=st.integers(0, 5))
    def end(self, cores: tuple[int, ...], place: int) -> None:
        if place >= len(self.tasks[cores]):
            return
        task = self.tasks[cores].pop(place)
        left = self.tasks[cores]
        assert self.lanes.end(task) == (f"task {left[0]}" if place == 0 and left else None)

    @rule(cores=st.sampled_from(CORES), task=st.integers(1000, 1010))
    def share(self, cores: tuple[int, ...], task: int) -> None:
        if self.tasks[cores]:
            self.lanes.begin(cores, task)
            assert not self.lanes.waits(task)

    @rule(task=st.integers(1000, 1010))
    def end_other(self, task: int) -> None:
        assert self.lanes.end(task) is None
        assert not self.lanes.waits(task)

    @invariant()
    def all_are_where_they_should_be(self) -> None:
        for cores, tasks in self.tasks.items():
            assert [self.lanes.waits(task) for task in tasks] == [number > 0 for number in range(len(tasks))]
            assert self.lanes.first(cores) == (tasks[0] if tasks else None)
            if tasks:
                assert self.lanes.length(tasks[0]) == len(tasks) - 1
                assert list(self.lanes.behind(tasks[0])) == [f"task {task}" for task in tasks[1:]]
        assert self.lanes.followed() == sum(len(tasks) > 1 for tasks in self.tasks.values())


TestLanes = Story.TestCase


def after(*durations: float) -> int:
    pace = Pace()
    for duration in durations:
        pace.note(duration)
    return pace.depth()


def test_only_short_tasks_are_sent_ahead() -> None:
    assert after() == 0
    assert after(0.0) == 0
    assert after(*[0.0] * 100) == 16
    assert after(*[0.001] * 100) == 16
    assert after(*[0.01] * 100) == 1
    assert after(*[0.1] * 100) == 0


def test_one_long_task_is_remembered() -> None:
    assert after(*[0.001] * 100, 60.0, *[0.001] * 20) == 0
    assert after(*[0.001] * 100, 60.0, *[0.001] * 100) == 16


def test_agents_with_plenty_to_do_are_left_alone_for_less_than_that_takes() -> None:
    pace = Pace()
    assert pace.rest(0.0) == 0.0
    for duration_s in (0.0004, 0.005):
        for _ in range(200):
            pace.note(duration_s)
        assert 0.0 < pace.rest(16.0) < 4 * duration_s
        assert pace.rest(16.0) <= 0.002
        assert pace.rest(3.0) == 0.0
