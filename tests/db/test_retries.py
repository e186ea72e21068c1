"""What follows an attempt that ended badly."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_balsam.db.connect import Database
from parsl_balsam.db.tasks import retry_tasks
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import Outcome

from .conftest import Campaign, Launcher, check_invariants, column, history, outcomes, rows, state

ONE_TRY = ["ready", "assigned", "running"]


def test_task_that_fails_twice_and_then_works(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=2))
    launcher = Launcher(campaign)
    task = campaign.task()
    launcher.run(Outcome.ERROR, payload=b"exception")
    check_invariants(database)
    launcher.run(Outcome.EXIT, exit_code=1)
    launcher.run(Outcome.DONE, payload=b"value")
    assert outcomes(database, task) == ["error", "exit", "done"]
    assert column(database, "SELECT payload FROM results") == [b"value"]
    assert history(database, task) == [*ONE_TRY, *ONE_TRY, *ONE_TRY, "done"]
    whys = column(database, "SELECT why FROM events WHERE state = 'ready' ORDER BY id")
    assert ["retry" in why for why in whys] == [False, True, True]
    assert "exit code 1" in whys[2]
    check_invariants(database)


def test_task_fails_when_its_retries_are_spent(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=1))
    launcher = Launcher(campaign)
    task = campaign.task()
    launcher.run(Outcome.ERROR)
    assert state(database, task) == "ready"
    launcher.run(Outcome.ERROR, payload=b"last exception")
    assert state(database, task) == "failed"
    (told,) = campaign.store.fetch([task])
    assert (told.payload, told.outcome) == (b"last exception", Outcome.ERROR)
    assert launcher.claim() == []
    check_invariants(database)


def test_crashes_have_a_budget_of_their_own(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=1, max_crashes=2))
    launcher = Launcher(campaign)
    task = campaign.task()
    launcher.run(Outcome.CRASH)
    launcher.run(Outcome.ERROR)
    assert state(database, task) == "ready"
    launcher.run(Outcome.CRASH, signal=9)
    assert state(database, task) == "failed"
    assert outcomes(database, task) == ["crash", "error", "crash"]
    check_invariants(database)


def test_task_that_kills_its_nodes_fails_with_their_names(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=10, max_crashes=3))
    launcher = Launcher(campaign)
    task = campaign.task()
    for host in ("node1", "node2", "node3"):
        launcher.run(Outcome.CRASH, host, error="killed by SIGSEGV")
    assert state(database, task) == "failed"
    (told,) = campaign.store.fetch([task])
    assert "killed by SIGSEGV" in str(told.error)
    assert "node1, node2, node3" in str(told.error)
    check_invariants(database)


def test_end_of_a_block_costs_nothing(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=0, max_crashes=1))
    task = campaign.task()
    launcher = Launcher(campaign)
    for _ in range(4):
        launcher.run(Outcome.ENDED)
    launcher.run(Outcome.DONE)
    assert outcomes(database, task) == ["ended"] * 4 + ["done"]
    check_invariants(database)


def test_exit_code_that_is_never_retried(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=5, never_exit_codes=frozenset({42})))
    launcher = Launcher(campaign)
    task = campaign.task()
    launcher.run(Outcome.EXIT, exit_code=41)
    assert state(database, task) == "ready"
    launcher.run(Outcome.EXIT, exit_code=42)
    assert state(database, task) == "failed"
    check_invariants(database)


def test_outcome_that_the_policy_does_not_retry(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=5, retry_on=frozenset({Outcome.EXIT})))
    task = campaign.task()
    Launcher(campaign).run(Outcome.TIMEOUT)
    assert state(database, task) == "failed"
    check_invariants(database)


def test_hopeless_task_is_not_tried_again(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=5))
    task = campaign.task()
    Launcher(campaign).run(Outcome.ERROR, error="no such \0 program", hopeless=True)
    assert state(database, task) == "failed"
    (told,) = campaign.store.fetch([task])
    assert told.error == "no such \N{REPLACEMENT CHARACTER} program"
    check_invariants(database)


@pytest.mark.parametrize(("of_policy", "of_task", "tries"), [(0, 2, 3), (3, 0, 1), (1, None, 2)])
def test_task_has_its_own_number_of_retries(
    database: Database, of_policy: int, of_task: int | None, tries: int
) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=of_policy))
    launcher = Launcher(campaign)
    spec: dict[str, Any] = {} if of_task is None else {"max_retries": of_task}
    task = campaign.task(**spec)
    while state(database, task) == "ready":
        launcher.run(Outcome.ERROR)
    assert outcomes(database, task) == ["error"] * tries
    check_invariants(database)


def test_budgets_survive_a_restart_of_the_script(database: Database) -> None:
    policy = RetryPolicy(max_retries=1, max_crashes=2)
    campaign = Campaign(database, policy)
    task = campaign.task()
    first = Launcher(campaign)
    first.run(Outcome.ERROR)
    first.run(Outcome.CRASH)
    again = Campaign(database, policy)
    again.task()
    Launcher(again).run(Outcome.CRASH)
    assert state(database, task) == "failed"
    check_invariants(database)


def test_running_task_goes_by_the_policy_of_the_run_that_waits_for_it(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=0))
    task = campaign.task()
    launcher = Launcher(campaign)
    claimed = launcher.begin()
    again = Campaign(database, RetryPolicy(max_retries=1))
    again.task()
    launcher.end(claimed, Outcome.ERROR)
    assert state(database, task) == "ready"
    check_invariants(database)


@pytest.mark.parametrize("reopened_by", ["retry", "next run"])
def test_reopened_task_has_a_fresh_budget_and_its_history(database: Database, reopened_by: str) -> None:
    policy = RetryPolicy(max_retries=1, max_crashes=2)
    campaign = Campaign(database, policy)
    launcher = Launcher(campaign)
    task = campaign.task()
    for outcome in (Outcome.CRASH, Outcome.ERROR, Outcome.ERROR):
        launcher.run(outcome)
    assert state(database, task) == "failed"
    if reopened_by == "retry":
        retry_tasks(database, [task], "user")
    else:
        campaign = Campaign(database, policy)
        campaign.task()
        launcher = Launcher(campaign)
    for outcome in (Outcome.CRASH, Outcome.ERROR, Outcome.DONE):
        launcher.run(outcome)
    assert outcomes(database, task) == ["crash", "error", "error", "crash", "error", "done"]
    assert [row["attempts"] for row in rows(database, "SELECT attempts FROM tasks")] == [6]
    check_invariants(database)


def test_delays_grow_and_end_with_a_claim(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=3, backoff_s=1e-3, factor=1000))
    launcher = Launcher(campaign)
    campaign.task()
    delays = []
    for _ in range(2):
        task = launcher.claim()
        while not task:
            task = launcher.claim()
        assert column(database, "SELECT ready_at FROM tasks") == [None]
        launcher.end(task[0], Outcome.ERROR)
        (row,) = rows(
            database,
            "SELECT ready_at, ended_at FROM tasks JOIN attempts ON task_id = tasks.id AND number = tasks.attempts",
        )
        delays.append(row["ready_at"] - row["ended_at"])
    assert delays == [pytest.approx(1e-3, abs=1e-4), pytest.approx(1.0, abs=1e-4)]
    check_invariants(database)
