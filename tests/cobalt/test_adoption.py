"""A script with blocks from Cobalt dies and is started again: it goes on with the blocks that it had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_balsam.db.schema import attempts, blocks
from tests.campaigns import SiteCampaign, site_campaign
from tests.cobalt.cobalt import Cobalt
from tests.faults.conftest import until

TASKS = 4

SCRIPT = """
@bash_app
def step(number, directory):
    return f"echo {number} >> {directory}/lines; until [ -e {directory}/gate ]; do sleep 0.02; done"

if __name__ == "__main__":
    with load_blocks(dict(workflow="steps"), init_blocks=2, max_blocks=3):
        report([future.result() for future in [step(number, DIRECTORY) for number in range(4)]])
"""


@pytest.fixture
def campaign(cobalt: Cobalt, postgres_url: str, tmp_path: Path) -> Iterator[SiteCampaign]:
    with site_campaign("CobaltProvider", cobalt.environ, postgres_url, tmp_path, cobalt.cancel_all) as made:
        yield made


def test_killed_script_finds_its_running_and_its_waiting_block(campaign: SiteCampaign, cobalt: Cobalt) -> None:
    cobalt.set_queue(max_running=1)
    submissions = cobalt.count_calls("qsub")
    script = campaign.write(SCRIPT)
    first = campaign.start(script)
    until(lambda: len(campaign.lines) == 2)
    until(lambda: sorted(cobalt.jobs().values()) == ["maxrun_hold", "running"])
    campaign.kill(first)
    before = {block.id: block.job_id for block in campaign.rows(blocks)}
    assert sorted(before.values()) == sorted(cobalt.jobs())

    second = campaign.start(script)
    until(lambda: [block.run_id for block in campaign.rows(blocks)] == [2, 2])
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * TASKS

    assert {block.id: block.job_id for block in campaign.rows(blocks)} == before
    assert len(submissions.read_text().splitlines()) == 2
    assert sorted(campaign.lines) == [str(number) for number in range(TASKS)]
    assert {(row.outcome, row.number) for row in campaign.rows(attempts)} == {("done", 1)}
    campaign.check_invariants()
    until(lambda: not cobalt.jobs())


def test_job_whose_submission_was_not_heard_of_is_found(campaign: SiteCampaign, cobalt: Cobalt) -> None:
    cobalt.break_program("qsub", 'real "$@" > /dev/null; exec sleep 1000')
    one_block = "init_blocks=1, max_blocks=1, cmd_timeout=120"
    script = campaign.write(SCRIPT.replace("init_blocks=2, max_blocks=3", one_block))
    first = campaign.start(script)
    until(cobalt.jobs)
    campaign.kill(first)
    for process in campaign.processes("sleep 1000"):
        process.kill()
    cobalt.mend_program("qsub")
    (job,) = cobalt.jobs()
    assert [block.job_id for block in campaign.rows(blocks)] == [None]

    second = campaign.start(script)
    until(lambda: [block.job_id for block in campaign.rows(blocks)] == [job])
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * TASKS
    assert [block.job_id for block in campaign.rows(blocks)] == [job]
