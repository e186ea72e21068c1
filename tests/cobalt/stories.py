"""What tests do with jobs of the stand-in: submit, wait, see what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from tests.cobalt.cobalt import Cobalt, until
from tests.cobalt.questions import user_name

T = TypeVar("T")

#: A script that is there until it is killed, and notes what it is told.
PATIENT = """
    trap 'echo told; exit 7' TERM
    echo begun
    sleep 1000 & wait
"""

#: A script that stays when it is told to end.
STUBBORN = """
    trap 'echo told' TERM
    echo begun
    while true; do sleep 0.02; done
"""

NORMAL_LIFE = ["queued", "starting", "running", "exiting", "gone"]

#: Ends of logs.
KILLED = f"Info: user delete requested with signal SIGTERM by user {user_name()}"
OUT_OF_TIME = "Info: maximum execution time exceeded; initiating job termination"


def submit(cobalt: Cobalt, script: Path, *options: str, args: tuple[str, ...] = ()) -> str:
    """Submit a script of a directory from there, for one node and ten minutes if nothing else is said."""
    job = cobalt.run("qsub", "-n", "1", "-t", "10", *options, str(script), *args, cwd=script.parent)
    return job.removesuffix("\n")


def finish(cobalt: Cobalt, job: str) -> str:
    """Wait for a job's end; return what came of it: the end of its log, without the time."""
    cobalt.wait_for(job, "gone")
    return last_line(cobalt, job)


def last_line(cobalt: Cobalt, job: str) -> str:
    """Return the last line of a job's log, without the time, as soon as it tells of an end."""
    ends = ("exit code", "termination", "user delete", "resources released")
    until(lambda: any(end in cobalt.log(job) for end in ends), lambda: cobalt.log(job))
    return cobalt.log(job).splitlines()[-1].partition(") ")[2]


def output(script: Path, job: str, suffix: str = "output") -> str:
    path = script.parent / f"{job}.{suffix}"
    return path.read_text() if path.exists() else ""


def start(cobalt: Cobalt, script: Path, *options: str) -> str:
    """Submit a script and wait until it says that it has begun."""
    job = submit(cobalt, script, *options)
    until(lambda: "begun" in output(script, job))
    return job


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    gone = psutil.STATUS_ZOMBIE
    return [each for each in processes if each.is_running() and (_seen(each.status) or gone) != gone]


def names(processes: Iterable[psutil.Process]) -> list[str]:
    return [name for each in processes if (name := _seen(each.name))]


def found(pids: Iterable[int]) -> list[psutil.Process]:
    return [process for pid in pids if (process := _seen(partial(psutil.Process, pid)))]


def _seen(look: Callable[[], T]) -> T | None:
    """Return what is seen of a process; None if it has ended meanwhile."""
    try:
        return look()
    except psutil.NoSuchProcess:
        return None


def completed(code: int) -> str:
    return f"Info: task completed normally with an exit code of {code}; initiating job cleanup and removal"
