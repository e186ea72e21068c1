"""Pretend nodes of this host: ensembles of many nodes tried on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl import bash_app, python_app
from parsl.providers import LocalProvider

from parsl_balsam.model.errors import ImpossibleTask
from tests.executor.parsl_runs import ParslRun, parsl_run
from tests.requirements import require
from tests.slurm.checker import check_placements

CORES = 2


@python_app
def what_it_has(seconds: float = 0.0, parsl_resource_specification: Any = None) -> Any:
    import os
    import time

    time.sleep(seconds)
    names = ("BALSAM_NODES", "CUDA_VISIBLE_DEVICES", "PARSL_NUM_RANKS", "PARSL_RANKS_PER_NODE", "OMP_NUM_THREADS")
    return {name: os.environ.get(name) for name in names}


@bash_app
def command(line: str, stdout: Any = None, parsl_resource_specification: Any = None) -> str:
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParslRun]:
    """Four nodes of two cores and two GPUs, none of which need exist."""
    directory = tmp_path_factory.mktemp("run")
    provider = LocalProvider(nodes_per_block=4)
    options = {"provider": provider, "cores_per_node": CORES, "gpus_per_node": 2, "mpi": "hydra"}
    with parsl_run(directory, **options) as loaded:
        yield loaded


def test_tasks_of_every_size_share_four_nodes(run: ParslRun) -> None:
    sizes = [{"num_nodes": 4}, {"num_nodes": 3}, {"num_nodes": 2, "cores_per_rank": 1}, {"cores_per_rank": 2}, {}]
    calls = [(size, what_it_has(0.05, parsl_resource_specification=size)) for _ in range(6) for size in sizes]
    for size, call in calls:
        found = call.result()
        nodes = [share.node for share in run.shares(call)]
        assert found["BALSAM_NODES"] == ",".join(nodes)
        assert len(set(nodes)) == size.get("num_nodes", 1)
    check_placements(run.database, CORES)


def test_gpus_are_given_exactly(run: ParslRun) -> None:
    calls = [what_it_has(0.05, parsl_resource_specification={"gpus_per_rank": 1}) for _ in range(16)]
    for call in calls:
        (share,) = run.shares(call) if call.result() else ()
        assert (call.result()["CUDA_VISIBLE_DEVICES"],) == share.gpus
    both = what_it_has(parsl_resource_specification={"gpus_per_rank": 2})
    assert both.result()["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert what_it_has().result()["CUDA_VISIBLE_DEVICES"] is None
    check_placements(run.database, CORES)


def test_ranks_of_a_command_and_their_gpus(run: ParslRun, tmp_path: Path) -> None:
    require(["mpiexec.mpich"], "mpich")
    output = tmp_path / "output"
    spec = {"num_nodes": 2, "ranks_per_node": 2, "cores_per_rank": 1}
    command("echo $PMI_RANK of $PMI_SIZE", stdout=str(output), parsl_resource_specification=spec).result()
    assert sorted(output.read_text().splitlines()) == [f"{rank} of 4" for rank in range(4)]
    spec = {"ranks_per_node": 2, "gpus_per_rank": 1}
    output = tmp_path / "gpus"
    command("echo $PMI_RANK $CUDA_VISIBLE_DEVICES", stdout=str(output), parsl_resource_specification=spec).result()
    assert sorted(output.read_text().splitlines()) == ["0 0", "1 1"]


def test_what_no_block_could_run_is_refused(run: ParslRun) -> None:
    for spec, reason in (
        ({"num_nodes": 5}, "num_nodes=5 is more than the 4 nodes of a block"),
        ({"gpus_per_rank": 3}, "gpus_per_rank=3 needs 3 GPUs on a node, which is more than the 2"),
        (
            {"num_nodes": 2, "ranks_per_node": 2, "cores_per_rank": 2},
            "ranks_per_node=2, cores_per_rank=2 needs 4 cores",
        ),
    ):
        with pytest.raises(ImpossibleTask, match=reason):
            what_it_has(parsl_resource_specification=spec).result()
