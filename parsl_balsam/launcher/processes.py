"""Process trees: who inherits orphans, and how everything a task started is ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path

from parsl_balsam.model.libc import libc, why_it_failed

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def inherit_orphans() -> None:
    """Become the parent of descendants whose own parents end, so that none of them escapes."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent, the process with this pid, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise why_it_failed()


def close_sockets(spare: int) -> None:
    """Close, in a forked process, what its parent's libraries have open for connections of their own, except one.

    ZeroMQ's sockets and events are among them. A task that found and used one would break the parent's line.
    """
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            continue
        if int(name) not in (0, 1, 2, spare) and kind.startswith(("socket:", "anon_inode:[event")):
            os.close(int(name))


def children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    found: set[int] = set()
    try:
        for thread in Path("/proc/self/task").iterdir():
            found.update(map(int, (thread / "children").read_text().split()))
    except FileNotFoundError:  # a thread that has just ended, or a kernel without CONFIG_PROC_CHILDREN
        import psutil

        found = {process.pid for process in psutil.Process().children()}
    return found


def descendants(pid: int) -> list[int]:
    """Return the pids of all that a process has started and they have, as far as they have not lost their parents."""
    import psutil

    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(name: str, value: str, *, start: bool = False) -> list[int]:
    """Return the pids of the processes on this host that were started with an environment variable of this value.

    Parameters
    ----------
    start
        Whether it is enough that the variable's value starts so.
    """
    entry = f"\0{name}={value}{'' if start else chr(0)}".encode()
    found: list[int] = []
    for process in os.scandir("/proc"):
        if not process.name.isdigit():
            continue
        try:
            with open(f"/proc/{process.name}/environ", "rb") as file:
                if entry in b"\0" + file.read():
                    found.append(int(process.name))
        except OSError:  # it has ended, or is somebody else's
            pass
    return found


def has_children() -> bool:
    """Tell, at the price of one system call, whether this process has any child."""
    # Not `os.waitid`, which raises an exception where there is none, as after nearly every task.
    return bool(libc.waitid(os.P_ALL, 0, None, os.WEXITED | os.WNOHANG | os.WNOWAIT) == 0)


def kill(pid: int) -> None:
    """Kill a process and its process group, whichever of them is still there."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def sweep(spare: Collection[int] = ()) -> bool:
    """Kill all children but the spared ones; return whether none was left.

    The orphans that a killed child leaves become children of this process, so the caller repeats it until none is left.
    """
    unwanted = children().difference(spare)
    for pid in unwanted:
        kill(pid)
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    return not unwanted


def sweep_all(spare: Collection[int] = ()) -> None:
    """Kill all children but the spared ones, and theirs, and wait until they are gone."""
    while unwanted := children().difference(spare):
        for pid in unwanted:
            kill(pid)
        for pid in unwanted:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
