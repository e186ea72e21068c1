"""``others.py hyperqueue|executorlib TASKS``: no-op tasks a second and their latency in other systems."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

WIDTH = 2


def no_op() -> None:
    """Do nothing."""


def hyperqueue(tasks: int) -> dict[str, float]:
    """Jobs of Python functions, each of which is a process, and of programs, in a cluster of one worker.

    Its client looks once a second whether a job is over, so there is no latency to be told.
    """
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    with LocalCluster(os.path.abspath("hyperqueue")) as cluster:
        cluster.start_worker(WorkerConfig(cores=WIDTH))
        client = cluster.client()

        def run(add: Callable[[Job], object], count: int) -> float:
            began = time.perf_counter()
            job = Job()
            for _ in range(count):
                add(job)
            client.wait_for_jobs([client.submit(job)])
            return time.perf_counter() - began

        def python(job: Job) -> object:
            return job.function(no_op, stdout=None, stderr=None)

        def bash(job: Job) -> object:
            return job.program(["bash", "-c", "true"], stdout=None, stderr=None)

        run(python, WIDTH)
        few = tasks // 10
        return {
            "python": few / run(python, few),
            "bash": tasks / run(bash, tasks),
        }


def executorlib(tasks: int) -> dict[str, float]:
    """Calls in processes that stay, which is its fast way."""
    from executorlib import SingleNodeExecutor

    with SingleNodeExecutor(max_workers=WIDTH, block_allocation=True) as executor:

        def run(count: int) -> float:
            began = time.perf_counter()
            for future in [executor.submit(no_op) for _ in range(count)]:
                future.result()
            return time.perf_counter() - began

        run(10)
        return {
            "python": tasks / run(tasks),
            "latency_ms": 1000 * statistics.median(run(1) for _ in range(100)),
        }


def main() -> None:
    measure = {"hyperqueue": hyperqueue, "executorlib": executorlib}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]))))


if __name__ == "__main__":
    main()
