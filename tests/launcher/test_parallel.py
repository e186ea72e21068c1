"""What the worker of a placed task is told of its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_balsam.launcher.messages import Ranks
from parsl_balsam.launcher.parallel import MpiSite, ranks_of
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.errors import ImpossibleTask
from parsl_balsam.model.launch import MpiStyle
from parsl_balsam.model.resources import Launch, ResourceSpec
from parsl_balsam.model.shares import Share
from parsl_balsam.model.tasks import ClaimedTask

NODES = {name: Node(name, name, tuple(range(8)), gpus=("0", "1", "2", "3")) for name in ("n1", "n2", "n3")}
PROGRAMS = {MpiStyle.HYDRA: "mpiexec.mpich", MpiStyle.OPENMPI: "mpiexec.openmpi"}
SRUN = "srun --overlap --kill-on-bad-exit=1"


def site(style: MpiStyle, everything: bool = False) -> MpiSite:
    return MpiSite(style, PROGRAMS.get(style), root=True, directory="/shared/run", everything=everything)


def task(**needs: Any) -> ClaimedTask:
    spec = ResourceSpec.parse(needs)
    return ClaimedTask(12, 3, 0xBEEF, b"key", 0, "relax", b"digest", b"payload", spec, stderr=None)


def share(node: str, cores: str = "01234567", gpus: str = "") -> Share:
    return Share(node, tuple(map(int, cores)), tuple(gpus))


def ranks(
    style: MpiStyle, shares: list[Share], nodes: dict[str, Node] = NODES, everything: bool = False, **needs: Any
) -> Ranks:
    told = ranks_of(site(style, everything), task(**needs), shares, nodes)
    assert told is not None
    return told


def pretend(name: str) -> Node:
    return Node(name, "localhost", tuple(range(8)), gpus=("0", "1", "2", "3"), pin=False)


@pytest.mark.parametrize("style", list(MpiStyle))
@pytest.mark.parametrize("needs", [{}, {"cores_per_rank": 4}, {"gpus_per_rank": 2}, {"launch": "once"}])
def test_task_of_one_process_has_no_ranks(style: MpiStyle, needs: dict[str, Any]) -> None:
    assert ranks_of(site(style), task(**needs), [share("n1", gpus="01")], NODES) is None


@pytest.mark.parametrize(
    ("style", "prefix"),
    [
        (
            MpiStyle.SRUN,
            f"{SRUN} --nodes=2 --ntasks=8 --ntasks-per-node=4 --distribution=block --nodelist=n1,n3 "
            "--cpus-per-task=2 --label",
        ),
        (MpiStyle.HYDRA, "mpiexec.mpich -n 8 -ppn 4 -hosts n1,n3 --label"),
        (
            MpiStyle.OPENMPI,
            "mpiexec.openmpi -n 8 --map-by ppr:4:node:OVERSUBSCRIBE -H n1:4,n3:4 --bind-to none "
            "--allow-run-as-root --label",
        ),
        (MpiStyle.APRUN, "aprun -n 8 -N 4 -d 2 -L n1,n3 --label"),
        (
            MpiStyle.JSRUN,
            "jsrun --nrs 8 --rs_per_host 4 --tasks_per_rs 1 --cpu_per_rs 2 --gpu_per_rs 1 --bind rs --label",
        ),
    ],
)
def test_whole_nodes(style: MpiStyle, prefix: str) -> None:
    told = ranks(
        style,
        [share("n1", gpus="0123"), share("n3", gpus="0123")],
        num_nodes=2,
        ranks_per_node=4,
        gpus_per_rank=1,
        launcher_options="--label",
        launch="ranks",
    )
    assert (told.count, told.launch, told.alone, told.style) == (8, Launch.RANKS, False, style.value)
    assert told.threads == 2
    assert told.mark == "12-3-beef"
    assert told.scratch == Path("/shared/run/ranks-12-3-beef")
    variables = dict(told.variables)
    assert variables.pop("PARSL_MPI_PREFIX") == prefix
    others = {f"PARSL_{name}_PREFIX": variables.pop(f"PARSL_{name}_PREFIX") for name in ("SRUN", "MPIEXEC", "APRUN")}
    assert all(command.endswith(" --label") for command in others.values())
    assert prefix in others.values() or style is MpiStyle.JSRUN
    assert variables == {
        "PARSL_NUM_NODES": "2",
        "PARSL_NUM_RANKS": "8",
        "PARSL_RANKS_PER_NODE": "4",
        "PARSL_LAUNCHER_OPTIONS": "--label",
        "PARSL_MPI_NODELIST": "n1,n3",
        "SLURM_OVERLAP": "1",
        "SLURM_EXPORT_ENV": "ALL",
        "BALSAM_GPUS": "*=0,1,2,3",
        "BALSAM_GPUS_PER_RANK": "1",
    }


@pytest.mark.parametrize(
    ("style", "binding"),
    [
        (MpiStyle.SRUN, "--cpu-bind=mask_cpu:0xc,0xc0"),
        (MpiStyle.HYDRA, ""),
        (MpiStyle.OPENMPI, "--bind-to none"),
    ],
)
def test_ranks_on_part_of_a_node_keep_off_the_rest(style: MpiStyle, binding: str) -> None:
    told = ranks(style, [share("n2", "2367")], ranks_per_node=2, cores_per_rank=2)
    assert told.threads == 2
    assert binding in told.variables["PARSL_MPI_PREFIX"]
    assert "--cpus-per-task" not in told.variables["PARSL_MPI_PREFIX"]


def test_ranks_are_not_bound_where_their_cores_differ_from_node_to_node() -> None:
    told = ranks(MpiStyle.SRUN, [share("n1", "01"), share("n2", "67")], num_nodes=2, ranks_per_node=2, cores_per_rank=1)
    assert "--cpu-bind=none" in told.variables["PARSL_MPI_PREFIX"]


def test_ranks_are_not_bound_to_pretend_cores() -> None:
    nodes = {"n1": Node("n1", "n1", tuple(range(64)), pin=False)}
    told = ranks(MpiStyle.SRUN, [share("n1", "23")], nodes, ranks_per_node=2)
    assert "--cpu-bind=none" in told.variables["PARSL_MPI_PREFIX"]


def test_more_ranks_than_cores_are_not_bound() -> None:
    told = ranks(MpiStyle.SRUN, [share("n1", "01")], ranks_per_node=4, node_packing_count=4)
    assert told.threads == 1
    assert "--cpu-bind=none" in told.variables["PARSL_MPI_PREFIX"]


@pytest.mark.parametrize(
    ("needs", "cores", "threads"),
    [
        ({"ranks_per_node": 2}, ["01234567"], 4),
        ({"ranks_per_node": 3}, ["01234567"], 2),
        ({"ranks_per_node": 2, "cores_per_rank": 3}, ["012345"], 3),
        ({"num_nodes": 2}, ["01234567", "0123"], 4),
        ({"num_nodes": 2, "ranks_per_node": 16}, ["01234567", "01234567"], 1),
    ],
)
def test_threads_of_a_rank(needs: dict[str, int], cores: list[str], threads: int) -> None:
    shares = [share(name, some) for name, some in zip(NODES, cores, strict=False)]
    assert ranks(MpiStyle.HYDRA, shares, **needs).threads == threads


def test_gpus_that_differ_from_node_to_node() -> None:
    shares = [share("n1", gpus="01"), share("n2", gpus="23")]
    told = ranks(MpiStyle.HYDRA, shares, num_nodes=2, ranks_per_node=2, gpus_per_rank=1)
    assert told.variables["BALSAM_GPUS"] == "n1=0,1 n2=2,3"


def test_no_gpus_are_told_where_none_were_asked_for() -> None:
    told = ranks(MpiStyle.HYDRA, [share("n1")], ranks_per_node=2)
    assert not any(name.startswith("BALSAM_GPUS") for name in told.variables)


def test_ranks_on_pretend_nodes_of_one_host_have_the_gpus_of_all() -> None:
    nodes = {name: pretend(name) for name in ("p1", "p2")}
    shares = [share("p1", "01", gpus="01"), share("p2", "01", gpus="23")]
    told = ranks(MpiStyle.HYDRA, shares, nodes, num_nodes=2, ranks_per_node=2, gpus_per_rank=1, cores_per_rank=1)
    assert told.variables["PARSL_MPI_PREFIX"] == "mpiexec.mpich -n 4 -ppn 4 -hosts localhost"
    assert told.variables["PARSL_MPI_NODELIST"] == "localhost,localhost"
    assert told.variables["BALSAM_GPUS"] == "*=0,1,2,3"


@pytest.mark.parametrize(
    ("style", "prefix"),
    [
        (
            MpiStyle.SRUN,
            f"{SRUN} --nodes=1 --ntasks=1 --ntasks-per-node=1 --distribution=block --nodelist=n2 --cpus-per-task=8",
        ),
        (MpiStyle.APRUN, "aprun -n 1 -N 1 -d 8 -L n2"),
    ],
)
def test_mpi_launcher_starts_everything_where_nodes_have_no_agents(style: MpiStyle, prefix: str) -> None:
    told = ranks(style, [share("n2")], everything=True)
    assert (told.count, told.launch, told.alone, told.threads) == (1, None, True, 8)
    assert told.variables["PARSL_MPI_PREFIX"] == prefix


def test_parallel_task_is_not_alone_where_nodes_have_no_agents() -> None:
    shares = [share("n1"), share("n2")]
    told = ranks(MpiStyle.APRUN, shares, everything=True, num_nodes=2, launch="once")
    assert (told.count, told.launch, told.alone) == (2, Launch.ONCE, False)


def test_ranks_without_an_mpi_launcher_are_refused() -> None:
    with pytest.raises(ImpossibleTask, match="2 ranks needs an MPI launcher"):
        ranks(MpiStyle.NONE, [share("n1")], ranks_per_node=2)


def test_single_rank_needs_no_mpi_launcher() -> None:
    told = ranks(MpiStyle.NONE, [share("n1", "0")], launch="ranks")
    assert (told.count, told.launch, told.alone) == (1, Launch.RANKS, False)
    assert told.variables["PARSL_MPI_PREFIX"] == ""
