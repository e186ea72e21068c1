"""Blocks and the leases of their launchers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select

from parsl_balsam.db.connect import Database, clock, now, server_started
from parsl_balsam.db.estates import settle
from parsl_balsam.db.lifeline import Lifeline
from parsl_balsam.db.schema import IS_OPEN, IS_RUNNING, blocks, tasks
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.db.wills import read_will, remove_will
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.states import JOB_ENDED, JOB_OVER, BlockState, JobState


@dataclass(frozen=True, slots=True)
class BlockStatus:
    """A block, as the database knows it."""

    block_id: int
    name: str  #: Parsl's block id, unique within its run only
    state: BlockState
    held: int  #: tasks its launcher has claimed and not ended
    served_s: float  #: for how long a launcher that lives has served it, seconds; 0 where none does


@dataclass(frozen=True, slots=True)
class Requested:
    """What is known of a block before its batch job is submitted."""

    tag: str = field(default_factory=lambda: uuid.uuid4().hex)  #: name of the batch job, unique
    scheduler: str | None = None  #: which kind of provider requests it; None = somebody starts it by hand
    nodes: int | None = None  #: that are asked for
    walltime_min: float | None = None  #: that is asked for; None where there is no limit
    queue: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """How a block ended."""

    started: bool  #: whether its launcher ever came
    lived_s: float  #: how long the launcher served, seconds
    state: BlockState
    reason: str
    wished: bool  #: whether somebody wanted it to end, or its time was over


def record_block(
    database: Database, workflow_id: int, run_id: int, name: str, lease_s: float, requested: Requested | None = None
) -> int:
    """Record a block before it is requested; return its id."""
    asked = requested or Requested()
    with database.begin("record_block") as connection:
        recorded = connection.execute(
            blocks.insert()
            .values(
                workflow_id=workflow_id,
                run_id=run_id,
                name=name,
                tag=asked.tag,
                scheduler=asked.scheduler,
                queue=asked.queue,
                requested_nodes=asked.nodes,
                walltime_min=asked.walltime_min,
                why=asked.why,
                state=BlockState.REQUESTED.value,
                requested_at=clock(),
                lease_s=lease_s,
            )
            .returning(blocks.c.id)
        )
        return int(recorded.scalar_one())


def record_job(database: Database, block_id: int, job_id: str | None, script: str | None = None) -> None:
    """Record which batch job a block became, None as long as that is not known, and the script that was submitted."""
    with database.begin("record_job") as connection:
        connection.execute(blocks.update().where(blocks.c.id == block_id).values(job_id=job_id, script=script))


def requested_walltime(database: Database, block_id: int) -> float | None:
    """Return the walltime that was asked for, minutes; None where none was."""
    with database.read() as connection:
        return connection.execute(select(blocks.c.walltime_min).where(blocks.c.id == block_id)).scalar()


def rename_block(database: Database, block_id: int, name: str) -> None:
    """Record what Parsl calls a block in the run that adopted it."""
    with database.begin("rename_block") as connection:
        connection.execute(blocks.update().where(blocks.c.id == block_id).values(name=name))


def note_job_state(database: Database, block_id: int, state: JobState, reason: str | None) -> None:
    """Record what the scheduler says of a block's job. A block whose launcher never came is over with its job.

    A launcher that came speaks for itself, or loses its lease.
    """
    with database.begin("note_job_state") as connection:
        connection.execute(
            blocks.update().where(blocks.c.id == block_id).values(job_state=state.value, job_reason=reason)
        )
        if state in JOB_OVER:
            _abandon(connection, block_id, f"its job is over: {reason or state.value}")


def wish_end(database: Database, block_ids: Sequence[int], who: str) -> dict[int, BlockState]:
    """Wish that blocks end: launchers drain them; those that wait for one will not be opened.

    Return the state of each block that there is.
    """
    with database.begin("wish_end") as connection:
        found = connection.execute(
            select(blocks.c.id, blocks.c.workflow_id, blocks.c.state)
            .where(blocks.c.id.in_(list(block_ids)))
            .order_by(blocks.c.id)
            .with_for_update()
        ).all()
        connection.execute(
            blocks.update().where(blocks.c.id.in_([row.id for row in found]), IS_OPEN).values(end_wish=who)
        )
        for workflow_id in {row.workflow_id for row in found}:
            notify(connection, workflow_id, Topic.WORK)
    return {row.id: BlockState(row.state) for row in found}


def read_end(database: Database, block_id: int) -> BlockEnd | None:
    """Return how a block ended; None while it is not over."""
    with database.read() as connection:
        row = connection.execute(
            select(blocks, (blocks.c.ended_at - blocks.c.started_at).label("lived_s")).where(blocks.c.id == block_id)
        ).one()
    if row.ended_at is None:
        return None
    started = row.started_at is not None
    wished = row.end_wish is not None or (started and row.job_state in {state.value for state in JOB_ENDED})
    return BlockEnd(started, row.lived_s or 0.0, BlockState(row.state), row.reason or "", wished)


def open_block(database: Database, block_id: int, host: str, pid: int, directory: str | None = None) -> None:
    """Give the block's launcher its lease. It may be repeated when its outcome is unknown.

    Parameters
    ----------
    directory
        Where the launcher leaves what it cannot write to the database.

    Raises
    ------
    BalsamError
        If the block does not wait for its launcher: it was ended, or has a launcher already.
    """
    with database.begin("open_block") as connection:
        _abandon(connection, block_id, "ended before its launcher came", blocks.c.end_wish.is_not(None))
        opened = connection.execute(
            blocks.update()
            .where(
                blocks.c.id == block_id,
                or_(
                    blocks.c.state == BlockState.REQUESTED.value,
                    and_(blocks.c.state == BlockState.RUNNING.value, blocks.c.host == host, blocks.c.pid == pid),
                ),
            )
            .values(
                state=BlockState.RUNNING.value,
                host=host,
                pid=pid,
                directory=directory,
                started_at=clock(),
                lease_until=clock() + blocks.c.lease_s,
            )
        ).rowcount
    if opened != 1:
        raise BalsamError(f"block {block_id} does not wait for a launcher: it is over, or has one already")


def close_block(database: Database, block_id: int, reason: str) -> None:
    """Record that a block is over. What its launcher still held becomes ready again, at no cost.

    What the launcher has left on disk is recorded first, see `parsl_balsam.db.wills`.
    """
    with database.begin("close_block") as connection:
        row = connection.execute(
            select(blocks.c.workflow_id, blocks.c.state, blocks.c.directory)
            .where(blocks.c.id == block_id)
            .with_for_update()
        ).one()
        if row.state in (BlockState.REQUESTED.value, BlockState.RUNNING.value):
            left = read_will(row.directory, block_id).ends
            settle(connection, block_id, row.workflow_id, BlockState.ENDED, reason, left)
    _clear(row.directory, block_id)


def abandon_block(database: Database, block_id: int, reason: str) -> None:
    """Record that a block is over whose launcher never came. One that came speaks for itself, or loses its lease."""
    with database.begin("abandon_block") as connection:
        _abandon(connection, block_id, reason)


def abandon_unrequested(database: Database, tags: Iterable[str], reason: str) -> None:
    """Record that blocks are over whose recording was not acknowledged, as far as they are recorded at all."""
    with database.begin("abandon_unrequested") as connection:
        unrequested = blocks.c.tag.in_(list(tags)), blocks.c.state == BlockState.REQUESTED.value
        connection.execute(
            blocks.update().where(*unrequested).values(state=BlockState.ENDED.value, ended_at=clock(), reason=reason)
        )


def reap(database: Database) -> list[int]:
    """Take back the tasks of launchers whose lease is over; return the blocks that were lost.

    Nobody is reaped in the first lease after the server came up: launchers that could not reach it must have the
    chance to renew. On SQLite, nobody is either whose launcher has said beside the database that it lives.

    What a launcher has left on disk is recorded first; one that has left the reason of its end is not lost but ended.
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
        with database.begin("reap") as connection:
            still = connection.execute(
                select(blocks.c.job_state, blocks.c.job_reason, blocks.c.directory, blocks.c.lease_s)
                .where(
                    blocks.c.id == block_id,
                    blocks.c.state == BlockState.RUNNING.value,
                    blocks.c.lease_until < clock(),
                )
                .with_for_update(skip_locked=True)
            ).first()
            if not still or (database.is_sqlite and not _cut(connection, block_id, still.directory, still.lease_s)):
                continue
            will = read_will(still.directory, block_id)
            how = _how_lost(still.job_state, still.job_reason)
            if will.reason is not None:
                how = BlockState.ENDED, will.reason
            settle(connection, block_id, workflow_id, *how, will.ends)
        _clear(still.directory, block_id)
        lost.append(block_id)
    return lost


