"""What a call used: memory and processor time."""

from __future__ import annotations

import os
import resource
from typing import Any

from parsl_balsam.launcher import program
from parsl_balsam.model.tasks import Usage


class Meter:
    """Measures one call after the other in this process, which was forked and has executed no program since.

    Of another one, the kernel also counts what it was before it executed its program, which cannot be reset.
    """

    def __init__(self) -> None:
        try:
            self._reset: int | None = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            self._reset = None
        self._cpu_before = 0.0

    def start(self) -> None:
        """Begin to measure."""
        program.largest = 0
        if self._reset is not None:
            try:
                os.write(self._reset, b"5")  # proc(5): 5 resets the peak resident set size
            except OSError:
                pass
        self._cpu_before = _cpu_time(resource.getrusage(resource.RUSAGE_SELF))

    def stop(self) -> Usage:
        """Return what was used since `start`."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(max(own.ru_maxrss, program.largest) * 1024, _cpu_time(own) - self._cpu_before)


def of_dead_worker(used: Any) -> Usage:
    """Return the usage of a worker that died, from what the kernel says of its whole life."""
    return Usage(peak_memory=used.ru_maxrss * 1024, cpu_time=used.ru_utime + used.ru_stime)


def _cpu_time(own: resource.struct_rusage) -> float:
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + waited.ru_utime + waited.ru_stime
