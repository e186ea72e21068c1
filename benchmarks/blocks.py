"""How well blocks are filled, and how fast it is decided what runs where."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator

from benchmarks import packing, placement, utilisation
from benchmarks.measure import Measure, at_least, skipped
from benchmarks.setting import Setting
from configs.theta import POLICY
from parsl_balsam.providers.ensemble import plan_all
from tests.slurm.cluster import PACKAGES, PATH, PROGRAMS

_CORES = 64

#: Tasks of a mixed ensemble, for each simulated node.
_ENSEMBLE_PER_NODE = 4


def decisions(setting: Setting) -> Iterator[Measure]:
    """Placement on many nodes, simulated."""
    nodes = setting.many(4096, 64)
    where = f"{nodes:,} simulated nodes"
    streams = []
    for seed in range(1, setting.rounds() + 1):
        tasks = placement.mixture(random.Random(seed), 4, _CORES, 0.8, 0.15)
        streams.append(
            placement.run_stream(tasks, nodes, _CORES, setting.many(10_000, 500), setting.many(20_000, 2_000))
        )
    rates = tuple(stream.decisions_per_s for stream in streams)
    goal = at_least(placement.GOAL_DECISIONS)
    yield Measure(f"placement on {where}, stream of small tasks", "decisions/s", rates, goal)
    specs = list(
        itertools.islice(
            placement.mixture(random.Random(1), nodes, _CORES, placement.ONE_CORE, placement.FEW_CORES),
            nodes * _ENSEMBLE_PER_NODE,
        )
    )
    outcome = placement.run_ensemble(specs, nodes, _CORES)
    note = f"{len(specs):,} tasks of one core to {nodes:,} nodes"
    name = f"placement on {where}, mixed ensemble ready at the start"
    yield Measure(name, "decisions/s", (outcome.decisions_per_s,), note=note)
    filled = placement.lower_bound_s(specs, nodes, _CORES) / outcome.took_s
    goal = at_least(placement.GOAL_UTILISATION)
    yield Measure(f"utilisation of {where}, mixed ensemble", "of lower bound", (filled,), goal, note)


def packed(setting: Setting) -> Iterator[Measure]:
    """Batch jobs sized for 10,000 mixed tasks on Theta's queues."""
    demand = packing.ensemble(setting.many(10_000, 500), 1, 512, 5)
    plans = [plan for plan in plan_all(demand, POLICY, (), 0.0) if plan.request is not None]
    asked = sum(plan.request.nodes * plan.request.walltime_min for plan in plans if plan.request)
    fill = sum(plan.node_min for plan in plans) / asked
    note = f"{len(plans)} blocks, Theta's queues, simulated"
    yield Measure("blocks sized for a mixed ensemble: node-time used of node-time asked for", "", (fill,), note=note)


def slurm(setting: Setting) -> Iterator[Measure]:
    """A mixed ensemble on four real nodes of Slurm."""
    name = "utilisation of 4 Slurm nodes, mixed ensemble"
    if setting.server is None:
        yield skipped(name, "no PostgreSQL")
    elif missing := [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]:
        yield skipped(name, f"{', '.join(missing)} not found; apt-get install {PACKAGES}")
    else:
        tasks = setting.many(50, 12)
        found = utilisation.measured(setting.server, tasks, setting.repetitions or 1)
        values = tuple(bound / makespan for bound, makespan in found)
        note = f"{tasks} tasks of 1 core to 4 nodes, 1 to 6 s"
        yield Measure(name, "of lower bound", values, at_least(placement.GOAL_UTILISATION), note)
