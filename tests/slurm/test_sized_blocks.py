"""Blocks are sized for the tasks that wait, within the queues' rules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from parsl_balsam import NodeRange, Queue, QueuePolicy, SlurmProvider
from parsl_balsam.db.schema import attempts, blocks, tasks
from parsl_balsam.model.errors import ImpossibleTask
from tests.executor.parsl_runs import ParslRun, open_gate, wait_for, waiting
from tests.slurm.checker import check_placements
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command
from tests.slurm.test_lost_nodes import balsam

Run = Callable[..., ParslRun]

#: One or two nodes for half an hour, three or four for ten minutes; and a queue for one job of one node.
POLICY = QueuePolicy(
    queues=[
        Queue([NodeRange(1, 2, 30), NodeRange(3, 4, 10)], name="nodes"),
        Queue([NodeRange(1, 1, 5)], name="quick", max_queued=1, max_running=1),
    ],
    settle_s=0.5,
    startup_min=0.5,
)


def provider(**options: Any) -> SlurmProvider:
    return SlurmProvider(**{"poll_interval_s": 0.2, "max_blocks": 4, "init_blocks": 0, **options})


def check_requests(run: ParslRun, cluster: Cluster) -> Sequence[Row[Any]]:
    """Check that every block is within the policy, and that its job is what was recorded."""
    requested = run.rows(blocks)
    for block in requested:
        (queue,) = [queue for queue in POLICY.queues if queue.name == block.queue]
        assert any(
            rule.min_nodes <= block.requested_nodes <= rule.max_nodes and block.walltime_min <= rule.max_walltime_min
            for rule in queue.ranges
        ), block
        job = dict(
            word.split("=", 1)
            for word in cluster.run("scontrol", "--oneliner", "show", "job", block.job_id).split()
            if "=" in word
        )
        hours, minutes, seconds = map(int, job["TimeLimit"].split(":"))
        assert job["Partition"] == block.queue
        assert int(job["NumNodes"].split("-")[0]) == block.requested_nodes
        assert (hours * 60 + minutes, seconds) == (block.walltime_min, 0)
        assert block.why
    return requested


def test_blocks_follow_a_demand_that_changes(slurm_run: Run, cluster: Cluster, tmp_path: Path) -> None:
    run = slurm_run(provider=provider(), queue_policy=POLICY, cores_per_node=2, workflow="changing")
    assert run.rows(blocks) == []
    gate = tmp_path / "gate"
    narrow = [
        command(f"{waiting(gate)}; sleep 0.2", parsl_resource_specification={"cores_per_rank": 2, "walltime_min": 4})
        for _ in range(12)
    ]
    wait_for(lambda: run.rows(attempts), "the first block to work")
    (first, *_) = run.rows(blocks)
    assert first.requested_nodes * first.walltime_min >= 12 * 4 or len(run.rows(blocks)) > 1

    wide = command("true", parsl_resource_specification={"num_nodes": 4, "launch": "once", "walltime_min": 6})
    run.task_id(wide)
    (large,) = wait_for(lambda: run.rows(blocks, blocks.c.requested_nodes == 4), "a block for the wide task")
    assert 6 < large.walltime_min <= 10
    print(balsam("plan", "changing", "--database", run.database))
    open_gate(gate)
    assert [call.result() for call in [*narrow, wide]] == [0] * 13
    for block in check_requests(run, cluster):
        print(f"block {block.id} ({block.queue}, {block.requested_nodes} nodes, {block.walltime_min} min): {block.why}")
    check_placements(run.database, 2)


@pytest.mark.parametrize("strategy", ["none", "simple", "htex_auto_scale"])
def test_no_block_is_requested_when_nothing_waits(slurm_run: Run, strategy: str) -> None:
    run = slurm_run(strategy, provider=provider(init_blocks=1), queue_policy=POLICY, cores_per_node=2)
    assert command("true").result() == 0
    (block,) = run.rows(blocks)
    assert block.queue == "quick"  # the least that one small task needs
    assert command("true").result() == 0
    assert len(run.rows(blocks)) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"init_blocks": 2, "min_blocks": 1}, ["init_blocks=2 and min_blocks=1"]),
        ({"min_blocks": 1}, ["min_blocks=1"]),
        ({"init_blocks": 1}, []),
    ],
)
def test_numbers_of_blocks_that_have_no_effect_are_named(
    slurm_run: Run, caplog: pytest.LogCaptureFixture, options: dict[str, int], told: list[str]
) -> None:
    run = slurm_run(provider=provider(**options), queue_policy=POLICY, cores_per_node=2)
    assert run.rows(blocks) == []
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("parsl_balsam.") and record.levelno == logging.WARNING
    ]
    assert [message.partition(" of its SlurmProvider has no effect")[0].split(": ")[1] for message in warnings] == told


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        ({"num_nodes": 5}, "4 nodes"),
        ({"walltime_min": 40}, "walltime_min=40"),
        ({"num_nodes": 3, "walltime_min": 20}, "walltime_min=20"),
    ],
)
def test_what_no_block_could_run_is_refused(slurm_run: Run, spec: dict[str, Any], limit: str) -> None:
    run = slurm_run(provider=provider(), queue_policy=POLICY, cores_per_node=2)
    with pytest.raises(ImpossibleTask, match=limit):
        command("true", parsl_resource_specification=spec).result()
    assert run.rows(tasks) == []


def test_waiting_block_is_cancelled_when_nothing_waits_for_it(slurm_run: Run, cluster: Cluster) -> None:
    run = slurm_run(provider=provider(), queue_policy=POLICY, cores_per_node=2, idle_timeout_s=1.0)
    for node in cluster.nodes:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=maintenance")
    try:
        call = command("true")
        wait_for(lambda: "PENDING" in cluster.jobs().values(), "a block that waits")
        balsam("cancel", str(run.task_id(call)), "--database", run.database)
        assert call.exception() is not None
        wait_for(lambda: not cluster.jobs(), "the block to be cancelled")
    finally:
        for node in cluster.nodes:
            cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    (block,) = wait_for(lambda: run.rows(blocks, blocks.c.state == "ended"), "its end to be recorded")
    assert block.job_reason == "its run has ended it"
