"""What one task does to its worker is gone for the next. All tasks here share one worker."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
from parsl import bash_app, python_app

import parsl_balsam
from parsl_balsam.model.shares import read_shares
from tests.executor.parsl_runs import ParslRun, is_alive, wait_for_text


@pytest.fixture(scope="module")
def executor_options() -> dict[str, Any]:
    return {"cores_per_node": 1}


@python_app
def disturb(directory: str) -> int:
    os.environ["LEFT_BEHIND"] = "yes"
    os.environ["PATH"] = "/nowhere"
    del os.environ["HOME"]
    del os.environ["BALSAM_NODES"]
    os.environ["BALSAM_ATTEMPT"] = "99"
    os.chdir(directory)
    return os.getpid()


@python_app
def look() -> tuple[int, dict[str, str], str]:
    return os.getpid(), dict(os.environ), os.getcwd()


@python_app
def vanishing_directory(directory: str) -> int:
    os.mkdir(directory)
    os.chdir(directory)
    os.rmdir(directory)
    return os.getpid()


@bash_app
def shell(command: str, stdout: str | None = None) -> str:
    return command


@python_app
def start_daemon(directory: str) -> int:
    """Fork twice, as daemons do; the pid of each of the three goes to a file."""
    for name in ("child", "daemon"):
        if os.fork():
            if name == "daemon":
                os._exit(0)
            break
        os.setsid()
        with open(os.path.join(directory, name), "w") as file:
            file.write(f"{os.getpid()}\n")
        if name == "daemon":
            os.execlp("sleep", "sleep", "600")
    while not os.path.exists(os.path.join(directory, "daemon")):
        pass
    return os.getpid()


@python_app
def who_am_i() -> Any:
    return parsl_balsam.current_task()


@python_app
def cores_and_threads() -> tuple[list[int], str]:
    return sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]


@python_app
def use_processes(method: str) -> tuple[int, list[int]]:
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as pool:
        return os.getpid(), pool.map(abs, [-1, 2, -3])


def test_environment_and_directory_are_restored(run: ParslRun, tmp_path: Path) -> None:
    worker, environment, directory = look().result()
    assert disturb(str(tmp_path)).result() == worker
    again, environment_after, directory_after = look().result()
    assert again == worker
    assert environment.pop("BALSAM_TASK_ID") != environment_after.pop("BALSAM_TASK_ID")
    assert (environment_after, directory_after) == (environment, directory)
    assert "LEFT_BEHIND" not in environment_after
    assert vanishing_directory(str(tmp_path / "gone")).result() == worker
    assert look().result()[2] == directory


def test_tasks_start_where_the_script_runs(run: ParslRun) -> None:
    assert look().result()[2] == os.getcwd()


def test_children_left_behind_are_killed(run: ParslRun, tmp_path: Path) -> None:
    worker = look().result()[0]
    script = f"for i in 1 2 3; do setsid nohup sleep 600 & echo $! >> {tmp_path}/pids; done"
    assert shell(script).result() == 0
    pids = [int(pid) for pid in wait_for_text(tmp_path / "pids").split()]
    assert len(pids) == 3
    assert [pid for pid in pids if is_alive(pid)] == []
    assert look().result()[0] == worker


def test_daemons_left_behind_are_killed(run: ParslRun, tmp_path: Path) -> None:
    worker = look().result()[0]
    assert start_daemon(str(tmp_path)).result() == worker
    daemon = int(wait_for_text(tmp_path / "daemon"))
    assert daemon != worker
    assert not is_alive(daemon)
    assert look().result()[0] == worker


def test_task_knows_itself(run: ParslRun, tmp_path: Path) -> None:
    call = who_am_i()
    assert (call.result().task_id, call.result().attempt) == (run.task_id(call), 1)
    assert call.result().nodes == (platform.node(),)
    program = shell("echo $BALSAM_TASK_ID $BALSAM_ATTEMPT $BALSAM_NODES", stdout=str(tmp_path / "out"))
    program.result()
    assert (tmp_path / "out").read_text() == f"{run.task_id(program)} 1 {platform.node()}\n"
    assert parsl_balsam.current_task() is None


@pytest.mark.skipif("OMP_NUM_THREADS" in os.environ, reason="a user's own OMP_NUM_THREADS stands")
def test_task_is_bound_to_the_cores_that_are_recorded(run: ParslRun) -> None:
    call = cores_and_threads()
    cores, threads = call.result()
    (share,) = read_shares(run.attempt(call).placement)
    assert share.cores == tuple(cores)
    assert (len(cores), threads) == (1, "1")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_twice(run: ParslRun, method: str) -> None:
    worker = look().result()[0]
    assert use_processes(method).result() == (worker, [1, 2, 3])
    assert use_processes(method).result() == (worker, [1, 2, 3])
