"""A launcher claims what it has room for, and gives back what it cannot run."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_balsam.db.connect import Database
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import BlockShape, Release

from .conftest import Campaign, Launcher, check_invariants, column, ended, history, outcomes, rows, state, wish


def sizes(launcher: Launcher, *wishes: Any) -> list[tuple[int, int]]:
    """Claim what is wished for; return nodes and cores of what was given."""
    return [(task.spec.num_nodes, task.spec.cores or 0) for task in launcher.claims.exchange(wishes=wishes).claimed]


@pytest.fixture
def mixed(campaign: Campaign) -> Campaign:
    """Tasks of many sizes."""
    campaign.task("4 nodes", num_nodes=4)
    campaign.task("2 nodes", num_nodes=2, ranks_per_node=2)
    campaign.task("3 cores", cores_per_rank=3)
    campaign.task("half a node", node_packing_count=2)
    campaign.task("1 core")
    campaign.task("gpu", gpus_per_rank=1)
    campaign.task("2 ranks", ranks_per_node=2)
    campaign.task("an hour", walltime_min=60)
    return campaign


def test_all_that_it_may_have(database: Database, mixed: Campaign, launcher: Launcher) -> None:
    assert sizes(launcher, wish(10, 4)) == [(4, 0), (2, 0), (1, 3), (1, 0), (1, 1), (1, 1), (1, 2), (1, 1)]
    check_invariants(database)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ({"nodes": 3}, [(2, 0), (1, 3), (1, 0), (1, 1), (1, 1), (1, 2), (1, 1)]),
        ({"nodes": 4, "most_cores": 3}, [(1, 3), (1, 0), (1, 1), (1, 1), (1, 2), (1, 1)]),
        ({"most_cores": 1}, [(1, 1), (1, 1), (1, 1)]),
        ({"most_gpus": 0}, [(1, 3), (1, 0), (1, 1), (1, 2), (1, 1)]),
        ({"parallel": False}, [(1, 3), (1, 0), (1, 1), (1, 1), (1, 1)]),
        ({"time_left_min": 59.0}, [(1, 3), (1, 0), (1, 1), (1, 1), (1, 2)]),
        ({"time_left_min": 60.0, "most_cores": 1}, [(1, 1), (1, 1), (1, 1)]),
        ({"cores": 6}, [(1, 3), (1, 0), (1, 1)]),
        ({"cores": 2}, [(1, 0)]),
        ({"nodes": 4, "cores": 16}, [(4, 0)]),
        ({"nodes": 4, "cores": 15}, [(2, 0), (1, 3), (1, 0), (1, 1), (1, 1)]),
        ({"nodes": 2, "cores": 8}, [(2, 0)]),
        ({"nodes": 2, "cores": 12, "node_cores": 3}, [(2, 0), (1, 3), (1, 0), (1, 1)]),
        ({"waited_s": 3600.0}, []),
        ({"nodes": 4, "least_cores": 8}, [(4, 0), (2, 0)]),
        ({"nodes": 4, "least_cores": 9}, [(4, 0)]),
    ],
)
def test_what_it_has_no_room_for_stays(
    database: Database, mixed: Campaign, launcher: Launcher, room: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    assert sizes(launcher, wish(10, **room)) == expected
    check_invariants(database)


def test_wishes_are_granted_one_after_the_other(database: Database, mixed: Campaign, launcher: Launcher) -> None:
    assert sizes(launcher, wish(2, 1, most_cores=1), wish(1, 4)) == [(4, 0), (1, 1), (1, 1)]
    assert sorted(column(database, "SELECT number FROM attempts")) == [1, 1, 1]
    check_invariants(database)


def test_launcher_learns_whether_there_is_more(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    for key in "abc":
        campaign.task(key, cores_per_rank=2)
    assert launcher.claims.exchange(wishes=[wish(1)]).more
    assert launcher.claims.exchange(wishes=[wish(5, cores=3)]).more
    assert not launcher.claims.exchange(wishes=[wish(5)]).more
    assert not launcher.claims.exchange(wishes=[wish(5)]).more
    check_invariants(database)


def test_fallback_is_for_when_nothing_was_found(database: Database, mixed: Campaign, launcher: Launcher) -> None:
    anything = wish(1, 4, fallback=True)
    assert sizes(launcher, wish(1, 1), anything) == [(1, 3)]
    assert sizes(launcher, wish(1, 4, least_cores=100), anything) == [(4, 0)]
    check_invariants(database)


def test_what_nobody_here_can_run_is_named(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    answer = launcher.claims.exchange(wishes=[wish(1, 2)])
    assert answer.unserved is None
    wide = campaign.task("wide", num_nodes=3, walltime_min=5)
    answer = launcher.claims.exchange(wishes=[wish(1, 1), wish(1, 2)])
    assert answer.unserved is not None
    assert (answer.unserved.task_id, answer.unserved.nodes, answer.unserved.walltime_min) == (wide, 3, 5.0)
    campaign.task("narrow")
    answer = launcher.claims.exchange(wishes=[wish(1, 1), wish(1, 2)])
    assert (len(answer.claimed), answer.unserved) == (1, None)
    assert launcher.claims.exchange().unserved is None
    check_invariants(database)


def test_what_waits_in_vain_is_given_back_at_no_cost(
    database: Database, campaign: Campaign, launcher: Launcher
) -> None:
    tasks = [campaign.task("a", num_nodes=4), campaign.task("b", num_nodes=4)]
    a, b = launcher.claim(2, nodes=4)
    launcher.claims.exchange(releases=[Release(a.task_id, a.token, "n2 was lost")])
    launcher.claims.exchange(releases=[Release(b.task_id, b.token + 1, "not its claim")])
    assert [state(database, task) for task in tasks] == ["ready", "assigned"]
    assert outcomes(database, a.task_id) == []
    assert history(database, a.task_id) == ["ready", "assigned", "ready"]
    (last,) = column(database, "SELECT why FROM events WHERE task_id = :id ORDER BY id DESC LIMIT 1", id=a.task_id)
    assert last == "n2 was lost"
    (again,) = launcher.claim(nodes=4)
    assert (again.task_id, again.number) == (a.task_id, 1)
    launcher.claims.exchange(releases=[Release(a.task_id, a.token, "too late")])
    assert state(database, a.task_id) == "assigned"
    check_invariants(database)


def test_starts_ends_and_releases_in_one_report(database: Database, campaign: Campaign, launcher: Launcher) -> None:
    campaign.submit(campaign.call("a"), campaign.call("b"))
    a, b = launcher.claim(2)
    answer = launcher.claims.exchange(
        ends=[ended(a, Outcome.ENDED)], releases=[Release(b.task_id, b.token, "no room")], wishes=[wish(5)]
    )
    assert sorted((task.task_id, task.number) for task in answer.claimed) == [(a.task_id, 2), (b.task_id, 1)]
    check_invariants(database)


def test_block_says_what_it_has(database: Database, launcher: Launcher) -> None:
    launcher.claims.exchange(shape=BlockShape(4, 64, 2, 600.0))
    answer = launcher.claims.exchange(shape=BlockShape(3, 64, 2, 590.0, ("n2: its agent was not heard of",)))
    (block,) = rows(database, "SELECT nodes, cores_per_node, gpus_per_node, ends_at, lost_nodes FROM blocks")
    assert (block["nodes"], block["cores_per_node"], block["gpus_per_node"]) == (3, 64, 2)
    assert block["ends_at"] == pytest.approx(answer.at + 590, abs=1.0)
    assert block["lost_nodes"] == "n2: its agent was not heard of"
