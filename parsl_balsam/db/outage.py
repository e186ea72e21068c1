"""Says once that the database is away, and once that it is back."""

from __future__ import annotations

import logging

from parsl_balsam.model.errors import DatabaseUnavailable

#: How long a run waits between two tries, seconds.
RETRY_S = 0.5


class Outage:
    """What one thread has seen of an outage. It tries again and again, and the log need not tell of every try."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lasts = False

    def note(self, error: DatabaseUnavailable) -> None:
        """Note that a try failed."""
        if not self._lasts:
            self._lasts = True
            self._logger.warning("the database does not answer; trying until it does: %s", error)

    def over(self) -> None:
        """Note that a try worked."""
        if self._lasts:
            self._lasts = False
            self._logger.warning("the database answers again")
