"""Launchers that are not heard of, and blocks that end."""

from __future__ import annotations

from contextlib import closing

import pytest

from parsl_balsam.db.blocks import (
    Requested,
    abandon_unrequested,
    close_block,
    open_block,
    reap,
    record_block,
    record_job,
    statuses,
)
from parsl_balsam.db.claims import LeaseLost
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.server import Server
from parsl_balsam.db.tasks import cancel_tasks
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import BlockState, Outcome

from .conftest import (
    LIMIT_S,
    Campaign,
    Launcher,
    Story,
    at_once,
    check_invariants,
    column,
    history,
    now,
    outcomes,
    rows,
    snapshot,
    state,
    wait_until,
)

LEASE_S = 0.2


def test_lost_launcher_gives_its_tasks_back(database: Database, campaign: Campaign) -> None:
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign, LEASE_S)
    launcher.begin("node3")
    launcher.claim()
    launcher.outlive_lease()
    wait_until(lambda: reap(database) == [launcher.block_id])
    assert [state(database, task) for task in (running, assigned)] == ["ready", "ready"]
    assert outcomes(database, running) == ["crash"]
    assert outcomes(database, assigned) == ["ended"]
    assert rows(database, "SELECT host FROM attempts WHERE outcome = 'crash'") == [{"host": "node3"}]
    assert history(database, running) == ["ready", "assigned", "running", "ready"]
    assert [status.state for status in statuses(database, [launcher.block_id])] == [BlockState.LOST]
    assert reap(database) == []
    check_invariants(database)


def test_task_fails_when_it_has_lost_too_many_launchers(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_crashes=2))
    task = campaign.task()
    for _ in range(2):
        launcher = Launcher(campaign, LEASE_S)
        launcher.begin()
        launcher.outlive_lease()
        wait_until(lambda lost=launcher.block_id: reap(database) == [lost])  # type: ignore[misc]
    assert state(database, task) == "failed"
    assert campaign.store.fetch_since(0, list, 0)[1] == [task]
    check_invariants(database)


def test_task_that_kills_launchers_before_its_start_is_recorded_fails(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_crashes=2))
    task = campaign.task()
    for _ in range(3):
        launcher = Launcher(campaign, LEASE_S)
        launcher.claim()
        launcher.outlive_lease()
        wait_until(lambda lost=launcher.block_id: reap(database) == [lost])  # type: ignore[misc]
    assert outcomes(database, task) == ["ended", "crash", "crash"]
    assert state(database, task) == "failed"
    check_invariants(database)


def test_task_to_be_cancelled_ends_with_its_lost_launcher(database: Database, campaign: Campaign) -> None:
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign, LEASE_S)
    launcher.begin()
    launcher.claim()
    cancel_tasks(database, [running, assigned], "user")
    launcher.outlive_lease()
    wait_until(lambda: reap(database) == [launcher.block_id])
    assert [state(database, task) for task in (running, assigned)] == ["cancelled", "cancelled"]
    check_invariants(database)


def test_two_reapers_count_one_crash(database: Database, campaign: Campaign, database_url: str) -> None:
    task = campaign.task()
    launcher = Launcher(campaign, LEASE_S)
    launcher.begin()
    launcher.outlive_lease()
    other_process = open_database(database_url)
    lost: list[int] = []

    def both_reap() -> bool:
        first, second = at_once(lambda: reap(database), lambda: reap(other_process))
        lost.extend(first + second)
        return bool(lost)

    wait_until(both_reap)
    assert lost == [launcher.block_id]
    assert outcomes(database, task) == ["crash"]
    other_process.close()
    check_invariants(database)


def test_nobody_is_reaped_before_the_lease_ends(database: Database, campaign: Campaign) -> None:
    campaign.task()
    living, dead = Launcher(campaign, 60.0), Launcher(campaign, LEASE_S)
    living.begin()
    before = snapshot(database)
    (until,) = column(database, "SELECT lease_until FROM blocks WHERE id = :id", id=dead.block_id)
    early = reap(database)
    if now(database) < until:
        assert early == []
        assert snapshot(database) == before
    wait_until(lambda: dead.block_id in early or reap(database) == [dead.block_id])
    assert now(database) > until
    living.exchange()
    check_invariants(database)


def test_exchange_renews_the_lease(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign, 60.0)
    (first,) = column(database, "SELECT lease_until FROM blocks")
    wait_until(lambda: now(database) > first - 60.0)  # the next moment that its clock knows
    began = now(database)
    launcher.exchange()
    (second,) = column(database, "SELECT lease_until FROM blocks")
    assert second > first
    assert began + 60.0 <= second <= now(database) + 60.0
    check_invariants(database)


def test_late_launcher_that_nobody_reaped_goes_on(database: Database, campaign: Campaign) -> None:
    task = campaign.task()
    launcher = Launcher(campaign, LEASE_S)
    claimed = launcher.begin()
    launcher.outlive_lease()
    launcher.end(claimed, Outcome.DONE)
    assert state(database, task) == "done"
    check_invariants(database)


