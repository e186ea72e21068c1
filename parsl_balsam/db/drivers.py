"""Which process drives a workflow, and whether it still lives."""

from __future__ import annotations

import os
import platform

import psutil

from parsl_balsam.db.runs import Driver


def this_process() -> Driver:
    """Return this process as a driver."""
    return Driver(platform.node(), _host_key(), os.getpid(), _look(os.getpid())[0])


def is_dead(driver: Driver) -> bool:
    """Tell whether a driver is known to be dead. One on another host may be either, and is not known to be."""
    if driver.host_key != _host_key():
        return False
    try:
        started, is_over = _look(driver.pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return is_over or started != driver.pid_started


def _look(pid: int) -> tuple[float, bool]:
    """Return when a process started, seconds since boot, and whether it is over and only kept for its parent.

    Not by psutil, which reckons the start by the host's clock: when that is set, every process seems to be another.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # proc_pid_stat(5)
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK"), fields[0] in (b"Z", b"X")


def _host_key() -> str:
    """Tell hosts apart, boots of a host, and containers on it, which number their processes each for itself."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = f"boot {file.read().strip()}"
    except OSError:
        boot = f"{psutil.boot_time():.0f}"
    return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
