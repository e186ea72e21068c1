"""What people ask of the database: how far a workflow is, what became of a task, what happened since. It only reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, func, or_, select

from parsl_balsam.db.connect import Database, clock, now
from parsl_balsam.db.runs import of_workflow
from parsl_balsam.db.schema import arguments, attempts, blocks, events, results, tasks, workflows
from parsl_balsam.db.service import open_rooms
from parsl_balsam.model.errors import TaskNotFound, UnreadableRecord
from parsl_balsam.model.shares import Share, read_shares
from parsl_balsam.model.states import Outcome, TaskState
from parsl_balsam.model.waiting import why_it_waits


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task in a list of many."""

    id: int
    workflow: str
    app: str
    state: TaskState
    attempts: int  #: how many were made, the present one included
    done_attempts: int  #: how many of them ended with a result: more than one would be a defect
    nodes: int
    submitted_at: float  #: seconds since the epoch
    run_time_s: float | None  #: of the last attempt, so far if it still runs; None if it never started
    error: str | None  #: last line of the last attempt's error


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt at a task. Times are in seconds since the epoch."""

    number: int
    block_id: int
    block: str  #: Parsl's block id, unique within its run only
    job_id: str | None  #: of the batch system, or of Parsl's provider
    host: str | None
    placement: tuple[Share, ...]  #: what it has, or had, of which nodes
    claimed_at: float
    started_at: float | None
    ended_at: float | None
    outcome: Outcome | None  #: None while it goes on
    exit_code: int | None
    signal: int | None
    peak_memory: int | None  #: bytes
    cpu_time: float | None  #: seconds
    error: str | None  #: traceback, or what the launcher knows
    output: str | None  #: the last of what it printed
    stderr_tail: str | None  #: the last of the file its stderr was redirected to


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a task's state."""

    id: int
    task_id: int
    at: float  #: seconds since the epoch
    state: TaskState  #: the new one
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """All there is to know about one task. Times are in seconds since the epoch."""

    id: int
    workflow: str
    executor: str  #: its label
    run_id: int  #: the last run that asked for it
    app: str
    key: str  #: what the call is, hexadecimal
    occurrence: int  #: how many calls with this key came before it in its run
    function: str  #: digest of the stored function, hexadecimal
    state: TaskState
    cancel_requested: bool
    priority: int
    nodes: int
    spec: dict[str, Any]  #: what its resource specification says differently from a plain task
    stdout: str | None  #: where the user redirected it to
    stderr: str | None
    submitted_at: float
    ready_at: float | None  #: not to be tried again before this
    finished_at: float | None
    budget_from: int  #: attempts up to this number belong to budgets already spent
    arguments_size: int | None  #: bytes
    result_size: int | None  #: bytes
    attempts: tuple[AttemptRecord, ...]
    events: tuple[Event, ...]
    waits: str | None  #: what it waits for, if it is ready


def count_states(database: Database, workflow: str | None = None) -> dict[TaskState, int]:
    """Return how many tasks are in each state.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    with database.read() as connection:
        rows = connection.execute(
            select(tasks.c.state, func.count())
            .where(*of_workflow(connection, workflow, tasks.c.workflow_id))
            .group_by(tasks.c.state)
        ).all()
    found = {TaskState(state): count for state, count in rows}
    return {state: found.get(state, 0) for state in TaskState}


def list_tasks(
    database: Database,
    *,
    state: TaskState | None = None,
    app: str | None = None,
    workflow: str | None = None,
    limit: int | None = None,
) -> list[TaskLine]:
    """Return tasks, those recorded last first.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    done_attempts = (
        select(func.count())
        .where(attempts.c.task_id == tasks.c.id, attempts.c.outcome == Outcome.DONE.value)
        .correlate(tasks)
        .scalar_subquery()
    )
    query = (
        select(
            tasks.c.id,
            workflows.c.name.label("workflow"),
            tasks.c.app,
            tasks.c.state,
            tasks.c.attempts,
            done_attempts.label("done_attempts"),
            tasks.c.nodes,
            tasks.c.submitted_at,
            (func.coalesce(attempts.c.ended_at, clock()) - attempts.c.started_at).label("run_time_s"),
            attempts.c.error,
        )
        .join(workflows, workflows.c.id == tasks.c.workflow_id)
        .outerjoin(attempts, (attempts.c.task_id == tasks.c.id) & (attempts.c.number == tasks.c.attempts))
        .order_by(tasks.c.id.desc())
        .limit(limit)
    )
    if state is not None:
        query = query.where(tasks.c.state == state.value)
    if app is not None:
        query = query.where(tasks.c.app == app)
    with database.read() as connection:
        query = query.where(*of_workflow(connection, workflow, tasks.c.workflow_id))
        return [
            TaskLine(**{**row, "state": TaskState(row["state"]), "error": _last_line(row["error"])})
            for row in connection.execute(query).mappings()
        ]


