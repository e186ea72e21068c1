"""What became of tasks, as the run that waits for them reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, bindparam, or_, select

from parsl_balsam.db.among import among
from parsl_balsam.db.copying import select_rows, short
from parsl_balsam.db.schema import attempts, results, tasks
from parsl_balsam.db.statement import Statement
from parsl_balsam.model.states import TERMINAL, Outcome, TaskState
from parsl_balsam.model.tasks import FinishedTask

_FINISHED = sorted(state.value for state in TERMINAL)


def fetch(connection: Connection, ids: Sequence[int]) -> list[FinishedTask]:
    """Return those of some tasks that are over, with what they returned or raised."""
    if not ids:
        return []
    rows = select_rows(connection, _FETCH, ids=list(ids))
    return [
        FinishedTask(
            row.id, TaskState(row.state), row.payload, Outcome(row.outcome) if row.outcome else None, row.error
        )
        for row in rows
    ]


def fetch_since(
    connection: Connection, workflow_id: int, finish: int, choose: Callable[[list[int]], list[int]], most: int
) -> tuple[list[FinishedTask], list[int], int]:
    """Do what `parsl_balsam.db.tasks.TaskStore.fetch_since` does, most often by one statement."""
    rows = first = _FIRST_SINCE.rows(connection, workflow=workflow_id, number=finish, most=most)
    if len(first) == most:
        rows = _FINISHED_SINCE.rows(connection, workflow=workflow_id, number=finish)
    chosen = choose([row.id for row in rows])
    finish = max((row.finish for row in rows), default=finish)
    at_hand = {row.id: row.payload for row in first if row.payload is not None}
    found = [
        FinishedTask(task_id, TaskState.DONE, at_hand[task_id], Outcome.DONE, None)
        for task_id in chosen
        if task_id in at_hand
    ]
    others = [task_id for task_id in chosen if task_id not in at_hand]
    room = max(0, most - len(found))
    return found + fetch(connection, others[:room]), others[room:], finish


_since = (tasks.c.workflow_id == bindparam("workflow"), tasks.c.finish > bindparam("number"))
_FINISHED_SINCE = Statement(select(tasks.c.id, tasks.c.finish).where(*_since))

#: Most often that is all there is to know.
_FIRST_SINCE = Statement(
    select(
        tasks.c.id,
        tasks.c.finish,
        select(short(results.c.payload))
        .where(results.c.task_id == tasks.c.id, tasks.c.state == TaskState.DONE.value)
        .scalar_subquery()
        .label("payload"),
    )
    .where(*_since)
    .order_by(tasks.c.finish)
    .limit(bindparam("most"))
)

_FETCH = Statement(
    select(tasks.c.id, tasks.c.state, results.c.payload, attempts.c.outcome, attempts.c.error)
    .outerjoin(results, results.c.task_id == tasks.c.id)
    .outerjoin(attempts, (attempts.c.task_id == tasks.c.id) & (attempts.c.number == tasks.c.attempts))
    .where(among(tasks.c.id, "ids"), or_(*(tasks.c.state == state for state in _FINISHED)))
)
