"""Ready tasks: which of them a block may claim, and when there will be some."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Connection, Float, Integer, bindparam, case, func, or_, select

from parsl_balsam.db.schema import IS_READY, tasks, workflows
from parsl_balsam.db.statement import Statement
from parsl_balsam.model.tasks import Unserved, Wish


def pick(connection: Connection, workflow_id: int, wish: Wish, at: float) -> list[Any]:
    """Lock the tasks that a wish is for; return them, and their cores on all nodes, the most urgent first."""
    return _PICK.rows(
        connection,
        **_values(workflow_id, wish),
        at=at,
        want=wish.tasks,
        recorded_by=at - wish.waited_s,
        least_cores=wish.least_cores,
    )


def next_ready(connection: Connection, workflow_id: int, wish: Wish, at: float) -> float | None:
    """Return in how many seconds there is a task that a wish is for, among those that wait for their next try."""
    (due,) = _NEXT_READY.scalars(connection, **_values(workflow_id, wish))
    return None if due is None else max(0.0, float(due) - at)


def first_ready(connection: Connection, workflow_id: int, at: float) -> Unserved | None:
    """Return the most urgent task, whoever may claim it."""
    row = _FIRST.first(connection, workflow=workflow_id, at=at)
    return None if row is None else Unserved(row.id, row.nodes, row.walltime_min)


def _values(workflow_id: int, wish: Wish) -> dict[str, Any]:
    return {
        "workflow": workflow_id,
        "most_nodes": wish.most_nodes,
        "most_cores": wish.most_cores,
        "most_gpus": wish.most_gpus,
        "node_cores": wish.node_cores,
        "time_left": wish.time_left_min,
        "any_ranks": wish.parallel,
    }


#: The run that drives the workflow now.
CURRENT_RUN = select(workflows.c.current_run).where(workflows.c.id == bindparam("workflow")).scalar_subquery()

#: Ready tasks that it asked for.
WANTED = (tasks.c.workflow_id == bindparam("workflow"), tasks.c.run_id == CURRENT_RUN, IS_READY)
#: Not those that wait for their next try.
DUE = or_(tasks.c.ready_at.is_(None), tasks.c.ready_at <= bindparam("at"))

_node_cores = bindparam("node_cores", type_=Integer())
#: Cores that a task takes on each of its nodes.
_cores = case(
    (tasks.c.cores.is_not(None), tasks.c.cores),
    (tasks.c.packing.is_not(None), (_node_cores + tasks.c.packing - 1) // tasks.c.packing),
    else_=_node_cores,
)
_time_left = bindparam("time_left", type_=Float())

#: Which tasks a block may claim, now or when they are due.
_claimable = (
    *WANTED,
    tasks.c.nodes <= bindparam("most_nodes"),
    _cores <= bindparam("most_cores"),
    tasks.c.gpus <= bindparam("most_gpus"),
    or_(bindparam("any_ranks", type_=Boolean()), ~tasks.c.parallel),
    or_(_time_left.is_(None), tasks.c.walltime_min.is_(None), tasks.c.walltime_min <= _time_left),
)

_NEXT_READY = Statement(select(func.min(tasks.c.ready_at)).where(*_claimable, tasks.c.ready_at.is_not(None)))

_order = (tasks.c.priority.desc(), tasks.c.nodes.desc(), tasks.c.id)
_FIRST = Statement(
    select(tasks.c.id, tasks.c.nodes, tasks.c.walltime_min).where(*WANTED, DUE).order_by(*_order).limit(1)
)

_PICK = Statement(
    select(tasks.c.id, (tasks.c.nodes * _cores).label("cores"))
    .where(
        *_claimable,
        DUE,
        tasks.c.submitted_at <= bindparam("recorded_by"),
        tasks.c.nodes * _cores >= bindparam("least_cores"),
    )
    .order_by(*_order)
    .limit(bindparam("want"))
    .with_for_update(skip_locked=True)
)
