"""What a call used: memory and processor time."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import Any

from parsl_balsam.model.tasks import Usage

#: The largest peak among the programs that this process waited for since the meter started, kilobytes.
_largest_child = 0


class MeteredPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that notes the memory each program used.

    The kernel tells a parent the peak over all children it ever had, which says nothing of one task of many. It tells
    the peak of a single one only at the moment it is waited for.
    """

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        global _largest_child
        try:
            pid, status, used = os.wait4(self.pid, wait_flags)
        except ChildProcessError:  # as the method it replaces: someone else waited for it
            return self.pid, 0
        if pid:
            _largest_child = max(_largest_child, used.ru_maxrss)
        return pid, status


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
        global _largest_child
        _largest_child = 0
        if self._reset is not None:
            try:
                os.write(self._reset, b"5")  # proc(5): 5 resets the peak resident set size
            except OSError:
                pass
        self._cpu_before = _cpu_time(resource.getrusage(resource.RUSAGE_SELF))

    def stop(self) -> Usage:
        """Return what was used since `start`."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(max(own.ru_maxrss, _largest_child) * 1024, _cpu_time(own) - self._cpu_before)


def of_dead_worker(used: Any) -> Usage:
    """Return the usage of a worker that died, from what the kernel says of its whole life."""
    return Usage(peak_memory=used.ru_maxrss * 1024, cpu_time=used.ru_utime + used.ru_stime)


def _cpu_time(own: resource.struct_rusage) -> float:
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + waited.ru_utime + waited.ru_stime
