"""Who tries a failed task again, and where that is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parsl import bash_app, python_app
from parsl.app.errors import BashExitFailure

from parsl_balsam import RetryPolicy
from parsl_balsam.db.schema import tasks
from parsl_balsam.model.errors import TaskCrashed
from tests.executor.conftest import Load
from tests.executor.parsl_runs import ParslRun, processes


@python_app
def count_up(path: str, enough: int, parsl_resource_specification: dict[str, Any] | None = None) -> int:
    """Fail until the file has enough lines."""
    with open(path, "a+") as file:
        file.write("tried\n")
        file.flush()
        file.seek(0)
        tries = len(file.readlines())
    if tries < enough:
        raise ValueError(f"try {tries}")
    return tries


@bash_app
def shell(command: str, parsl_resource_specification: dict[str, Any] | None = None) -> str:
    return command


def outcomes(run: ParslRun, future: Any) -> list[str]:
    return [attempt.outcome for attempt in run.attempts(future)]


def test_parsl_retries_add_to_the_attempts_of_the_same_task(load: Load, tmp_path: Path) -> None:
    run = load({"retries": 1})
    call = count_up(str(tmp_path / "tries"), 2)
    assert call.result() == 2
    assert outcomes(run, call) == ["error", "done"]
    never = shell("exit 2")
    with pytest.raises(BashExitFailure):
        never.result()
    assert outcomes(run, never) == ["exit", "exit"]
    assert len(run.rows(tasks)) == 2


def test_tasks_have_retries_of_the_executor_or_their_own(load: Load, tmp_path: Path) -> None:
    run = load(max_retries=1)
    call = count_up(str(tmp_path / "executor"), 2)
    assert call.result() == 2
    assert outcomes(run, call) == ["error", "done"]
    own = count_up(str(tmp_path / "own"), 4, parsl_resource_specification={"max_retries": 3})
    assert own.result() == 4
    assert outcomes(run, own) == ["error", "error", "error", "done"]
    none = count_up(str(tmp_path / "none"), 2, parsl_resource_specification={"max_retries": 0})
    with pytest.raises(ValueError, match="try 1"):
        none.result()
    assert outcomes(run, none) == ["error"]


def test_policy_tells_failures_apart(load: Load) -> None:
    run = load(retry=RetryPolicy(max_retries=2, never_exit_codes=frozenset({5}), max_crashes=1, backoff_s=0.05))
    hopeless, hopeful, crash = shell("exit 5"), shell("exit 6"), shell("kill -9 $PPID")
    with pytest.raises(TaskCrashed):
        crash.result()
    assert isinstance(hopeless.exception(), BashExitFailure)
    assert isinstance(hopeful.exception(), BashExitFailure)
    assert outcomes(run, hopeless) == ["exit"]
    assert outcomes(run, hopeful) == ["exit", "exit", "exit"]
    assert outcomes(run, crash) == ["crash"]


def test_worker_that_dies_is_replaced(load: Load) -> None:
    run = load(cores_per_node=1, max_crashes=2)
    before = {process.pid for process in processes(run.directory)}
    with pytest.raises(TaskCrashed):
        shell("kill -9 $PPID").result()
    assert shell("true").result() == 0
    assert {process.pid for process in processes(run.directory)} - before
