"""``python -m benchmarks.utilisation``: how well a mixed ensemble fills four real Slurm nodes.

Tasks of one core to four nodes with known durations, all ready at the start, in random order. Their recorded times give
the makespan; its lower bound is the larger of all core time over all cores, and the sum over tasks of more than half of
the nodes, of which no two fit side by side.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parsl_balsam.db.server import Server
from tests.conftest import new_database, running_server
from tests.slurm.checker import check_placements
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import slurm_runs
from tests.slurm.ensembles import sleep

NODES, CORES = 4, 2

SHAPES: list[dict[str, Any]] = [
    {"cores_per_rank": 1},
    {"cores_per_rank": 2},
    {"num_nodes": 2, "launch": "once"},
    {"num_nodes": 3, "launch": "once"},
    {"num_nodes": 4, "launch": "once"},
]
WEIGHTS = [8, 4, 3, 2, 1]


def ensemble(tasks: int, seed: int) -> list[tuple[dict[str, Any], float]]:
    """Return resource specifications with the duration of each, seconds."""
    chance = random.Random(seed)
    shapes = chance.choices(SHAPES, WEIGHTS, k=tasks)
    durations = [chance.uniform(1.0, 6.0) for _ in shapes]
    work = zip(shapes, durations, strict=True)
    return [({**shape, "walltime_min": seconds / 60}, seconds) for shape, seconds in work]


def bound(work: list[tuple[dict[str, Any], float]]) -> float:
    """Return what the makespan cannot be less than, seconds."""
    area = sum(spec.get("num_nodes", 1) * spec.get("cores_per_rank", CORES) * seconds for spec, seconds in work)
    wide = sum(seconds for spec, seconds in work if spec.get("num_nodes", 1) > NODES / 2)
    return max(area / (NODES * CORES), wide)


def measured(server: Server, tasks: int, runs: int) -> Iterator[tuple[float, float]]:
    """Run an ensemble a few times; yield the lower bound of the makespan, and the makespan, seconds."""
    with Cluster(nodes=NODES, cpus=CORES) as cluster:
        for seed in range(runs):
            work = ensemble(tasks, seed)
            with tempfile.TemporaryDirectory() as directory, new_database(server) as url:
                with slurm_runs(cluster, url, Path(directory)) as load:
                    load()
                    calls = [sleep(seconds, parsl_resource_specification=spec) for spec, seconds in work]
                    for call in calls:
                        call.result()
                placed = check_placements(url, CORES)
                makespan = max(p.ended_at for p in placed) - min(p.started_at for p in placed)
            yield bound(work), makespan


def main() -> None:
    """Print each run's utilisation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    with running_server() as server:
        for least, makespan in measured(server, options.tasks, options.runs):
            print(
                f"{options.tasks} tasks on {NODES} nodes of {CORES} cores: lower bound {least:.1f} s, "
                f"makespan {makespan:.1f} s, utilisation {least / makespan:.3f}"
            )


if __name__ == "__main__":
    main()
