"""Points at which tests stop a process: just before and just after each commit. Off unless the environment names one.

``BALSAM_CRASH_AT=exchange:after:3`` kills the process that has committed its third exchange, and
``exchange:before:3:SIGSTOP`` freezes it before that. ``BALSAM_CRASH_ONCE`` is a file that is made then; while it is
there nobody is stopped, so the processes that come after, which inherit the variables, go on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Moment(str, Enum):
    """Where in a transaction."""

    BEFORE = "before"  # all is written and nothing committed
    AFTER = "after"  # all is committed and nobody told


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """One moment in the life of a process."""

    transaction: str  #: as in `Database.begin`
    moment: Moment
    count: int  #: at which passing
    signal: signal.Signals
    once: Path | None  #: made when it happens; it does not happen again while this is there

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> CrashPoint | None:
        """Return the point that an environment names, if it does."""
        if not (named := environ.get("BALSAM_CRASH_AT")):
            return None
        transaction, moment, *rest = named.split(":")
        count, name = [*rest, *("1", "SIGKILL")[len(rest) :]]
        once = environ.get("BALSAM_CRASH_ONCE")
        return cls(transaction, Moment(moment), int(count), signal.Signals[name], Path(once) if once else None)


_point = CrashPoint.read(os.environ)
_passed: Counter[tuple[str, Moment]] = Counter()


def is_point(transaction: str) -> bool:
    """Tell whether this process may be stopped at a transaction: then all must be written before its commit."""
    return _point is not None and transaction == _point.transaction


def pass_point(transaction: str, moment: Moment) -> None:
    """Stop this process here, if that is wanted."""
    if _point is None or (transaction, moment) != (_point.transaction, _point.moment):
        return
    _passed[transaction, moment] += 1
    if _passed[transaction, moment] < _point.count:
        return
    if _point.once is not None:
        try:
            os.close(os.open(_point.once, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
    # To this thread: if another one received SIGSTOP for the process, this one would go on for a moment, and commit.
    signal.pthread_kill(threading.get_ident(), _point.signal)
