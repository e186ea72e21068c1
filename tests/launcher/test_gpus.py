"""Which GPUs a node, a program and a rank have."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.launcher.gpus import VISIBLE, names, of_rank, read_table, variables, write_table

DEVICES = ["null", "nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps"]

gpu_names = st.text("0123456789abcdefGPU-/.", min_size=1, max_size=12)
tables = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}[0-9]{1,4}", fullmatch=True),
    st.lists(gpu_names, min_size=1, max_size=8).map(tuple),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    ("environ", "count", "found"),
    [
        ({}, None, ("0", "1", "2")),
        ({}, 4, ("0", "1", "2", "3")),
        ({}, 0, ()),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, None, ("2", "3")),
        ({"CUDA_VISIBLE_DEVICES": " GPU-5ebe9f43 , MIG-1/2/0 "}, None, ("GPU-5ebe9f43", "MIG-1/2/0")),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, ("2",)),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 0, ()),
        ({"ROCR_VISIBLE_DEVICES": "4,6"}, None, ("4", "6")),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, None, ("0.0", "0.1")),
        ({"CUDA_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "5"}, None, ("5",)),
    ],
)
def test_gpus_of_a_node(environ: Mapping[str, str], count: int | None, found: tuple[str, ...]) -> None:
    assert names(environ, DEVICES, count) == found


def test_node_without_devices_has_no_gpus() -> None:
    assert names({}, ["null", "nvidiactl"], None) == ()


def test_programs_of_every_vendor_are_limited() -> None:
    assert variables(("0", "3")) == {name: "0,3" for name in VISIBLE}
    assert names(variables(("0", "3")), DEVICES, None) == ("0", "3")


@given(st.integers(1, 4), st.integers(1, 4))
def test_ranks_of_a_node_share_its_gpus_out(ranks: int, per_rank: int) -> None:
    gpus = [str(number) for number in range(ranks * per_rank)]
    shared_out = [of_rank(gpus, per_rank, local_rank) for local_rank in range(ranks)]
    assert {len(mine) for mine in shared_out} == {per_rank}
    assert [name for mine in shared_out for name in mine] == gpus


def test_table_is_short_where_all_nodes_give_the_same() -> None:
    assert write_table({"n1": ("0", "1"), "n2": ("0", "1")}) == "*=0,1"
    assert write_table({"n1": ("0", "1"), "n2": ("2", "3")}) == "n1=0,1 n2=2,3"


@given(tables)
def test_every_host_finds_its_row(table: dict[str, tuple[str, ...]]) -> None:
    written = write_table(table)
    assert {host: read_table(written, host) for host in table} == table


@pytest.mark.parametrize("host", ["n2", "n2.cluster"])
@pytest.mark.parametrize("table", ["n1=0 n2=1", "n1.cluster=0 n2.cluster=1"])
def test_host_is_found_with_and_without_its_domain(table: str, host: str) -> None:
    assert read_table(table, host) == ("1",)


def test_unknown_host_has_no_gpus() -> None:
    assert read_table("n1=0 n2=1", "n3") == ()
