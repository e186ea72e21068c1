"""Which process drives a workflow, and whether it still lives."""

from __future__ import annotations

import os
import platform

import psutil

from parsl_balsam.db.runs import Driver


def this_process() -> Driver:
    """Return this process as a driver."""
    return Driver(platform.node(), _host_key(), os.getpid(), psutil.Process().create_time())


def is_dead(driver: Driver) -> bool:
    """Tell whether a driver is known to be dead. One on another host may be either, and is not known to be."""
    if driver.host_key != _host_key():
        return False
    try:
        process = psutil.Process(driver.pid)
        # The kernel counts starts in clock ticks, and boot time is adjusted a little now and then.
        another = abs(process.create_time() - driver.pid_started) > 1.0
        return bool(another or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _host_key() -> str:
    """Tell hosts apart, boots of a host, and containers on it, which number their processes each for itself."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()} {psutil.boot_time():.0f}"
