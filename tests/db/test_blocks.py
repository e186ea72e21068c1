"""Blocks are recorded before they are requested, ended by somebody's wish, and adopted by the next run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from parsl_balsam.db.blocks import (
    BlockEnd,
    Requested,
    close_block,
    note_job_state,
    open_block,
    read_end,
    reap,
    record_block,
    record_job,
    rename_block,
    requested_walltime,
    statuses,
    wish_end,
)
from parsl_balsam.db.connect import Database
from parsl_balsam.db.runs import Driver, OpenJob, Run, begin_run
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import JOB_ENDED, JOB_OVER, BlockState, JobState, Outcome

from .conftest import (
    FUNCTION,
    LIMIT_S,
    Campaign,
    Launcher,
    Story,
    check_invariants,
    outcomes,
    rows,
    snapshot,
    state,
    wait_until,
)

LEASE_S = 0.2
USER = "ann on login1"
LARGE = Requested("campaign.17", "slurm", 16, 90, "regular", "16 nodes for 90 min serve 48 of 50 tasks")


def request(campaign: Campaign, requested: Requested | None = None, lease_s: float = 60.0) -> int:
    """Record a block of the campaign, whose launcher has not come."""
    run = campaign.run
    return record_block(campaign.database, run.workflow_id, run.run_id, "0", lease_s, requested)


def block(database: Database, block_id: int) -> dict[str, Any]:
    (found,) = rows(database, "SELECT * FROM blocks WHERE id = :id", id=block_id)
    return found


def let_lease_end(launcher: Launcher) -> None:
    launcher.outlive_lease()
    wait_until(lambda: reap(launcher.database) == [launcher.block_id])


# requests


def test_request_is_recorded_with_all_that_is_asked_for(database: Database, campaign: Campaign) -> None:
    block_id = request(campaign, LARGE)
    found = block(database, block_id)
    assert {name: found[name] for name in ("tag", "scheduler", "requested_nodes", "walltime_min", "queue", "why")} == {
        "tag": "campaign.17",
        "scheduler": "slurm",
        "requested_nodes": 16,
        "walltime_min": 90,
        "queue": "regular",
        "why": "16 nodes for 90 min serve 48 of 50 tasks",
    }
    assert (found["state"], found["job_id"], found["script"]) == ("requested", None, None)
    assert requested_walltime(database, block_id) == 90
    record_job(database, block_id, "4711", "/scratch/campaign.17.submit")
    rename_block(database, block_id, "3")
    found = block(database, block_id)
    assert (found["job_id"], found["script"], found["name"]) == ("4711", "/scratch/campaign.17.submit", "3")


def test_block_started_by_hand_asks_for_nothing(database: Database, campaign: Campaign) -> None:
    block_id = request(campaign)
    found = block(database, block_id)
    assert [found[name] for name in ("scheduler", "requested_nodes", "walltime_min", "queue", "why")] == [None] * 5
    assert found["tag"]
    assert requested_walltime(database, block_id) is None


def test_no_two_jobs_have_one_name(database: Database, campaign: Campaign) -> None:
    request(campaign, LARGE)
    before = snapshot(database)
    with pytest.raises(IntegrityError):
        request(campaign, LARGE)
    assert snapshot(database) == before
    assert request(campaign) != request(campaign)


def test_block_is_served_while_its_launcher_has_a_lease(database: Database, campaign: Campaign) -> None:
    queued, living, silent = request(campaign), Launcher(campaign), Launcher(campaign, LEASE_S)
    silent.outlive_lease()
    found = {each.block_id: each for each in statuses(database, [queued, living.block_id, silent.block_id])}
    assert found[living.block_id].served_s >= LEASE_S
    assert (found[queued].served_s, found[silent.block_id].served_s) == (0.0, 0.0)
    assert found[silent.block_id].state is BlockState.RUNNING  # nobody has looked yet


# wishes


def test_launcher_that_is_wished_to_end_finishes_what_it_says_and_claims_no_more(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    begun, waits = campaign.task("begun"), campaign.task("waits")
    running = launcher.begin()
    assert launcher.exchange().end_wish is None
    assert wish_end(database, [launcher.block_id], USER) == {launcher.block_id: BlockState.RUNNING}
    answer = launcher.exchange(want=5)
    assert (answer.end_wish, answer.claimed, answer.superseded) == (USER, [], False)
    assert launcher.end(running, Outcome.ENDED).end_wish == USER
    close_block(database, launcher.block_id, f"ended by {USER}")
    assert [state(database, task) for task in (begun, waits)] == ["ready", "ready"]
    assert outcomes(database, begun) == ["ended"]
    assert read_end(database, launcher.block_id).wished  # type: ignore[union-attr]
    check_invariants(database)


def test_block_that_is_wished_to_end_in_the_queue_is_not_opened(database: Database, campaign: Campaign) -> None:
    block_id = request(campaign)
    assert wish_end(database, [block_id], USER) == {block_id: BlockState.REQUESTED}
    assert read_end(database, block_id) is None  # its job is still in the queue
    with pytest.raises(BalsamError, match=f"block {block_id} does not wait for a launcher"):
        open_block(database, block_id, "node1", 1)
    found = block(database, block_id)
    assert (found["state"], found["reason"], found["host"]) == ("ended", "ended before its launcher came", None)
    assert read_end(database, block_id) == BlockEnd(
        False, 0.0, BlockState.ENDED, "ended before its launcher came", True
    )


def test_wish_comes_too_late_for_what_is_over(database: Database, campaign: Campaign) -> None:
    over, lost = Launcher(campaign), Launcher(campaign, LEASE_S)
    close_block(database, over.block_id, "no work")
    let_lease_end(lost)
    before = snapshot(database)["blocks"]
    assert wish_end(database, [over.block_id, lost.block_id, 987654], USER) == {
        over.block_id: BlockState.ENDED,
        lost.block_id: BlockState.LOST,
    }
    assert snapshot(database)["blocks"] == before
    assert wish_end(database, [], USER) == {}


def test_wish_is_for_the_blocks_that_are_named(database: Database, campaign: Campaign) -> None:
    other = Campaign(database, name="other")
    first, second, elsewhere = Launcher(campaign), Launcher(campaign), Launcher(other)
    wish_end(database, [first.block_id, elsewhere.block_id], USER)
    assert [each.exchange().end_wish for each in (first, second, elsewhere)] == [USER, None, USER]


def test_wish_wakes_launchers(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    with closing(listen(database, campaign.run.workflow_id, Topic.WORK)) as wakeup, closing(Bell()) as bell:
        waiting = Story(lambda: wakeup.wait(2 * LIMIT_S, bell))
        wish_end(database, [launcher.block_id], USER)
        waiting.result()


# what the scheduler says


@pytest.mark.parametrize("said", list(JobState))
def test_block_whose_launcher_never_came_is_over_with_its_job(
    database: Database, campaign: Campaign, said: JobState
) -> None:
    block_id = request(campaign)
    note_job_state(database, block_id, said, None)
    found = block(database, block_id)
    assert (found["job_state"], found["job_reason"]) == (said.value, None)
    if said in JOB_OVER:
        assert (found["state"], found["reason"]) == ("ended", f"its job is over: {said.value}")
        with pytest.raises(BalsamError):
            open_block(database, block_id, "node1", 1)
    else:
        assert (found["state"], found["ended_at"]) == ("requested", None)
        open_block(database, block_id, "node1", 1)


def test_scheduler_is_quoted(database: Database, campaign: Campaign) -> None:
    block_id = request(campaign)
    note_job_state(database, block_id, JobState.PENDING, "Priority")
    assert block(database, block_id)["job_reason"] == "Priority"
    note_job_state(database, block_id, JobState.FAILED, "NonZeroExitCode: python: not found")
    assert block(database, block_id)["reason"] == "its job is over: NonZeroExitCode: python: not found"


@pytest.mark.parametrize("said", list(JobState))
def test_launcher_that_came_speaks_for_itself(database: Database, campaign: Campaign, said: JobState) -> None:
    task = campaign.task()
    launcher = Launcher(campaign)
    running = launcher.begin()
    note_job_state(database, launcher.block_id, said, "so it is said")
    assert block(database, launcher.block_id)["state"] == "running"
    launcher.end(running, Outcome.DONE)
    assert state(database, task) == "done"
    close_block(database, launcher.block_id, "no work")
    assert block(database, launcher.block_id)["reason"] == "no work"
    check_invariants(database)


@pytest.mark.parametrize("said", sorted(JOB_ENDED))
def test_job_that_was_ended_costs_its_tasks_nothing(database: Database, said: JobState) -> None:
    campaign = Campaign(database, RetryPolicy(max_crashes=1))
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign, LEASE_S)
    launcher.begin()
    launcher.claim()
    note_job_state(database, launcher.block_id, said, f"cancelled by {USER}")
    let_lease_end(launcher)
    assert [state(database, task) for task in (running, assigned)] == ["ready", "ready"]
    assert (outcomes(database, running), outcomes(database, assigned)) == (["ended"], [])
    found = block(database, launcher.block_id)
    assert (found["state"], found["reason"]) == ("ended", f"its job was ended: cancelled by {USER}")
    assert read_end(database, launcher.block_id).wished  # type: ignore[union-attr]
    check_invariants(database)


@pytest.mark.parametrize("said", sorted(set(JobState) - JOB_ENDED))
def test_job_that_died_is_a_crash_of_what_ran(database: Database, campaign: Campaign, said: JobState) -> None:
    running, assigned = campaign.task("running"), campaign.task("assigned")
    launcher = Launcher(campaign, LEASE_S)
    launcher.begin()
    launcher.claim()
    note_job_state(database, launcher.block_id, said, "NodeFail")
    let_lease_end(launcher)
    assert (outcomes(database, running), outcomes(database, assigned)) == (["crash"], ["ended"])
    found = block(database, launcher.block_id)
    assert found["state"] == "lost"
    silent = "its launcher was not heard of for a lease"
    assert found["reason"] == (f"{silent}; its job is over: NodeFail" if said in JOB_OVER else silent)
    assert not read_end(database, launcher.block_id).wished  # type: ignore[union-attr]
    check_invariants(database)


# ends


def test_end_is_told_when_there_is_one(database: Database, campaign: Campaign) -> None:
    queued, launcher, silent = request(campaign), Launcher(campaign), Launcher(campaign, LEASE_S)
    assert [read_end(database, each) for each in (queued, launcher.block_id)] == [None, None]
    silent.outlive_lease()
    assert read_end(database, silent.block_id) is None  # nobody has looked yet
    wait_until(lambda: reap(database) == [silent.block_id])
    note_job_state(database, queued, JobState.FAILED, "exit code 127")
    close_block(database, launcher.block_id, "no work for 300 s")
    assert read_end(database, queued) == BlockEnd(
        False, 0.0, BlockState.ENDED, "its job is over: exit code 127", wished=False
    )
    served = read_end(database, launcher.block_id)
    assert served is not None
    assert (served.started, served.state, served.reason) == (True, BlockState.ENDED, "no work for 300 s")
    assert 0.0 < served.lived_s < LIMIT_S
    lost = read_end(database, silent.block_id)
    assert lost is not None
    assert (lost.started, lost.state, lost.wished) == (True, BlockState.LOST, False)
    assert lost.lived_s >= LEASE_S


@pytest.mark.parametrize("said", sorted(JOB_OVER))
def test_end_before_the_launcher_came_is_nobodys_wish_unless_it_was_told(
    database: Database, campaign: Campaign, said: JobState
) -> None:
    unwanted, wanted = request(campaign), request(campaign)
    wish_end(database, [unwanted], USER)
    for block_id in (unwanted, wanted):
        note_job_state(database, block_id, said, "so it is said")
    ends = [read_end(database, block_id) for block_id in (unwanted, wanted)]
    assert [end and (end.started, end.wished) for end in ends] == [(False, True), (False, False)]


# adoption


def begin_again(database: Database, adopts: Callable[[OpenJob], bool], order: str = "{}") -> Run:
    """Start the next run of the campaign."""
    driver = Driver("login1", "login1 boot", 4712, 1.0)
    policy = RetryPolicy()
    return begin_run(database, "campaign", "balsam", "001", driver, lambda _: True, policy, 60.0, order, adopts=adopts)


def test_next_run_is_offered_what_is_open(database: Database, campaign: Campaign) -> None:
    queued = request(campaign, LARGE)
    record_job(database, queued, "4711", "/scratch/campaign.17.submit")
    running = Launcher(campaign).block_id
    ended, unwanted = Launcher(campaign).block_id, Launcher(campaign).block_id
    close_block(database, ended, "no work")
    wish_end(database, [unwanted], USER)
    Launcher(Campaign(database, name="other"))
    offered: list[OpenJob] = []
    run = begin_again(database, lambda job: not offered.append(job))  # type: ignore[func-returns-value]
    assert [job.block_id for job in offered] == [queued, running]
    assert offered[0] == OpenJob(queued, "campaign.17", "slurm", "4711", "/scratch/campaign.17.submit", False, None)
    assert (offered[1].running, offered[1].scheduler, offered[1].job_id) == (True, None, None)
    assert (run.adopted, run.left) == (tuple(offered), ())


def test_launcher_of_the_run_before_goes_on_if_it_is_adopted(database: Database, campaign: Campaign) -> None:
    adopted, left = Launcher(campaign), Launcher(campaign)
    run = begin_again(database, lambda job: job.block_id == adopted.block_id)
    assert [job.block_id for job in run.adopted] == [adopted.block_id]
    assert [job.block_id for job in run.left] == [left.block_id]
    assert [each.exchange().superseded for each in (adopted, left)] == [False, True]
    TaskStore(database, run.workflow_id, run.run_id).submit([campaign.call()], {FUNCTION: b"def square"})
    assert left.claim() == []
    (claimed,) = adopted.claim()
    assert claimed.app == "square"
    check_invariants(database)


def test_queued_block_that_is_adopted_serves_the_next_run(database: Database, campaign: Campaign) -> None:
    adopted, left = request(campaign), request(campaign)
    run = begin_again(database, lambda job: job.block_id == adopted)
    for block_id in (adopted, left):
        open_block(database, block_id, "node1", 1)
    assert [block(database, block_id)["run_id"] for block_id in (adopted, left)] == [run.run_id, campaign.run.run_id]


def test_block_is_adopted_by_one_run_after_the_other(database: Database, campaign: Campaign) -> None:
    run = begin_again(database, lambda _: True, "of the second run")
    block_id = record_block(database, run.workflow_id, run.run_id, "0", 60.0)
    orders = []
    for order in ("of the third run", "of the fourth run"):
        run = begin_again(database, lambda _: True, order)
        assert [job.block_id for job in run.adopted] == [block_id]
        orders.append(run.adopted[0].order)
    assert orders == ["of the second run", "of the third run"]


def test_run_that_fails_to_judge_blocks_has_not_begun(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign)
    before = snapshot(database)

    def judge(_: OpenJob) -> bool:
        raise OSError("the scheduler does not answer")

    with pytest.raises(OSError, match="does not answer"):
        begin_again(database, judge)
    assert snapshot(database) == before
    assert not launcher.exchange().superseded


def test_blocks_of_the_run_before_are_left_where_nothing_is_said(database: Database, campaign: Campaign) -> None:
    launcher = Launcher(campaign)
    run = Campaign(database).run
    assert (run.adopted, [job.block_id for job in run.left]) == ((), [launcher.block_id])
    assert launcher.exchange().superseded
