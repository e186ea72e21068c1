"""New events, each once, for those who watch."""

from __future__ import annotations

import time

from parsl_balsam.db.connect import Database
from parsl_balsam.db.history import Event, events_after
from parsl_balsam.db.postgres import POSTGRES_IDLE_IN_TRANSACTION_S

#: An event with a lower id than others may be committed after them by this time, seconds.
_LATE_S = 2.0 * POSTGRES_IDLE_IN_TRANSACTION_S

#: So many ids below the newest are waited for.
_LATE_IDS = 10_000


class EventFeed:
    """What happens after some events, to one task or to all.

    PostgreSQL numbers events before they are committed. So an id that is missing below the newest one is asked for
    again for a while: its transaction may still be under way. Those that were rolled back never come.

    Parameters
    ----------
    known
        The last events that were seen, in order.
    """

    def __init__(self, database: Database, task_id: int | None, known: list[Event]) -> None:
        self._database = database
        self._task_id = task_id
        self._newest = known[0].id - 1 if known else 0
        self._missing: dict[int, float] = {}  # and until when they are waited for, on the monotonic clock
        self._note(known, time.monotonic())

    def new(self) -> list[Event]:
        """Return what happened since the last time."""
        now = time.monotonic()
        self._missing = {event_id: until for event_id, until in self._missing.items() if until > now}
        found = events_after(self._database, self._newest, list(self._missing), self._task_id)
        self._note(found, now)
        return found

    def _note(self, found: list[Event], now: float) -> None:
        if not found:
            return
        newest = max(self._newest, found[-1].id)
        if (
            self._task_id is None
        ):  # a task's row is locked while its event is numbered, so those of one task are in order
            for event_id in range(max(self._newest + 1, newest - _LATE_IDS), newest):
                self._missing[event_id] = now + _LATE_S
            for event in found:
                self._missing.pop(event.id, None)
        self._newest = newest
