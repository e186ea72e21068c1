"""A user's script: ``workflow.py SUBJECT URL WORK OPTIONS`` loads Parsl with one executor, works, and tells how long.

Parsl is imported late, so that it can be told how long that takes.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

WIDTH = 2

#: More often than by default, 5 s, at which the first block is requested by Parsl. Not where that is measured.
STRATEGY_PERIOD_S = 0.5


def no_op() -> None:
    """Do nothing."""


def true() -> str:
    """Do nothing, in a shell."""
    return "true"


def pause(seconds: float) -> None:
    """Take a time."""
    import time

    time.sleep(seconds)


def echo(data: bytes) -> bytes:
    """Give back what came."""
    return data


def numbered(number: int) -> None:
    """Do nothing, in a call unlike the others."""


def interrupted(marker: str) -> float:
    """Take very long the first time, and tell at once when the second time began."""
    import os
    import time

    began = time.time()
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return began
    time.sleep(3600)
    return began


def executor(subject: str, url: str, blocks: int, options: dict[str, Any]) -> Any:
    """Return what is measured, with its defaults apart from the width."""
    from parsl.providers import LocalProvider

    if subject == "htex":
        from parsl.executors import HighThroughputExecutor

        provider = LocalProvider(init_blocks=blocks, min_blocks=blocks, max_blocks=blocks)
        return HighThroughputExecutor(max_workers_per_node=WIDTH, encrypted=False, provider=provider)
    from parsl_balsam import BalsamExecutor

    if blocks != 1:
        options["provider"] = LocalProvider(init_blocks=blocks, min_blocks=blocks, max_blocks=blocks)
    return BalsamExecutor(database=url, cores_per_node=WIDTH, **options)


def load(
    subject: str,
    url: str,
    logging: bool = False,
    warm: bool = True,
    blocks: int = 1,
    strategy_period: float = STRATEGY_PERIOD_S,
    **options: Any,
) -> Any:
    """Load Parsl; return when all workers have run something."""
    import parsl
    from parsl import python_app

    config = parsl.Config(
        executors=[executor(subject, url, blocks, options)],
        run_dir="runinfo",
        initialize_logging=logging,
        strategy_period=strategy_period,
    )
    kernel = parsl.load(config)
    if warm:
        wait_for([python_app(pause)(0.01) for _ in range(20)])
    return kernel


def wait_for(calls: list[Any]) -> None:
    for call in calls:
        call.result()


def timed(app: Callable[..., Any], *arguments: tuple[Any, ...]) -> float:
    """Return how long calls take altogether, seconds."""
    began = time.perf_counter()
    wait_for([app(*given) for given in arguments])
    return time.perf_counter() - began


def throughput(subject: str, url: str, python: int, bash: int, logging: bool = False) -> dict[str, float]:
    """Return tasks a second, of each kind that is wanted."""
    from parsl import bash_app, python_app

    found = {}
    with load(subject, url, logging):
        if python:
            found["python"] = python / timed(python_app(no_op), *[()] * python)
        if bash:
            app = bash_app(true)
            timed(app, *[()] * 10)
            found["bash"] = bash / timed(app, *[()] * bash)
    return found


def computing(subject: str, url: str, tasks: int) -> dict[str, float]:
    """Return tasks a second while the script itself computes, in Python."""
    from parsl import python_app

    app = python_app(no_op)
    with load(subject, url):
        began = time.perf_counter()
        calls = [app() for _ in range(tasks)]
        while not all(call.done() for call in calls):
            for _ in range(100_000):
                pass
        return {"rate": tasks / (time.perf_counter() - began)}


def latency(subject: str, url: str, calls: int, sleeps: dict[str, int]) -> dict[str, Any]:
    """Return how long each call took when the one before was over, milliseconds.

    Also the ideal time over the time taken, for numbers of tasks by their duration in seconds, with all workers busy.
    """
    from parsl import bash_app, python_app

    found: dict[str, Any] = {}
    with load(subject, url):
        for kind, app in (("python", python_app(no_op)), ("bash", bash_app(true))):
            timed(app, *[()] * 10)
            found[kind] = [1000 * timed(app, ()) for _ in range(calls)]
        for seconds, count in sleeps.items():
            ideal = count * float(seconds) / WIDTH
            found[seconds] = ideal / timed(python_app(pause), *[(float(seconds),)] * count)
    return found


def startup(subject: str, url: str) -> dict[str, float]:
    """Return how long imports take, milliseconds, and then loading and one call, seconds."""
    began = time.perf_counter()
    import parsl

    parsl_s = time.perf_counter() - began
    began = time.perf_counter()
    if subject == "htex":
        from parsl.executors import HighThroughputExecutor  # noqa: F401
    else:
        from parsl_balsam import BalsamExecutor  # noqa: F401
    executor_s = time.perf_counter() - began
    app = parsl.python_app(no_op)
    began = time.perf_counter()
    with load(subject, url, warm=False, strategy_period=5):
        app().result()
        first_s = time.perf_counter() - began
    return {"parsl_ms": 1000 * parsl_s, "executor_ms": 1000 * executor_s, "first_s": first_s}


def payloads(subject: str, url: str, tasks: dict[str, int]) -> dict[str, float]:
    """Return milliseconds a task, for numbers of tasks by the bytes of argument and result."""
    from parsl import python_app

    app = python_app(echo)
    found = {}
    with load(subject, url):
        for size, count in tasks.items():
            data = os.urandom(int(size))
            found[size] = 1000 * timed(app, *[(data,)] * count) / count
    return found


def waiting(subject: str, url: str, tasks: int) -> dict[str, float]:
    """Return the memory of this process for each call that waits, bytes."""
    import psutil
    from parsl import python_app

    app = python_app(no_op)

    def resident() -> int:
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    def handed_over() -> bool:
        submitted = [call.task_record["exec_fu"] for call in calls]
        return all(call is not None and (subject == "htex" or call.task_id) for call in submitted)

    with load(subject, url, warm=False, blocks=0):
        calls = [app() for _ in range(100)]
        wait_until(handed_over)
        before = resident()
        calls += [app() for _ in range(tasks)]
        wait_until(handed_over)
        found = {"bytes": (resident() - before) / tasks}
        print(json.dumps(found), flush=True)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(0)  # what waits is of no use any more, and its end would take long


def recorded(subject: str, url: str, tasks: int) -> dict[str, float]:
    """Return the seconds that each call of a workflow takes, without those of starting."""
    from parsl import python_app

    app = python_app(numbered)
    with load(subject, url, workflow="benchmark"):
        return {"seconds": timed(app, *[(number,) for number in range(tasks)]) / tasks}


def recovery(subject: str, url: str, lease_s: float, seed: int) -> dict[str, float]:
    """Kill the launcher of a busy block; return when its tasks ran again in another, in leases."""
    from parsl import python_app
    from sqlalchemy import select

    from parsl_balsam.db.connect import open_database
    from parsl_balsam.db.schema import attempts, blocks

    app = python_app(interrupted)
    with load(subject, url, warm=False, blocks=2, lease_s=lease_s):
        database = open_database(url, create=False)

        def rows(query: Any) -> list[Any]:
            with database.read() as connection:
                return list(connection.execute(query))

        wait_until(lambda: len(rows(select(blocks).where(blocks.c.nodes.is_not(None)))) == 2)
        calls = [app(os.path.abspath(f"began-{number}")) for number in range(WIDTH)]
        wait_until(lambda: all(os.path.exists(f"began-{number}") for number in range(WIDTH)))
        running = select(attempts.c.block_id, blocks.c.pid).join(blocks, blocks.c.id == attempts.c.block_id)
        wait_until(lambda: len(rows(running)) == WIDTH)
        # At any moment between two renewals of the lease.
        time.sleep(random.Random(seed).uniform(0, lease_s / 2))
        victim = rows(running)[0]
        lost = [row for row in rows(running) if row.block_id == victim.block_id]
        killed_at = time.time()
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: sum(call.done() for call in calls) >= len(lost))
        again_at = max(call.result() for call in calls if call.done())
        database.close()
        print(json.dumps({"leases": (again_at - killed_at) / lease_s}), flush=True)
        os._exit(0)  # the others would run for long; they are killed with the rest


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    while not condition():
        time.sleep(0.02)


WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    work.__name__: work for work in (throughput, computing, latency, startup, payloads, waiting, recorded, recovery)
}


def main() -> None:
    subject, url, work, options = sys.argv[1:]
    print(json.dumps(WORKS[work](subject, url, **json.loads(options))), flush=True)


if __name__ == "__main__":
    main()
