"""What waits for blocks, counted by what it needs, and what the blocks there are have for it."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_balsam.db.blocks import Requested, close_block, record_block, wish_end
from parsl_balsam.db.connect import Database
from parsl_balsam.db.demand import Waiting, read_waiting
from parsl_balsam.db.runs import Driver, begin_run
from parsl_balsam.db.tasks import cancel_tasks
from parsl_balsam.model.blocks import BlockSupply
from parsl_balsam.model.demand import TaskGroup
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import BlockShape

from .conftest import Campaign, Launcher, check_invariants, column, now, wait_until


def waiting(campaign: Campaign, cores: int | None = 4, gpus: int | None = 0) -> Waiting:
    return read_waiting(campaign.database, campaign.run.workflow_id, cores, gpus)


def groups(campaign: Campaign) -> set[TaskGroup]:
    """Return what waits; each group is there once."""
    found = waiting(campaign).demand.groups
    assert len(set(found)) == len(found)
    return set(found)


def submit(campaign: Campaign, count: int, **spec: Any) -> None:
    name = f"{spec}"
    campaign.submit(*(campaign.call(f"{name} {number}", **spec) for number in range(count)))


def request(campaign: Campaign, nodes: int | None, walltime_min: float | None, queue: str | None = None) -> int:
    run = campaign.run
    requested = Requested(nodes=nodes, walltime_min=walltime_min, queue=queue)
    return record_block(campaign.database, run.workflow_id, run.run_id, "0", 60.0, requested)


# what waits


def test_tasks_that_need_the_same_are_one_group(database: Database, campaign: Campaign) -> None:
    submit(campaign, 3)
    submit(campaign, 2, num_nodes=4, walltime_min=30)
    submit(campaign, 5, num_nodes=4, walltime_min=45)
    submit(campaign, 4, cores_per_rank=2)
    submit(campaign, 6, node_packing_count=8)
    submit(campaign, 7, gpus_per_rank=1)
    campaign.task("twice as urgent", priority=5)
    assert groups(campaign) == {
        TaskGroup(4, cores=1),
        TaskGroup(2, nodes=4, walltime_min=30),
        TaskGroup(5, nodes=4, walltime_min=45),
        TaskGroup(4, cores=2),
        TaskGroup(6, packing=8),
        TaskGroup(7, cores=1, gpus=1),
    }
    assert waiting(campaign).demand.tasks == 28


def test_only_what_is_ready_waits(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    for key in ("running", "assigned", "done", "cancelled", "ready"):
        campaign.task(key)
    launcher.begin()
    launcher.claim()
    launcher.run()
    cancel_tasks(database, [campaign.task("cancelled")], "user")
    assert groups(campaign) == {TaskGroup(1, cores=1)}
    check_invariants(database)


def test_task_waits_for_blocks_again_when_its_next_try_is_due(database: Database) -> None:
    campaign = Campaign(database, RetryPolicy(max_retries=2, backoff_s=0.2))
    campaign.task("fails")
    Launcher(campaign).run(Outcome.ERROR)
    (due_at,) = column(database, "SELECT ready_at FROM tasks")
    found = waiting(campaign)
    assert found.at >= due_at or found.demand.groups == ()
    wait_until(lambda: waiting(campaign).demand.tasks == 1)
    assert now(database) >= due_at


def test_tasks_of_earlier_runs_are_not_asked_for_any_more(database: Database, campaign: Campaign) -> None:
    campaign.task("old")
    campaign.task("both", num_nodes=2)
    again = Campaign(database)
    assert groups(again) == set()
    again.task("both", num_nodes=2)
    assert groups(again) == {TaskGroup(1, nodes=2)}


def test_workflows_do_not_wait_for_each_others_blocks(database: Database, campaign: Campaign) -> None:
    other = Campaign(database, name="other")
    other.task("elsewhere", num_nodes=7)
    busy = Launcher(other)
    busy.claim(nodes=7)
    assert waiting(campaign).demand.groups == ()
    assert waiting(campaign).blocks == ()
    assert [supply.block_id for supply in waiting(other).blocks] == [busy.block_id]


def test_ages_are_those_of_the_oldest_and_the_newest(database: Database, campaign: Campaign) -> None:
    assert (waiting(campaign).demand.oldest_at, waiting(campaign).demand.newest_at) == (None, None)
    for key, nodes in (("first", 1), ("second", 2), ("third", 1)):
        campaign.task(key, num_nodes=nodes)
    submitted = column(database, "SELECT submitted_at FROM tasks ORDER BY id")
    found = waiting(campaign)
    assert (found.demand.oldest_at, found.demand.newest_at) == (submitted[0], submitted[2])
    assert submitted[2] <= found.at <= now(database)


@pytest.mark.parametrize(
    ("said", "found"),
    [((16, 2), (16, 2)), ((None, None), (8, 4)), ((None, 0), (8, 0))],
    ids=["as the user says", "as blocks had", "no GPUs are wanted"],
)
def test_nodes_to_come_are_as_the_user_says_or_as_blocks_had(
    database: Database,
    campaign: Campaign,
    launcher: Launcher,
    said: tuple[int | None, int | None],
    found: tuple[int | None, int | None],
) -> None:
    unknown = waiting(campaign, None, None).demand
    assert (unknown.cores_per_node, unknown.gpus_per_node) == (None, None)
    launcher.claims.exchange(shape=BlockShape(2, 8, 4, None))
    close_block(database, launcher.block_id, "no work")
    demand = waiting(campaign, *said).demand
    assert (demand.cores_per_node, demand.gpus_per_node) == found


# what blocks have


def test_block_in_the_queue_will_have_what_it_asks_for(database: Database, campaign: Campaign) -> None:
    large = request(campaign, 8, 60, "regular")
    unsized = request(campaign, None, None)
    assert waiting(campaign).blocks == (
        BlockSupply(large, 8, 60, "regular", None, running=False),
        BlockSupply(unsized, 1, None, None, None, running=False),
    )


def test_block_that_runs_has_what_its_launcher_says(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    launcher.claims.exchange(shape=BlockShape(3, 8, 0, 600.0, ("n4: its agent was not heard of",)))
    found = waiting(campaign)
    (supply,) = found.blocks
    assert (supply.block_id, supply.nodes, supply.running, supply.held) == (launcher.block_id, 3, True, ())
    assert supply.ends_at == pytest.approx(found.at + 600, abs=30)


def test_tasks_that_blocks_hold_are_told_by_block(database: Database, campaign: Campaign) -> None:
    submit(campaign, 3)
    submit(campaign, 1, num_nodes=2, walltime_min=20)
    submit(campaign, 2, num_nodes=5)
    first, second, idle = Launcher(campaign), Launcher(campaign), Launcher(campaign)
    first.claim(1, nodes=2)
    first.begin()
    first.claim()
    second.begin()
    held = {supply.block_id: set(supply.held) for supply in waiting(campaign).blocks}
    assert held == {
        first.block_id: {TaskGroup(1, nodes=2, walltime_min=20), TaskGroup(2, cores=1)},
        second.block_id: {TaskGroup(1, cores=1)},
        idle.block_id: set(),
    }
    assert groups(campaign) == {TaskGroup(2, nodes=5)}
    check_invariants(database)


def test_blocks_that_are_over_or_to_end_serve_nothing(database: Database, campaign: Campaign) -> None:
    submit(campaign, 2)
    serving, ended, leaving, unwanted = (Launcher(campaign) for _ in range(4))
    queued, unwanted_in_queue = request(campaign, 2, 10), request(campaign, 2, 10)
    leaving.begin()
    close_block(database, ended.block_id, "no work")
    wish_end(database, [leaving.block_id, unwanted.block_id, unwanted_in_queue], "user")
    assert [supply.block_id for supply in waiting(campaign).blocks] == [serving.block_id, queued]
    assert groups(campaign) == {TaskGroup(1, cores=1)}


def test_blocks_of_earlier_runs_serve_if_they_are_adopted(database: Database, campaign: Campaign) -> None:
    adopted, left = Launcher(campaign), Launcher(campaign)
    driver = Driver("login1", "login1 boot", 4712, 1.0)
    begin_run(
        database,
        "campaign",
        "balsam",
        "001",
        driver,
        lambda _: True,
        RetryPolicy(),
        60.0,
        adopts=lambda job: job.block_id == adopted.block_id,
    )
    assert [supply.block_id for supply in waiting(campaign).blocks] == [adopted.block_id]
    assert left.exchange().superseded
