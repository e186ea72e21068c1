"""Slurm's commands fail, hang, lie or forget: no task fails for it, no block is lost, none is requested twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState
from sqlalchemy import Row

from parsl_balsam import SlurmProvider
from parsl_balsam.db.schema import attempts, blocks, events, workflows
from parsl_balsam.db.server import Server
from tests.conftest import new_database
from tests.executor.parsl_runs import ParslRun, open_gate, wait_for, waiting
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command
from tests.slurm.test_lost_nodes import balsam
from tests.wrappers import Wrappers

Run = Callable[..., ParslRun]

#: A block that is requested, the last of all.
LIMIT_S = 60.0


@pytest.fixture
def wrappers(cluster: Cluster, slurm_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrappers:
    made = Wrappers(tmp_path / "wrappers", cluster.environ["PATH"])
    monkeypatch.setenv("PATH", made.path)
    return made


@pytest.fixture
def own_database(own_server: Server) -> Iterator[str]:
    """URL of a database on a server that may be stopped."""
    with new_database(own_server) as url:
        yield url


def provider(**options: Any) -> SlurmProvider:
    return SlurmProvider(**{"walltime": "00:10:00", "poll_interval_s": 0.2, "cmd_timeout": 2, **options})


def newest_block(run: ParslRun) -> Row[Any]:
    return run.rows(blocks)[-1]


def check_nothing_was_lost(run: ParslRun) -> None:
    """Check that no attempt ended badly, and no task was anything but ready, run and done."""
    assert {row.outcome for row in run.rows(attempts)} == {"done"}
    assert not run.rows(events, events.c.state == "failed")
    assert not run.rows(blocks, blocks.c.state == "lost")


def test_refusal_pauses_requests_and_fails_nothing(slurm_run: Run, wrappers: Wrappers) -> None:
    wrappers.put("sbatch", "echo 'sbatch: error: Batch job submission failed: Job violates policy' >&2; exit 1")
    run = slurm_run(provider=provider(), block_pause_s=0.5)
    call = command("true")
    task = run.task_id(call)
    wait_for(lambda: len(run.rows(blocks)) >= 3, "three requests")
    for refused in run.rows(blocks)[:2]:
        assert (refused.state, refused.job_id) == ("ended", None)
        assert "Job violates policy" in refused.reason
    (workflow,) = run.rows(workflows)
    assert workflow.pause_count >= 2
    assert "Job violates policy" in workflow.pause_why
    assert run.state(call) == "ready"
    wrappers.remove("sbatch")
    assert call.result() == 0
    assert run.task_id(call) == task
    wait_for(lambda: run.rows(blocks, blocks.c.job_state == "running"), "the block to be seen at work")
    check_nothing_was_lost(run)


def test_user_resumes_requests(slurm_run: Run, wrappers: Wrappers, caplog: pytest.LogCaptureFixture) -> None:
    wrappers.put("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    run = slurm_run(provider=provider(), block_pause_s=600.0, workflow="billed")
    call = command("true")
    run.task_id(call)
    for listed in (balsam("blocks", "--database", run.database), balsam("status", "--database", run.database)):
        assert "Invalid account" in listed
        assert "blocks resume" in listed
    assert "Invalid account" in caplog.text
    wrappers.remove("sbatch")
    balsam("blocks", "resume", "--database", run.database)
    assert call.result() == 0
    check_nothing_was_lost(run)


def test_sbatch_that_never_submits_is_given_up(slurm_run: Run, wrappers: Wrappers, cluster: Cluster) -> None:
    wrappers.put("sbatch", "exec sleep 1000")
    source = provider()
    source.lost_request_s = 1.0
    run = slurm_run(provider=source, block_pause_s=0.5)
    call = command("true")
    wait_for(lambda: run.rows(blocks, blocks.c.state == "ended"), "the request to be given up", LIMIT_S)
    assert run.state(call) == "ready"
    assert cluster.jobs() == {}
    wrappers.remove("sbatch")
    assert call.result() == 0
    check_nothing_was_lost(run)


def test_sbatch_that_hangs_after_it_submitted_made_one_job(
    slurm_run: Run, wrappers: Wrappers, cluster: Cluster, tmp_path: Path
) -> None:
    calls = tmp_path / "submissions"
    wrappers.put("sbatch", f'echo "$*" >> {calls}; real "$@" > /dev/null; exec sleep 1000')
    run = slurm_run(provider=provider())
    assert command("true").result() == 0
    (block,) = run.rows(blocks)
    assert cluster.jobs() == {block.job_id: "RUNNING"}
    assert len(calls.read_text().splitlines()) == 1
    check_nothing_was_lost(run)


JUNK = r"printf 'slurm_load_jobs error: \377\376|||\n\0 12|RUNN\n'; exit $((RANDOM % 2))"


@pytest.mark.parametrize("answer", [JUNK, "exit 0", "exec sleep 1000"])
def test_squeue_that_lies_changes_nothing(
    slurm_run: Run, wrappers: Wrappers, cluster: Cluster, tmp_path: Path, answer: str
) -> None:
    submissions = wrappers.count_calls("sbatch")
    run = slurm_run(provider=provider(), workflow="doubted")
    gate = tmp_path / "gate"
    call = command(waiting(gate))
    wait_for(lambda: run.rows(blocks, blocks.c.job_state == "running"), "the block to run")
    asked = tmp_path / "asked"
    wrappers.put("squeue", f'[[ "$*" == *--name* ]] && {{ real "$@"; exit; }}; echo "$*" >> {asked}; {answer}')
    wait_for(lambda: asked.exists() and len(asked.read_text().splitlines()) >= 4, "wrong answers", LIMIT_S)
    open_gate(gate)
    assert call.result() == 0
    assert command("true").result() == 0
    assert len(submissions.read_text().splitlines()) == len(run.rows(blocks)) == 1
    check_nothing_was_lost(run)


def test_slurm_denies_a_job_whose_launcher_lives(
    slurm_run: Run, wrappers: Wrappers, cluster: Cluster, tmp_path: Path
) -> None:
    source = provider(max_blocks=2)
    source.forgotten_s = 0.5
    run = slurm_run(provider=source)
    gate = tmp_path / "gate"
    call = command(waiting(gate))
    wait_for(lambda: run.rows(blocks, blocks.c.job_state == "running"), "the block to run")
    denial = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    for program in ("squeue", "scontrol", "sacct"):
        wrappers.put(program, denial)
    (job,) = run.executor.blocks_to_job_id.values()
    wait_for(lambda: source.resources[job]["status"].state is JobState.MISSING, "the provider to give the job up")
    looked = run.executor._last_poll_time
    wait_for(lambda: run.executor._last_poll_time > looked + 0.5, "two more polls")
    assert [status.state for status in run.executor.status_facade.values()] == [JobState.RUNNING]
    open_gate(gate)
    assert call.result() == 0
    assert len(run.rows(blocks)) == 1
    check_nothing_was_lost(run)
    for program in ("squeue", "scontrol", "sacct"):
        wrappers.remove(program)


def test_database_is_away_when_the_job_is_known(
    own_database: str, slurm_run: Run, wrappers: Wrappers, cluster: Cluster, own_server: Server, tmp_path: Path
) -> None:
    asked, gate, submissions = tmp_path / "asked", tmp_path / "gate", tmp_path / "submissions"
    # The job is held, so that its launcher does not come before the database is back.
    wrappers.put("sbatch", f'touch {asked}; {waiting(gate)}; echo "$*" >> {submissions}; real --hold "$@"')
    run = slurm_run(provider=provider(init_blocks=0, cmd_timeout=60), database=own_database)
    call = command("true")
    run.task_id(call)
    wait_for(asked.exists, "the request")
    own_server.stop()
    open_gate(gate)
    (job,) = wait_for(cluster.jobs, "the job", LIMIT_S)
    own_server.start()
    wait_for(lambda: run.rows(blocks, blocks.c.job_id == job), "the job to be recorded", LIMIT_S)
    cluster.run("scontrol", "release", job)
    assert call.result() == 0
    assert len(submissions.read_text().splitlines()) == 1


def test_controller_is_away_for_half_a_minute(
    slurm_run: Run, wrappers: Wrappers, cluster: Cluster, tmp_path: Path
) -> None:
    submissions = wrappers.count_calls("sbatch")
    source = provider(nodes_per_block=2, init_blocks=1, max_blocks=2)
    run = slurm_run(provider=source, cores_per_node=2, block_pause_s=1.0)
    gate = tmp_path / "gate"
    calls = [command(waiting(gate)) for _ in range(4)]
    wait_for(lambda: len(run.rows(attempts)) == 4, "all cores of the first block to be in use")
    with cluster.frozen_controller():
        until = time.monotonic() + 30.0
        # More work than one block has cores: another is requested while nobody answers.
        calls += [command(f"sleep 0.1; {waiting(gate)}") for _ in range(8)]
        wait_for(lambda: submissions.read_text().count("\n") == 2, "the second request", LIMIT_S)
        wait_for(lambda: time.monotonic() > until, "the controller's absence to be over", LIMIT_S)
    wait_for(lambda: [block.state for block in run.rows(blocks)] == ["running"] * 2, "both blocks to run", LIMIT_S)
    open_gate(gate)
    assert [call.result() for call in calls] == [0] * 12
    assert sorted(block.job_id for block in run.rows(blocks)) == sorted(cluster.jobs())
    check_nothing_was_lost(run)
