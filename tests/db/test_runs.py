"""One run drives a workflow at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

import pytest

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.runs import Driver, Run, begin_run, end_run, renew_run
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import WorkflowBusy, WorkflowLost
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import Outcome
from tests.conftest import new_database

from .conftest import (
    LIMIT_S,
    Campaign,
    Launcher,
    Story,
    check_invariants,
    column,
    paused_before,
    rows,
    snapshot,
    state,
    wait_until,
    wait_until_blocked,
)

HERE = Driver("login1", "login1 boot", 4711, 0.0)
ELSEWHERE = Driver("login2", "login2 boot", 4712, 0.0)


def is_alive(_: Driver) -> bool:
    return False


def is_dead(_: Driver) -> bool:
    return True


def begin(database: Database, driver: Driver = HERE, dead: Callable[[Driver], bool] = is_alive, **options: Any) -> Run:
    named = {"name": "scan", "label": "balsam", "parsl_run_id": "000", "policy": RetryPolicy(), "lease_s": 60.0}
    return begin_run(database, driver=driver, is_dead=dead, **(named | options))  # type: ignore[arg-type]


def test_second_run_is_told_who_drives_the_workflow(database: Database) -> None:
    run = begin(database)
    before = snapshot(database)
    with pytest.raises(WorkflowBusy) as refused:
        begin(database, Driver("login1", "login1 boot", 9999, 1.0))
    (since,) = column(database, "SELECT started_at FROM runs")
    for part in (
        "'scan'",
        "'balsam'",
        "process 4711",
        "login1",
        f"{datetime.fromtimestamp(since, timezone.utc):%F %T} UTC",
    ):
        assert part in str(refused.value)
    assert snapshot(database) == before
    renew_run(database, run.run_id, 60.0)
    check_invariants(database)


def test_each_workflow_and_each_executor_has_its_own_run(database: Database) -> None:
    runs = [begin(database), begin(database, name="other"), begin(database, label="gpu")]
    assert len({run.workflow_id for run in runs}) == 3
    check_invariants(database)


def test_run_that_said_goodbye_is_succeeded_at_once(database: Database) -> None:
    first = begin(database)
    end_run(database, first.run_id)
    (ended_at,) = column(database, "SELECT ended_at FROM runs")
    second = begin(database)
    assert second.workflow_id == first.workflow_id
    assert column(database, "SELECT current_run FROM workflows") == [second.run_id]
    end_run(database, first.run_id)
    assert column(database, "SELECT ended_at FROM runs ORDER BY id") == [ended_at, None]
    check_invariants(database)


def test_dead_driver_is_succeeded_at_once(database: Database) -> None:
    first = begin(database)
    asked: list[Driver] = []
    second = begin(database, dead=lambda driver: not asked.append(driver))  # type: ignore[func-returns-value]
    assert asked == [HERE]
    with pytest.raises(WorkflowLost):
        renew_run(database, first.run_id, 60.0)
    renew_run(database, second.run_id, 60.0)
    check_invariants(database)


def test_frozen_driver_is_succeeded_after_its_lease(database: Database) -> None:
    begin(database, lease_s=0.2)
    (until,) = column(database, "SELECT lease_until FROM runs")

    def taken_over() -> bool:
        try:
            return begin(database).run_id > 0
        except WorkflowBusy:
            return False

    wait_until(taken_over)
    assert column(database, "SELECT started_at FROM runs ORDER BY id")[1] > until
    check_invariants(database)


def test_silent_driver_on_another_host_is_waited_for(database: Database) -> None:
    first = begin(database, ELSEWHERE, lease_s=0.3)
    (until,) = column(database, "SELECT lease_until FROM runs")
    second = begin(database)
    assert column(database, "SELECT started_at FROM runs ORDER BY id")[1] > until
    with pytest.raises(WorkflowLost):
        renew_run(database, first.run_id, 60.0)
    assert second.workflow_id == first.workflow_id
    check_invariants(database)


def test_driver_on_another_host_shows_that_it_lives(database: Database) -> None:
    first = begin(database, ELSEWHERE, lease_s=1.0)
    renewals: list[Story] = []

    def cannot_tell(_: Driver) -> bool:
        if not renewals:  # it is being looked at: now it says that it lives
            renewals.append(Story(lambda: renew_run(database, first.run_id, 60.0)))
        return False

    with pytest.raises(WorkflowBusy, match="process 4712 on login2"):
        begin(database, dead=cannot_tell)
    renewals[0].result()
    assert column(database, "SELECT current_run FROM workflows") == [first.run_id]
    check_invariants(database)


def test_run_that_was_taken_over_writes_nothing(database: Database, campaign: Campaign) -> None:
    task = campaign.task("before")
    again = Campaign(database)
    before = snapshot(database)
    with pytest.raises(WorkflowLost):
        campaign.submit(campaign.call("late"))
    with pytest.raises(WorkflowLost):
        renew_run(database, campaign.run.run_id, 60.0)
    end_run(database, campaign.run.run_id)
    assert snapshot(database) == before
    assert column(database, "SELECT id FROM runs WHERE ended_at IS NULL") == [again.run.run_id]
    assert state(database, task) == "ready"
    check_invariants(database)


def test_renewed_run_keeps_its_workflow_beyond_its_first_lease(database: Database) -> None:
    run = begin(database, lease_s=0.2)
    renew_run(database, run.run_id, 60.0)
    (renewed,) = rows(database, "SELECT lease_until - started_at AS lease FROM runs")
    assert renewed["lease"] >= 60.0
    with pytest.raises(WorkflowBusy):
        begin(database)
    check_invariants(database)


def test_run_begins_after_the_last_finish(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    campaign.task()
    launcher.run()
    assert campaign.run.finish == 0
    assert Campaign(database).run.finish == 1
    check_invariants(database)


RUN = """
import sys
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.runs import begin_run
from parsl_balsam.db.drivers import is_dead, this_process
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import WorkflowBusy
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import Outcome

