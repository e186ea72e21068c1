"""Simulate the launcher's placement under a virtual clock: how full it keeps a block, and how fast it decides.

``python benchmarks/placement.py`` prints, for each number of nodes, the utilisation of a mixed ensemble whose durations
are known and that is all ready at the start: a lower bound of the makespan over the makespan. Decisions per second are
starts over the CPU time spent in placement alone. A second table feeds a full block an endless stream of tasks.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from parsl_balsam.launcher.placement import Queue
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import ResourceSpec

SHORTEST_MIN, LONGEST_MIN = 2.0, 240.0

#: Of a mixed ensemble: tasks of one core, of a few cores, and, for the rest, of whole nodes.
ONE_CORE, FEW_CORES = 0.6, 0.2

GOAL_UTILISATION = 0.95
GOAL_DECISIONS = 20_000


@dataclass
class Outcome:
    """What came of a simulation."""

    starts: int
    took_s: float  #: on the virtual clock
    busy: float  #: share of the cores in use, over that time
    cpu_s: float  #: spent in placement

    @property
    def decisions_per_s(self) -> float:
        """Starts per second of CPU time."""
        return self.starts / self.cpu_s


class Block:
    """A block whose tasks run as long as they are expected to."""

    def __init__(self, nodes: int, cores: int) -> None:
        self.space = Space()
        for number in range(nodes):
            name = f"nid{number:05}"
            self.space.add(Node(name, name, tuple(range(cores))))
        self.queue = Queue(self.space)
        self.now = 0.0
        self.restart()
        self._specs: dict[int, ResourceSpec] = {}
        self._ends: list[tuple[float, int]] = []
        self._numbers = itertools.count()

    def restart(self) -> None:
        """Measure from now on."""
        self._since = self.now
        self._core_s = 0.0
        self.starts = 0
        self.cpu_s = 0.0

    def outcome(self) -> Outcome:
        """Return what was measured."""
        took = self.now - self._since
        return Outcome(self.starts, took, self._core_s / (took * self.space.total_cores), self.cpu_s)

    def submit(self, specs: list[ResourceSpec]) -> None:
        tasks = [(next(self._numbers), spec) for spec in specs]
        self._specs.update(tasks)
        began = time.process_time()
        for task_id, spec in tasks:
            self.queue.add(task_id, spec, self.now)
        self.cpu_s += time.process_time() - began

    def place(self) -> int:
        """Start what can start; return how many."""
        began = time.process_time()
        placed = self.queue.place(self.now)
        self.cpu_s += time.process_time() - began
        for task_id, _ in placed:
            minutes = self._specs.pop(task_id).walltime_min
            assert minutes is not None
            heapq.heappush(self._ends, (self.now + minutes * 60, task_id))
        self.starts += len(placed)
        return len(placed)

    def end_next(self) -> bool:
        """Let time pass until something ends; False if nothing runs."""
        if not self._ends:
            return False
        self._core_s += (self.space.total_cores - self.space.free_cores) * (self._ends[0][0] - self.now)
        self.now = self._ends[0][0]
        ended = []
        while self._ends and self._ends[0][0] == self.now:
            ended.append(heapq.heappop(self._ends)[1])
        began = time.process_time()
        for task_id in ended:
            self.space.give_back(task_id)
        self.cpu_s += time.process_time() - began
        return True


def minutes(rng: random.Random) -> float:
    return log_uniform(rng, SHORTEST_MIN, LONGEST_MIN)


def log_uniform(rng: random.Random, least: float, most: float) -> float:
    return math.exp(rng.uniform(math.log(least), math.log(most)))


def mixture(rng: random.Random, widest: int, cores: int, one_core: float, few_cores: float) -> Iterator[ResourceSpec]:
    """Yield tasks for ever: of one core, of a few, and of 1 to `widest` nodes, those with as many small as large."""
    while True:
        kind = rng.random()
        if kind < one_core:
            yield ResourceSpec(walltime_min=minutes(rng))
        elif kind < one_core + few_cores:
            yield ResourceSpec(cores_per_rank=int(log_uniform(rng, 2, cores)), walltime_min=minutes(rng))
        else:
            count = min(widest, int(log_uniform(rng, 1, widest + 1)))
            yield ResourceSpec(num_nodes=count, cores_per_rank=cores if count == 1 else None, walltime_min=minutes(rng))


def lower_bound_s(specs: list[ResourceSpec], nodes: int, cores: int) -> float:
    """Return a time that no schedule can beat: of all the work, the longest task, and those that exclude each other."""
    work = sum(spec.num_nodes * spec.cores_on(cores) * (spec.walltime_min or 0.0) for spec in specs)
    wide = sum(spec.walltime_min or 0.0 for spec in specs if spec.num_nodes > nodes / 2)
    longest = max(spec.walltime_min or 0.0 for spec in specs)
    return 60 * max(work / (nodes * cores), wide, longest)


def run_ensemble(specs: list[ResourceSpec], nodes: int, cores: int) -> Outcome:
    """Run an ensemble that is ready at the start to its end."""
    block = Block(nodes, cores)
    block.submit(specs)
    block.place()
    while block.end_next():
        block.place()
    assert block.starts == len(specs)
    return block.outcome()


def run_stream(specs: Iterator[ResourceSpec], nodes: int, cores: int, backlog: int, starts: int) -> Outcome:
    """Keep a number of tasks waiting; measure from when the block is full and its first tasks have ended."""
    block = Block(nodes, cores)

    def refill() -> int:
        block.submit(list(itertools.islice(specs, backlog - len(block.queue))))
        return block.place()

    while refill():
        pass
    for wanted in (starts // 4, starts):
        block.restart()
        while block.starts < wanted:
            block.end_next()
            refill()
    return block.outcome()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--tasks-per-node", type=int, nargs="+", default=[16])
    parser.add_argument("--cores", type=int, default=64, help="of each node")
    parser.add_argument("--backlog", type=int, default=10_000, help="tasks that wait, of the stream")
    parser.add_argument("--starts", type=int, default=50_000, help="tasks to measure, of the stream")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    print(f"Mixed ensemble, all ready at the start, durations known (goal: utilisation >= {GOAL_UTILISATION})")
    print(f"{'nodes':>6} {'tasks':>8} {'bound':>10} {'makespan':>10} {'utilisation':>12} {'decisions/s':>12}")
    for nodes, per_node in itertools.product(options.nodes, options.tasks_per_node):
        tasks = mixture(random.Random(options.seed), nodes, options.cores, ONE_CORE, FEW_CORES)
        specs = list(itertools.islice(tasks, nodes * per_node))
        bound = lower_bound_s(specs, nodes, options.cores)
        outcome = run_ensemble(specs, nodes, options.cores)
        print(
            f"{nodes:6} {len(specs):8} {bound / 3600:8.1f} h {outcome.took_s / 3600:8.1f} h "
            f"{bound / outcome.took_s:12.3f} {outcome.decisions_per_s:12,.0f}",
            flush=True,
        )

    print(f"\nStream of tasks of 1 core to 4 nodes, more waiting than fits (goal: decisions/s >= {GOAL_DECISIONS:,})")
    print(f"{'nodes':>6} {'starts':>8} {'cores in use':>12} {'decisions/s':>12}")
    for nodes in options.nodes:
        tasks = mixture(random.Random(options.seed), min(4, nodes), options.cores, 0.8, 0.15)
        outcome = run_stream(tasks, nodes, options.cores, options.backlog, options.starts)
        print(f"{nodes:6} {outcome.starts:8} {outcome.busy:12.3f} {outcome.decisions_per_s:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
