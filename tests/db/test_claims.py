"""Launchers claim tasks, and only the holder of the present claim writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from parsl_balsam.db.blocks import reap
from parsl_balsam.db.claims import LeaseLost
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.tasks import cancel_tasks
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.shares import Share, read_shares
from parsl_balsam.model.states import Outcome, TaskState

from .conftest import (
    FUNCTION,
    LIMIT_S,
    Campaign,
    Launcher,
    Story,
    at_once,
    check_invariants,
    column,
    ended,
    history,
    outcomes,
    paused_before,
    rows,
    snapshot,
    started,
    state,
    wait_until,
    wait_until_blocked,
    wish,
)


def test_most_urgent_first_then_large_then_old(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    asked = {
        "old": {},
        "young": {},
        "late": {"priority": -1, "num_nodes": 4},
        "large": {"num_nodes": 4},
        "urgent": {"priority": 2},
    }
    ids = {campaign.task(key, **spec): key for key, spec in asked.items()}
    expected = ["urgent", "large", "old", "young", "late"]
    assert [ids[task.task_id] for task in launcher.claim(3, nodes=4)] == expected[:3]
    assert [ids[task.task_id] for task in launcher.claim(3, nodes=4)] == expected[3:]
    check_invariants(database)


def test_claim_brings_all_that_is_needed_to_run(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    call = campaign.call(payload=b"\0 arguments", stderr="task.err", cores_per_rank=2, tags={"kind": "scan"})
    campaign.submit(call)
    (task,) = launcher.claim()
    assert (task.number, task.app, task.payload, task.stderr) == (1, "square", b"\0 arguments", "task.err")
    assert task.spec == call.spec
    assert launcher.claims.functions([task.function, b"unknown"]) == {FUNCTION: b"def square"}
    check_invariants(database)


def test_larger_tasks_than_the_block_wait_for_another(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    large, small = campaign.task("large", num_nodes=3), campaign.task("small")
    assert [task.task_id for task in launcher.claim(5, nodes=2)] == [small]
    assert state(database, large) == "ready"
    check_invariants(database)


def test_no_task_is_claimed_twice_at_the_same_time(database: Database, campaign: Campaign, database_url: str) -> None:
    campaign.submit(*(campaign.call(str(number)) for number in range(60)))
    other_process = open_database(database_url)
    launchers = [Launcher(campaign), Launcher(campaign, database=other_process)]

    def claim_all(launcher: Launcher) -> list[int]:
        claimed: list[int] = []

        def none_left() -> bool:
            claimed.extend(task.task_id for task in launcher.claim(4))
            return not column(launcher.database, "SELECT id FROM tasks WHERE state = 'ready'")

        wait_until(none_left)
        return claimed

    first, second = at_once(lambda: claim_all(launchers[0]), lambda: claim_all(launchers[1]))
    assert sorted(first + second) == column(database, "SELECT id FROM tasks ORDER BY id")
    other_process.close()
    check_invariants(database)


def test_only_what_the_current_run_asked_for_is_claimed(database: Database, campaign: Campaign) -> None:
    campaign.task("dropped from the script")
    kept = campaign.task("kept")
    again = Campaign(database)
    again.task("kept")
    other = Campaign(database, name="other")
    other.task("of another workflow")
    assert [task.task_id for task in Launcher(again).claim(10)] == [kept]
    check_invariants(database)


def test_block_of_an_earlier_run_ends_what_it_holds_and_claims_nothing(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    held = campaign.task("held")
    task = launcher.begin()
    assert not launcher.exchange().superseded
    again = Campaign(database)
    again.task("held")
    again.task("new")
    answer = launcher.claims.exchange([], [ended(task, Outcome.DONE)], [wish(5)])
    assert answer.superseded
    assert answer.claimed == []
    assert state(database, held) == "done"
    assert again.store.fetch_since(again.run.finish, list, 0)[1] == [held]
    check_invariants(database)


def test_task_waits_for_its_next_try(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=1, backoff_s=0.3))
    launcher = Launcher(campaign)
    task = campaign.task()
    launcher.run(Outcome.ERROR)
    (due,) = column(database, "SELECT ready_at FROM tasks")
    (failed_at,) = column(database, "SELECT ended_at FROM attempts")
    assert due == pytest.approx(failed_at + 0.3, abs=1e-3)
    wait_until(lambda: bool(launcher.claim()))
    (claimed_at,) = column(database, "SELECT claimed_at FROM attempts WHERE number = 2")
    assert claimed_at >= due
    assert history(database, task)[-2:] == ["ready", "assigned"]
    check_invariants(database)


def test_launcher_learns_when_to_look_again(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=1, backoff_s=100))
    launcher = Launcher(campaign)
    campaign.task("a")
    assert launcher.exchange(want=1).next_ready_s is None
    campaign.task("b")
    launcher.run(Outcome.ERROR)
    answer = launcher.exchange(want=1)
    assert answer.claimed == []
    assert answer.next_ready_s is not None
    assert 0 < answer.next_ready_s <= 100
    check_invariants(database)


def test_launcher_does_not_look_for_tasks_that_it_may_not_claim(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=1, backoff_s=1e-3))
    launcher = Launcher(campaign)
    campaign.task("large", num_nodes=2)
    (large,) = launcher.claim(nodes=2)
    launcher.end(large, Outcome.ERROR)
    assert launcher.exchange(want=1, nodes=1).next_ready_s is None
    again = Campaign(database)  # which does not call it
    assert Launcher(again).exchange(want=1, nodes=2).next_ready_s is None
    check_invariants(database)


def test_start_and_end_are_recorded(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    claimed = launcher.begin("node7")
    assert state(database, task) == "running"
    (attempt,) = rows(database, "SELECT * FROM attempts")
    assert (attempt["host"], attempt["outcome"]) == ("node7", None)
    assert read_shares(attempt["placement"]) == (Share("node7", (0,)),)
    shares = (Share("node7", (0, 1)), Share("node8", (0, 1), ("gpu0",)))
    launcher.end(claimed, Outcome.EXIT, shares=shares, exit_code=3, output="spoke", stderr_tail="cried")
    (attempt,) = rows(database, "SELECT * FROM attempts")
    assert (attempt["host"], attempt["exit_code"], attempt["outcome"]) == ("node7", 3, "exit")
    assert read_shares(attempt["placement"]) == shares
    assert (attempt["output"], attempt["stderr_tail"]) == ("spoke", "cried")
    assert history(database, task) == ["ready", "assigned", "running", "failed"]
    check_invariants(database)


def test_short_task_is_reported_once(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    (claimed,) = launcher.claim()
    launcher.end(claimed, Outcome.DONE)
    assert history(database, task) == ["ready", "assigned", "running", "done"]
    check_invariants(database)


def test_start_and_end_in_one_report(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    (claimed,) = launcher.claim()
    launcher.claims.exchange([started(claimed)], [ended(claimed, Outcome.DONE)])
    assert history(database, task) == ["ready", "assigned", "running", "done"]
    check_invariants(database)


def test_report_repeated_after_an_unknown_outcome_is_written_once(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    campaign.submit(campaign.call("a"), campaign.call("b"))
    over, begun = launcher.claim(2)
    report = ([started(begun)], [ended(over, Outcome.DONE)])
    launcher.claims.exchange(*report)
    before = snapshot(database)
    launcher.claims.exchange(*report)
    assert snapshot(database) == before
    check_invariants(database)


def test_output_that_is_no_text_is_recorded(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    launcher.run(Outcome.ERROR, output="a\0b", error="\udcff", stderr_tail="\0")
    assert state(database, task) == "failed"
    assert column(database, "SELECT output FROM attempts") == ["a\N{REPLACEMENT CHARACTER}b"]
    check_invariants(database)


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.ERROR, Outcome.CRASH, Outcome.ENDED, Outcome.CANCELLED])
def test_stale_token_writes_nothing(
    database: Database, campaign: Campaign, launcher: Launcher, outcome: Outcome
) -> None:
    campaign.task()
    (stale,) = launcher.claim()
    launcher.claims.release_strays([])
    launcher.begin()
    before = snapshot(database)
    launcher.claims.exchange([started(stale)], [ended(stale, outcome)])
    assert snapshot(database) == before
    check_invariants(database)


def test_token_of_another_attempt_or_task_writes_nothing(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    campaign.submit(campaign.call("a"), campaign.call("b"))
    (task,) = launcher.claim()
    (other,) = launcher.claim()
    before = snapshot(database)
    for forged in (replace(task, number=2), replace(task, token=other.token), replace(task, task_id=other.task_id)):
        launcher.claims.exchange([], [ended(forged, Outcome.DONE)])
        launcher.claims.exchange([started(replace(forged, number=1))] if forged.number == 1 else [], [])
    assert snapshot(database) == before
    check_invariants(database)


def test_launcher_that_lost_its_lease_writes_nothing(database: Database, campaign: Campaign) -> None:
    task = campaign.task()
    frozen = Launcher(campaign, lease_s=0.2)
    claimed = frozen.begin()
    frozen.outlive_lease()
    wait_until(lambda: reap(database) == [frozen.block_id])
    campaign.task("another")
    elsewhere = Launcher(campaign)
    elsewhere.begin()
    before = snapshot(database)
    with pytest.raises(LeaseLost):
        frozen.claims.exchange([started(claimed)], [ended(claimed, Outcome.DONE)], [wish()])
    with pytest.raises(LeaseLost):
        frozen.claims.release_strays([])
    assert snapshot(database) == before
    assert outcomes(database, task) == ["crash", None]
    check_invariants(database)


def test_unheard_claims_are_given_back(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    campaign.submit(*(campaign.call(key) for key in ("running", "known", "stray")))
    running, known, stray = launcher.claim(3)
    launcher.start(running)
    assert launcher.claims.release_strays([running.task_id, known.task_id]) == 1
    assert [state(database, task.task_id) for task in (running, known, stray)] == ["running", "assigned", "ready"]
    assert outcomes(database, stray.task_id) == []
    assert history(database, stray.task_id) == ["ready", "assigned", "ready"]
    (again,) = launcher.claim(3)
    assert (again.task_id, again.number) == (stray.task_id, 1)
    check_invariants(database)


def test_what_has_started_is_not_given_back(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    claimed = launcher.begin()
    assert launcher.claims.release_strays([]) == 0
    launcher.end(claimed, Outcome.DONE)
    assert state(database, task) == "done"
    check_invariants(database)


def test_cancelled_stray_does_not_become_ready(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    launcher.claim()
    cancel_tasks(database, [task], "user")
    assert launcher.claims.release_strays([]) == 1
    assert state(database, task) == "cancelled"
    assert campaign.store.fetch_since(0, list, 0)[1] == [task]
    check_invariants(database)


def test_strays_wake_other_launchers(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    campaign.task()
    launcher.claim()
    wakeup, bell = listen(database, campaign.run.workflow_id, Topic.WORK), Bell()
    waiting = Story(lambda: wakeup.wait(2 * LIMIT_S, bell))
    launcher.claims.release_strays([])
    waiting.result()
    wakeup.close()
    check_invariants(database)


def test_cancel_of_a_waiting_task_is_done_at_once(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task, other = campaign.task("a"), campaign.task("b")
    assert cancel_tasks(database, [task], "user") == {task: TaskState.READY}
    assert state(database, task) == "cancelled"
    assert [claimed.task_id for claimed in launcher.claim(5)] == [other]
    assert rows(database, "SELECT who, why FROM events WHERE state = 'cancelled'") == [
        {"who": "user", "why": "cancelled by the user"}
    ]
    check_invariants(database)


@pytest.mark.parametrize("has_started", [False, True])
def test_cancel_of_a_held_task_is_for_its_launcher(
    database: Database, campaign: Campaign, launcher: Launcher, has_started: bool
) -> None:
    task = campaign.task()
    (claimed,) = launcher.claim()
    if has_started:
        launcher.start(claimed)
    found = state(database, task)
    assert cancel_tasks(database, [task], "user") == {task: TaskState(found)}
    assert state(database, task) == found
    assert launcher.exchange().cancelled == [task]
    launcher.end(claimed, Outcome.CANCELLED, has_started=has_started)
    assert state(database, task) == "cancelled"
    assert launcher.exchange().cancelled == []
    assert outcomes(database, task) == ["cancelled"]
    check_invariants(database)


def test_result_wins_over_the_wish_to_cancel(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    claimed = launcher.begin()
    cancel_tasks(database, [task], "user")
    launcher.end(claimed, Outcome.DONE)
    assert state(database, task) == "done"
    assert cancel_tasks(database, [task], "user") == {task: TaskState.DONE}
    assert state(database, task) == "done"
    check_invariants(database)


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.CRASH, Outcome.ENDED])
def test_task_to_be_cancelled_is_not_tried_again(database: Database, outcome: Outcome) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=5))
    launcher = Launcher(campaign)
    task = campaign.task()
    claimed = launcher.begin()
    cancel_tasks(database, [task], "user")
    launcher.end(claimed, outcome)
    assert state(database, task) == "cancelled"
    check_invariants(database)


def test_cancel_and_report_do_not_wait_for_each_other(postgres_database: Database, empty_postgres_url: str) -> None:
    campaign = Campaign(postgres_database)
    launcher = Launcher(campaign)
    campaign.submit(*(campaign.call(key) for key in ("begins", "ends", "waits")))
    begins, ends = launcher.claim(2)
    (waits,) = column(postgres_database, "SELECT id FROM tasks WHERE state = 'ready'")
    user = open_database(empty_postgres_url)
    with paused_before(user, "UPDATE workflows") as pause:
        cancel = Story(lambda: cancel_tasks(user, [begins.task_id, waits], "user"))
        pause.wait_until_reached()
        report = Story(lambda: launcher.claims.exchange([started(begins)], [ended(ends, Outcome.DONE)]))
        wait_until_blocked(postgres_database)
        pause.go_on()
        cancel.result()
        assert report.result().cancelled == [begins.task_id]
    assert state(postgres_database, ends.task_id) == "done"
    user.close()
    check_invariants(postgres_database)


def test_task_that_no_node_can_run_fails_before_it_starts(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    task = campaign.task()
    (claimed,) = launcher.claim()
    launcher.end(claimed, Outcome.ERROR, has_started=False, error="it has 4 cores", hopeless=True)
    assert state(database, task) == "failed"
    check_invariants(database)


@pytest.mark.parametrize("spec", ["{", '{"num_nodes": "many"}', '{"colour": 1}', "7", "[" * 100_000])
def test_damaged_specification_stops_only_its_own_task(
    database: Database, campaign: Campaign, launcher: Launcher, spec: str
) -> None:
    bad, good = campaign.task("bad", priority=1, max_retries=1), campaign.task("good")
    with database.begin() as connection:
        connection.execute(text("UPDATE tasks SET spec = :spec WHERE id = :id"), {"spec": spec, "id": bad})
    first, second = launcher.claim(2)
    assert (first.task_id, first.spec, second.task_id, second.flaw) == (bad, ResourceSpec(), good, None)
    assert first.flaw
    refusal = ended(first, Outcome.ERROR, has_started=False, error=first.flaw, hopeless=True)
    launcher.claims.exchange(ends=[refusal])
    assert (state(database, bad), state(database, good)) == ("failed", "assigned")
    check_invariants(database)


def test_damaged_rules_do_not_keep_an_end_from_being_recorded(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    campaign.task(max_retries=1)
    task = launcher.begin()
    with database.begin() as connection:
        connection.execute(text("UPDATE runs SET retry_policy = 'nothing'"))
        connection.execute(text("UPDATE tasks SET spec = '{'"))
    launcher.end(task, Outcome.ERROR)
    assert state(database, task.task_id) == "failed"
    check_invariants(database)


def test_damaged_placement_does_not_keep_a_dead_launchers_task(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign, lease_s=0.2)
    campaign.task()
    task = launcher.begin()
    with database.begin() as connection:
        connection.execute(text("UPDATE attempts SET placement = '[[['"))
    launcher.outlive_lease()
    wait_until(lambda: reap(database) == [launcher.block_id])
    assert state(database, task.task_id) == "ready"
    check_invariants(database)
