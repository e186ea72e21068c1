"""Blocks as people ask for them: those that are open, how the last ones ended, and what was wanted of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, or_, select

from parsl_balsam.db.connect import Database, clock
from parsl_balsam.db.runs import of_workflow
from parsl_balsam.db.schema import IS_OPEN, blocks, tasks, workflows
from parsl_balsam.model.states import BlockState, JobState, TaskState


@dataclass(frozen=True, slots=True)
class BlockLine:
    """One block. Times are in seconds since the epoch."""

    id: int
    workflow: str
    executor: str  #: its label
    name: str  #: Parsl's block id, unique within its run only
    tag: str  #: name of its batch job
    scheduler: str | None  #: which kind of provider requested it; None = somebody started it by hand
    job_id: str | None  #: None where it is not known, or there is none
    queue: str | None
    state: BlockState
    job_state: JobState | None  #: what the scheduler said last
    job_reason: str | None
    end_wish: str | None  #: who wants it ended before its time
    host: str | None  #: of its launcher
    pid: int | None  #: of its launcher
    nodes: int | None  #: that tasks may run on; None before it starts
    requested_nodes: int | None
    lost_nodes: str | None  #: with the reasons
    walltime_min: float | None  #: that was asked for
    time_left_s: float | None  #: until its batch job ends; None where no end is known, or it is over
    lease_left_s: float | None  #: until its tasks are taken back if it is not heard of; None before it starts and after
    running: int  #: tasks that have processes there
    held: int  #: tasks its launcher has claimed and not ended, those that run included
    requested_at: float
    started_at: float | None
    ended_at: float | None
    reason: str | None  #: why it ended
    why: str | None  #: why it was requested

    @property
    def is_open(self) -> bool:
        """Whether it is requested or runs."""
        return self.state in (BlockState.REQUESTED, BlockState.RUNNING)


def open_blocks(database: Database, workflow: str | None = None) -> list[BlockLine]:
    """Return the blocks that are requested or run, in the order in which they were requested.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    with database.read() as connection:
        query = _lines().where(IS_OPEN, *of_workflow(connection, workflow, blocks.c.workflow_id))
        return [_line(row) for row in connection.execute(query).mappings()]


def list_blocks(database: Database, workflow: str | None = None, ended: int | None = None) -> list[BlockLine]:
    """Return the open blocks and the last ones that ended, in the order in which they were requested.

    Parameters
    ----------
    ended
        At most so many that ended, of each executor of each workflow; None for all.

    Raises
    ------
    ConfigurationError
        If there is no such workflow.
    """
    with database.read() as connection:
        chosen = list(of_workflow(connection, workflow, blocks.c.workflow_id))
        query = _lines().where(*chosen)
        if ended is not None:
            latest = (
                select(
                    blocks.c.id,
                    func.row_number()
                    .over(partition_by=blocks.c.workflow_id, order_by=(blocks.c.ended_at.desc(), blocks.c.id.desc()))
                    .label("place"),
                )
                .where(~IS_OPEN, *chosen)
                .subquery()
            )
            query = query.where(
                or_(IS_OPEN, blocks.c.id.in_(select(latest.c.id).where(latest.c.place <= ended))),
            )
        return [_line(row) for row in connection.execute(query).mappings()]


def read_blocks(database: Database, ids: Sequence[int]) -> dict[int, BlockLine]:
    """Return those of some blocks that there are, by id."""
    with database.read() as connection:
        rows = connection.execute(_lines().where(blocks.c.id.in_(list(ids)))).mappings()
        return {row["id"]: _line(row) for row in rows}


def _lines() -> Select[Any]:
    held = select(func.count()).where(tasks.c.block_id == blocks.c.id).correlate(blocks)
    running = held.where(tasks.c.state == TaskState.RUNNING.value)
    named = (
        *("id", "name", "tag", "scheduler", "job_id", "queue", "state", "job_state", "job_reason", "end_wish", "host"),
        *("pid", "nodes", "requested_nodes", "lost_nodes", "walltime_min", "requested_at", "started_at", "ended_at"),
        *("reason", "why"),
    )
    return (
        select(
            *(blocks.c[name] for name in named),
            workflows.c.name.label("workflow"),
            workflows.c.label.label("executor"),
            (blocks.c.ends_at - clock()).label("time_left_s"),
            (blocks.c.lease_until - clock()).label("lease_left_s"),
            held.scalar_subquery().label("held"),
            running.scalar_subquery().label("running"),
        )
        .join(workflows, workflows.c.id == blocks.c.workflow_id)
        .order_by(blocks.c.id)
    )


def _line(row: Any) -> BlockLine:
    given = dict(row)
    over = given["ended_at"] is not None
    return BlockLine(
        **{
            **given,
            "state": BlockState(given["state"]),
            "job_state": None if given["job_state"] is None else JobState(given["job_state"]),
            "time_left_s": None if over else given["time_left_s"],
            "lease_left_s": None if over else given["lease_left_s"],
        }
    )
