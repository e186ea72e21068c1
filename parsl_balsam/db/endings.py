"""How an attempt's end changes its task: the one place where results are written and retries decided."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, bindparam, select

from parsl_balsam.db.among import among
from parsl_balsam.db.copying import insert_rows
from parsl_balsam.db.events import Change, write_events
from parsl_balsam.db.schema import attempts, results, runs, tasks, workflows
from parsl_balsam.db.statement import Statement, send
from parsl_balsam.model import retry
from parsl_balsam.model.errors import InvalidResources
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import Attempt, GiveUp, RetryPolicy
from parsl_balsam.model.shares import write_shares
from parsl_balsam.model.states import HELD, TERMINAL, Outcome, TaskState
from parsl_balsam.model.tasks import AttemptEnd


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of a task whose attempt ended."""

    state: TaskState
    why: str
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Ends that are written, up to the number by which runs learn of them."""

    written: list[AttemptEnd]
    over: dict[TaskState, list[int]]  #: tasks that get a number, by the state in which they end

    @classmethod
    def none(cls) -> Ended:
        """Return no ends."""
        return cls([], {})


def record_ends(
    connection: Connection, workflow_id: int, ends: Sequence[AttemptEnd], who: str, at: float
) -> list[AttemptEnd]:
    """Write the ends of attempts that still hold their claim; return those that were written.

    `at` is the time on the database's clock.

    An end whose token is no longer its task's is dropped: its launcher was reaped.
    """
    ended = begin_ends(connection, ends, who, at)
    finish_ends(connection, workflow_id, ended, at)
    send(connection)  # what cannot be written is for the caller to know
    return ended.written


def begin_ends(connection: Connection, ends: Sequence[AttemptEnd], who: str, at: float) -> Ended:
    """Do what `record_ends` does, up to what all who end tasks of a workflow wait for: `finish_ends` is for the end."""
    if not ends:
        return Ended.none()
    held = _holders(connection, [end.task_id for end in ends])
    ends = [end for end in ends if _holds(held.get(end.task_id), end)]
    if not ends:
        return Ended.none()
    verdicts = _verdicts(connection, ends, held, at)
    over = _reopen(connection, verdicts)
    if payloads := [
        {"task_id": end.task_id, "payload": end.payload}
        for end in ends
        if end.payload is not None and verdicts[end.task_id].state in TERMINAL
    ]:
        insert_rows(connection, results, payloads)
    _END_ATTEMPT.run_each(connection, [_attempt_row(end, verdicts[end.task_id], at) for end in ends])
    changes: list[Change] = []
    for end in ends:
        if held[end.task_id].state == TaskState.ASSIGNED.value and end.started_at is not None:
            began = min(end.started_at, at)
            changes.append(Change(end.task_id, TaskState.RUNNING, began, f"attempt {end.number}"))
        changes.append(Change(end.task_id, verdicts[end.task_id].state, at, verdicts[end.task_id].why))
    write_events(connection, who, changes)
    return Ended(list(ends), over)


def finish_ends(connection: Connection, workflow_id: int, ended: Ended, at: float) -> None:
    """Number the tasks that are over.

    The number's lock is held until the commit: whatever else the transaction does is best done before. All who end
    tasks lock their rows first and the number last, so nobody waits in a circle.
    """
    if ended.over:
        _COUNT_UP.run(connection, workflow=workflow_id)
        for state, ids in ended.over.items():
            _FINISH.run(connection, ids=ids, new_state=state.value, at=at, workflow=workflow_id)


def next_finish(connection: Connection, workflow_id: int) -> int:
    """Return the number for tasks that this transaction ends. Runs follow these numbers to learn what is over."""
    (number,) = _NEXT_FINISH.scalars(connection, workflow=workflow_id)
    return int(number)


def unclaim(connection: Connection, ids: Sequence[int], who: str, why: str, at: float) -> None:
    """Make tasks ready again whose attempts never began, as if they had not been claimed."""
    if not ids:
        return
    rows = connection.execute(
        tasks.update()
        .where(among(tasks.c.id, ids))
        .values(state=TaskState.READY.value, block_id=None, token=None, attempts=tasks.c.attempts - 1)
        .returning(tasks.c.id, tasks.c.attempts)
    ).all()
    connection.execute(_DELETE_ATTEMPT, [{"t": row.id, "n": row.attempts + 1} for row in rows])
    write_events(connection, who, [Change(row.id, TaskState.READY, at, why) for row in rows])


def _holders(connection: Connection, ids: Sequence[int]) -> dict[int, Any]:
    """Read the tasks and keep others from changing them until this transaction ends."""
    return {row.id: row for row in _HOLDERS.rows(connection, ids=ids)}


def _holds(row: Any, end: AttemptEnd) -> bool:
    return row is not None and row.token == end.token and row.attempts == end.number and TaskState(row.state) in HELD


def _verdicts(
    connection: Connection, ends: Sequence[AttemptEnd], held: dict[int, Any], at: float
) -> dict[int, _Verdict]:
    verdicts: dict[int, _Verdict] = {}
    undecided: list[AttemptEnd] = []
    for end in ends:
        if end.outcome is Outcome.DONE:
            verdicts[end.task_id] = _Verdict(TaskState.DONE, f"attempt {end.number}")
        elif end.hopeless:
            verdicts[end.task_id] = _Verdict(TaskState.FAILED, storable(end.error) or "it cannot be run")
        elif end.outcome is Outcome.CANCELLED or held[end.task_id].cancel_requested:
            verdicts[end.task_id] = _Verdict(TaskState.CANCELLED, "cancelled by the user")
        else:
            undecided.append(end)
    if undecided:
        policies = _policies(connection, {held[end.task_id].run_id for end in undecided})
        histories = _histories(connection, [end.task_id for end in undecided])
        for end in undecided:
            row = held[end.task_id]
            policy = policies[row.run_id]
            most = _own_retries(row.spec)
            if most is not None:
                policy = replace(policy, max_retries=most)
            history = [past for past in histories[end.task_id] if past.number > row.budget_from]
            history.append(Attempt(end.number, end.outcome, end.exit_code, blamed(end)))
            verdicts[end.task_id] = _decide(policy, history, at)
    return verdicts


def _decide(policy: RetryPolicy, history: Sequence[Attempt], at: float) -> _Verdict:
    decision = retry.after(policy, history, datetime.fromtimestamp(at, timezone.utc))
    if isinstance(decision, GiveUp):
        return _Verdict(TaskState.FAILED, decision.reason)
    return _Verdict(TaskState.READY, decision.reason, decision.at.timestamp() if decision.at else None)


def _policies(connection: Connection, run_ids: set[int]) -> dict[int, RetryPolicy]:
    rows = connection.execute(select(runs.c.id, runs.c.retry_policy).where(runs.c.id.in_(run_ids)))
    return {row.id: _policy(row.retry_policy) for row in rows}


# What has happened is recorded in any case: a damaged rule for what comes next counts as none.


def _policy(text: str) -> RetryPolicy:
    try:
        return RetryPolicy.from_dict(json.loads(text))
    except (ValueError, RecursionError):
        return RetryPolicy()


def _own_retries(text: str | None) -> int | None:
    try:
        return ResourceSpec.loads(text).max_retries
    except InvalidResources:
        return None


def _histories(connection: Connection, ids: Sequence[int]) -> dict[int, list[Attempt]]:
    rows = connection.execute(
        select(attempts.c.task_id, attempts.c.number, attempts.c.outcome, attempts.c.exit_code, attempts.c.host)
        .where(among(attempts.c.task_id, ids), attempts.c.outcome.is_not(None))
        .order_by(attempts.c.task_id, attempts.c.number)
    )
    histories: dict[int, list[Attempt]] = defaultdict(list)
    for row in rows:
        histories[row.task_id].append(Attempt(row.number, Outcome(row.outcome), row.exit_code, row.host))
    return histories


def _reopen(connection: Connection, verdicts: dict[int, _Verdict]) -> dict[TaskState, list[int]]:
    """Make tasks ready that get another try; return the others by the state in which they end."""
    by_state: dict[TaskState, list[int]] = defaultdict(list)
    for task_id, verdict in verdicts.items():
        by_state[verdict.state].append(task_id)
    again = by_state.pop(TaskState.READY, [])
    if again:
        connection.execute(_READY_AGAIN, [{"t": task_id, "due": verdicts[task_id].ready_at} for task_id in again])
    return by_state


def _attempt_row(end: AttemptEnd, verdict: _Verdict, at: float) -> dict[str, Any]:
    error = end.error
    if verdict.state is TaskState.FAILED and not end.hopeless and end.payload is None:
        error = f"{error or end.outcome.value}; {verdict.why}"
    return {
        "t": end.task_id,
        "n": end.number,
        "host": blamed(end),
        "placement": write_shares(end.shares),
        # Its launcher's idea of this clock may be a moment ahead.
        "started_at": None if end.started_at is None else min(end.started_at, at),
        "ended_at": at if end.ended_at is None else min(end.ended_at, at),
        "outcome": end.outcome.value,
        "exit_code": end.exit_code,
        "signal": end.signal,
        "peak_memory": end.usage.peak_memory,
        "cpu_time": end.usage.cpu_time,
        "error": storable(error),
        "output": storable(end.output),
        "stderr_tail": storable(end.stderr_tail),
    }


def blamed(end: AttemptEnd) -> str | None:
    """Return the node that an attempt's end is put down to."""
    return end.host or (end.shares[0].node if end.shares else None)


