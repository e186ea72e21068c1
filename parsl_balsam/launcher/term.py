"""For how long a block goes on, and why it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from parsl_balsam.launcher import signals

#: How long before the end of the batch job tasks are told to end, and how long before it the launcher must be gone at
#: the latest, seconds.
_LAST_CALL_S = 15.0
_LAST_WORD_S = 3.0


class Term:
    """The time that a block has.

    Parameters
    ----------
    ends_at
        When its batch job ends, on the monotonic clock; None if no end is known.
    ask_end
        See `parsl_balsam.launcher.signals.warned_end`.
    """

    def __init__(self, ends_at: float | None, ask_end: Callable[[], float | None] | None) -> None:
        self.ends_at = ends_at
        self._ask_end = ask_end
        self._signal: int | None = None  # that has come and was not answered
        #: Why the block ends; None as long as it goes on.
        self.over: str | None = None

    def note_signal(self, number: int) -> None:
        """Take note of a signal that tells this process to end."""
        self._signal = number

    @property
    def signalled(self) -> bool:
        """Whether a signal has come that was not answered."""
        return self._signal is not None

    def look(self) -> str | None:
        """Return why the block ends, as far as signals and the clock tell; None if it goes on."""
        if self._signal is not None:
            number, self._signal = self._signal, None
            if ends_at := signals.warned_end(number, self._ask_end):
                self.ends_at = ends_at
            else:
                self.stop(f"received {signal.Signals(number).name}")
        left = self.time_left(time.monotonic())
        if left is not None and left <= 0:
            self.stop("its batch job is about to end")
        return self.over

    def stop(self, reason: str) -> None:
        """End the block."""
        self.over = self.over or reason

    def time_left(self, now: float) -> float | None:
        """Return how long tasks may still run, seconds; None if no end is known."""
        return None if self.ends_at is None else self.ends_at - _LAST_CALL_S - now

    def patience_until(self, kept: bool, lease_s: float) -> float:
        """Return until when to try to reach the database at the end, on the monotonic clock.

        Parameters
        ----------
        kept
            Whether what it was not told is on disk: then nodes need not wait for longer than a lease.
        """
        lease_over = time.monotonic() + lease_s
        if self.ends_at is None:
            return lease_over
        last_word = self.ends_at - _LAST_WORD_S
        return min(lease_over, last_word) if kept else last_word
