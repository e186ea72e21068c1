"""Blocks end before their work is done: the reason is kept, and tasks do not pay for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from parsl import python_app

from parsl_balsam import SlurmProvider
from parsl_balsam.db.schema import blocks, tasks
from parsl_balsam.model.errors import TaskCrashed
from tests.executor.parsl_runs import ParslRun, wait_for
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command
from tests.slurm.test_lost_nodes import balsam

Run = Callable[..., ParslRun]


@python_app
def kill_node_agent(parsl_resource_specification: dict[str, Any] | None = None) -> None:
    """Kill the agent of the node that this runs on: to the launcher the node is lost."""
    import signal

    import psutil

    for process in psutil.Process().parents():
        if "parsl_balsam.launcher.agent" in process.cmdline():
            process.kill()
    signal.pause()


def provider(**options: Any) -> SlurmProvider:
    return SlurmProvider(**{"walltime": "00:10:00", "poll_interval_s": 0.2, "max_blocks": 1, **options})


def start_first_attempt(run: ParslRun, **spec: Any) -> tuple[Any, str]:
    """Have a task run whose first attempt does not end by itself; return its call and the block's job."""
    call = command('[ "$BALSAM_ATTEMPT" != 1 ] || sleep 1000', parsl_resource_specification=spec)
    wait_for(lambda: run.rows(tasks, tasks.c.state == "running"), "the task to run")
    (block,) = run.rows(blocks)
    return call, block.job_id


def reason_shown(run: ParslRun, block_id: int) -> str:
    """Return what ``parsl-balsam blocks`` says of a block, with the remarks below its line."""
    told = balsam("blocks", "--database", run.database).splitlines()
    first = next(number for number, line in enumerate(told) if line.split()[:1] == [str(block_id)])
    rest = [line for line in told[first + 1 :]]
    others = [number for number, line in enumerate(rest) if line.split()[:1] == [str(block_id + 1)]]
    return "\n".join([told[first], *rest[: others[0] if others else None]])


def test_cancelled_job_costs_its_tasks_nothing(slurm_run: Run, cluster: Cluster) -> None:
    run = slurm_run(provider=provider(), max_crashes=1)
    call, job = start_first_attempt(run)
    cluster.run("scancel", job)
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["ended", "done"]
    wait_for(lambda: run.rows(blocks, blocks.c.job_id == job, blocks.c.job_state == "cancelled"), "the job's end")
    assert " cancelled " in reason_shown(run, 1)


def test_scale_in_costs_its_tasks_nothing(slurm_run: Run) -> None:
    run = slurm_run(provider=provider(nodes_per_block=2), max_crashes=1)
    call, job = start_first_attempt(run, num_nodes=2, launch="once")
    assert len(run.executor.scale_in_facade(1)) == 1
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["ended", "done"]
    (ended,) = run.rows(blocks, blocks.c.job_id == job)
    assert (ended.state, ended.reason) == ("ended", "ended by its run")


def test_task_that_kills_node_after_node_fails_with_their_names(slurm_run: Run) -> None:
    run = slurm_run(provider=provider(nodes_per_block=4), lease_s=5.0, max_crashes=2, agent_timeout_s=20.0)
    # It has its node for itself: a task beside it that is lost with two nodes in a row has spent its budget, too.
    killer = kill_node_agent(parsl_resource_specification={"cores_per_rank": 2})
    others = [command("sleep 1; true") for _ in range(6)]
    with pytest.raises(TaskCrashed) as crashed:
        killer.result()
    assert [other.result() for other in others] == [0] * 6
    tried = run.attempts(killer)
    hosts = [row.host for row in tried]
    assert len(set(hosts)) == 2
    assert [row.outcome for row in tried] == ["crash"] * 2
    told = f"crashed 2 times (max_crashes=2), on {', '.join(hosts)}"
    assert told in str(crashed.value)
    assert told in tried[-1].error
    assert told in balsam("show", str(run.task_id(killer)), "--database", run.database)
    (block,) = run.rows(blocks)
    assert (block.state, block.nodes) == ("running", 2)


def test_job_of_a_node_that_failed_is_named(slurm_run: Run, cluster: Cluster) -> None:
    run = slurm_run(provider=provider(), lease_s=5.0, max_retries=0, block_pause_s=1.0)
    call, job = start_first_attempt(run)
    (block,) = run.rows(blocks)
    cluster.kill_node(block.host if block.host in cluster.nodes else "n1")
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["crash", "done"]
    wait_for(lambda: run.rows(blocks, blocks.c.job_id == job, blocks.c.job_state == "failed"), "the job's end")
    assert "node" in reason_shown(run, 1)


def test_end_of_the_job_costs_its_tasks_nothing(slurm_run: Run) -> None:
    run = slurm_run(provider=provider(nodes_per_block=2, walltime="00:01:00"), max_crashes=1)
    call, job = start_first_attempt(run, num_nodes=2, launch="once")
    wait_for(lambda: run.rows(blocks, blocks.c.job_id == job, blocks.c.state == "ended"), "the block to end", 90.0)
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["ended", "done"]
    # Not when Slurm warned of it, which may be a minute before.
    assert reason_shown(run, 1).splitlines()[1].strip() == "its batch job is about to end"


def test_user_ends_a_block(slurm_run: Run, cluster: Cluster) -> None:
    run = slurm_run(provider=provider(), max_crashes=1, workflow="ended")
    call, job = start_first_attempt(run)
    (block,) = run.rows(blocks)
    balsam("blocks", "cancel", str(block.id), "--database", run.database)
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["ended", "done"]
    (ended,) = run.rows(blocks, blocks.c.id == block.id)
    assert (ended.state, ended.job_id) == ("ended", job)
    assert ended.reason.startswith("ended by ")
