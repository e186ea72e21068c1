"""A resource specification is understood, or refused in words that say what to change."""

from __future__ import annotations

import json
from collections import UserDict
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.model.errors import InvalidResources
from parsl_balsam.model.resources import Launch, ResourceSpec

counts = st.integers(1, 10_000)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@st.composite
def specs(draw: st.DrawFn) -> ResourceSpec:
    """Any specification that is legal."""
    nodes = draw(counts)
    positive = st.floats(0, 1e9, exclude_min=True)
    return ResourceSpec(
        num_nodes=nodes,
        ranks_per_node=draw(counts),
        cores_per_rank=draw(st.none() | counts),
        gpus_per_rank=draw(st.integers(0, 8)),
        node_packing_count=draw(st.none() | counts) if nodes == 1 else None,
        memory_gb=draw(st.none() | positive),
        walltime_min=draw(st.none() | st.floats(0, 1e9)),
        timeout_s=draw(st.none() | positive),
        priority=draw(st.integers(-1000, 1000)),
        key=draw(st.none() | texts.filter(str.strip)),
        max_retries=draw(st.none() | st.integers(0, 9)),
        launch=draw(st.none() | st.sampled_from(Launch)),
        launcher_options=draw(texts),
        tags=tuple(sorted(draw(st.dictionaries(texts.filter(bool), texts, max_size=3)).items())),
    )


@given(specs())
def test_to_dict_survives_json_and_parse(spec: ResourceSpec) -> None:
    assert ResourceSpec.parse(json.loads(json.dumps(spec.to_dict()))) == spec


@given(specs(), specs())
def test_what_is_given_wins_over_defaults(given_: ResourceSpec, defaults: ResourceSpec) -> None:
    explicit = {name: getattr(given_, name) for name in ResourceSpec.__dataclass_fields__}
    assert ResourceSpec.parse(explicit, defaults) == given_


def test_plain_task() -> None:
    assert ResourceSpec().to_dict() == {}
    assert ResourceSpec.parse({}) == ResourceSpec()
    assert ResourceSpec().num_ranks == 1


def test_nothing_given_is_the_defaults_themselves() -> None:
    defaults = ResourceSpec(cores_per_rank=4)
    assert ResourceSpec.parse({}, defaults) is defaults
    assert ResourceSpec.parse({}) is ResourceSpec.parse({})


def test_defaults_fill_in() -> None:
    spec = ResourceSpec.parse({"gpus_per_rank": 1}, ResourceSpec(cores_per_rank=4, tags=(("set", "a"),)))
    assert spec == ResourceSpec(cores_per_rank=4, gpus_per_rank=1, tags=(("set", "a"),))


def test_any_mapping_will_do_and_is_left_alone() -> None:
    asked: Any = UserDict(num_ranks=4, num_nodes=2)
    assert ResourceSpec.parse(asked).ranks_per_node == 2
    assert asked == {"num_ranks": 4, "num_nodes": 2}


@pytest.mark.parametrize(
    ("asked", "nodes", "per_node"),
    [
        ({"num_ranks": 4}, 1, 4),
        ({"num_nodes": 4}, 4, 1),
        ({"ranks_per_node": 4}, 1, 4),
        ({"num_ranks": 8, "num_nodes": 2}, 2, 4),
        ({"num_ranks": 8, "ranks_per_node": 2}, 4, 2),
        ({"num_nodes": 2, "ranks_per_node": 3}, 2, 3),
        ({"num_nodes": 2, "ranks_per_node": 3, "num_ranks": 6}, 2, 3),
    ],
)
def test_two_of_three_rank_counts_determine_the_third(asked: dict[str, object], nodes: int, per_node: int) -> None:
    spec = ResourceSpec.parse(asked)
    assert (spec.num_nodes, spec.ranks_per_node, spec.num_ranks) == (nodes, per_node, nodes * per_node)


def test_ranks_alone_are_spread_over_the_default_nodes() -> None:
    spec = ResourceSpec.parse({"num_ranks": 8}, ResourceSpec(num_nodes=2, ranks_per_node=16))
    assert (spec.num_nodes, spec.ranks_per_node) == (2, 4)


@pytest.mark.parametrize(
    ("asked", "arithmetic"),
    [
        ({"num_ranks": 7, "num_nodes": 2}, r"num_ranks=7 .* num_nodes=2: 7 = 3 x 2 \+ 1"),
        ({"num_ranks": 7, "ranks_per_node": 4}, r"num_ranks=7 .* ranks_per_node=4: 7 = 1 x 4 \+ 3"),
        ({"num_ranks": 8, "num_nodes": 2, "ranks_per_node": 3}, r"num_ranks=8 .*num_nodes=2 x ranks_per_node=3 = 6"),
    ],
)
def test_rank_counts_that_contradict_show_the_arithmetic(asked: dict[str, object], arithmetic: str) -> None:
    with pytest.raises(InvalidResources, match=arithmetic):
        ResourceSpec.parse(asked)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("cores", "cores_per_rank"),
        ("memory", "memory_gb"),
        ("gpus", "gpus_per_rank"),
        ("nodes", "num_nodes"),
        ("ranks", "num_ranks"),
        ("timeout", "timeout_s"),
        ("walltime", "walltime_min"),
        ("retries", "max_retries"),
        ("running_time_min", "walltime_min"),
        ("cores_per_task", "cores_per_rank"),
        ("num_node", "num_nodes"),
        ("launchr", "launch"),
    ],
)
def test_unknown_keys_are_corrected(wrong: str, meant: str) -> None:
    with pytest.raises(InvalidResources, match=rf"{wrong!r}.* did you mean {meant}\?"):
        ResourceSpec.parse({wrong: 1})


