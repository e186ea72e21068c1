"""The last of what a task printed."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

#: How much of a task's output is kept, bytes.
TAIL_BYTES = 16 * 1024

#: A worker's output file is emptied when it is longer than this, bytes.
_FULL_BYTES = 16 * 1024 * 1024


class Capture:
    """A nameless file that is a worker's stdout and stderr."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        # What its mode "a" does not do: without it a write after `take` would leave a gap of zeros before it.
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, fcntl.fcntl(self.fileno(), fcntl.F_GETFL) | os.O_APPEND)

    def fileno(self) -> int:
        """Return the descriptor that the worker writes to. It is in append mode, so `take` needs no seek."""
        return self._file.fileno()

    def take(self) -> str | None:
        """Return the last of what was written since the last time, and forget all of it."""
        if not os.lseek(self.fileno(), 0, os.SEEK_END):  # a fifth of what `fstat` takes, after each task
            return None
        text = _tail(self.fileno())
        os.ftruncate(self.fileno(), 0)
        return text

    def relieve(self) -> None:
        """Keep a task that prints without end from filling the disk: of a full file only the last part stays."""
        if os.fstat(self.fileno()).st_size > _FULL_BYTES:
            last = _tail_bytes(self.fileno())
            os.ftruncate(self.fileno(), 0)
            os.write(self.fileno(), last)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def tail_of_file(path: Path) -> str | None:
    """Return the last of a file, or None if there is nothing to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _tail(descriptor) or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _tail(descriptor: int) -> str:
    return _tail_bytes(descriptor).decode("utf-8", "replace")


def _tail_bytes(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
