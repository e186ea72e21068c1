"""Cancelling calls in all stages of their lives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from parsl import bash_app, join_app, python_app
from parsl.dataflow.errors import DependencyError

import parsl_balsam
from parsl_balsam.model.errors import TaskCancelled
from tests.executor.parsl_runs import ParslRun, is_alive, open_gate, url, wait_for_text, waiting


@pytest.fixture(scope="module")
def executor_options() -> dict[str, Any]:
    return {"cores_per_node": 1, "max_retries": 2}


@pytest.fixture(scope="module")
def config_options() -> dict[str, Any]:
    return {"retries": 2}


@bash_app
def shell(command: str, inputs: Sequence[Any] = (), stdout: str | None = None) -> str:
    return command


@python_app
def touch(path: str, inputs: Sequence[Any] = ()) -> str:
    Path(path).touch()
    return path


@join_app
def join(path: str, inputs: Sequence[Any] = ()) -> Any:
    return touch(path)


def sleeping(directory: Path) -> Any:
    """Start a call that sleeps with two children, and wait until it does."""
    call = shell(f"setsid sleep 600 & sleep 600 & echo $$ $(jobs -p) > {directory}/pids; wait")
    wait_for_text(directory / "pids")
    return call


def test_running_call_ends_with_all_it_started(run: ParslRun, tmp_path: Path) -> None:
    call = sleeping(tmp_path)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert [is_alive(pid) for pid in pids] == [True] * 3
    assert parsl_balsam.cancel(call)
    with pytest.raises(TaskCancelled, match=str(run.task_id(call))):
        call.result()
    assert [is_alive(pid) for pid in pids] == [False] * 3
    assert [attempt.outcome for attempt in run.attempts(call)] == ["cancelled"]
    assert run.state(call) == "cancelled"
    assert not parsl_balsam.cancel(call)
    # There is one core: it must be free again.
    assert touch(str(tmp_path / "next")).result()


def test_waiting_call_never_starts(run: ParslRun, tmp_path: Path) -> None:
    blocker = sleeping(tmp_path)
    call = touch(str(tmp_path / "ran"))
    run.task_id(call)
    assert parsl_balsam.cancel(call)
    with pytest.raises(TaskCancelled):
        call.result()
    assert run.attempts(call) == []
    assert run.state(call) == "cancelled"
    assert not blocker.done()
    assert parsl_balsam.cancel(blocker)
    with pytest.raises(TaskCancelled):
        blocker.result()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("app", [touch, join])
def test_call_that_waits_for_others_never_starts(run: ParslRun, tmp_path: Path, app: Any) -> None:
    gate = tmp_path / "gate"
    first = shell(waiting(gate))
    call = app(str(tmp_path / "ran"), inputs=[first])
    assert parsl_balsam.cancel(call)
    open_gate(gate)
    with pytest.raises(TaskCancelled):
        call.result()
    assert first.result() == 0
    assert not (tmp_path / "ran").exists()


def test_call_cancelled_as_soon_as_it_is_made(run: ParslRun, tmp_path: Path) -> None:
    calls = [shell(f"sleep 600 # {number} {tmp_path}") for number in range(20)]
    for call in calls:
        assert parsl_balsam.cancel(call)
    for call in calls:
        assert isinstance(call.exception(timeout=60), TaskCancelled)
    assert touch(str(tmp_path / "next")).result()


def test_finished_call_cannot_be_cancelled(run: ParslRun, tmp_path: Path) -> None:
    call = touch(str(tmp_path / "ran"))
    call.result()
    assert not parsl_balsam.cancel(call)
    assert call.result() == str(tmp_path / "ran")
    assert run.state(call) == "done"


def test_calls_alike_are_not_cancelled_together(run: ParslRun, tmp_path: Path) -> None:
    blocker = sleeping(tmp_path)
    first, second = touch(str(tmp_path / "ran")), touch(str(tmp_path / "ran"))
    run.task_id(second)
    assert parsl_balsam.cancel(first)
    assert isinstance(first.exception(), TaskCancelled)
    third = touch(str(tmp_path / "ran"))
    parsl_balsam.cancel(blocker)
    assert second.result() == third.result() == str(tmp_path / "ran")


def test_call_cancelled_from_outside_is_not_retried(run: ParslRun, tmp_path: Path) -> None:
    call = sleeping(tmp_path)
    program = "import sys; from parsl_balsam.db.connect import open_database; "
    program += "from parsl_balsam.db.tasks import cancel_tasks; "
    program += "cancel_tasks(open_database(sys.argv[1], create=False), [int(sys.argv[2])], 'tester')"
    subprocess.run([sys.executable, "-c", program, url(run.directory), str(run.task_id(call))], check=True)
    with pytest.raises(TaskCancelled):
        call.result()


def test_cancelled_call_fails_those_that_need_it(run: ParslRun, tmp_path: Path) -> None:
    call = sleeping(tmp_path)
    dependent = touch(str(tmp_path / "ran"), inputs=[call])
    assert parsl_balsam.cancel(call)
    assert isinstance(dependent.exception(), DependencyError)
    assert not (tmp_path / "ran").exists()