print("ready", flush=True)
url = sys.stdin.readline().strip()
try:
    begin_run(open_database(url), "scan", "balsam", "000", this_process(), is_dead, RetryPolicy(), 60.0)
    print("drives", flush=True)
except WorkflowBusy:
    print("busy", flush=True)
sys.stdin.read()
"""


def test_one_of_three_processes_wins(database_url: str) -> None:
    """The database is new to them, too: they make its tables at the same time."""
    processes = [
        subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write(f"{database_url}\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in processes if process.stdout]
        assert sorted(answers) == ["busy\n", "busy\n", "drives\n"]
    finally:
        for process in processes:
            process.communicate(timeout=LIMIT_S)


def test_driver_that_could_not_renew_while_the_server_was_away_has_its_chance(own_server: Server) -> None:
    with new_database(own_server) as url:
        with closing(open_database(url)) as database:
            first = begin(database, ELSEWHERE, lease_s=2.0)
            (until,) = column(database, "SELECT lease_until FROM runs")
        own_server.stop()
        wait_until(lambda: time.time() > until)  # the server's clock is this host's
        own_server.start()
        with closing(open_database(url)) as database:
            attempt = Story(lambda: begin(database))
            while attempt.is_alive():
                renew_run(database, first.run_id, 0.5)
            with pytest.raises(WorkflowBusy, match="process 4712 on login2"):
                attempt.result()
            check_invariants(database)


def test_takeover_and_report_do_not_wait_for_each_other(postgres_database: Database, empty_postgres_url: str) -> None:
    campaign = Campaign(postgres_database)
    task = campaign.task()
    launcher = Launcher(campaign)
    claimed = launcher.begin()
    with closing(open_database(empty_postgres_url)) as other:
        named = {"name": "campaign", "label": "balsam", "adopts": lambda _: True}
        with paused_before(postgres_database, "UPDATE workflows") as pause:
            report = Story(lambda: launcher.end(claimed, Outcome.DONE))
            pause.wait_until_reached()
            takeover = Story(lambda: begin(other, dead=is_dead, **named))
            wait_until_blocked(other)
            pause.go_on()
            report.result()
            assert [job.block_id for job in takeover.result().adopted] == [launcher.block_id]
    assert state(postgres_database, task) == "done"
    check_invariants(postgres_database)


def test_adopted_launcher_that_reports_during_the_takeover_goes_on(
    postgres_database: Database, empty_postgres_url: str
) -> None:
    """Its statement has begun before the takeover ended, and sees only its own row as it is after it."""
    launcher = Launcher(Campaign(postgres_database))
    with closing(open_database(empty_postgres_url)) as other:
        named = {"name": "campaign", "label": "balsam", "adopts": lambda _: True}
        with paused_before(other, "UPDATE blocks") as pause:
            takeover = Story(lambda: begin(other, dead=is_dead, **named))
            pause.wait_until_reached()
            report = Story(launcher.exchange)
            wait_until_blocked(postgres_database)
            pause.go_on()
            assert [job.block_id for job in takeover.result().adopted] == [launcher.block_id]
            assert not report.result().superseded
    check_invariants(postgres_database)
