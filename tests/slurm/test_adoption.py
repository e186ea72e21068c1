"""A script dies and is started again: it goes on with the blocks that it had, and asks for no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_balsam.db.schema import attempts, blocks, tasks
from tests.campaigns import SiteCampaign, site_campaign
from tests.faults.conftest import until
from tests.slurm.cluster import Cluster

TASKS = 16

_SCRIPT = """
@bash_app
def step(number, directory):
    return f"echo {{number}} >> {{directory}}/lines; until [ -e {{directory}}/gate ]; do sleep 0.02; done"

if __name__ == "__main__":
    with load_blocks(dict(workflow="steps", {executor}), nodes_per_block=4, max_blocks=3, {provider}):
        futures = [step(number, DIRECTORY) for number in range(16)]
        {ending}
"""

WAIT = "report([future.result() for future in futures])"

LEAVE = """
        recorded = lambda future: future.task_record["exec_fu"] and future.task_record["exec_fu"].task_id
        while not all(map(recorded, futures)):
            time.sleep(0.05)
        report("left")
"""


def script(provider: str = "init_blocks=2", executor: str = "", ending: str = WAIT) -> str:
    return _SCRIPT.format(provider=provider, executor=executor, ending=ending)


@pytest.fixture
def campaign(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[SiteCampaign]:
    with site_campaign("SlurmProvider", cluster.environ, postgres_url, tmp_path, cluster.cancel_all) as made:
        yield made


def jobs_of(campaign: SiteCampaign) -> list[str]:
    return [block.job_id for block in campaign.rows(blocks)]


def test_killed_script_finds_its_running_and_its_waiting_block(campaign: SiteCampaign, cluster: Cluster) -> None:
    steps = campaign.write(script())
    first = campaign.start(steps)
    until(lambda: len(campaign.lines) == 8)
    until(lambda: sorted(cluster.jobs().values()) == ["PENDING", "RUNNING"])
    campaign.kill(first)
    before = jobs_of(campaign)
    assert sorted(before) == sorted(cluster.jobs())

    second = campaign.start(steps)
    until(lambda: len({block.run_id for block in campaign.rows(blocks)} & {2}) == 1)
    assert [block.run_id for block in campaign.rows(blocks)] == [2, 2]
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * TASKS

    assert jobs_of(campaign) == before
    assert sorted(campaign.lines, key=int) == [str(number) for number in range(TASKS)]
    assert {(row.outcome, row.number) for row in campaign.rows(attempts)} == {("done", 1)}
    campaign.check_invariants()
    until(lambda: not cluster.jobs())


def test_script_killed_before_it_learned_the_job_finds_it_by_name(
    campaign: SiteCampaign, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first script's sbatch submits, and then does not come back.
    slow = campaign.directory / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text('#!/bin/bash\nPATH=${PATH#*:}\nsbatch "$@" >/dev/null\nexec sleep 1000\n')
    slow.chmod(0o755)
    steps = campaign.write(script("init_blocks=1, cmd_timeout=120"))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{cluster.environ['PATH']}")
        first = campaign.start(steps)
        until(cluster.jobs)
        campaign.kill(first)
    for process in campaign.processes("sbatch") + campaign.processes("sleep"):
        process.kill()
    (job,) = cluster.jobs()
    (block,) = campaign.rows(blocks)
    assert block.job_id is None

    second = campaign.start(steps)
    until(lambda: campaign.rows(blocks, blocks.c.id == block.id, blocks.c.job_id == job))
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * TASKS
    assert campaign.rows(attempts, attempts.c.block_id == block.id)


def test_blocks_that_are_kept_work_on_after_the_script(campaign: SiteCampaign, cluster: Cluster) -> None:
    assert campaign.run(campaign.write(script(executor="on_exit='keep'", ending=LEAVE))) == "left"
    assert len(cluster.jobs()) == 2
    (campaign.directory / "gate").touch()
    until(lambda: len(campaign.rows(tasks, tasks.c.state == "done")) == TASKS)
    assert sorted(campaign.lines, key=int) == [str(number) for number in range(TASKS)]


def test_blocks_that_run_tasks_otherwise_are_not_adopted(campaign: SiteCampaign, cluster: Cluster) -> None:
    first = campaign.start(campaign.write(script()))
    until(lambda: len(campaign.lines) == 8)
    until(lambda: sorted(cluster.jobs().values()) == ["PENDING", "RUNNING"])
    campaign.kill(first)
    queued = next(job for job, state in cluster.jobs().items() if state == "PENDING")
    # Whoever asks for serial blocks does not want those that run tasks of several ranks.
    second = campaign.start(campaign.write(script(executor="job_mode='serial'")))
    until(lambda: queued not in cluster.jobs())
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * TASKS
    (block,) = campaign.rows(blocks, blocks.c.job_id == queued)
    assert (block.state, block.reason) == ("ended", "a later run did without it")
    assert sorted(campaign.lines, key=int) == [str(number) for number in range(TASKS)]
