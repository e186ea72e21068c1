"""A task of several nodes that is stopped leaves no process on any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from parsl_balsam import cancel
from parsl_balsam.db.schema import attempts, blocks, tasks
from parsl_balsam.model.errors import TaskCancelled, TaskTimeout
from tests.executor.parsl_runs import ParslRun, processes, wait_for
from tests.processes import all_processes
from tests.slurm.checker import check_placements
from tests.slurm.ensembles import command, variables

Run = Callable[..., ParslRun]
Programs = dict[str, dict[str, Path]]

LIBRARY = {"srun": "mpich", "hydra": "mpich", "openmpi": "openmpi"}
TWO_NODES = {"num_nodes": 2, "ranks_per_node": 2}


def ranks(program: Path) -> list[psutil.Process]:
    """Return the ranks of a program that there are, zombies apart."""
    found = []
    for process in all_processes():
        try:
            # Not its `exe`, which psutil remembers from before the process became this program.
            if os.readlink(f"/proc/{process.pid}/exe") == str(program):
                found.append(process)
        except OSError:  # it has ended
            pass
    return found


def helpers(run: ParslRun) -> list[psutil.Process]:
    """Return what MPI libraries have started for tasks of a run besides the ranks."""
    found = []
    for process in processes(run.directory):
        try:
            if "BALSAM_RANK_OF" in process.environ():
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.mark.parametrize("mpi", list(LIBRARY))
@pytest.mark.parametrize("manner", ["gentle", "stubborn"])
def test_stopped_task_is_gone_from_all_nodes(slurm_run: Run, programs: Programs, mpi: str, manner: str) -> None:
    stay = programs[LIBRARY[mpi]]["stay"]
    options = {"launcher_options": "--mpi=pmi2"} if mpi == "srun" else {}
    run = slurm_run(mpi=mpi, task_defaults=options)
    line = f"{stay} {manner if manner == 'stubborn' else ''}"

    cancelled = command(line, parsl_resource_specification=TWO_NODES)
    limited = command(line, parsl_resource_specification={**TWO_NODES, "timeout_s": 6.0})
    wait_for(lambda: len(ranks(stay)) == 8, "the ranks of both tasks")
    assert cancel(cancelled)
    with pytest.raises(TaskCancelled):
        cancelled.result()
    # Its nodes are given to the next, which finds them free.
    assert variables(parsl_resource_specification=TWO_NODES).result()["PARSL_NUM_RANKS"] == "4"
    with pytest.raises(TaskTimeout):
        limited.result()
    assert ranks(stay) == []
    assert helpers(run) == []
    check_placements(run.database, 2)


def test_cancelled_job_costs_its_tasks_nothing(slurm_run: Run, programs: Programs) -> None:
    stay = programs["mpich"]["stay"]
    run = slurm_run(max_crashes=1, task_defaults={"launcher_options": "--mpi=pmi2"})
    calls = [command(str(stay), parsl_resource_specification=TWO_NODES), *(command("sleep 1000") for _ in range(2))]
    wait_for(lambda: len(run.rows(tasks, tasks.c.state == "running")) == 3 and len(ranks(stay)) == 4, "all to run")
    run.executor.scale_in_facade(1)
    wait_for(lambda: len(run.rows(tasks, tasks.c.state == "ready")) == 3, "the tasks to be ready again")
    assert [row.outcome for row in run.rows(attempts)] == ["ended"] * 3
    wait_for(lambda: not ranks(stay), "the ranks to end")
    assert not any(call.done() for call in calls)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
@pytest.mark.parametrize("mpi", list(LIBRARY))
def test_no_rank_outlives_the_lease_of_its_launcher(
    slurm_run: Run, programs: Programs, mpi: str, number: signal.Signals
) -> None:
    stay = programs[LIBRARY[mpi]]["stay"]
    options = {"launcher_options": "--mpi=pmi2"} if mpi == "srun" else {}
    run = slurm_run(mpi=mpi, task_defaults=options, lease_s=8.0)
    command(f"{stay} stubborn", parsl_resource_specification={"num_nodes": 3, "ranks_per_node": 1})
    wait_for(lambda: len(ranks(stay)) == 3, "the ranks")
    (block,) = run.rows(blocks)
    launcher = psutil.Process(block.pid)
    launcher.send_signal(number)
    wait_for(lambda: not ranks(stay), "the ranks to end")
    # Until now nobody can have taken the task for another launcher.
    (block,) = run.rows(blocks)
    assert block.state == "running"
    if launcher.is_running():
        launcher.kill()


@pytest.mark.parametrize("mpi", list(LIBRARY))
def test_killed_rank_fails_its_task(slurm_run: Run, programs: Programs, mpi: str) -> None:
    stay = programs[LIBRARY[mpi]]["stay"]
    options = {"launcher_options": "--mpi=pmi2"} if mpi == "srun" else {}
    run = slurm_run(mpi=mpi, task_defaults=options)
    call = command(str(stay), parsl_resource_specification=TWO_NODES)
    wait_for(lambda: len(ranks(stay)) == 4, "the ranks")
    ranks(stay)[0].send_signal(signal.SIGKILL)
    assert call.exception() is not None
    assert ranks(stay) == []
    (attempt,) = run.rows(attempts)
    assert attempt.outcome == "exit"