def read_task(database: Database, task_id: int) -> TaskRecord:
    """Return one task with its whole history.

    Raises
    ------
    TaskNotFound
        If it does not exist.
    """
    with database.read() as connection:
        found = (
            connection.execute(
                select(
                    tasks.c.id,
                    workflows.c.name.label("workflow"),
                    workflows.c.label.label("executor"),
                    tasks.c.run_id,
                    tasks.c.app,
                    tasks.c.key,
                    tasks.c.occurrence,
                    tasks.c.function,
                    tasks.c.state,
                    tasks.c.cancel_requested,
                    tasks.c.priority,
                    tasks.c.nodes,
                    tasks.c.workflow_id,
                    tasks.c.walltime_min,
                    tasks.c.spec,
                    tasks.c.stdout,
                    tasks.c.stderr,
                    tasks.c.submitted_at,
                    tasks.c.ready_at,
                    tasks.c.finished_at,
                    tasks.c.budget_from,
                    func.length(arguments.c.payload).label("arguments_size"),
                    func.length(results.c.payload).label("result_size"),
                )
                .join(workflows, workflows.c.id == tasks.c.workflow_id)
                .outerjoin(arguments, arguments.c.task_id == tasks.c.id)
                .outerjoin(results, results.c.task_id == tasks.c.id)
                .where(tasks.c.id == task_id)
            )
            .mappings()
            .first()
        )
        if found is None:
            raise TaskNotFound(f"no task {task_id} in this database: 'parsl-balsam tasks' lists those there are")
        tried = (
            connection.execute(
                select(
                    *(column for column in attempts.c if column is not attempts.c.task_id),
                    blocks.c.name.label("block"),
                    blocks.c.job_id,
                )
                .join(blocks, blocks.c.id == attempts.c.block_id)
                .where(attempts.c.task_id == task_id)
                .order_by(attempts.c.number)
            )
            .mappings()
            .all()
        )
        waits = _waits(connection, found) if found["state"] == TaskState.READY.value else None
        happened = (
            connection.execute(select(events).where(events.c.task_id == task_id).order_by(events.c.id)).mappings().all()
        )
    task: dict[str, Any] = {
        **{name: value for name, value in found.items() if name not in ("workflow_id", "walltime_min")},
        "key": bytes(found["key"]).hex(),
        "function": bytes(found["function"]).hex(),
        "state": TaskState(found["state"]),
        "spec": _spec(found["spec"]),
        "attempts": tuple(_attempt(row) for row in tried),
        "events": tuple(_event(row) for row in happened),
        "waits": waits,
    }
    return TaskRecord(**task)


def last_events(database: Database, task_id: int | None = None, limit: int | None = None) -> list[Event]:
    """Return what happened last, to one task or to all, in order.

    Raises
    ------
    TaskNotFound
        If there is no such task.
    """
    query = select(events).order_by(events.c.id.desc()).limit(limit)
    if task_id is not None:
        query = query.where(events.c.task_id == task_id)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    if task_id is not None and not rows:
        raise TaskNotFound(f"no task {task_id} in this database: 'parsl-balsam tasks' lists those there are")
    return [_event(row) for row in reversed(rows)]


def events_after(
    database: Database, event_id: int, late: Sequence[int] = (), task_id: int | None = None
) -> list[Event]:
    """Return the events with ids above one, and those among `late` that are there now, in order of their ids.

    PostgreSQL numbers an event before it is committed, so that one with a lower id may show up after one with a higher.
    Those of one task come in order.
    """
    query = select(events).where(or_(events.c.id > event_id, events.c.id.in_(late))).order_by(events.c.id)
    if task_id is not None:
        query = query.where(events.c.task_id == task_id)
    with database.read() as connection:
        return [_event(row) for row in connection.execute(query).mappings()]


def task_states(database: Database, ids: Sequence[int]) -> dict[int, TaskState]:
    """Return the states of those tasks that exist."""
    with database.read() as connection:
        rows = connection.execute(select(tasks.c.id, tasks.c.state).where(tasks.c.id.in_(ids)))
        return {row.id: TaskState(row.state) for row in rows}


def _waits(connection: Connection, task: RowMapping) -> str:
    due_in = None if task["ready_at"] is None else task["ready_at"] - now(connection)
    rooms = open_rooms(connection, [task["workflow_id"]])
    return why_it_waits(task["nodes"], task["walltime_min"], due_in, rooms)


def _attempt(row: RowMapping) -> AttemptRecord:
    outcome = Outcome(row["outcome"]) if row["outcome"] else None
    return AttemptRecord(**{**row, "outcome": outcome, "placement": read_shares(row["placement"])})


def _event(row: RowMapping) -> Event:
    return Event(**{**row, "state": TaskState(row["state"])})


def _spec(text: str | None) -> dict[str, Any]:
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"the resource specification of the task cannot be read: {error}") from None


def _last_line(text: str | None) -> str | None:
    lines = (text or "").rstrip().splitlines()
    return lines[-1] if lines else None
