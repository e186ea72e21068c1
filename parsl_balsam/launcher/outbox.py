"""Ends of attempts on their way to the database: kept until it has acknowledged them, on disk if that takes long."""

from __future__ import annotations

import logging
import time

from parsl_balsam.db.wills import add_to_will, remove_will
from parsl_balsam.model.tasks import AttemptEnd

logger = logging.getLogger(__name__)

#: An end that the database has not acknowledged after this time is written to disk, seconds.
KEEP_S = 2.0


class Outbox:
    """What one launcher has to report of attempts that are over."""

    def __init__(self, directory: str, block_id: int) -> None:
        self._directory = directory
        self._block_id = block_id
        self._waiting: list[AttemptEnd] = []  # for the next exchange
        self._sent: list[AttemptEnd] = []  # with an exchange that is under way
        self._kept: set[int] = set()  # tasks whose ends are on disk
        self._on_disk = False
        self._keep_at: float | None = None
        self._failed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def append(self, end: AttemptEnd) -> None:
        """Report an end with the next exchange."""
        self._waiting.append(end)
        if self._keep_at is None:
            self._keep_at = time.monotonic() + KEEP_S

    def send(self) -> list[AttemptEnd]:
        """Return what is to be reported now."""
        self._sent, self._waiting = self._waiting, []
        return self._sent

    def acknowledge(self) -> None:
        """Forget what was sent: it is in the database."""
        self._sent = []
        self._keep_at = time.monotonic() + KEEP_S if self._waiting else None
        if self._on_disk:
            self._kept.clear()
            self._on_disk = False
            remove_will(self._directory, self._block_id)

    def look_at(self) -> float:
        """Return when something is to be written to disk, on the monotonic clock."""
        return float("inf") if self._keep_at is None else self._keep_at

    def keep(self, now: float) -> None:
        """Write what has waited for long to disk, so that it outlives this process."""
        if self._keep_at is not None and now >= self._keep_at:
            self._keep_at = now + KEEP_S
            self._write(None)

    def bequeath(self, reason: str) -> bool:
        """Write all to disk, and why the launcher ends; return whether that worked."""
        return self._write(reason)

    def _write(self, reason: str | None) -> bool:
        new = [end for end in (*self._sent, *self._waiting) if end.task_id not in self._kept]
        if not new and reason is None:
            return True
        self._on_disk = True
        try:
            add_to_will(self._directory, self._block_id, new, reason)
        except OSError as error:
            if not self._failed:
                logger.warning("%d results wait for the database, and cannot be written to disk: %s", len(new), error)
            self._failed = True
            return False
        self._kept.update(end.task_id for end in new)
        self._failed = False
        return True
