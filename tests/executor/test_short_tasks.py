"""Short tasks are sent ahead to the agent of the tasks before them. That saves time, and changes nothing else."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import pytest
from parsl import python_app

import parsl_balsam
from parsl_balsam.db.blocks import wish_end
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.schema import attempts, blocks, events, tasks
from parsl_balsam.model.errors import TaskCancelled
from parsl_balsam.model.states import LEGAL, TaskState
from tests.executor.conftest import Load
from tests.executor.parsl_runs import ParslRun, QuickLocalProvider, open_gate, wait_for


@python_app
def number(value: int, gate: str = "") -> int:
    """Return a number, at once or when a file is there."""
    import os
    import time

    while gate and not os.path.exists(gate):
        time.sleep(0.01)
    return value


def check_history(run: ParslRun) -> None:
    """Every task was done once, in steps that are legal."""
    steps: dict[int, list[TaskState]] = {}
    for event in run.rows(events):
        steps.setdefault(event.task_id, []).append(TaskState(event.state))
    for states in steps.values():
        assert set(itertools.pairwise(states)) <= LEGAL
        assert states[-1] is TaskState.DONE
    assert len(steps) == len(run.rows(tasks))
    done = run.rows(attempts, attempts.c.outcome == "done")
    assert len(done) == len(steps)
    for attempt in done:
        assert attempt.placement is not None
        assert attempt.claimed_at <= attempt.started_at <= attempt.ended_at


def test_no_task_waits_behind_a_long_one(load: Load, tmp_path: Path) -> None:
    run = load(cores_per_node=2)
    gate = tmp_path / "gate"
    calls = [number(value, str(gate) if value == 149 else "") for value in range(600)]
    others = [call for call in calls if call is not calls[149]]
    wait_for(lambda: all(call.done() for call in others), "all but the long one")
    assert not calls[149].done()
    open_gate(gate)
    assert [call.result() for call in calls] == list(range(600))
    check_history(run)


def test_a_block_that_ends_takes_nothing_with_it(load: Load) -> None:
    run = load({"strategy_period": 0.1}, cores_per_node=2, provider=QuickLocalProvider())
    calls = [number(value) for value in range(3000)]
    with closing(open_database(run.database, create=False)) as database:
        for stopped in range(3):
            wait_for(lambda done=stopped: sum(call.done() for call in calls) > 500 * (done + 1), "some tasks to end")
            running = run.rows(blocks, blocks.c.state == "running")
            for block in running:
                wish_end(database, [block.id], "a test")
    assert [call.result() for call in calls] == list(range(3000))
    check_history(run)
    assert {attempt.outcome for attempt in run.rows(attempts)} <= {"done", "ended"}


def test_tasks_sent_ahead_can_be_cancelled(load: Load, tmp_path: Path) -> None:
    run = load(cores_per_node=1)
    gate = tmp_path / "gate"
    calls = [number(value) for value in range(300)]
    first = number(0, str(gate))
    late = [number(value) for value in range(1, 30)]
    assert [call.result() for call in calls] == list(range(300))
    assert not first.done()
    assert all(parsl_balsam.cancel(call) for call in late[::2])
    wait_for(lambda: all(call.done() for call in late[::2]), "these to be cancelled")
    open_gate(gate)
    assert first.result() == 0
    for value, call in enumerate(late, 1):
        if value % 2:
            with pytest.raises(TaskCancelled):
                call.result()
        else:
            assert call.result() == value
    found = [task.state for task in run.rows(tasks)]
    assert found.count("cancelled") == 15
    assert found.count("done") == 300 + 1 + 14