def storable(text: str | None) -> str | None:
    """Return a text without what cannot be stored."""
    # PostgreSQL takes neither NUL nor lone surrogates; programs print both, and names of files have the latter.
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


_count_up = (
    workflows.update().where(workflows.c.id == bindparam("workflow")).values(last_finish=workflows.c.last_finish + 1)
)
_COUNT_UP = Statement(_count_up)
_NEXT_FINISH = Statement(_count_up.returning(workflows.c.last_finish))

_HOLDERS = Statement(
    select(
        tasks.c.id,
        tasks.c.token,
        tasks.c.attempts,
        tasks.c.state,
        tasks.c.cancel_requested,
        tasks.c.spec,
        tasks.c.run_id,
        tasks.c.budget_from,
    )
    .where(among(tasks.c.id, "ids"))
    .order_by(tasks.c.id)
    .with_for_update()
)

_FINISH = Statement(
    tasks.update()
    .where(among(tasks.c.id, "ids"))
    .values(
        state=bindparam("new_state"),
        block_id=None,
        token=None,
        finished_at=bindparam("at"),
        # After the count went up, which keeps others from it.
        finish=select(workflows.c.last_finish).where(workflows.c.id == bindparam("workflow")).scalar_subquery(),
    )
)

_READY_AGAIN = (
    tasks.update()
    .where(tasks.c.id == bindparam("t"))
    .values(state=TaskState.READY.value, block_id=None, token=None, ready_at=bindparam("due"))
)

_DELETE_ATTEMPT = attempts.delete().where(attempts.c.task_id == bindparam("t"), attempts.c.number == bindparam("n"))

_END_ATTEMPT = Statement(
    attempts.update()
    .where(attempts.c.task_id == bindparam("t"), attempts.c.number == bindparam("n"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "host",
                "placement",
                "started_at",
                "ended_at",
                "outcome",
                "exit_code",
                "signal",
                "peak_memory",
                "cpu_time",
                "error",
                "output",
                "stderr_tail",
            )
        }
    )
)
