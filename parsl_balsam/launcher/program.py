"""The programs that a task starts: what memory each used, and a shorter way to start those of bash apps."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

#: How Parsl starts the command of a bash app.
_OF_BASH_APPS = {"stdout", "stderr", "shell", "executable", "close_fds"}
_BASH = "/bin/bash"

#: Signals that Python ignores, which `subprocess` gives back to programs.
_GIVEN_BACK = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ") if hasattr(signal, name)]

#: Values of these kinds can be shared by several objects.
_CONSTANTS = frozenset({type(None), bool, int, float, str})

#: No wait in `poll` is longer, seconds: it takes milliseconds, in 31 bits.
_LONGEST_S = 1e6

#: The largest peak among the programs that this process waited for since this was last set to 0, kilobytes.
largest = 0

#: What `subprocess` has set in an object that started a bash app's command; None as long as there was none.
_usual: dict[str, Any] | None = None


class MeteredPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that notes the memory each program used.

    The kernel tells a parent the peak over all children it ever had, which says nothing of one task of many. It tells
    the peak of a single one only at the moment it is waited for.
    """

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        files = _files(args, options) if type(self) is MeteredPopen and not more else None
        if files is None or _usual is None:
            super().__init__(args, *more, **options)
            if files is not None:
                self._take_as_usual()
        else:
            self._start_bash(args, files, _usual)

    def _start_bash(self, command: str, files: list[tuple[int, int, int]], usual: dict[str, Any]) -> None:
        """Do what `subprocess` does, with the same system calls. It takes longer to look at all other options."""
        subprocess._cleanup()  # type: ignore[attr-defined]
        words = [_BASH, "-c", command]
        sys.audit("subprocess.Popen", _BASH, words, None, None)
        environ: Any = os.environ
        if type(environ) is os._Environ:
            # What it is a view of, by way of Python code for each name.
            environ = environ._data  # type: ignore[attr-defined]
        self.pid = os.posix_spawn(_BASH, words, environ, file_actions=files, setsigdef=_GIVEN_BACK)
        self.__dict__.update(usual, args=command, _waitpid_lock=threading.Lock())

    def _take_as_usual(self) -> None:
        """Have the objects that follow be what this one is, which `subprocess` has just made."""
        global _usual
        found = {name: value for name, value in vars(self).items() if name not in ("pid", "args", "_waitpid_lock")}
        if {type(value) for value in found.values()} <= _CONSTANTS:
            _usual = found

    def _wait(self, timeout: float | None) -> int:
        """Wait, without looking every 50 ms whether a program that has a limit is over."""
        if timeout is None or self.returncode is not None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        until = time.monotonic() + timeout
        _wait_for(self.pid, timeout)
        try:
            return super()._wait(max(0.0, until - time.monotonic()))  # type: ignore[misc,no-any-return]
        except subprocess.TimeoutExpired as expired:
            expired.timeout = timeout
            raise

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        global largest
        try:
            pid, status, used = os.wait4(self.pid, wait_flags)
        except ChildProcessError:  # as the method it replaces: someone else waited for it
            return self.pid, 0
        if pid:
            largest = max(largest, used.ru_maxrss)
        return pid, status


def _files(args: Any, options: dict[str, Any]) -> list[tuple[int, int, int]] | None:
    """Return what is to be done about the files of a bash app's command; None for any other program."""
    if (
        options.keys() != _OF_BASH_APPS
        or type(args) is not str
        or options["executable"] != _BASH
        or options["shell"] is not True
        or options["close_fds"] is not False
        or not subprocess._USE_POSIX_SPAWN
    ):
        return None
    found: list[tuple[int, int, int]] = []
    for number, file in ((1, options["stdout"]), (2, options["stderr"])):
        if file is None:
            continue
        if isinstance(file, int) or (descriptor := file.fileno()) <= 2:
            return None
        found.append((os.POSIX_SPAWN_DUP2, descriptor, number))
    return found


def _wait_for(pid: int, timeout: float) -> None:
    """Return when a child has ended, or after a time, in seconds; at once where the kernel cannot tell."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return
    try:
        end = select.poll()
        end.register(descriptor, select.POLLIN)
        end.poll(1000 * min(max(0.0, timeout), _LONGEST_S))
    finally:
        os.close(descriptor)
