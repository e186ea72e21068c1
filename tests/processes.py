"""The processes of this host, as they are now."""

from __future__ import annotations

from collections.abc import Iterator

import psutil


def all_processes() -> Iterator[psutil.Process]:
    """Return all processes.

    Not by `psutil.process_iter`: it keeps what it has returned, by pid. A process that got the pid of one which a test
    before this one has seen looks right there, and raises `NoSuchProcess` at every signal.
    """
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue
        yield process
