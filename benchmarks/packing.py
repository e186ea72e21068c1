"""Size batch jobs for a mixed ensemble of 10,000 tasks on Theta's queues: how full they are, and what deciding costs.

``python -m benchmarks.packing`` prints the blocks that are requested one after the other until everything is served.
"Launched" is how long the launcher's own placement takes for a block's tasks, all ready at the start.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from benchmarks.placement import log_uniform, run_ensemble
from configs.theta import POLICY
from parsl_balsam.model.demand import Demand, TaskGroup
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.providers.ensemble import Plan, pack, plan_all

CORES = 64

#: Part of the tasks that take one core; the others take as many small as large numbers of nodes.
ONE_CORE = 0.5


def ensemble(tasks: int, seed: int, widest: int, steps_min: float) -> Demand:
    """Return tasks of one core and of 1 to `widest` nodes that take 5 to 120 minutes, in steps of some minutes."""
    rng = random.Random(seed)
    groups: Counter[tuple[int, int | None, float]] = Counter()
    for _ in range(tasks):
        small = rng.random() < ONE_CORE
        minutes = max(5.0, round(log_uniform(rng, 5, 120) / steps_min) * steps_min)
        nodes = 1 if small else 2 ** rng.randrange(widest.bit_length())
        groups[nodes, 1 if small else None, minutes] += 1
    return Demand(
        tuple(
            TaskGroup(count, nodes, cores, walltime_min=minutes) for (nodes, cores, minutes), count in groups.items()
        ),
        CORES,
        0,
    )


def launched_min(plan: Plan) -> float:
    """Return how long a launcher takes for the tasks that a block is sized for, minutes from its start."""
    assert plan.request is not None
    specs = [
        ResourceSpec(num_nodes=group.nodes, cores_per_rank=group.cores or CORES, walltime_min=group.walltime_min)
        for group in plan.groups
        for _ in range(group.count)
    ]
    return POLICY.startup_min + run_ensemble(specs, plan.request.nodes, CORES).took_s / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--widest", type=int, default=512, help="nodes of the largest tasks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    demand = ensemble(options.tasks, options.seed, options.widest, 5)
    plans = plan_all(demand, POLICY, (), 0.0)
    print(
        f"{options.tasks:,} tasks in {len(demand.groups)} groups, of one core to {options.widest} nodes, 5 to 120 min"
    )
    print("block            queue nodes minutes launched  tasks node-hours  fill")
    asked_min = 0
    for number, plan in enumerate(plans, 1):
        if (asked := plan.request) is not None:
            node_min = asked.nodes * asked.walltime_min
            asked_min += node_min
            block = f"{number:5} {asked.queue or '':>16} {asked.nodes:5} {asked.walltime_min:7}"
            print(f"{block} {launched_min(plan):8.0f} {plan.tasks:6,} {node_min / 60:10,.0f} {plan.fill:5.2f}")
    print(f"and then: {plans[-1].why}")
    print(f"all: {asked_min / 60:,.0f} node-hours, fill {sum(plan.node_min for plan in plans) / asked_min:.2f}\n")

    print(f"{'tasks':>8} {'groups':>7} {'ms for a decision':>18}")
    for tasks, steps_min in ((options.tasks, 5.0), (options.tasks, 0.01), (100 * options.tasks, 5.0)):
        demand = ensemble(tasks, options.seed, options.widest, steps_min)
        took: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            pack(demand, POLICY, (), 0.0)
            took.append(time.perf_counter() - began)
        print(f"{tasks:8,} {len(demand.groups):7,} {1000 * min(took):18.1f}", flush=True)


if __name__ == "__main__":
    main()
