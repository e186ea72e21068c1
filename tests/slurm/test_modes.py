"""What blocks may run, for how long, and on whose nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsl.providers import LocalProvider

from parsl_balsam.db.schema import attempts, blocks, events, tasks
from parsl_balsam.model.errors import ImpossibleTask
from tests.executor.parsl_runs import ParslRun, wait_for
from tests.slurm.checker import check_placements
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command, provider, variables

Run = Callable[..., ParslRun]


def test_serial_block_runs_tasks_of_one_process(slurm_run: Run) -> None:
    run = slurm_run(job_mode="serial")
    calls = [variables(parsl_resource_specification={"cores_per_rank": cores}) for cores in (1, 2) for _ in range(6)]
    assert len({call.result()["SLURMD_NODENAME"] for call in calls}) > 1
    with pytest.raises(ImpossibleTask, match="job_mode='serial'"):
        command("true", parsl_resource_specification={"num_nodes": 2}).result()
    check_placements(run.database, 2)


def test_mpi_block_starts_everything_by_the_launcher(slurm_run: Run, programs: dict[str, Any], tmp_path: Path) -> None:
    run = slurm_run(job_mode="mpi", task_defaults={"launcher_options": "--mpi=pmi2"})
    output = tmp_path / "output"
    spec = {"num_nodes": 3, "ranks_per_node": 2}
    program = command(str(programs["mpich"]["where"]), stdout=str(output), parsl_resource_specification=spec)
    functions = [variables(0.2) for _ in range(8)]
    shells = [command(f"echo $SLURMD_NODENAME $SLURM_STEP_ID > {tmp_path}/{number}") for number in range(4)]
    assert program.result() == 0
    assert len(output.read_text().splitlines()) == 6
    for call in functions:
        node = call.result()["SLURMD_NODENAME"]
        assert [share.node for share in run.shares(call)] == [node]
    for number, call in enumerate(shells):
        assert call.result() == 0
        (share,) = run.shares(call)
        node, step = (tmp_path / str(number)).read_text().split()
        assert (node, step.isdigit()) == (share.node, True)
    check_placements(run.database, 2, whole_nodes=True)


def test_task_that_takes_longer_than_the_block_waits_for_another(slurm_run: Run) -> None:
    # Slurm gives this block less time than its run has asked for.
    shorter = provider(2, walltime="01:00:00", max_blocks=1, scheduler_options="#SBATCH --no-kill\n#SBATCH --time=1")
    run = slurm_run(provider=shorter)
    assert command("true", parsl_resource_specification={"walltime_min": 0.1}).result() == 0
    long = command("true", parsl_resource_specification={"walltime_min": 30})
    wait_for(lambda: run.rows(blocks, blocks.c.state == "ended"), "the block to end")
    (first, *_) = run.rows(blocks, blocks.c.state == "ended")
    needs = f"task {run.task_id(long)} needs 30 min, and this block ends before"
    assert first.reason == f"it can start nothing more: {needs}"
    assert run.state(long) == "ready"
    assert run.rows(attempts, attempts.c.task_id == run.task_id(long)) == []


def test_task_that_takes_longer_than_any_block_is_refused(slurm_run: Run) -> None:
    run = slurm_run(provider=provider(2, walltime="00:10:00"))
    with pytest.raises(ImpossibleTask, match=r"walltime_min=30 .*the provider's walltime"):
        command("true", parsl_resource_specification={"walltime_min": 30}).result()
    assert run.rows(tasks) == []


def test_nodes_whose_agents_do_not_come_are_left_out(slurm_run: Run, tmp_path: Path) -> None:
    # Where one agent is to be started on each of four nodes, this starts two: the others stand for broken nodes.
    broken = tmp_path / "bin" / "srun"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/bash\n"
        "export PATH=${PATH#*:}\n"
        '[[ $* == *launcher.agent* ]] || exec srun "$@"\n'
        'words=("${@/#--nodes=*/--nodes=2}")\n'
        'words=("${words[@]/#--ntasks=*/--ntasks=2}")\n'
        'exec srun "${words[@]/#--nodelist=*/--nodelist=n2,n3}"\n'
    )
    broken.chmod(0o755)
    run = slurm_run(agent_timeout_s=3.0, provider=provider(worker_init=f"export PATH={broken.parent}:$PATH"))
    calls = [variables(0.1) for _ in range(8)]
    wide = command("true", parsl_resource_specification={"num_nodes": 3, "launch": "once"})
    assert {call.result()["SLURMD_NODENAME"] for call in calls} == {"n2", "n3"}
    (block,) = wait_for(lambda: run.rows(blocks, blocks.c.lost_nodes.like("%n4%")), "the missing nodes to be named")
    assert block.nodes == 2
    for node in ("n1", "n4"):
        assert f"{node}: its agent did not report within 3 s" in block.lost_nodes
    assert run.state(wide) == "ready"


def test_user_runs_tasks_on_nodes_that_he_holds(slurm_run: Run, cluster: Cluster, tmp_path: Path) -> None:
    nowhere = LocalProvider(init_blocks=0, min_blocks=0, max_blocks=0, nodes_per_block=4)
    run = slurm_run(workflow="by hand", provider=nowhere)
    narrow = [variables(0.2) for _ in range(12)]
    wide = command("true", parsl_resource_specification={"num_nodes": 3, "launch": "once"})
    for call in [*narrow, wide]:
        run.task_id(call)
    balsam = Path(sys.executable).with_name("parsl-balsam")
    salloc = ["salloc", "--quiet", "--exclusive", "--nodelist=n1,n2,n3"]
    cluster.run(*salloc, str(balsam), "launcher", "by hand", "--database", run.database, "--idle-timeout", "1")
    assert wide.result() == 0
    assert {call.result()["SLURMD_NODENAME"] for call in narrow} <= {"n1", "n2", "n3"}
    (block,) = run.rows(blocks)
    assert (block.nodes, block.reason) == (3, "no work for 1 s")
    assert block.name.startswith("by ")
    check_placements(run.database, 2)
    assert not run.rows(events, events.c.state == "failed")
