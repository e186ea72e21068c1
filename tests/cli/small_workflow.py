"""Tasks that end in every way. Arguments: a database, a run directory, and "linger" to wait for one without an end."""

from __future__ import annotations

import sys

import parsl
from parsl.app.app import bash_app, python_app

from parsl_balsam import BalsamExecutor, cancel


@python_app
def double(x: int) -> int:
    return 2 * x


@python_app
def fails(what: str) -> None:
    raise ValueError(f"no value for {what}")


@bash_app
def leaves(code: int) -> str:
    return f"printf 'before the end\\n\\033[2J'; exit {code}"


@python_app
def waits() -> None:
    import time

    time.sleep(600)


def end_in_every_way() -> None:
    waiting = waits()
    ending = [double(1), double(2), double(3), fails("anything"), leaves(3)]
    for future in ending:
        future.exception()
    cancel(waiting)
    waiting.exception()


def linger() -> None:
    waiting = waits()
    print("linger", flush=True)
    waiting.exception()


if __name__ == "__main__":
    database, run_dir, how = sys.argv[1:]
    executor = BalsamExecutor(
        workflow="small", database=database, max_retries=1, cores_per_node=2, lease_s=30 if how == "every way" else 1
    )
    with parsl.load(parsl.Config(executors=[executor], run_dir=run_dir)):
        linger() if how == "linger" else end_in_every_way()
