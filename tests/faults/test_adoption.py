"""A script that was killed goes on with the block that it had on this host."""

from __future__ import annotations

from parsl_balsam.db.schema import attempts, blocks
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

SCRIPT = """
    @bash_app
    def step(number, directory):
        return f"echo {number} >> '{directory}/lines'; until [ -e '{directory}/gate' ]; do sleep 0.02; done"

    if __name__ == "__main__":
        with load(workflow="steps", **json.loads((Path(DIRECTORY) / "options").read_text())):
            report([future.result() for future in [step(number, DIRECTORY) for number in range(8)]])
"""


def test_block_of_a_killed_script_works_for_the_next_run(campaign: Campaign) -> None:
    (campaign.directory / "options").write_text("{}")
    script = campaign.write(SCRIPT)
    first = campaign.start(script)
    until(lambda: len(campaign.lines) == 4)
    campaign.kill(first)
    second = campaign.start(script)
    until(lambda: rows(campaign.url, blocks)[0].run_id == 2)
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * 8
    (block,) = rows(campaign.url, blocks)
    assert (block.state, block.scheduler) == ("ended", "local")
    assert sorted(campaign.lines) == [str(number) for number in range(8)]
    assert {row.block_id for row in rows(campaign.url, attempts)} == {block.id}
    campaign.check_invariants()
    until(lambda: not campaign.processes())


def test_block_whose_tasks_would_run_otherwise_leaves(campaign: Campaign) -> None:
    (campaign.directory / "options").write_text("{}")
    script = campaign.write(SCRIPT)
    first = campaign.start(script)
    until(lambda: len(campaign.lines) == 4)
    campaign.kill(first)
    (campaign.directory / "options").write_text('{"cores_per_node": 2}')
    second = campaign.start(script)
    until(lambda: len(rows(campaign.url, blocks)) == 2)
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == [0] * 8
    (left, own) = rows(campaign.url, blocks)
    assert (left.run_id, left.reason) == (1, "a later run drives the workflow")
    assert own.run_id == 2
    assert sorted(campaign.lines) == [str(number) for number in range(8)]
    campaign.check_invariants()


def test_block_whose_launcher_is_gone_is_not_waited_for(campaign: Campaign) -> None:
    (campaign.directory / "options").write_text("{}")
    script = campaign.write(SCRIPT)
    first = campaign.start(script)
    until(lambda: len(campaign.lines) == 4)
    campaign.kill(first)
    campaign.kill_launchers()
    (campaign.directory / "gate").touch()
    assert campaign.run(script) == [0] * 8
    (lost, own) = rows(campaign.url, blocks)
    assert (lost.state, own.state) == ("lost", "ended")
    campaign.check_invariants()