@pytest.mark.parametrize("wrong", ["colour", 7, None])
def test_unknown_keys_without_a_likeness_show_all_keys(wrong: Any) -> None:
    with pytest.raises(InvalidResources) as caught:
        ResourceSpec.parse({wrong: 1})
    assert all(name in str(caught.value) for name in (*ResourceSpec.__dataclass_fields__, "num_ranks"))


COUNTS = ["num_nodes", "ranks_per_node", "num_ranks", "cores_per_rank", "node_packing_count"]
LIMITS = ["memory_gb", "walltime_min", "timeout_s"]
BAD_COUNTS: list[Any] = [0, -1, True, 1.0, "2", [], 2**40]
BAD_LIMITS: list[Any] = [-1, -0.5, float("nan"), float("inf"), 10**400, True, "5", 1j]
BAD_TAGS: list[Any] = ["ab", 5, [1], {"a": 1}, {1: "a"}, {"": "a"}, {"a": "b\0"}]
BAD_KEYS: list[Any] = ["", "  ", 5, b"k", "a\0b", "\ud800"]
BAD_LAUNCHES: list[Any] = ["twice", 1, [], "RANKS"]
BAD_OPTIONS: list[Any] = [5, ["-v"], "a\0b"]
WRONG: list[tuple[str, Any]] = [
    *[(name, value) for name in COUNTS for value in BAD_COUNTS],
    *[(name, None) for name in ("num_nodes", "num_ranks", "priority", "launcher_options", "tags")],
    *[("gpus_per_rank", value) for value in (-1, True, 0.5, "1")],
    *[("max_retries", value) for value in (-1, False, 1.5, "1")],
    *[("priority", value) for value in (True, 1.5, "1", 2**40, -(2**40))],
    *[(name, value) for name in LIMITS for value in BAD_LIMITS],
    ("memory_gb", 0),
    ("timeout_s", 0),
    *[("key", value) for value in BAD_KEYS],
    *[("launch", value) for value in BAD_LAUNCHES],
    *[("launcher_options", value) for value in BAD_OPTIONS],
    *[("tags", value) for value in BAD_TAGS],
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidResources) as caught:
        ResourceSpec.parse({name: value})
    assert name in str(caught.value)
    assert "expected" in str(caught.value)
    assert name == "tags" or repr(value) in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 5, "num_nodes", [("num_nodes", 1)]])
def test_a_specification_is_a_mapping(wrong: Any) -> None:
    with pytest.raises(InvalidResources, match="dictionary"):
        ResourceSpec.parse(wrong)


def test_the_constructor_checks_as_well() -> None:
    with pytest.raises(InvalidResources, match="num_nodes=0"):
        ResourceSpec(num_nodes=0)


def test_numbers_of_other_kinds_become_plain() -> None:
    spec = ResourceSpec.parse({"num_nodes": numpy.int64(2), "timeout_s": 5, "memory_gb": numpy.float32(1.5)})
    assert [type(value) for value in (spec.num_nodes, spec.timeout_s, spec.memory_gb)] == [int, float, float]
    assert spec.to_dict() == {"num_nodes": 2, "timeout_s": 5.0, "memory_gb": 1.5}


def test_launch_and_tags_become_values() -> None:
    spec = ResourceSpec.parse({"launch": "ranks", "tags": {"b": "2", "a": "1"}})
    assert spec.launch is Launch.RANKS
    assert spec.tags == (("a", "1"), ("b", "2"))
    assert len({spec, ResourceSpec.parse(spec.to_dict())}) == 1


def test_packed_tasks_have_one_node() -> None:
    with pytest.raises(InvalidResources, match=r"node_packing_count=2.*num_nodes=2"):
        ResourceSpec.parse({"node_packing_count": 2, "num_nodes": 2})
    packed = ResourceSpec(node_packing_count=4)
    assert ResourceSpec.parse({"num_nodes": 2}, packed).node_packing_count is None
    assert ResourceSpec.parse({"num_nodes": 1}, packed).node_packing_count == 4
    assert ResourceSpec.parse({"node_packing_count": 4}, ResourceSpec(num_nodes=2)).num_nodes == 1


@pytest.mark.parametrize(
    ("asked", "cores"),
    [
        ({}, 1),
        ({"cores_per_rank": 4}, 4),
        ({"ranks_per_node": 2, "cores_per_rank": 4}, 8),
        ({"num_nodes": 3, "ranks_per_node": 2}, 64),
        ({"num_nodes": 3, "ranks_per_node": 2, "cores_per_rank": 1}, 2),
        ({"num_nodes": 3, "ranks_per_node": 100}, 100),
        ({"num_nodes": 3, "cores_per_rank": 8}, 8),
        ({"num_nodes": 3}, 64),
        ({"node_packing_count": 3}, 21),
        ({"node_packing_count": 3, "ranks_per_node": 50}, 21),
        ({"node_packing_count": 100}, 1),
    ],
)
def test_cores_taken_on_a_node_of_64(asked: dict[str, object], cores: int) -> None:
    assert ResourceSpec.parse(asked).cores_on(64) == cores


def test_equal_specifications_are_written_alike() -> None:
    negative, positive = ResourceSpec(walltime_min=-0.0), ResourceSpec(walltime_min=0.0)
    assert negative == positive
    assert json.dumps(negative.to_dict()) == json.dumps(positive.to_dict())
