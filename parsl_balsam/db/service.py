"""Who serves the tasks that wait: runs that drive workflows, and the room that open blocks have. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, exists, func, or_, select

from parsl_balsam.db.connect import Database, clock, now
from parsl_balsam.db.runs import Driver, of_workflow
from parsl_balsam.db.schema import IS_OPEN, IS_READY, blocks, runs, tasks, workflows
from parsl_balsam.model.states import BlockState
from parsl_balsam.model.waiting import OpenRoom, why_it_waits


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not ended, as far as the database knows."""

    id: int
    workflow: str
    executor: str  #: its label
    driver: Driver
    started_at: float  #: seconds since the epoch


def open_runs(database: Database, workflow: str | None = None) -> list[OpenRun]:
    """Return the runs that have neither said goodbye nor been silent for a lease. Their processes may have died since.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    query = (
        select(runs, workflows.c.name.label("workflow"), workflows.c.label.label("executor"))
        .join(workflows, workflows.c.current_run == runs.c.id)
        .where(runs.c.ended_at.is_(None), runs.c.lease_until > clock())
        .order_by(runs.c.id)
    )
    with database.read() as connection:
        rows = connection.execute(query.where(*of_workflow(connection, workflow, runs.c.workflow_id))).all()
    return [
        OpenRun(
            row.id,
            row.workflow,
            row.executor,
            Driver(row.host, row.host_key, row.pid, row.pid_started),
            row.started_at,
        )
        for row in rows
    ]


def unserved_workflows(database: Database, ids: Sequence[int]) -> list[str]:
    """Return the workflows of some tasks for which no block claims tasks now, nor will when it starts."""
    serving = exists().where(
        blocks.c.run_id == workflows.c.current_run,
        or_(
            blocks.c.state == BlockState.REQUESTED.value,
            and_(blocks.c.state == BlockState.RUNNING.value, blocks.c.lease_until >= clock()),
        ),
    )
    with database.read() as connection:
        return list(
            connection.execute(
                select(workflows.c.name)
                .distinct()
                .join(tasks, tasks.c.workflow_id == workflows.c.id)
                .where(tasks.c.id.in_(ids), ~serving)
                .order_by(workflows.c.name)
            ).scalars()
        )


def waiting_sizes(database: Database, workflow: str | None = None) -> list[tuple[int, int, str]]:
    """Return, for each number of nodes that ready tasks need, how many such tasks there are and what they wait for.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    with database.read() as connection:
        query = select(tasks.c.workflow_id, tasks.c.nodes, func.count().label("tasks")).where(
            IS_READY, tasks.c.ready_at.is_(None), *of_workflow(connection, workflow, tasks.c.workflow_id)
        )
        rows = connection.execute(query.group_by(tasks.c.workflow_id, tasks.c.nodes).order_by(tasks.c.nodes)).all()
        return [
            (row.nodes, row.tasks, why_it_waits(row.nodes, None, None, open_rooms(connection, [row.workflow_id])))
            for row in rows
        ]


def open_rooms(connection: Connection, workflow_ids: Sequence[int]) -> list[OpenRoom]:
    """Return the open blocks of workflows, as far as they matter to tasks that wait."""
    rows = connection.execute(
        select(blocks).where(blocks.c.workflow_id.in_(workflow_ids), IS_OPEN).order_by(blocks.c.id)
    ).all()
    at = now(connection)
    return [
        OpenRoom(
            row.id,
            row.job_id,
            row.requested_nodes if row.nodes is None else row.nodes,
            row.ends_at - at if row.ends_at is not None else row.walltime_min and row.walltime_min * 60,
            row.lost_nodes,
            row.state == BlockState.RUNNING.value,
        )
        for row in rows
    ]


def block_rules(database: Database, run_id: int) -> str | None:
    """Return the rules by which a run requests blocks, as JSON; None if it has left none."""
    with database.read() as connection:
        return connection.execute(select(runs.c.block_rules).where(runs.c.id == run_id)).scalar()
