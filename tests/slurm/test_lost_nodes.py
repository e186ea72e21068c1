"""A node dies in mid-run: the block goes on without it, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

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


def test_rank_that_begins_late_does_not_run_beside_the_next_try(
    slurm_run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    run = slurm_run(max_crashes=5)
    assert [command("true").result() for _ in range(2)] == [0, 0]  # the block is there
    line = f"echo $SLURM_PROCID >> {tmp_path}/began$BALSAM_ATTEMPT; [ $BALSAM_ATTEMPT != 1 ] || sleep 1000"
    # Slurm has the rank of one node half started. Nothing of it has the task's environment yet.
    prolog, held = tmp_path / "prolog", tmp_path / "held"
    wait = f"while [ -e {held} ]; do sleep 0.02; done"
    prolog.write_text(f"#!/bin/sh\n[ $SLURMD_NODENAME != n4 ] || exec env -i sh -c '{wait}'\n")
    prolog.chmod(0o755)
    held.touch()
    spec = {"num_nodes": 4, "ranks_per_node": 1, "launcher_options": f"--task-prolog={prolog}"}
    call = command(line, parsl_resource_specification=spec)
    wait_for(lambda: len(_lines(tmp_path / "began1")) == 3, "the other ranks to begin")
    next(process for process in cluster.processes() if _runs_for(process, run.task_id(call))).kill()
    wait_for(lambda: run.attempts(call), "the attempt to be over")
    held.unlink()
    assert call.result() == 0
    assert [row.outcome for row in run.attempts(call)] == ["crash", "done"]
    assert sorted(_lines(tmp_path / "began2")) == ["0", "1", "2", "3"]
    assert sorted(_lines(tmp_path / "began1")) == ["0", "1", "2"]


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _runs_for(process: psutil.Process, task_id: int) -> bool:
    """Tell whether a process is the worker that has a task: the parent of its bash."""
    try:
        child = next(iter(process.children()), None)
        words = process.cmdline()
        return (
            "parsl_balsam.launcher.agent" in words
            and "srun" not in words[0]
            and child is not None
            and child.environ().get("BALSAM_TASK_ID") == str(task_id)
        )
    except psutil.Error:
        return False
