"""Tasks of every size side by side on four Slurm nodes, started by every MPI launcher there is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsl.dataflow.futures import AppFuture

from parsl_balsam.db.schema import tasks
from tests.executor.parsl_runs import ParslRun
from tests.slurm.checker import Placed, check_placements
from tests.slurm.ensembles import command, rank_and_node, variables

Run = Callable[..., ParslRun]
Programs = dict[str, dict[str, Path]]

CORES = 2  # of each of the cluster's nodes

#: What a user writes for each MPI library, where it is not the one that the executor starts.
MPIEXEC = {
    "mpich": "mpiexec.mpich -n $PARSL_NUM_RANKS -ppn $PARSL_RANKS_PER_NODE -hosts $PARSL_MPI_NODELIST",
    "openmpi": "mpiexec.openmpi --allow-run-as-root --map-by ppr:$PARSL_RANKS_PER_NODE:node:OVERSUBSCRIBE "
    "-n $PARSL_NUM_RANKS -H $(sed s/,/:$PARSL_RANKS_PER_NODE,/g <<<$PARSL_MPI_NODELIST):$PARSL_RANKS_PER_NODE",
}

SIZES: dict[str, dict[str, Any]] = {
    "a core": {"cores_per_rank": 1, "ranks_per_node": 1},
    "half a node": {"node_packing_count": 2},
    "a node": {"ranks_per_node": 2},
    "2 nodes": {"num_nodes": 2, "ranks_per_node": 2},
    "3 nodes": {"num_nodes": 3, "ranks_per_node": 1},
    "4 nodes": {"num_nodes": 4, "ranks_per_node": 2},
}


def check_ranks(lines: list[str], placed: Placed) -> None:
    """Check the lines of ``programs/where``: every rank once, all of one world, on the nodes of the placement."""
    ranks = [line.split() for line in lines]
    count = placed.spec.num_ranks
    assert sorted(int(rank) for rank, _, _ in ranks) == list(range(count)), lines
    assert {size for _, size, _ in ranks} == {str(count)}, lines
    per_node = Counter(node for _, _, node in ranks)
    assert per_node == dict.fromkeys((share.node for share in placed.shares), placed.spec.ranks_per_node), lines


def test_200_tasks_of_every_size(slurm_run: Run, programs: Programs, tmp_path: Path) -> None:
    run = slurm_run(task_defaults={"launcher_options": "--mpi=pmi2"})
    calls: list[tuple[str, str, AppFuture, Path]] = []
    kinds = ["srun", "mpich", "openmpi", "function", "function on ranks"]
    for number in range(200):
        size = list(SIZES)[number % len(SIZES)]
        kind = kinds[number // len(SIZES) % len(kinds)]
        spec = SIZES[size]
        output = tmp_path / f"{number}.out"
        if kind == "srun":
            future = command(f"{programs['mpich']['where']} 0.1", stdout=str(output), parsl_resource_specification=spec)
        elif kind in MPIEXEC:
            line = f"{MPIEXEC[kind]} {programs[kind]['where']} 0.1"
            if "ranks_per_node" not in spec or spec.get("num_nodes", 1) * spec["ranks_per_node"] == 1:
                line = f"{programs[kind]['where']} 0.1"  # a task of one process needs no launcher
            future = command(line, stdout=str(output), parsl_resource_specification={**spec, "launch": "once"})
        elif kind == "function":
            future = variables(0.1, parsl_resource_specification=spec)
        else:
            future = rank_and_node(0.1, parsl_resource_specification={**spec, "launch": "ranks"})
        calls.append((kind, size, future, output))
    random.Random(7).shuffle(calls)
    results = [(kind, size, future, output, future.result()) for kind, size, future, output in calls]

    placed = {each.task_id: each for each in check_placements(run.database, CORES)}
    assert len(placed) == 200
    assert {row.state for row in run.rows(tasks)} == {"done"}
    for kind, size, future, output, result in results:
        place = placed[run.task_id(future)]
        nodes = [share.node for share in place.shares]
        if kind == "function":
            expected = (",".join(nodes), str(place.spec.num_ranks)) if place.spec.is_parallel else (None, None)
            assert (result["PARSL_MPI_NODELIST"], result["PARSL_NUM_RANKS"]) == expected, (size, result)
            assert result["SLURMD_NODENAME"] == nodes[0]
        elif kind == "function on ranks":
            assert [rank for rank, _, _ in result] == list(range(place.spec.num_ranks))
            assert Counter(node for _, _, node in result) == dict.fromkeys(nodes, place.spec.ranks_per_node)
        else:
            check_ranks(output.read_text().splitlines(), place)


@pytest.mark.parametrize(("mpi", "library"), [("srun", "mpich"), ("hydra", "mpich"), ("openmpi", "openmpi")])
def test_program_needs_no_change(slurm_run: Run, programs: Programs, tmp_path: Path, mpi: str, library: str) -> None:
    options = {"launcher_options": "--mpi=pmi2"} if mpi == "srun" else {}
    run = slurm_run(mpi=mpi, task_defaults=options)
    where = programs[library]["where"]
    calls = []
    for name, spec in SIZES.items():
        output = tmp_path / name.replace(" ", "-")
        calls.append((command(f"'{where}'", stdout=str(output), parsl_resource_specification=spec), output))
    for future, _ in calls:
        assert future.result() == 0
    placed = {each.task_id: each for each in check_placements(run.database, CORES)}
    for future, output in calls:
        check_ranks(output.read_text().splitlines(), placed[run.task_id(future)])