def test_nobody_is_reaped_within_a_lease_of_the_start_of_the_server(own_server: Server) -> None:
    lease_s = 1.0
    database = open_database(own_server.url())
    campaign = Campaign(database, name="restart")
    task = campaign.task()
    launcher = Launcher(campaign, lease_s)
    claimed = launcher.begin()
    database.close()
    own_server.stop()
    own_server.start()
    (until,) = column(database, "SELECT lease_until FROM blocks WHERE id = :id", id=launcher.block_id)
    (up_since,) = column(database, "SELECT extract(epoch FROM pg_postmaster_start_time())::float8")
    assert until < up_since + lease_s
    wait_until(lambda: reap(database) == [launcher.block_id])
    assert now(database) > up_since + lease_s
    assert outcomes(database, task) == ["crash"]
    with pytest.raises(LeaseLost):
        launcher.end(claimed, Outcome.DONE)
    check_invariants(database)
    database.close()


def test_closed_block_gives_its_tasks_back_at_no_cost(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_crashes=1))
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign)
    claimed = launcher.begin()
    launcher.claim()
    close_block(database, launcher.block_id, "walltime")
    assert [state(database, task) for task in (running, assigned)] == ["ready", "ready"]
    assert outcomes(database, running) == ["ended"]
    assert outcomes(database, assigned) == []  # it was never tried
    assert column(database, "SELECT reason FROM blocks") == ["walltime"]
    with pytest.raises(LeaseLost):
        launcher.end(claimed, Outcome.DONE)
    assert [(task.task_id, task.number) for task in Launcher(campaign).claim(2)] == [(running, 2), (assigned, 1)]
    check_invariants(database)


def test_tasks_to_be_cancelled_end_with_their_block(database: Database, campaign: Campaign) -> None:
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign)
    launcher.begin()
    launcher.claim()
    cancel_tasks(database, [running, assigned], "user")
    close_block(database, launcher.block_id, "walltime")
    assert [state(database, task) for task in (running, assigned)] == ["cancelled", "cancelled"]
    check_invariants(database)


def test_lost_block_stays_lost(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign, LEASE_S)
    launcher.outlive_lease()
    wait_until(lambda: reap(database) == [launcher.block_id])
    before = snapshot(database)
    close_block(database, launcher.block_id, "walltime")
    assert snapshot(database) == before
    with pytest.raises(BalsamError):
        open_block(database, launcher.block_id, "node1", 2)
    check_invariants(database)


def test_block_has_one_launcher_and_none_after_its_end(database: Database, campaign: Campaign) -> None:
    run = campaign.run
    block_id = record_block(database, run.workflow_id, run.run_id, "7", 60.0)
    record_job(database, block_id, "123.cluster")
    assert statuses(database, [block_id])[0].state is BlockState.REQUESTED
    open_block(database, block_id, "node1", 1)
    with pytest.raises(BalsamError, match="has one already"):
        open_block(database, block_id, "node2", 2)
    assert rows(database, "SELECT host, job_id FROM blocks") == [{"host": "node1", "job_id": "123.cluster"}]
    close_block(database, block_id, "no work")
    with pytest.raises(BalsamError):
        open_block(database, block_id, "node1", 1)
    never_started = record_block(database, run.workflow_id, run.run_id, "8", 60.0)
    close_block(database, never_started, "scaled in")
    with pytest.raises(BalsamError):
        open_block(database, never_started, "node1", 1)
    check_invariants(database)


def test_block_whose_recording_was_not_acknowledged_is_over(database: Database, campaign: Campaign) -> None:
    run = campaign.run
    recorded, started = Requested(tag="recorded"), Requested(tag="started")
    record_block(database, run.workflow_id, run.run_id, "7", 60.0, recorded)
    open_block(database, record_block(database, run.workflow_id, run.run_id, "8", 60.0, started), "node1", 1)
    abandon_unrequested(database, ["recorded", "started", "never recorded"], "the database was away")
    assert column(database, "SELECT state FROM blocks ORDER BY id") == ["ended", "running"]
    check_invariants(database)


def test_status_counts_what_a_block_holds(database: Database, campaign: Campaign) -> None:
    campaign.submit(*(campaign.call(key) for key in "abc"))
    busy, idle = Launcher(campaign), Launcher(campaign)
    busy.begin()
    busy.claim()
    found = {status.block_id: status.held for status in statuses(database, [busy.block_id, idle.block_id])}
    assert found == {busy.block_id: 2, idle.block_id: 0}
    check_invariants(database)


@pytest.mark.parametrize("topic", list(Topic))
def test_end_of_a_block_wakes_launchers_and_runs(database: Database, campaign: Campaign, topic: Topic) -> None:
    campaign.task()
    launcher = Launcher(campaign)
    launcher.begin()
    with closing(listen(database, campaign.run.workflow_id, topic)) as wakeup, closing(Bell()) as bell:
        waiting = Story(lambda: wakeup.wait(2 * LIMIT_S, bell))
        close_block(database, launcher.block_id, "walltime")
        waiting.result()
    check_invariants(database)
