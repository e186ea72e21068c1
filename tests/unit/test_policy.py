"""What a queue policy admits, refuses and stores."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.theta import POLICY as THETA
from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.policy import LAST_CALL_MIN, NodeRange, Queue, QueuePolicy

DAY = NodeRange(1, 100, 1440)


@st.composite
def queues(draw: st.DrawFn, name: str | None, limits: st.SearchStrategy[int | None]) -> Queue:
    """Generate a queue whose ranges do not overlap."""
    ranges, first = [], draw(st.integers(1, 6))
    for _ in range(draw(st.integers(1, 3))):
        last = first + draw(st.integers(0, 12))
        least = draw(st.sampled_from([1, 10, 30.5]))
        ranges.append(NodeRange(first, last, least + draw(st.integers(5, 90)), least))
        first = last + draw(st.integers(1, 8))
    return Queue(ranges, name, draw(limits), draw(limits))


some_limits = st.none() | st.integers(1, 3)


@st.composite
def policies(draw: st.DrawFn, limits: st.SearchStrategy[int | None] = some_limits) -> QueuePolicy:
    """Generate policies of one queue or two; some are tightened by the user."""
    named = draw(st.sampled_from([(None,), ("debug",), ("debug", "default"), (None, "large")]))
    given = {
        "assumed_walltime_min": draw(st.sampled_from([5, 30, 200])),
        "slack": draw(st.sampled_from([1, 1.1, 1.5, 3])),
        "startup_min": draw(st.sampled_from([0, 0.5, 2])),
    }
    whole = QueuePolicy([draw(queues(name, limits)) for name in named], **given)
    wishes = {"max_nodes": draw(st.none() | st.integers(1, 30)), "max_walltime_min": draw(st.none() | st.floats(5, 90))}
    try:
        return QueuePolicy(whole.queues, **wishes, **given)
    except ConfigurationError:
        return whole


def test_theta_admits_what_its_table_says() -> None:
    assert THETA.most_nodes == 4392
    assert THETA.longest_task_min == 1440 - 2 - LAST_CALL_MIN
    assert THETA.refusal(1, None) is None
    assert THETA.refusal(4392, 1437.75) is None


def test_small_but_long_task_may_run_in_a_large_block() -> None:
    assert THETA.refusal(130, 900) is None


def test_task_larger_than_every_block_is_refused_with_the_limit() -> None:
    expected = "num_nodes=5000 is more than the 4392 nodes of the largest block (queue 'default')"
    assert THETA.refusal(5000, 10) == expected


def test_task_longer_than_blocks_of_its_size_is_refused_with_the_limit() -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 50, 1440), NodeRange(51, 400, 360)], "default")])
    assert policy.refusal(40, 900) is None
    assert policy.refusal(300, 357.75) is None
    assert policy.refusal(300, 900) == (
        "walltime_min=900 is more than the 357.75 minutes that a task may take in a block of 300 nodes or more "
        "(at most 360 minutes: queue 'default' with 51 to 400 nodes; 2.25 of them pass before the first "
        "task starts and after the last one has ended)"
    )


def test_users_own_limit_is_named() -> None:
    policy = QueuePolicy([Queue([DAY])], max_nodes=10, max_walltime_min=60)
    assert policy.most_nodes == 10
    assert "the 10 nodes of the largest block (the policy's max_nodes, the provider's queue)" in str(
        policy.refusal(11, 1)
    )
    assert "at most 60 minutes: the policy's max_walltime_min, the provider's queue" in str(policy.refusal(1, 60))


def test_limits_above_those_of_the_queues_change_nothing() -> None:
    assert QueuePolicy(THETA.queues, max_nodes=9999, max_walltime_min=9999).offers == THETA.offers


def test_ranges_outside_the_users_wish_are_not_used() -> None:
    policy = QueuePolicy(THETA.queues, max_nodes=300, max_walltime_min=45)
    assert {(offer.min_nodes, offer.max_nodes, offer.max_walltime_min) for offer in policy.offers} == {
        (128, 255, 45),
        (256, 300, 45),
        (1, 16, 45),
    }


def test_fixed_blocks_are_all_alike() -> None:
    policy = QueuePolicy.fixed(4, 90, 2)
    (offer,) = policy.offers
    assert (offer.min_nodes, offer.max_nodes) == (4, 4)
    assert (offer.min_walltime_min, offer.max_walltime_min) == (90, 90)
    assert (offer.queue.name, offer.queue.max_running) == (None, 2)
    assert policy.refusal(4, 89.75) is None
    assert policy.refusal(4, 90) is not None


@pytest.mark.parametrize(("walltime_min", "whole"), [(0.5, 1), (1.5, 2), (10.0, 10)])
def test_fixed_blocks_may_be_short(walltime_min: float, whole: int) -> None:
    policy = QueuePolicy.fixed(1, walltime_min)
    assert policy.offers[0].max_walltime_min == whole
    assert policy.refusal(1, 0.5 * whole) is None


def test_queue_may_be_closed_for_now() -> None:
    assert QueuePolicy([Queue([DAY], max_queued=0)]).refusal(1, 1) is None


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (NodeRange, {"min_nodes": 0}, "min_nodes=0 "),
    (NodeRange, {"min_nodes": 2.0}, "min_nodes=2.0 "),
    (NodeRange, {"max_nodes": True}, "max_nodes=True "),
    (NodeRange, {"min_nodes": 5}, "min_nodes=5 .*at most max_nodes=4"),
    (NodeRange, {"max_walltime_min": float("inf")}, "max_walltime_min=inf "),
    (NodeRange, {"max_walltime_min": "60"}, "max_walltime_min='60' "),
    (NodeRange, {"min_walltime_min": 61}, r"min_walltime_min=61\.0 .*max_walltime_min=60"),
    (NodeRange, {"min_walltime_min": 59.2, "max_walltime_min": 59.8}, "min_walltime_min=59.2 .*whole minute"),
    (Queue, {"ranges": ()}, r"ranges=\(\) .*at least one NodeRange"),
    (Queue, {"ranges": [(1, 2, 3)]}, r"ranges=\[\(1, 2, 3\)\] "),
    (Queue, {"ranges": DAY}, "ranges=NodeRange"),
    (Queue, {"ranges": [DAY, NodeRange(100, 200, 60)], "name": "q"}, "queue 'q' overlap: 1 to 100 .* 100 to 200"),
    (Queue, {"name": " "}, "name=' ' "),
    (Queue, {"max_queued": -1}, "max_queued=-1 of the provider's queue"),
    (Queue, {"max_running": 1.5}, "max_running=1.5 "),
    (QueuePolicy, {"queues": ()}, r"queues=\(\) "),
    (QueuePolicy, {"queues": [Queue([DAY], "q"), Queue([DAY], "q")]}, "Two queues of a queue policy are queue 'q'"),
    (QueuePolicy, {"queues": [Queue([DAY]), Queue([DAY])]}, "are the provider's queue"),
    (QueuePolicy, {"max_nodes": 0}, "max_nodes=0 "),
    (QueuePolicy, {"max_walltime_min": 0.5}, r"max_walltime_min=0\.5 "),
    (QueuePolicy, {"assumed_walltime_min": -1}, "assumed_walltime_min=-1 "),
    (QueuePolicy, {"slack": 0.9}, r"slack=0\.9 "),
    (QueuePolicy, {"slack": float("nan")}, "slack=nan "),
    (QueuePolicy, {"startup_min": None}, "startup_min=None "),
    (QueuePolicy, {"settle_s": -5}, "settle_s=-5 "),
    (QueuePolicy, {"queues": THETA.queues[:1], "max_nodes": 100}, "max_nodes=100, .*have 128 nodes or more"),
    (QueuePolicy, {"max_walltime_min": 2}, "max_walltime_min=2, startup_min=2"),
    (QueuePolicy.fixed, {"nodes": 1, "walltime_min": "01:00:00"}, "walltime_min='01:00:00' "),
    (QueuePolicy.fixed, {"nodes": 1, "walltime_min": 60, "max_blocks": -1}, "max_running=-1 "),
]
VALID: dict[Any, dict[str, Any]] = {
    NodeRange: {"min_nodes": 1, "max_nodes": 4, "max_walltime_min": 60},
    Queue: {"ranges": [DAY]},
    QueuePolicy: {"queues": [Queue([DAY])]},
}


@pytest.mark.parametrize(("kind", "values", "message"), WRONG)
def test_wrong_values_are_named(kind: Any, values: dict[str, Any], message: str) -> None:
    valid = VALID.get(kind, {})
    if valid:
        kind(**valid)
    with pytest.raises(ConfigurationError, match=message):
        kind(**{**valid, **values})


@given(policies())
def test_stored_policy_is_the_same(policy: QueuePolicy) -> None:
    stored = json.loads(json.dumps(policy.to_dict()))
    assert QueuePolicy.from_dict(stored) == policy
    assert QueuePolicy.from_dict(stored).offers == policy.offers


def test_stored_policy_of_fewer_fields_has_the_defaults() -> None:
    ranges = [{"min_nodes": 1, "max_nodes": 100, "max_walltime_min": 1440}]
    assert QueuePolicy.from_dict({"queues": [{"ranges": ranges}]}) == QueuePolicy([Queue([DAY])])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "queues=None "),
        ({"queues": [{"ranges": [{"min_nodes": 1}]}]}, "a node range is not complete"),
        ({"queues": [{"ranges": []}]}, r"ranges=\[\] "),
        ({"queues": ["debug"]}, "ranges=None "),
        ({"queues": [], "nodes": 5}, "There is no 'nodes' in a queue policy; it has queues, max_nodes"),
        ({"queues": [], "offers": []}, "There is no 'offers'"),
    ],
)
def test_unreadable_descriptions_are_refused(stored: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QueuePolicy.from_dict(stored)


@given(policies(), st.integers(1, 50), st.none() | st.floats(0, 200))
def test_refusal_means_that_no_range_has_room(policy: QueuePolicy, nodes: int, walltime_min: float | None) -> None:
    most_nodes = policy.max_nodes or 10**6
    most_min = policy.max_walltime_min or 10**6
    possible = any(
        max(nodes, each.min_nodes) <= min(each.max_nodes, most_nodes)
        and each.min_walltime_min <= (longest := int(min(each.max_walltime_min, most_min)))
        and longest > policy.startup_min + LAST_CALL_MIN
        and policy.startup_min + (walltime_min or 0) + LAST_CALL_MIN <= longest
        for queue in policy.queues
        for each in queue.ranges
    )
    assert (policy.refusal(nodes, walltime_min) is None) == possible
