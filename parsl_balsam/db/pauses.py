"""Workflows whose blocks are refused or die at once: for how long no other is requested, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from parsl_balsam.db.connect import Database, clock, now
from parsl_balsam.db.runs import of_workflow
from parsl_balsam.db.schema import workflows
from parsl_balsam.model.pauses import Pause, lengthened


def note_failed_block(database: Database, workflow_id: int, why: str, base_s: float) -> Pause:
    """Record that the scheduler refused a block, or that one died at once; return the pause that begins.

    Parameters
    ----------
    base_s
        The first pause, seconds.
    """
    with database.begin("note_failed_block") as connection:
        row = connection.execute(
            select(workflows.c.pause_count).where(workflows.c.id == workflow_id).with_for_update(key_share=True)
        ).one()
        pause = lengthened(row.pause_count, why, base_s, now(connection))
        connection.execute(
            workflows.update()
            .where(workflows.c.id == workflow_id)
            .values(pause_count=pause.count, pause_until=pause.until, pause_why=pause.why)
        )
        return pause


def end_pause(database: Database, workflow_ids: Sequence[int]) -> None:
    """Let blocks be requested, and the next pause be a short one again."""
    with database.begin("end_pause") as connection:
        connection.execute(
            workflows.update()
            .where(workflows.c.id.in_(workflow_ids))
            .values(pause_count=0, pause_until=None, pause_why=None)
        )


def read_pause(database: Database, workflow_id: int) -> Pause | None:
    """Return the pause that a workflow is in; None if blocks may be requested."""
    with database.read() as connection:
        rows = _paused(connection, workflows.c.id == workflow_id)
    return _pause(rows[0]) if rows else None


def paused_workflows(database: Database, workflow: str | None = None) -> dict[int, tuple[str, Pause]]:
    """Return the workflows that are in a pause, by id, with their names.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    with database.read() as connection:
        rows = _paused(connection, *of_workflow(connection, workflow, workflows.c.id))
    return {row.id: (row.name, _pause(row)) for row in rows}


def _paused(connection: Connection, *conditions: ColumnElement[bool]) -> Sequence[Any]:
    return connection.execute(
        select(
            workflows.c.id,
            workflows.c.name,
            workflows.c.pause_count,
            workflows.c.pause_until,
            workflows.c.pause_why,
            (workflows.c.pause_until - clock()).label("left_s"),
        ).where(workflows.c.pause_until > clock(), *conditions)
    ).all()


def _pause(row: Any) -> Pause:
    return Pause(row.pause_count, row.pause_until, row.pause_why, row.left_s)
