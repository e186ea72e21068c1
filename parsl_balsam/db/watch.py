"""How processes of one host hear of each other through a file: who sets its times wakes those who watch it (Linux)."""

from __future__ import annotations

import os

from parsl_balsam.db.descriptors import readable
from parsl_balsam.model.libc import libc

_IN_ATTRIB = 0x4
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Watch:
    """Hears of each `touch` of a file. Its descriptor is readable then."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Become readable when the file was touched."""
        return self._descriptor

    def clear(self) -> None:
        """Forget what was heard."""
        try:
            while os.read(self._descriptor, 4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


def touch(path: str) -> None:
    """Wake all who watch a file."""
    try:
        os.utime(path)
    except OSError:  # those who wait look by themselves, too
        pass


def watch(path: str) -> Watch | None:
    """Begin to watch a file; return None where that does not work."""
    try:
        descriptor = libc.inotify_init1(_FLAGS)
    except AttributeError:  # not Linux
        return None
    if descriptor < 0:  # the user has too many of them
        return None
    found = Watch(descriptor)
    if libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_ATTRIB) >= 0:
        # There are file systems and containers in which nothing is heard.
        touch(path)
        if readable([found], 0.0):
            found.clear()
            return found
    found.close()
    return None
