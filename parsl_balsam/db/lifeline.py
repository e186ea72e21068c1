"""How a launcher says that it lives while SQLite is locked or full: the time of a file beside the database.

All processes of an SQLite database are on one host, so all of them see the file, and one clock. It is taken away before
a block is given up, so a launcher that could set its time knows that nobody had given the block up by then.
"""

from __future__ import annotations

import os
from pathlib import Path


class Lifeline:
    """The file of one block."""

    def __init__(self, directory: str, block_id: int) -> None:
        self._path = Path(directory) / f"alive-{block_id}"
        self._taken = Path(directory) / f"alive-{block_id}.over"

    def make(self) -> None:
        """Make the file, if it is missing. By itself it says nothing.

        Raises
        ------
        OSError
            If it cannot be made.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        os.utime(self._path, times=(0, 0))

    def renew(self, at: float) -> None:
        """Say that the launcher lived at a time, seconds since the epoch.

        Raises
        ------
        OSError
            If nobody may rely on it: the block was given up, or the file is lost.
        """
        os.utime(self._path, times=(at, at))
        # The kernel may have found the file just before it was taken away, and set its time after that was read.
        self._path.stat()

    def cut(self, lease_s: float, now: float) -> bool:
        """Take the file away if its time is longer ago than a lease; return whether the block may be given up."""
        if self._heard_at(self._path, self._taken) + lease_s > now:
            return False
        try:
            # Looked at again where the launcher cannot reach it: it may have set the time a moment ago.
            self._path.rename(self._taken)
        except OSError:
            return True
        if self._heard_at(self._taken) + lease_s > now:
            self._taken.rename(self._path)
            return False
        return True

    def remove(self) -> None:
        """Remove all that is left."""
        for path in (self._path, self._taken):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # the directory cannot be seen from here
                pass

    @staticmethod
    def _heard_at(*paths: Path) -> float:
        times = [0.0]
        for path in paths:
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                pass
        return max(times)
