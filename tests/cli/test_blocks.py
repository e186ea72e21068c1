"""Blocks on the command line: what there is, how it is ended, and when others may be requested."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from parsl import bash_app

from parsl_balsam.cli.main import main
from parsl_balsam.db.blocks import Requested, close_block, note_job_state, open_block, record_block, record_job
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.pauses import note_failed_block, read_pause
from parsl_balsam.db.schema import attempts, blocks, tasks
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.states import JobState, Outcome
from parsl_balsam.model.tasks import BlockShape
from tests.db.conftest import Campaign, Launcher
from tests.executor.parsl_runs import QuickLocalProvider, open_gate, parsl_run, wait_for, waiting

WHY = "48 tasks of 1 node, 20 node-hours: 16 nodes for 90 min of queue 'regular'"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A new database of each kind in turn."""
    sqlite = f"sqlite:///{tmp_path}/balsam.db"
    url = sqlite if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    with closing(open_database(url)) as opened:
        yield opened


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """A workflow with a run, on a host where nobody can look."""
    return Campaign(database)


def balsam(database: Database | str, *arguments: object, **environment: str) -> Result:
    address = database if isinstance(database, str) else database.address
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, env={"BALSAM_DATABASE": address, **environment})


def answer(database: Database, *arguments: object) -> Any:
    result = balsam(database, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def request(campaign: Campaign, scheduler: str | None = "slurm", job_id: str | None = None, **asked: Any) -> int:
    """Record a block whose launcher has not come."""
    run = campaign.run
    requested = Requested(scheduler=scheduler, **asked)
    block_id = record_block(campaign.database, run.workflow_id, run.run_id, "0", 60.0, requested)
    if job_id is not None:
        record_job(campaign.database, block_id, job_id)
    return block_id


def listed(result: Result) -> list[str]:
    """Return the lines of a table without its heading, and what is below."""
    assert result.exit_code == 0, result.output
    heading, *lines = result.stdout.splitlines()
    assert heading.split()[:3] == ["block", "workflow", "job"]
    return lines


def block(database: Database, block_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(blocks.select().where(blocks.c.id == block_id)).one()


# the list


def test_blocks_are_told_in_our_words_and_in_the_schedulers(database: Database, campaign: Campaign) -> None:
    campaign.submit(*(campaign.call(key) for key in "abc"))
    queued = request(campaign, job_id="4711", nodes=16, walltime_min=90, queue="regular")
    note_job_state(database, queued, JobState.PENDING, "waits: Priority")
    running, over, failed = Launcher(campaign), Launcher(campaign), request(campaign)
    running.begin()
    running.claim()
    running.claims.exchange(shape=BlockShape(3, 8, 0, 3629.0, ("n4: its agent was not heard of",)))
    close_block(database, over.block_id, "no work for 300 s")
    note_job_state(database, over.block_id, JobState.COMPLETED, "exit code 0")
    note_job_state(database, failed, JobState.FAILED, "exit code 127")
    lines = [" ".join(line.split()) for line in listed(balsam(database, "blocks"))]
    assert [line.rpartition(" 20")[0] for line in lines[::2]] == [
        f"{queued} campaign 4711 regular requested pending 16 1 h 30 min - -",
        f"{running.block_id} campaign - - running - 3 - 1 h 0 min 1",  # of the two that it holds, one runs
        f"{over.block_id} campaign - - ended completed - - - -",
        f"{failed} campaign - - ended failed - - - -",
    ]
    assert lines[1::2] == [
        "its scheduler says: waits: Priority",
        "it has lost n4: its agent was not heard of",
        "no work for 300 s",
        "its job is over: exit code 127",
    ]


def test_old_words_of_the_scheduler_are_not_told(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign)
    note_job_state(database, launcher.block_id, JobState.RUNNING, "is ending")
    close_block(database, launcher.block_id, "no work")  # and nobody has asked since how its job is
    row, note = listed(balsam(database, "blocks"))
    assert row.split()[4:6] == ["ended", "-"]
    assert note.strip() == "no work"


def test_only_the_last_blocks_that_are_over_are_listed_of_each_workflow(database: Database) -> None:
    ended: dict[str, list[int]] = {}
    for name in ("often", "seldom"):
        campaign = Campaign(database, name=name)
        ended[name] = [request(campaign) for _ in range(6 if name == "often" else 2)]
        for block_id in ended[name]:
            close_block(database, block_id, "no work")
    queued = request(campaign)

    def ids(*options: object) -> list[int]:
        return [line["id"] for line in answer(database, "blocks", *options)["blocks"]]

    assert ids() == [*ended["often"][-3:], *ended["seldom"], queued]
    assert ids("--limit", 1) == [ended["often"][-1], ended["seldom"][-1], queued]
    everything = [*ended["often"], *ended["seldom"], queued]
    assert ids("--all") == ids("--limit", 0) == ids("--limit", 6) == everything
    assert ids("--workflow", "often") == ended["often"][-3:]
    assert balsam(database, "blocks", "--workflow", "never").exit_code == 1


def test_the_last_that_ended_are_not_the_last_that_were_requested(database: Database, campaign: Campaign) -> None:
    first, second, third = (request(campaign) for _ in range(3))
    for block_id in (third, second, first):
        close_block(database, block_id, "no work")
    assert [line["id"] for line in answer(database, "blocks", "--limit", 2)["blocks"]] == [first, second]


def test_all_that_is_known_is_in_json(database: Database, campaign: Campaign) -> None:
    block_id = request(campaign, tag="scan.1", nodes=16, walltime_min=90, queue="regular", why=WHY)
    note_job_state(database, block_id, JobState.HELD, "waits: JobHeldUser")
    pause = note_failed_block(database, campaign.run.workflow_id, "the queue is full", 60.0)
    told = answer(database, "blocks")
    (line,) = told["blocks"]
    assert (line["state"], line["job_state"], line["job_reason"]) == ("requested", "held", "waits: JobHeldUser")
    assert (line["tag"], line["scheduler"], line["queue"], line["why"]) == ("scan.1", "slurm", "regular", WHY)
    assert (line["requested_nodes"], line["nodes"], line["walltime_min"], line["running"]) == (16, None, 90, 0)
    (paused,) = told["pauses"]
    assert (paused["workflow"], paused["count"], paused["why"]) == ("campaign", 1, "the queue is full")
    assert paused["until"] == pytest.approx(pause.until)


def test_reasons_of_requests_are_told_when_they_are_asked_for(database: Database, campaign: Campaign) -> None:
    for scheduler, why in (("slurm", WHY), ("slurm", None), (None, None)):
        request(campaign, scheduler, why=why)
    assert listed(balsam(database, "blocks", "--verbose"))[1::2] == [
        f"       it was requested for {WHY}",
        "       it was requested by Parsl's strategy, in the provider's own size",
        "       it was started by hand",
    ]
    assert len(listed(balsam(database, "blocks"))) == 3


def test_list_may_be_called_by_its_name(database: Database, campaign: Campaign) -> None:
    assert balsam(database, "blocks").stdout == balsam(database, "blocks", "list").stdout == "There are no blocks.\n"
    request(campaign)
    assert balsam(database, "blocks", "list", "--verbose").stdout == balsam(database, "blocks", "-v").stdout
    assert "resume" in balsam(database, "blocks", "--help").stdout


# cancel


def test_launcher_is_told_to_end(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign)
    result = balsam(database, "blocks", "cancel", launcher.block_id)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"Block {launcher.block_id} ends: its launcher on node1 was told. "
        "What runs there becomes ready again, at no cost.",
        "Workflow campaign is driven by process 4711 on login1, which requests another block if tasks wait.",
    ]
    wish = launcher.exchange().end_wish
    assert wish is not None
    assert wish.endswith(f" on {os.uname().nodename}")
    assert listed(balsam(database, "blocks"))[1] == f"       it is being ended by {wish}"


@pytest.mark.parametrize("scheduler", [None, "local"])
def test_block_without_a_batch_job_is_over_at_once(
    database: Database, campaign: Campaign, scheduler: str | None
) -> None:
    block_id = request(campaign, scheduler, job_id="12345")
    result = balsam(database, "blocks", "cancel", block_id)
    assert result.stdout.splitlines()[0] == f"Block {block_id} is over: its launcher had not come."
    assert block(database, block_id).state == "ended"
    with pytest.raises(BalsamError):
        open_block(database, block_id, "node1", 1)


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        ("pbspro", "parsl-balsam cannot ask pbspro"),
        ("slurm", "squeue is not on the PATH"),
    ],
)
def test_job_that_cannot_be_cancelled_here_is_left_to_itself(
    database: Database, campaign: Campaign, tmp_path: Path, scheduler: str, why: str
) -> None:
    known, nameless = request(campaign, scheduler, job_id="4711"), request(campaign, scheduler, tag="scan.2")
    result = balsam(database, "blocks", "cancel", known, nameless, PATH=str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == [
        f"Block {known} will not be opened, but its job 4711 was not cancelled: {why}. It ends at once when it starts.",
        f"Block {nameless} will not be opened, but its job scan.2, whose id is not known, was not cancelled: {why}. "
        "It ends at once when it starts.",
    ]
    for block_id in (known, nameless):
        assert (block(database, block_id).state, block(database, block_id).job_state) == ("requested", None)
        with pytest.raises(BalsamError):
            open_block(database, block_id, "node1", 1)


def test_what_is_over_and_what_is_not_there_cannot_be_ended(database: Database, campaign: Campaign) -> None:
    over = request(campaign)
    close_block(database, over, "its job is over: exit code 127")
    result = balsam(database, "blocks", "cancel", over, 987654, over)
    assert result.exit_code == 1
    assert result.stdout == f"Block {over} is over already: ended (its job is over: exit code 127).\n"
    assert result.stderr == "There is no block 987654: 'parsl-balsam blocks --all' lists those there are.\n"
    queued = request(campaign, None)
    assert balsam(database, "blocks", "cancel", 987654, over, queued).exit_code == 0
    assert balsam(database, "blocks", "cancel").exit_code == 2


@bash_app
def shell(command: str) -> str:
    return command


def test_task_of_a_cancelled_block_runs_in_the_next_one(tmp_path: Path) -> None:
    local = QuickLocalProvider(init_blocks=1, max_blocks=1)
    with parsl_run(tmp_path, {"strategy_period": 0.1}, provider=local, max_crashes=1) as run:
        call = shell(waiting(tmp_path / "gate"))
        wait_for(lambda: run.rows(tasks, tasks.c.state == "running"), "the task to run")
        (first,) = run.rows(blocks)
        result = balsam(run.database, "blocks", "cancel", first.id)
        assert f"Block {first.id} ends: " in result.stdout
        wait_for(lambda: len(run.rows(attempts, attempts.c.started_at.is_not(None))) == 2, "the task to run again")
        open_gate(tmp_path / "gate")
        assert call.result() == 0
        assert [attempt.outcome for attempt in run.attempts(call)] == [Outcome.ENDED.value, Outcome.DONE.value]
        (ended,) = run.rows(blocks, blocks.c.id == first.id)
        assert ended.state == "ended"
        assert ended.reason.startswith("ended by ")
        assert read_pause_of(run.database) is None


def read_pause_of(url: str) -> Any:
    with closing(open_database(url)) as database:
        return read_pause(database, 1)


# pauses


def test_paused_workflows_are_told_and_released(database: Database, campaign: Campaign) -> None:
    other = Campaign(database, name="other")
    for each in (campaign, other):
        for why in ("no such account", "block 7 could not be requested: sbatch: error: Batch job submission failed"):
            note_failed_block(database, each.run.workflow_id, why, 60.0)
    for command in ("blocks", "status"):
        told = balsam(database, command, "--workflow", "campaign").stdout.splitlines()[-1]
        assert re.fullmatch(
            "Workflow campaign: no block is requested for another [^:]+ s: block 7 could not be requested: sbatch: "
            "error: Batch job submission failed. 'parsl-balsam blocks resume' ends the pause.",
            told,
        )
    released = balsam(database, "blocks", "resume", "--workflow", "campaign")
    assert (released.exit_code, released.stdout) == (0, "Workflow campaign may request blocks again.\n")
    assert read_pause(database, campaign.run.workflow_id) is None
    assert "Workflow campaign" not in balsam(database, "blocks").stdout
    assert "Workflow other: no block" in balsam(database, "status").stdout
    again = balsam(database, "blocks", "resume", "--workflow", "campaign")
    assert again.stdout == "Workflow campaign is not paused.\n"
    assert balsam(database, "blocks", "resume").stdout == "Workflow other may request blocks again.\n"
    assert balsam(database, "blocks", "resume").stdout == "No workflow is paused.\n"
    assert note_failed_block(database, other.run.workflow_id, "the queue is full", 60.0).left_s == 60.0
    assert balsam(database, "blocks", "resume", "--workflow", "third").exit_code == 1
