"""A workflow whose blocks are refused requests none for a while, and says so to whoever asks."""

from __future__ import annotations

from contextlib import closing

import pytest

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.pauses import end_pause, note_failed_block, paused_workflows, read_pause
from parsl_balsam.db.schema import workflows
from parsl_balsam.model.errors import ConfigurationError

from .conftest import Campaign, Story, at_once, now, rows, snapshot, wait_until


def test_pauses_double_up_to_an_hour(database: Database, campaign: Campaign) -> None:
    workflow = campaign.run.workflow_id
    began = now(database)
    made = [note_failed_block(database, workflow, f"no {number}", 60.0) for number in range(1, 9)]
    assert [pause.left_s for pause in made] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    pause = read_pause(database, workflow)
    assert pause is not None
    assert (pause.count, pause.why, pause.until) == (8, "no 8", made[-1].until)
    assert began + 3600 <= pause.until <= now(database) + 3600
    assert pause.left_s <= 3600


def test_workflow_that_has_had_no_failure_is_not_paused(database: Database, campaign: Campaign) -> None:
    assert read_pause(database, campaign.run.workflow_id) is None
    assert paused_workflows(database) == {}


def test_pause_ends_by_itself_and_the_next_failure_goes_on_counting(database: Database, campaign: Campaign) -> None:
    workflow = campaign.run.workflow_id
    until = note_failed_block(database, workflow, "the queue is full", 0.05).until
    wait_until(lambda: read_pause(database, workflow) is None)
    assert now(database) >= until
    assert paused_workflows(database) == {}
    assert note_failed_block(database, workflow, "the queue is full", 0.05).count == 2


def test_pause_that_was_ended_is_followed_by_a_short_one(database: Database, campaign: Campaign) -> None:
    workflow = campaign.run.workflow_id
    for _ in range(4):
        note_failed_block(database, workflow, "the queue is full", 60.0)
    end_pause(database, [workflow])
    assert read_pause(database, workflow) is None
    assert rows(database, "SELECT pause_count, pause_until, pause_why FROM workflows") == [
        {"pause_count": 0, "pause_until": None, "pause_why": None}
    ]
    again = note_failed_block(database, workflow, "the queue is full", 60.0)
    assert (again.count, again.left_s) == (1, 60.0)


def test_end_of_no_pause_changes_nothing(database: Database, campaign: Campaign) -> None:
    before = snapshot(database)
    end_pause(database, [campaign.run.workflow_id])
    end_pause(database, [])
    assert snapshot(database) == before


def test_workflows_are_paused_each_for_itself(database: Database, campaign: Campaign) -> None:
    other = Campaign(database, name="other")
    third = Campaign(database, name="third")
    for each, why in ((campaign, "no such account"), (other, "no such queue")):
        note_failed_block(database, each.run.workflow_id, why, 60.0)
    found = paused_workflows(database)
    assert {name: pause.why for name, pause in found.values()} == {
        "campaign": "no such account",
        "other": "no such queue",
    }
    assert list(paused_workflows(database, "other")) == [other.run.workflow_id]
    assert paused_workflows(database, "third") == {}
    end_pause(database, [other.run.workflow_id, third.run.workflow_id])
    assert list(paused_workflows(database)) == [campaign.run.workflow_id]
    with pytest.raises(ConfigurationError, match="no workflow 'fourth'"):
        paused_workflows(database, "fourth")


def test_two_failures_at_once_are_two(database: Database, campaign: Campaign, database_url: str) -> None:
    workflow = campaign.run.workflow_id
    with closing(open_database(database_url)) as other_process:
        at_once(
            lambda: note_failed_block(database, workflow, "one", 60.0),
            lambda: note_failed_block(other_process, workflow, "two", 60.0),
        )
    pause = read_pause(database, workflow)
    assert pause is not None
    assert pause.count == 2


def test_pauses_are_read_while_somebody_writes(database: Database, campaign: Campaign, database_url: str) -> None:
    workflow = campaign.run.workflow_id
    note_failed_block(database, workflow, "the queue is full", 60.0)
    with closing(open_database(database_url)) as other_process, other_process.begin() as writer:
        writer.execute(workflows.update().values(pause_why="not committed"))
        reading = Story(lambda: (read_pause(database, workflow), paused_workflows(database)))
        pause, found = reading.result()
    assert pause.why == found[workflow][1].why == "the queue is full"
