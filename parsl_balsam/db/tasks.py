"""What a run and its user do to tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Integer, Table, Text, bindparam, func, literal, select, tuple_

from parsl_balsam.db.among import among
from parsl_balsam.db.connect import Database, clock, now
from parsl_balsam.db.copying import insert_rows, select_rows
from parsl_balsam.db.endings import next_finish, storable
from parsl_balsam.db.events import Change, write_events
from parsl_balsam.db.fetching import fetch, fetch_since
from parsl_balsam.db.given import as_json, given_rows
from parsl_balsam.db.schema import arguments, functions, results, runs, tasks, workflows
from parsl_balsam.db.statement import Statement
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.model.errors import TaskNotFound, WorkflowLost
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.states import HELD, TERMINAL, TaskState
from parsl_balsam.model.tasks import Binding, Bound, Call, FinishedTask

_HELD = [state.value for state in HELD]


class TaskStore:
    """The tasks of one workflow, as the run that drives it sees them. Each method is one transaction."""

    def __init__(self, database: Database, workflow_id: int, run_id: int) -> None:
        self._database = database
        self._workflow_id = workflow_id
        self._run_id = run_id
        self._who = f"run {run_id}"
        self._meets_its_own = False  # the last calls were known, as when a script runs again: the next ones may be, too

    def submit(self, calls: Sequence[Call], bodies: Mapping[bytes, bytes]) -> list[Bound]:
        """Record calls, or bind them to the tasks they met; return one `Bound` for each call, in order.

        It may be repeated when its outcome is unknown: the second time the calls meet their own tasks.

        Parameters
        ----------
        calls
            No two with the same key and occurrence.
        bodies
            The functions among them that may not be stored yet, by digest.

        Raises
        ------
        WorkflowLost
            If another run drives the workflow now. Nothing was recorded.
        """
        with self._database.begin("submit", early=True) as connection:
            at, ids = self._fence(connection, len(calls))
            if bodies:
                # In order: two runs that store the same functions would otherwise wait for each other.
                _insert_function(connection.dialect.name).run_each(
                    connection, [{"digest": digest, "body": body} for digest, body in sorted(bodies.items())]
                )
            bound = self._attach(connection, calls, at) if self._meets_its_own else {}
            if new := [call for call in calls if _identity(call) not in bound]:
                bound |= self._insert_new(connection, new, ids[: len(new)], at)
            if met := [call for call in calls if _identity(call) not in bound]:
                bound |= self._attach(connection, met, at)
            notify(connection, self._workflow_id, Topic.WORK)
        self._meets_its_own = all(one.binding is not Binding.NEW for one in bound.values())
        self._database.sync()  # launchers are at it already
        return [bound[_identity(call)] for call in calls]

    def fetch(self, ids: Sequence[int]) -> list[FinishedTask]:
        """Return tasks that are in a terminal state, with what they returned or raised."""
        with self._database.read() as connection:
            return fetch(connection, ids)

    def fetch_since(
        self, finish: int, choose: Callable[[list[int]], list[int]], most: int
    ) -> tuple[list[FinishedTask], list[int], int]:
        """Return the tasks that ended after a point, the first of them as `fetch` does.

        Parameters
        ----------
        choose
            Is given the tasks that ended, and returns those to fetch.
        most
            So many are fetched.

        Returns
        -------
        tuple
            The tasks that were fetched, the ids of the others to fetch, and the point to ask from next time.
        """
        with self._database.read() as connection:
            return fetch_since(connection, self._workflow_id, finish, choose, most)

    def _fence(self, connection: Connection, count: int) -> tuple[float, Sequence[int]]:
        """Return the database's clock and ids for new tasks, if this run still drives the workflow.

        The ids are chosen before, so that they tell which calls were new.
        """
        # FOR SHARE: the run that takes over must update this row first, so it waits until this transaction ends.
        if connection.dialect.name == "sqlite":
            alive = _FENCE_AND_LAST_ID.rows(connection, run=self._run_id)
        else:
            alive = _FENCE_AND_IDS.rows(connection, run=self._run_id, count=count)
        if not alive:
            raise WorkflowLost(
                "another run took this workflow over while this one was not heard of; its tasks go on there. "
                "Start this script again when the other has ended"
            )
        at = float(alive[0].at)
        if connection.dialect.name == "sqlite":  # this transaction is the only one that writes
            return at, range(alive[0].last + 1, alive[0].last + 1 + count)
        return at, [row.id for row in alive]

    def _insert_new(
        self, connection: Connection, calls: Sequence[Call], ids: Sequence[int], at: float
    ) -> dict[tuple[bytes, int], Bound]:
        _insert_task(connection.dialect.name).run_each(
            connection,
            [
                {
                    "id": task_id,
                    "workflow_id": self._workflow_id,
                    "run_id": self._run_id,
                    "key": call.key,
                    "occurrence": call.occurrence,
                    "state": TaskState.READY.value,
                    "app": call.app,
                    "submitted_at": at,
                    **_revisable(call),
                }
                for task_id, call in zip(ids, calls, strict=True)
            ],
        )
        inserted = _inserted(connection, ids)
        fresh = [(task_id, call) for task_id, call in zip(ids, calls, strict=True) if task_id in inserted]
        if fresh:
            insert_rows(
                connection, arguments, [{"task_id": task_id, "payload": call.payload} for task_id, call in fresh]
            )
            write_events(
                connection, self._who, [Change(task_id, TaskState.READY, at, "called") for task_id, _ in fresh]
            )
        return {_identity(call): Bound(task_id, Binding.NEW) for task_id, call in fresh}

    def _attach(self, connection: Connection, calls: Sequence[Call], at: float) -> dict[tuple[bytes, int], Bound]:
        """Bind calls to the tasks there are: a result is reused, a failure runs again, the rest is waited for."""
        met = {(bytes(row.key), row.occurrence): row for row in self._existing(connection, calls)}
        # Read after the tasks are locked, not with them: a task that ended while its lock was waited for would be seen
        # as done, but without its result.
        done = [row.id for row in met.values() if row.state == TaskState.DONE.value]
        recorded = {row.task_id: row.payload for row in (select_rows(connection, _RECORDED, ids=done) if done else ())}
        bound: dict[tuple[bytes, int], Bound] = {}
        reopen: list[int] = []
        revise: list[tuple[int, Call]] = []
        adopt: list[int] = []
        for call in calls:
            if (row := met.get(_identity(call))) is None:
                continue
            state = TaskState(row.state)
            if state is TaskState.DONE:
                bound[_identity(call)] = Bound(row.id, Binding.REUSED, recorded[row.id])
            elif state in TERMINAL:
                bound[_identity(call)] = Bound(row.id, Binding.REOPENED)
                reopen.append(row.id)
                revise.append((row.id, call))
            else:
                bound[_identity(call)] = Bound(row.id, Binding.ATTACHED)
                adopt.append(row.id)
                if state is TaskState.READY:
                    revise.append((row.id, call))
        if reopen:
            _reopen(connection, reopen)
            write_events(
                connection, self._who, [Change(task_id, TaskState.READY, at, "called again") for task_id in reopen]
            )
        if adopt or reopen:
            connection.execute(tasks.update().where(among(tasks.c.id, adopt + reopen)).values(run_id=self._run_id))
        if revise:
            # The call may have other limits, priority or log files this time; who has not started goes by the new ones.
            connection.execute(_REVISE_TASK, [{"t": task_id, **_revisable(call)} for task_id, call in revise])
            connection.execute(_REVISE_ARGUMENTS, [{"t": task_id, "payload": call.payload} for task_id, call in revise])
        return bound

    def _existing(self, connection: Connection, calls: Sequence[Call]) -> Iterable[Any]:
        if connection.dialect.name == "sqlite":
            identity = tuple_(tasks.c.key, tasks.c.occurrence)
            found = _met.where(identity.in_([_identity(call) for call in calls]))
            return connection.execute(found, {"workflow": self._workflow_id})
        identities = [{"key": call.key, "occurrence": call.occurrence} for call in calls]
        return _MET.rows(connection, workflow=self._workflow_id, rows=as_json(identities))


def _inserted(connection: Connection, ids: Sequence[int]) -> Collection[int]:
    """Return which of the ids chosen for new tasks are in use now."""
    # Most often all or none. To read them row by row would take as long as to write them so, see `Statement.run_each`.
    if (count := _COUNT.scalars(connection, ids=list(ids))[0]) in (0, len(ids)):
        return ids if count else ()
    return set(_EXISTING.scalars(connection, ids=list(ids)))


def cancel_tasks(database: Database, ids: Sequence[int], who: str) -> dict[int, TaskState]:
    """End tasks by the user's wish; return the state in which each was found.

    Tasks that wait are cancelled at once, those that a launcher holds as soon as it has killed them, and those that are
    over stay as they are.

    Raises
    ------
    TaskNotFound
        If one of them does not exist. None is cancelled then.
    """
    with database.begin("cancel_tasks") as connection:
        found = _known(connection, ids)
        waiting = [row for row in found if row.state == TaskState.READY.value]
        at = now(connection)
        for workflow_id in sorted({row.workflow_id for row in waiting}):
            mine = [row.id for row in waiting if row.workflow_id == workflow_id]
            connection.execute(
                tasks.update()
                .where(among(tasks.c.id, mine))
                .values(state=TaskState.CANCELLED.value, finished_at=at, finish=next_finish(connection, workflow_id))
            )
            write_events(
                connection, who, [Change(task_id, TaskState.CANCELLED, at, "cancelled by the user") for task_id in mine]
            )
        connection.execute(
            tasks.update()
            .where(among(tasks.c.id, [row.id for row in found if row.state in _HELD]))
            .values(cancel_requested=True)
        )
        for workflow_id in {row.workflow_id for row in found}:
            notify(connection, workflow_id, Topic.WORK)
            notify(connection, workflow_id, Topic.FINISHED)
    return {row.id: TaskState(row.state) for row in found}


def retry_tasks(database: Database, ids: Sequence[int], who: str) -> list[int]:
    """Make failed and cancelled tasks ready again, with a fresh budget and their history; return their ids.

    Raises
    ------
    TaskNotFound
        If one of them does not exist. None is changed then.
    """
    with database.begin("retry_tasks") as connection:
        rows = [row for row in _known(connection, ids) if row.state in ("failed", "cancelled")]
        at = now(connection)
        reopened = [row.id for row in rows]
        if reopened:
            _reopen(connection, reopened)
            current = select(workflows.c.current_run).where(workflows.c.id == tasks.c.workflow_id).scalar_subquery()
            connection.execute(tasks.update().where(among(tasks.c.id, reopened)).values(run_id=current))
            write_events(connection, who, [Change(task_id, TaskState.READY, at, "retry") for task_id in reopened])
        for workflow_id in {row.workflow_id for row in rows}:
            notify(connection, workflow_id, Topic.WORK)
    return reopened


def tasks_in_state(database: Database, state: TaskState) -> list[int]:
    """Return the ids of all tasks in a state."""
    with database.read() as connection:
        return list(connection.execute(select(tasks.c.id).where(tasks.c.state == state.value)).scalars())


def _known(connection: Connection, ids: Sequence[int]) -> Sequence[Any]:
    rows = connection.execute(
        select(tasks.c.id, tasks.c.workflow_id, tasks.c.state)
        .where(among(tasks.c.id, ids))
        .order_by(tasks.c.id)
        .with_for_update()
    ).all()
    if missing := sorted(set(ids) - {row.id for row in rows}):
        raise TaskNotFound(
            f"no task {', '.join(map(str, missing))} in this database: 'parsl-balsam tasks' lists those there are"
        )
    return rows


def _reopen(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(results.delete().where(among(results.c.task_id, ids)))
    connection.execute(
        tasks.update()
        .where(among(tasks.c.id, ids))
        .values(
            state=TaskState.READY.value,
            budget_from=tasks.c.attempts,
            cancel_requested=False,
            ready_at=None,
            finished_at=None,
            finish=None,
        )
    )


def _insert(dialect: str, table: Table, *unique: str) -> Any:
    """Return an INSERT that leaves out rows whose unique columns are there already.

    The two databases spell it alike, SQLAlchemy does not.
    """
    insert: Any = import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    return insert.on_conflict_do_nothing(index_elements=unique)


@cache
def _insert_function(dialect: str) -> Statement:
    return Statement(_insert(dialect, functions, "digest"), "digest", "body")


@cache
def _insert_task(dialect: str) -> Statement:
    new = ("id", "workflow_id", "run_id", "key", "occurrence", "state", "app", "submitted_at")
    return Statement(_insert(dialect, tasks, "workflow_id", "key", "occurrence"), *new, *_REVISABLE)


def _identity(call: Call) -> tuple[bytes, int]:
    return call.key, call.occurrence


def _revisable(call: Call) -> dict[str, Any]:
    """What a later run may ask for differently of the same task."""
    return {
        "function": call.function,
        **_specified(call.spec),
        "stdout": storable(call.stdout),
        "stderr": storable(call.stderr),
    }


@lru_cache(maxsize=1024)
def _specified(spec: ResourceSpec) -> Mapping[str, Any]:
    given = spec.to_dict()
    return {
        "priority": spec.priority,
        "nodes": spec.num_nodes,
        "cores": spec.cores,
        "packing": spec.node_packing_count,
        "gpus": spec.gpus_on_node,
        "parallel": spec.is_parallel,
        "walltime_min": spec.walltime_min,
        "spec": json.dumps(given) if given else None,
    }


#: The keys of `_revisable`.
_REVISABLE = (
    "function",
    "priority",
    "nodes",
    "cores",
    "packing",
    "gpus",
    "parallel",
    "walltime_min",
    "spec",
    "stdout",
    "stderr",
)

_alive = (runs.c.id == bindparam("run"), runs.c.ended_at.is_(None))

_FENCE_AND_LAST_ID = Statement(
    select(clock().label("at"), select(func.coalesce(func.max(tasks.c.id), 0)).scalar_subquery().label("last")).where(
        *_alive
    )
)

# As a subquery it is looked up once, not for each task.
_sequence = select(func.pg_get_serial_sequence(literal(tasks.name, Text()), literal(tasks.c.id.name, Text())))
_next_id = func.nextval(_sequence.scalar_subquery())
_each = func.generate_series(1, bindparam("count", type_=Integer())).alias("each")
_FENCE_AND_IDS = Statement(
    select(clock().label("at"), _next_id.label("id"))
    .select_from(runs, _each)
    .where(*_alive)
    .with_for_update(read=True, of=runs)
)

_met = (
    select(tasks.c.id, tasks.c.key, tasks.c.occurrence, tasks.c.state)
    .where(tasks.c.workflow_id == bindparam("workflow"))
    .order_by(tasks.c.id)
    .with_for_update(of=tasks)
)
_given = given_rows({"key": tasks.c.key.type, "occurrence": tasks.c.occurrence.type})
_MET = Statement(_met.where(tasks.c.key == _given.c.key, tasks.c.occurrence == _given.c.occurrence), keep=False)

_EXISTING = Statement(select(tasks.c.id).where(among(tasks.c.id, "ids")))

_COUNT = Statement(select(func.count(tasks.c.id)).where(among(tasks.c.id, "ids")))

_RECORDED = Statement(select(results).where(among(results.c.task_id, "ids")))

_REVISE_TASK = tasks.update().where(tasks.c.id == bindparam("t")).values({name: bindparam(name) for name in _REVISABLE})
_REVISE_ARGUMENTS = arguments.update().where(arguments.c.task_id == bindparam("t")).values(payload=bindparam("payload"))
