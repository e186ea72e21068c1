"""Says once that the database is away, and once that it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from parsl_balsam.model.errors import DatabaseDenied, DatabaseUnavailable

_T = TypeVar("_T")

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


def until_it_answers(
    act: Callable[[], _T], patience_s: float, logger: logging.Logger, stop: Callable[[], bool] = lambda: False
) -> _T:
    """Do something as soon as the database answers; return what it returns.

    Parameters
    ----------
    act
        May be repeated when its outcome is unknown.
    patience_s
        How long the database may be away, seconds.
    stop
        Tells whether there is no point in waiting any more.

    Raises
    ------
    DatabaseUnavailable
        If it does not answer in this time, or no waiting would cure that.
    """
    outage = Outage(logger)
    until = time.monotonic() + patience_s
    while True:
        try:
            done = act()
            outage.over()
            return done
        except DatabaseDenied:
            raise
        except DatabaseUnavailable as error:
            if stop() or time.monotonic() >= until:
                raise
            outage.note(error)
        time.sleep(RETRY_S)
