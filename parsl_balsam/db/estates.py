"""What becomes of the tasks that a launcher held when its block ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import OperationalError, StatementError

from parsl_balsam.db.connect import clock, now
from parsl_balsam.db.endings import record_ends, unclaim
from parsl_balsam.db.schema import attempts, blocks, tasks
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.model.errors import UnreadableRecord
from parsl_balsam.model.shares import Share, read_shares
from parsl_balsam.model.states import BlockState, Outcome, TaskState
from parsl_balsam.model.tasks import AttemptEnd

logger = logging.getLogger(__name__)


def settle(
    connection: Connection, block_id: int, workflow_id: int, state: BlockState, reason: str, left: Sequence[AttemptEnd]
) -> None:
    """End a block; what its launcher held becomes ready again, or ends.

    Parameters
    ----------
    state
        How the block ends: only where it is lost, its tasks may be charged with it.
    left
        Ends of attempts that the launcher has left on disk: those end so. The block ends without them where they cannot
        be stored, since it must end.
    """
    if left:
        try:
            with connection.begin_nested():
                return _end(connection, block_id, workflow_id, state, reason, left)
        except (StatementError, OverflowError, ValueError, TypeError) as error:
            if isinstance(error, OperationalError) or connection.invalidated:
                raise
            logger.exception("what the launcher of block %d has left cannot be recorded", block_id)
    _end(connection, block_id, workflow_id, state, reason)


def _end(
    connection: Connection,
    block_id: int,
    workflow_id: int,
    state: BlockState,
    reason: str,
    left: Sequence[AttemptEnd] = (),
) -> None:
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
    tokens = {(row.id, row.attempts): row.token for row in held}
    # All at once: whoever took more locks after the count of ends could wait in a circle.
    ends = [end for end in left if tokens.get((end.task_id, end.number)) == end.token]
    told = {end.task_id for end in ends}
    if dropped := len(left) - len(ends):
        logger.info("block %d has left %d ends of attempts that are recorded or no longer wanted", block_id, dropped)
    held = [row for row in held if row.id not in told]
    if state is BlockState.ENDED:
        waiting = [row.id for row in held if row.state == TaskState.ASSIGNED.value and not row.cancel_requested]
        unclaim(connection, waiting, f"block {block_id}", reason, at)
        held = [row for row in held if row.id not in set(waiting)]
    ends += [
        AttemptEnd(
            row.id,
            row.attempts,
            row.token,
            Outcome.CRASH if state is BlockState.LOST and _may_have_crashed(row) else Outcome.ENDED,
            host=row.host,
            shares=_shares(row.placement),
            started_at=row.started_at,
            error=f"block {block_id}: {reason}",
        )
        for row in held
    ]
    record_ends(connection, workflow_id, ends, f"block {block_id}", at)
    notify(connection, workflow_id, Topic.WORK)
    notify(connection, workflow_id, Topic.FINISHED)


def _shares(placement: str | None) -> tuple[Share, ...]:
    """Return a placement. A damaged one must not keep the tasks of a dead launcher from being given to others."""
    try:
        return read_shares(placement)
    except UnreadableRecord:
        return ()


def _may_have_crashed(row: Any) -> bool:
    """Tell whether a task of a lost launcher is to be charged with it.

    One that was only assigned is not, for it did not run. But a start is recorded a moment late, and a task that kills
    its launcher within that moment would do so for ever: the second launcher in a row is one too many.
    """
    return bool(row.state == TaskState.RUNNING.value or row.lost_before)
