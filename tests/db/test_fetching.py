"""What a run reads of tasks that are over, however many there are and however they ended."""

from __future__ import annotations

import pytest

from parsl_balsam.db.connect import Database
from parsl_balsam.model.states import Outcome, TaskState

from .conftest import Campaign, Launcher, check_invariants

LARGE = b"result" * 10_000


@pytest.mark.parametrize("most", [0, 1, 3, 6, 7, 100])
def test_each_task_that_ended_is_fetched_or_named(
    database: Database, campaign: Campaign, launcher: Launcher, most: int
) -> None:
    ids = [campaign.task(str(number)) for number in range(6)]
    for number in range(6):
        if number == 1:
            launcher.run(Outcome.ERROR, hopeless=True, error="a reason")
        else:
            launcher.run(Outcome.DONE, payload=LARGE if number == 2 else b"%d" % number)
    found, others, finish = campaign.store.fetch_since(0, lambda over: sorted(over), most)
    assert len(found) == min(most, 6)
    assert sorted([task.task_id for task in found] + others) == ids
    by_id = {task.task_id: task for task in [*found, *campaign.store.fetch(others)]}
    assert [by_id[task_id].payload for task_id in ids] == [b"0", None, LARGE, b"3", b"4", b"5"]
    assert [by_id[task_id].state for task_id in ids].count(TaskState.DONE) == 5
    assert (by_id[ids[1]].outcome, by_id[ids[1]].error) == (Outcome.ERROR, "a reason")
    assert by_id[ids[0]] == campaign.store.fetch([ids[0]])[0]
    assert campaign.store.fetch_since(finish, list, 100) == ([], [], finish)
    check_invariants(database)


def test_only_what_is_chosen_is_fetched(campaign: Campaign, launcher: Launcher) -> None:
    earlier = campaign.task("earlier")
    launcher.run(Outcome.DONE)
    _, _, finish = campaign.store.fetch_since(0, list, 100)
    later = [campaign.task(key) for key in ("one", "two")]
    for _ in later:
        launcher.run(Outcome.DONE)
    found, others, _ = campaign.store.fetch_since(finish, lambda over: [*over[1:], earlier], 100)
    assert ({task.task_id for task in found}, others) == ({later[1], earlier}, [])