def _cut(connection: Connection, block_id: int, directory: str | None, lease_s: float) -> bool:
    """Tell whether a launcher is silent beside the database, too; if so, it cannot say any more that it lives."""
    return directory is None or Lifeline(directory, block_id).cut(lease_s, now(connection))


def _clear(directory: str | None, block_id: int) -> None:
    """Remove what a launcher kept beside the database."""
    remove_will(directory, block_id)
    if directory is not None:
        Lifeline(directory, block_id).remove()


def statuses(database: Database, block_ids: list[int]) -> list[BlockStatus]:
    """Return what the database knows of some blocks."""
    with database.read() as connection:
        held = select(func.count()).where(tasks.c.block_id == blocks.c.id).correlate(blocks).scalar_subquery()
        rows = connection.execute(
            select(
                blocks.c.id,
                blocks.c.name,
                blocks.c.state,
                held.label("held"),
                case(
                    (and_(IS_RUNNING, blocks.c.lease_until >= clock()), clock() - blocks.c.started_at), else_=0.0
                ).label("served_s"),
            ).where(blocks.c.id.in_(block_ids))
        )
        return [BlockStatus(row.id, row.name, BlockState(row.state), row.held, row.served_s) for row in rows]


def _how_lost(job_state: str | None, job_reason: str | None) -> tuple[BlockState, str]:
    """Return how a block ended whose launcher is silent: what ended its job is not its tasks' fault, if it is known."""
    silent = "its launcher was not heard of for a lease"
    if job_state in {state.value for state in JOB_ENDED}:
        return BlockState.ENDED, f"its job was ended: {job_reason or job_state}"
    if job_state in {state.value for state in JOB_OVER}:
        return BlockState.LOST, f"{silent}; its job is over: {job_reason or job_state}"
    return BlockState.LOST, silent


def _abandon(connection: Connection, block_id: int, reason: str, *conditions: ColumnElement[bool]) -> None:
    connection.execute(
        blocks.update()
        .where(blocks.c.id == block_id, blocks.c.state == BlockState.REQUESTED.value, *conditions)
        .values(state=BlockState.ENDED.value, ended_at=clock(), reason=reason)
    )
