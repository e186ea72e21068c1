"""Lists of nodes are read as the batch systems mean them, or refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.model.nodelists import UnreadableList, cray_nodes, numbers, slurm_counts, slurm_nodes


def compress(numbers: list[int], digits: int) -> str:
    """Write numbers as Slurm does: 1-3,7."""
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ",".join(
        f"{run[0]:0{digits}d}" if len(run) == 1 else f"{run[0]:0{digits}d}-{run[-1]:0{digits}d}" for run in ends
    )


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n7", "n7"),
        ("n[1-4]", "n1 n2 n3 n4"),
        ("n[1-3,7],m03", "n1 n2 n3 n7 m03"),
        ("n[1-2,07-09],m-2", "n1 n2 n07 n08 n09 m-2"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("r[1-2]c[0,3]", "r1c0 r1c3 r2c0 r2c3"),
        ("a[1],b,c[2-3]", "a1 b c2 c3"),
        ("login.site.org", "login.site.org"),
    ],
)
def test_nodes(text: str, nodes: str) -> None:
    assert slurm_nodes(text) == tuple(nodes.split())


@given(st.sets(st.integers(0, 3000), min_size=1), st.integers(1, 6), st.sampled_from(["n", "rack-2-", "x1y"]))
def test_expanding_undoes_compressing(numbers: set[int], digits: int, name: str) -> None:
    ordered = sorted(numbers)
    nodes = tuple(f"{name}{number:0{digits}d}" for number in ordered)
    assert slurm_nodes(f"{name}[{compress(ordered, digits)}]") == nodes
    assert slurm_nodes(",".join(nodes)) == nodes


@given(st.sets(st.integers(0, 99999), min_size=1))
def test_cray_nodes_have_five_digits(numbers: set[int]) -> None:
    ordered = sorted(numbers)
    assert cray_nodes(compress(ordered, 1)) == tuple(f"nid{number:05d}" for number in ordered)


@given(st.lists(st.integers(0, 300), min_size=1))
def test_counts(counts: list[int]) -> None:
    runs = [(count, len(list(run))) for count, run in groupby(counts)]
    text = ",".join(str(count) if times == 1 else f"{count}(x{times})" for count, times in runs)
    assert slurm_counts(text) == tuple(counts)


@pytest.mark.parametrize("read", [slurm_nodes, slurm_counts, cray_nodes, numbers])
@given(st.text("n1-9[],(x) \x00\xff\udc80", max_size=12))
def test_any_text_is_read_or_refused(read: Callable[[str], Collection[object]], text: str) -> None:
    try:
        found = read(text)
    except UnreadableList:
        return
    assert len(found) > 0


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (slurm_nodes, "n[1-2],", "',' is not understood"),
        (slurm_nodes, "n[3-1]", "the range 3-1 ends before it starts"),
        (slurm_nodes, "n[0-9999][0-9999][0-9999]", "1000000000000 is more than there can be"),
        (slurm_counts, "72(x999999999)", "999999999 is more than there can be"),
        (cray_nodes, "12-", "'-' is not understood"),
        (numbers, "", "'' is not understood"),
    ],
)
def test_refusal_says_why(read: Callable[[str], Collection[object]], text: str, why: str) -> None:
    with pytest.raises(UnreadableList) as refused:
        read(text)
    assert str(refused.value) == why
