"""A node dies in mid-run: the block goes on without it, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from parsl_balsam.db.schema import attempts, blocks, events, tasks
from tests.executor.parsl_runs import ParslRun, open_gate, wait_for, waiting
from tests.slurm.checker import check_placements
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command, variables

Run = Callable[..., ParslRun]


def balsam(*words: str) -> str:
    """Run ``parsl-balsam``; return what it prints."""
    script = Path(sys.executable).with_name("parsl-balsam")
    return subprocess.run([script, *words], capture_output=True, text=True, check=True).stdout


def test_job_ends_with_its_first_node_and_another_takes_its_tasks(slurm_run: Run, cluster: Cluster) -> None:
    run = slurm_run(lease_s=5.0, block_pause_s=1.0)
    calls = [command('[ "$BALSAM_ATTEMPT" != 1 ] || sleep 1000') for _ in range(4)]
    wait_for(lambda: len(run.rows(tasks, tasks.c.state == "running")) == 4, "the tasks to run")
    (job,) = cluster.jobs()
    (block,) = run.rows(blocks)
    cluster.kill_node("n1")
    wait_for(lambda: job not in cluster.jobs(), "the rest of the job to be given up")
    cluster.restart_node("n1")
    assert [call.result() for call in calls] == [0] * 4
    (lost,) = run.rows(blocks, blocks.c.id == block.id)
    assert lost.state == "lost"
    outcomes = [[row.outcome for row in run.attempts(call)] for call in calls]
    assert outcomes == [["crash", "done"]] * 4


def test_block_goes_on_with_three_nodes(slurm_run: Run, cluster: Cluster, tmp_path: Path) -> None:
    run = slurm_run(lease_s=6.0)
    gate = tmp_path / "gate"
    held = [command(f"echo $SLURMD_NODENAME >> {tmp_path}/{number}; {waiting(gate)}") for number in range(8)]
    wait_for(lambda: len(run.rows(tasks, tasks.c.state == "running")) == 8, "all cores to be in use")
    wide = [command("true", parsl_resource_specification={"num_nodes": 4, "launch": "once"}) for _ in range(3)]
    narrow = [variables() for _ in range(12)]
    for call in [*wide, *narrow]:
        run.task_id(call)

    cluster.kill_node("n3")

    wait_for(lambda: run.rows(blocks, blocks.c.lost_nodes.like("n3: %")), "the node to be missed")
    open_gate(gate)
    assert [call.result() for call in held] == [0] * 8
    assert "n3" not in {call.result()["SLURMD_NODENAME"] for call in narrow}
    (first,) = run.rows(blocks, blocks.c.nodes.is_not(None))
    assert (first.nodes, [run.state(call) for call in wide]) == (3, ["ready"] * 3)
    shown = balsam("show", str(run.task_id(wide[0])), "--database", run.database)
    assert f"it needs 4 nodes, and block {first.id} has 3 (lost: n3: its agent was not heard of" in shown
    assert "3 ready tasks of 4 nodes wait for another block" in balsam("status", "--database", run.database)

    wait_for(lambda: run.rows(blocks, blocks.c.id == first.id, blocks.c.state == "ended"), "the block to end")
    (ended,) = run.rows(blocks, blocks.c.id == first.id)
    assert "it can start nothing more" in ended.reason
    assert "needs 4 nodes, and this block has 3" in ended.reason
    cluster.restart_node("n3")
    assert [call.result() for call in wide] == [0] * 3

    check_placements(run.database, 2)
    crashed = run.rows(attempts, attempts.c.outcome != "done")
    assert [(row.outcome, row.host) for row in crashed] == [("crash", "n3")] * 2
    assert sorted(row.task_id for row in run.rows(attempts, attempts.c.outcome == "done")) == sorted(
        row.id for row in run.rows(tasks)
    )
    again = {row.task_id for row in crashed}
    for number, call in enumerate(held):
        lines = (tmp_path / str(number)).read_text().split()
        assert len(lines) == 1 + (run.task_id(call) in again), lines
    assert not run.rows(events, events.c.state == "failed")
