"""Functions on every rank: their results in order, their failures by rank, with mpi4py and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl import python_app

from parsl_balsam.model.errors import RankFailed
from tests.conftest import new_database
from tests.executor.parsl_runs import ParslRun, wait_for
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import slurm_runs

FOUR_RANKS = {"num_nodes": 2, "ranks_per_node": 2, "launch": "ranks"}


@python_app
def allreduce(value: int, parsl_resource_specification: Any = None) -> Any:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.rank, world.size, world.allreduce(value + world.rank)


@python_app
def fail_on(number: int, directory: str, parsl_resource_specification: Any = None) -> Any:
    import os
    import time
    from pathlib import Path

    rank = int(os.environ["SLURM_PROCID"])
    Path(directory, f"{rank}.pid").write_text(str(os.getpid()))
    while len(list(Path(directory).glob("*.pid"))) < int(os.environ["SLURM_NTASKS"]):
        time.sleep(0.01)
    if rank == number:
        raise KeyError(f"wrong on rank {rank}")
    time.sleep(1000)


@python_app
def cores_and_threads(parsl_resource_specification: Any = None) -> Any:
    import os

    return len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], os.environ["BALSAM_TASK_ID"]


@python_app
def start_program(parsl_resource_specification: Any = None) -> Any:
    import os
    import subprocess

    prefix = os.environ["PARSL_MPI_PREFIX"]
    return subprocess.run(f"{prefix} printenv SLURMD_NODENAME", shell=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def run(cluster: Cluster, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParslRun]:
    """One run for all tests here."""
    directory = tmp_path_factory.mktemp("run")
    with new_database(postgres_server) as url, slurm_runs(cluster, url, directory) as load:
        yield load(task_defaults={"launcher_options": "--mpi=pmi2"})


@pytest.fixture(autouse=True)
def clean_queue() -> None:
    """Keep the run's job from one test to the next."""


def test_results_come_by_rank(run: ParslRun) -> None:
    assert allreduce(10, parsl_resource_specification=FOUR_RANKS).result() == [(rank, 4, 46) for rank in range(4)]


def test_one_rank_makes_a_list_too(run: ParslRun) -> None:
    assert allreduce(1, parsl_resource_specification={"launch": "ranks"}).result() == [(0, 1, 1)]


def test_exception_on_one_rank_fails_the_task(run: ParslRun, tmp_path: Path) -> None:
    call = fail_on(2, str(tmp_path), parsl_resource_specification=FOUR_RANKS)
    failure = call.exception()
    assert isinstance(failure, RankFailed)
    nodes = [share.node for share in run.shares(call)]
    assert str(failure).startswith(f"rank 2 of 4, on {nodes[1]}: Traceback")
    assert "in fail_on" in str(failure)
    assert "KeyError: 'wrong on rank 2'" in str(failure)
    assert isinstance(failure.__cause__, KeyError)
    pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in range(4)]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_function_runs_once_by_default_and_may_start_ranks(run: ParslRun) -> None:
    call = start_program(parsl_resource_specification={"num_nodes": 3, "ranks_per_node": 1})
    assert sorted(call.result().split()) == sorted(share.node for share in run.shares(call))


def test_threads_of_a_rank(run: ParslRun) -> None:
    call = cores_and_threads(parsl_resource_specification={"num_nodes": 2, "launch": "ranks"})
    assert {threads for _, threads, _ in call.result()} == {"2"}
    assert {task for _, _, task in call.result()} == {str(run.task_id(call))}


def test_nothing_is_left_of_functions_on_ranks(run: ParslRun) -> None:
    allreduce(3, parsl_resource_specification=FOUR_RANKS).result()
    wait_for(lambda: not list(run.directory.glob("runinfo/*/balsam/ranks-*")), "the ranks' files to be removed")
