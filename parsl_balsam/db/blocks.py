"""Blocks and the leases of their launchers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from parsl_balsam.db.connect import Database, clock, now, server_started
from parsl_balsam.db.endings import record_ends, unclaim
from parsl_balsam.db.schema import IS_RUNNING, attempts, blocks, tasks
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.shares import read_shares
from parsl_balsam.model.states import BlockState, Outcome, TaskState
from parsl_balsam.model.tasks import AttemptEnd


@dataclass(frozen=True, slots=True)
class BlockStatus:
    """A block, as the database knows it."""

    block_id: int
    name: str  #: Parsl's block id, unique within its run only
    state: BlockState
    held: int  #: tasks its launcher has claimed and not ended


def record_block(database: Database, workflow_id: int, run_id: int, name: str, lease_s: float) -> int:
    """Record a block before it is requested; return its id."""
    with database.begin() as connection:
        recorded = connection.execute(
            blocks.insert()
            .values(
                workflow_id=workflow_id,
                run_id=run_id,
                name=name,
                tag=uuid.uuid4().hex,
                state=BlockState.REQUESTED.value,
                requested_at=clock(),
                lease_s=lease_s,
            )
            .returning(blocks.c.id)
        )
        return int(recorded.scalar_one())


def record_job(database: Database, block_id: int, job_id: str) -> None:
    """Record which batch job a block became."""
    with database.begin() as connection:
        connection.execute(blocks.update().where(blocks.c.id == block_id).values(job_id=job_id))


def open_block(database: Database, block_id: int, host: str, pid: int) -> None:
    """Give the block's launcher its lease.

    Raises
    ------
    BalsamError
        If the block does not wait for its launcher: it was ended, or has a launcher already.
    """
    with database.begin() as connection:
        opened = connection.execute(
            blocks.update()
            .where(blocks.c.id == block_id, blocks.c.state == BlockState.REQUESTED.value)
            .values(
                state=BlockState.RUNNING.value,
                host=host,
                pid=pid,
                started_at=clock(),
                lease_until=clock() + blocks.c.lease_s,
            )
        )
        if opened.rowcount != 1:
            raise BalsamError(f"block {block_id} does not wait for a launcher: it is over, or has one already")


def close_block(database: Database, block_id: int, reason: str) -> None:
    """Record that a block is over. What its launcher still held becomes ready again, at no cost."""
    with database.begin() as connection:
        row = connection.execute(
            select(blocks.c.workflow_id, blocks.c.state).where(blocks.c.id == block_id).with_for_update()
        ).one()
        if row.state in (BlockState.REQUESTED.value, BlockState.RUNNING.value):
            _end(connection, block_id, row.workflow_id, BlockState.ENDED, reason)


def abandon_block(database: Database, block_id: int, reason: str) -> None:
    """Record that a block is over whose launcher never came. One that came speaks for itself, or loses its lease."""
    with database.begin() as connection:
        connection.execute(
            blocks.update()
            .where(blocks.c.id == block_id, blocks.c.state == BlockState.REQUESTED.value)
            .values(state=BlockState.ENDED.value, ended_at=clock(), reason=reason)
        )


def reap(database: Database) -> list[int]:
    """Take back the tasks of launchers whose lease is over; return the blocks that were lost.

    Nobody is reaped in the first lease after the server came up: launchers that could not reach it must have the
    chance to renew.
    """
    with database.read() as connection:
        overdue = connection.execute(
            select(blocks.c.id, blocks.c.workflow_id).where(
                IS_RUNNING,
                blocks.c.lease_until < clock(),
                clock() - server_started(connection) > blocks.c.lease_s,
            )
        ).all()
    lost: list[int] = []
    for block_id, workflow_id in overdue:
        with database.begin() as connection:
            still = connection.execute(
                select(blocks.c.id)
                .where(
                    blocks.c.id == block_id,
                    blocks.c.state == BlockState.RUNNING.value,
                    blocks.c.lease_until < clock(),
                )
                .with_for_update(skip_locked=True)
            ).first()
            if still:
                _end(connection, block_id, workflow_id, BlockState.LOST, "its launcher was not heard of for a lease")
                lost.append(block_id)
    return lost


def statuses(database: Database, block_ids: list[int]) -> list[BlockStatus]:
    """Return what the database knows of some blocks."""
    with database.read() as connection:
        held = select(func.count()).where(tasks.c.block_id == blocks.c.id).correlate(blocks).scalar_subquery()
        rows = connection.execute(
            select(blocks.c.id, blocks.c.name, blocks.c.state, held.label("held")).where(blocks.c.id.in_(block_ids))
        )
        return [BlockStatus(row.id, row.name, BlockState(row.state), row.held) for row in rows]


def _end(connection: Connection, block_id: int, workflow_id: int, state: BlockState, reason: str) -> None:
    connection.execute(
        blocks.update().where(blocks.c.id == block_id).values(state=state.value, ended_at=clock(), reason=reason)
    )
    at = now(connection)
    before, block_before = attempts.alias(), blocks.alias()
    held = connection.execute(
        select(
            tasks.c.id,
            tasks.c.attempts,
            tasks.c.token,
            tasks.c.state,
            tasks.c.cancel_requested,
            attempts.c.host,
            attempts.c.placement,
            attempts.c.started_at,
            (block_before.c.state == BlockState.LOST.value).label("lost_before"),
        )
        .join(attempts, (attempts.c.task_id == tasks.c.id) & (attempts.c.number == tasks.c.attempts))
        .outerjoin(before, (before.c.task_id == tasks.c.id) & (before.c.number == tasks.c.attempts - 1))
        .outerjoin(block_before, block_before.c.id == before.c.block_id)
        .where(tasks.c.block_id == block_id)
        .order_by(tasks.c.id)
        .with_for_update(of=tasks)  # a cancellation must not come between this and what is decided by it
    ).all()
    if state is BlockState.ENDED:
        waiting = [row.id for row in held if row.state == TaskState.ASSIGNED.value and not row.cancel_requested]
        unclaim(connection, waiting, f"block {block_id}", reason, at)
        held = [row for row in held if row.id not in set(waiting)]
    ends = [
        AttemptEnd(
            row.id,
            row.attempts,
            row.token,
            Outcome.CRASH if state is BlockState.LOST and _may_have_crashed(row) else Outcome.ENDED,
            host=row.host,
            shares=read_shares(row.placement),
            started_at=row.started_at,
            error=f"block {block_id}: {reason}",
        )
        for row in held
    ]
    record_ends(connection, workflow_id, ends, f"block {block_id}", at)
    notify(connection, workflow_id, Topic.WORK)
    notify(connection, workflow_id, Topic.FINISHED)


def _may_have_crashed(row: Any) -> bool:
    """Tell whether a task of a lost launcher is to be charged with it.

    One that was only assigned is not, for it did not run. But a start is recorded a moment late, and a task that kills
    its launcher within that moment would do so for ever: the second launcher in a row is one too many.
    """
    return bool(row.state == TaskState.RUNNING.value or row.lost_before)
