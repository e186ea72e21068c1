"""What a table must say of the machine and the programs that it was made with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from parsl_balsam.db.server import Server
from tests.slurm.cluster import PATH

_ABSENT = "none"


def describe(server: Server | None) -> dict[str, str]:
    """Return what matters, by its name."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "parsl_balsam": _commit() or _package("parsl-balsam"),
        "Parsl": _package("parsl"),
        "SQLAlchemy": _package("sqlalchemy"),
        "PostgreSQL": (server.status().version or _ABSENT) if server else _ABSENT,
        "Slurm": _output(["slurmctld", "-V"]).removeprefix("slurm-wlm ") or _ABSENT,
        "HyperQueue": _package("hyperqueue"),
        "executorlib": _package("executorlib"),
    }


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _commit() -> str:
    root = Path(__file__).parent.parent
    return _output(["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"])


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _ABSENT


def _output(command: Sequence[str]) -> str:
    """Return what a program prints; nothing where it does not work."""
    program = shutil.which(command[0], path=PATH)
    if program is None:
        return ""
    return subprocess.run([program, *command[1:]], capture_output=True, text=True).stdout.strip()
