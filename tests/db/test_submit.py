"""Calls become tasks, or meet those there are."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.tasks import cancel_tasks, retry_tasks, tasks_in_state
from parsl_balsam.model.errors import TaskNotFound, WorkflowLost
from parsl_balsam.model.states import Outcome, TaskState
from parsl_balsam.model.tasks import Binding, Bound

from .conftest import (
    Campaign,
    Launcher,
    Story,
    check_invariants,
    column,
    history,
    outcomes,
    paused_before,
    rows,
    snapshot,
    state,
    statements_of,
    wait_until_blocked,
)


def test_new_calls_become_ready_tasks(database: Database, campaign: Campaign) -> None:
    bound = campaign.submit(campaign.call("a", priority=3), campaign.call("b", num_nodes=2, max_retries=1))
    assert [each.binding for each in bound] == [Binding.NEW, Binding.NEW]
    first, second = rows(database, "SELECT * FROM tasks ORDER BY id")
    assert [first["id"], second["id"]] == [each.task_id for each in bound]
    assert (first["state"], first["priority"], first["nodes"], first["attempts"]) == ("ready", 3, 1, 0)
    assert json.loads(second["spec"]) == {"num_nodes": 2, "max_retries": 1}
    assert history(database, first["id"]) == ["ready"]
    assert column(database, "SELECT who FROM events") == [f"run {campaign.run.run_id}"] * 2
    assert column(database, "SELECT count(*) FROM functions") == [1]
    check_invariants(database)


def test_answers_come_in_the_order_of_the_calls(database: Database, campaign: Campaign) -> None:
    keys = [f"{number * 37 % 100}" for number in range(100)]
    old = {key: campaign.task(key) for key in keys[::3]}
    bound = campaign.submit(*(campaign.call(key) for key in keys))
    found = {bytes(row["key"]).decode(): row["id"] for row in rows(database, "SELECT id, key FROM tasks")}
    assert [each.task_id for each in bound] == [found[key] for key in keys]
    assert [each.binding is Binding.ATTACHED for each in bound] == [key in old for key in keys]
    check_invariants(database)


def test_known_calls_are_looked_for_first_once_they_are_usual(database: Database, campaign: Campaign) -> None:
    ids = {key: campaign.task(key) for key in "abc"}
    again = Campaign(database)
    for keys, new, tries_to_write in (
        ("a", "", 1),
        ("bc", "", 0),
        ("cda", "d", 1),
        ("e", "e", 1),
        ("b", "", 1),
        ("c", "", 0),
    ):
        with statements_of(database) as seen:
            bound = again.submit(*(again.call(key) for key in keys))
        assert "".join(key for key, one in zip(keys, bound, strict=True) if one.binding is Binding.NEW) == new
        ids |= {key: one.task_id for key, one in zip(keys, bound, strict=True) if key in new}
        assert [one.task_id for one in bound] == [ids[key] for key in keys]
        assert len([sql for sql, *_ in seen if sql.startswith("INSERT INTO tasks")]) == tries_to_write
    assert len(set(ids.values())) == 5
    check_invariants(database)


def test_occurrences_of_a_call_are_tasks_of_their_own(database: Database, campaign: Campaign) -> None:
    call = campaign.call()
    bound = campaign.submit(call, replace(call, occurrence=1))
    assert len({each.task_id for each in bound}) == 2
    check_invariants(database)


def test_workflows_share_functions_and_no_tasks(database: Database, campaign: Campaign) -> None:
    other = Campaign(database, name="other")
    assert campaign.task() != other.task()
    assert column(database, "SELECT count(*) FROM functions") == [1]
    check_invariants(database)


def test_call_attaches_to_a_task_that_waits_or_runs(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    running = campaign.task("running", priority=1)
    launcher.begin()
    waiting = campaign.task("waiting")
    again = Campaign(database)
    assert again.submit(again.call("running"), again.call("waiting")) == [
        Bound(running, Binding.ATTACHED),
        Bound(waiting, Binding.ATTACHED),
    ]
    assert column(database, "SELECT DISTINCT run_id FROM tasks") == [again.run.run_id]
    assert (state(database, running), state(database, waiting)) == ("running", "ready")
    check_invariants(database)


def test_result_is_reused_by_the_next_run(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    launcher.run(payload=b"forty-two")
    before = snapshot(database)
    again = Campaign(database)
    assert again.submit(again.call()) == [Bound(task, Binding.REUSED, b"forty-two")]
    after = snapshot(database)
    assert [after[name] for name in ("tasks", "results", "events")] == [
        before[name] for name in ("tasks", "results", "events")
    ]
    check_invariants(database)


def test_failed_task_is_reopened_by_the_next_run(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    launcher.run(Outcome.ERROR, payload=b"exception")
    assert state(database, task) == "failed"
    assert column(database, "SELECT payload FROM results") == [b"exception"]

    again = Campaign(database)
    assert again.submit(again.call()) == [Bound(task, Binding.REOPENED)]
    assert state(database, task) == "ready"
    assert column(database, "SELECT payload FROM results") == []
    check_invariants(database)

    Launcher(again).run(payload=b"result")
    assert outcomes(database, task) == ["error", "done"]
    assert history(database, task) == [
        *("ready", "assigned", "running", "failed"),
        *("ready", "assigned", "running", "done"),
    ]
    check_invariants(database)


def test_cancelled_task_is_reopened_by_the_next_run(database: Database, campaign: Campaign) -> None:
    task = campaign.task()
    cancel_tasks(database, [task], "user")
    again = Campaign(database)
    assert again.submit(again.call()) == [Bound(task, Binding.REOPENED)]
    assert history(database, task) == ["ready", "cancelled", "ready"]
    check_invariants(database)


def test_repeated_call_of_one_run_reopens_its_failed_task(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    task = campaign.task()
    launcher.run(Outcome.ERROR)
    assert campaign.submit(campaign.call()) == [Bound(task, Binding.REOPENED)]
    launcher.run()
    assert outcomes(database, task) == ["error", "done"]
    check_invariants(database)


def test_waiting_task_goes_by_the_latest_call(database: Database, campaign: Campaign) -> None:
    campaign.submit(campaign.call(payload=b"old", priority=1, timeout_s=5, stderr="old.err"))
    again = Campaign(database)
    again.submit(again.call(payload=b"new", priority=7, max_retries=2, stderr="new.err"))
    (claimed,) = Launcher(again).claim()
    assert claimed.payload == b"new"
    assert claimed.spec == again.call(priority=7, max_retries=2).spec
    assert claimed.stderr == "new.err"
    check_invariants(database)


def test_reopened_task_goes_by_the_latest_call(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    campaign.submit(campaign.call(payload=b"old", timeout_s=5))
    launcher.run(Outcome.TIMEOUT)
    campaign.submit(campaign.call(payload=b"new", timeout_s=50))
    (claimed,) = launcher.claim()
    assert (claimed.payload, claimed.spec.timeout_s) == (b"new", 50)
    check_invariants(database)


def test_running_task_keeps_what_it_was_started_with(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    campaign.submit(campaign.call(payload=b"old", priority=1))
    launcher.begin()
    campaign.submit(campaign.call(payload=b"new", priority=2))
    assert column(database, "SELECT priority FROM tasks") == [1]
    assert column(database, "SELECT payload FROM arguments") == [b"old"]
    check_invariants(database)


def test_submit_repeated_after_an_unknown_outcome_meets_its_own_tasks(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    calls = [campaign.call(key) for key in "abc"]
    first = campaign.submit(*calls)
    launcher.run(payload=b"result of a")
    second = campaign.submit(*calls)
    assert [each.task_id for each in second] == [each.task_id for each in first]
    assert [each.binding for each in second] == [Binding.REUSED, Binding.ATTACHED, Binding.ATTACHED]
    assert column(database, "SELECT count(*) FROM tasks") == [3]
    assert history(database, first[1].task_id) == ["ready"]
    check_invariants(database)


def test_run_that_lost_its_workflow_records_nothing(database: Database, campaign: Campaign) -> None:
    campaign.task("before")
    Campaign(database)
    before = snapshot(database)
    with pytest.raises(WorkflowLost):
        campaign.store.submit([campaign.call("late")], {b"another function": b"body"})
    assert snapshot(database) == before
    check_invariants(database)


def test_takeover_waits_for_a_submission_under_way(postgres_database: Database, empty_postgres_url: str) -> None:
    campaign = Campaign(postgres_database)
    usurper = open_database(empty_postgres_url)
    with paused_before(postgres_database, "INSERT INTO tasks") as pause:
        submission = Story(campaign.task)
        pause.wait_until_reached()
        takeover = Story(lambda: Campaign(usurper))
        wait_until_blocked(usurper)
        pause.go_on()
        task = submission.result()
        again = takeover.result()
    assert again.submit(again.call()) == [Bound(task, Binding.ATTACHED)]
    check_invariants(usurper)
    usurper.close()


def test_path_that_is_no_text_does_not_stop_the_run(database: Database, campaign: Campaign) -> None:
    campaign.submit(campaign.call(stderr=os.fsdecode(b"/scratch/\xff.err")))
    assert column(database, "SELECT stderr FROM tasks") == ["/scratch/?.err"]
    check_invariants(database)


def test_finished_tasks_are_told_once_with_their_results(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    done, failed, cancelled = (campaign.task(key) for key in ("done", "failed", "cancelled"))
    waiting = campaign.task("waiting")
    _, seen, mark = campaign.store.fetch_since(campaign.run.finish, list, 0)
    assert seen == []
    launcher.run(payload=b"value")
    launcher.run(Outcome.EXIT, exit_code=3, error="no input")
    _, seen, mark = campaign.store.fetch_since(mark, list, 0)
    assert sorted(seen) == [done, failed]
    cancel_tasks(database, [cancelled], "user")
    _, seen, mark = campaign.store.fetch_since(mark, list, 0)
    assert seen == [cancelled]
    assert campaign.store.fetch_since(mark, list, 0) == ([], [], mark)

    told = {task.task_id: task for task in campaign.store.fetch([done, failed, cancelled, waiting])}
    assert set(told) == {done, failed, cancelled}
    assert (told[done].state, told[done].payload, told[done].outcome) == (TaskState.DONE, b"value", Outcome.DONE)
    assert (told[failed].state, told[failed].outcome) == (TaskState.FAILED, Outcome.EXIT)
    assert "no input" in str(told[failed].error)
    assert (told[cancelled].state, told[cancelled].outcome) == (TaskState.CANCELLED, None)
    check_invariants(database)


def test_new_run_hears_only_of_what_ends_after_it_began(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    old, new = campaign.task("old"), campaign.task("new")
    launcher.run()
    again = Campaign(database)
    again.task("new")
    Launcher(again).run()
    assert again.store.fetch_since(again.run.finish, list, 0)[1] == [new]
    assert state(database, old) == "done"
    check_invariants(database)


def test_retry_reopens_what_failed_or_was_cancelled_and_nothing_else(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    done, failed, cancelled, ready = (campaign.task(key) for key in ("done", "failed", "cancelled", "ready"))
    launcher.run()
    launcher.run(Outcome.ERROR)
    cancel_tasks(database, [cancelled], "user")
    assert sorted(retry_tasks(database, [done, failed, cancelled, ready], "user")) == [failed, cancelled]
    assert tasks_in_state(database, TaskState.DONE) == [done]
    assert sorted(tasks_in_state(database, TaskState.READY)) == [failed, cancelled, ready]
    assert history(database, failed)[-2:] == ["failed", "ready"]
    check_invariants(database)


@pytest.mark.parametrize("act", [cancel_tasks, retry_tasks])
def test_unknown_task_changes_nothing(database: Database, campaign: Campaign, act: object) -> None:
    assert callable(act)
    task = campaign.task()
    before = snapshot(database)
    with pytest.raises(TaskNotFound, match="no task 4711 "):
        act(database, [task, 4711], "user")
    assert snapshot(database) == before
    check_invariants(database)


def test_call_that_meets_a_task_in_the_moment_it_ends_has_its_result(
    postgres_database: Database, empty_postgres_url: str
) -> None:
    campaign = Campaign(postgres_database)
    task = campaign.task("same")
    block = open_database(empty_postgres_url)
    launcher = Launcher(campaign, database=block)
    claimed = launcher.begin()
    again = Campaign(postgres_database)
    with (
        paused_before(postgres_database, "SELECT tasks.id, tasks.key") as meeting,
        paused_before(block, "UPDATE attempts") as ending,
    ):
        submission = Story(lambda: again.submit(again.call("same")))
        meeting.wait_until_reached()
        report = Story(lambda: launcher.end(claimed, Outcome.DONE))
        ending.wait_until_reached()
        meeting.go_on()
        wait_until_blocked(block)
        ending.go_on()
        report.result()
        assert submission.result() == [Bound(task, Binding.REUSED, b"result")]
    block.close()
    check_invariants(postgres_database)
