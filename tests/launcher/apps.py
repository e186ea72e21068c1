"""What the functions of tests use where they run. It imports little, since every rank does so anew."""

from __future__ import annotations

import os
import time
from pathlib import Path

from parsl_balsam.launcher.mpi import rank_of_environment

#: Longer than a test takes if its ranks are ended, seconds.
FOREVER_S = 60.0


class Plain(Exception):
    pass


class DoesNotUnpickle(Exception):
    def __init__(self, number: int, unit: str) -> None:
        super().__init__(f"{number} {unit}")


def rank() -> int:
    """Return the number of this rank."""
    number = rank_of_environment(os.environ)
    assert number is not None
    return number


def others_wait() -> None:
    """Return on rank 1; on the others, do not."""
    if rank() != 1:
        time.sleep(FOREVER_S)


def wait_for_result(number: int, directory: Path) -> None:
    """Return when another rank has returned."""
    until = time.monotonic() + FOREVER_S
    while not list(directory.glob(f"ranks-*/result-{number}")):
        assert time.monotonic() < until
        time.sleep(0.01)
