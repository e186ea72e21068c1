"""The history: every change of a task's state is written in the transaction that makes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from parsl_balsam.db.schema import events
from parsl_balsam.db.statement import Statement
from parsl_balsam.model.states import TaskState


@dataclass(frozen=True, slots=True)
class Change:
    """A task came into a state."""

    task_id: int
    state: TaskState
    at: float  #: seconds since the epoch, on the database's clock
    why: str


def write_events(connection: Connection, who: str, changes: Iterable[Change]) -> None:
    """Write what a run, a block or a user did."""
    rows = [
        {"task_id": change.task_id, "at": change.at, "state": change.state.value, "who": who, "why": change.why}
        for change in changes
    ]
    if rows:
        _INSERT.run_each(connection, rows)


_INSERT = Statement(events.insert(), "task_id", "at", "state", "who", "why")
