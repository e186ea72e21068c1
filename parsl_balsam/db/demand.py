"""What waits for blocks, and what the blocks of a workflow have for it. It only reads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from parsl_balsam.db.connect import Database, now
from parsl_balsam.db.ready import CURRENT_RUN, DUE, WANTED
from parsl_balsam.db.schema import IS_OPEN, blocks, tasks
from parsl_balsam.model.blocks import BlockSupply
from parsl_balsam.model.demand import Demand, TaskGroup
from parsl_balsam.model.states import BlockState


@dataclass(frozen=True, slots=True)
class Waiting:
    """What decides whether another block is requested."""

    demand: Demand
    blocks: tuple[BlockSupply, ...]  #: those that wait or run
    at: float  #: the database's clock, seconds since the epoch


def read_waiting(
    database: Database,
    workflow_id: int,
    cores_per_node: int | None,
    gpus_per_node: int | None,
    whole_nodes: bool = False,
) -> Waiting:
    """Return the ready tasks that a workflow's current run asked for, and the blocks that will serve them.

    Tasks that wait for their next try are not counted until it is due.

    Parameters
    ----------
    cores_per_node, gpus_per_node
        Of the blocks to come; None for what blocks of this workflow had.
    whole_nodes
        Whether each task gets nodes of its own, whatever it asks for.
    """
    with database.read() as connection:
        at = now(connection)
        ready = connection.execute(_READY, {"workflow": workflow_id, "at": at}).all()
        supplies = _supplies(connection, workflow_id, whole_nodes)
        had = connection.execute(_HAD, {"workflow": workflow_id}).one()
    demand = Demand(
        tuple(_group(row, whole_nodes) for row in ready),
        cores_per_node or had.cores,
        had.gpus if gpus_per_node is None else gpus_per_node,
        min((row.oldest for row in ready), default=None),
        max((row.newest for row in ready), default=None),
    )
    return Waiting(demand, supplies, at)


def _supplies(connection: Connection, workflow_id: int, whole_nodes: bool) -> tuple[BlockSupply, ...]:
    held: defaultdict[int, list[TaskGroup]] = defaultdict(list)
    for row in connection.execute(_HELD, {"workflow": workflow_id}):
        held[row.block_id].append(_group(row, whole_nodes))
    return tuple(
        BlockSupply(
            row.id,
            row.requested_nodes or 1 if row.nodes is None else row.nodes,
            row.walltime_min,
            row.queue,
            row.ends_at,
            row.state == BlockState.RUNNING.value,
            tuple(held[row.id]),
        )
        for row in connection.execute(_OPEN, {"workflow": workflow_id})
    )


def _group(row: Any, whole_nodes: bool) -> TaskGroup:
    if whole_nodes:
        return TaskGroup(row.count, row.nodes, walltime_min=row.walltime_min)
    return TaskGroup(row.count, row.nodes, row.cores, row.packing, row.gpus, row.walltime_min)


_needs = (tasks.c.nodes, tasks.c.cores, tasks.c.packing, tasks.c.gpus, tasks.c.walltime_min)

_READY = (
    select(
        *_needs,
        func.count().label("count"),
        func.min(tasks.c.submitted_at).label("oldest"),
        func.max(tasks.c.submitted_at).label("newest"),
    )
    .where(*WANTED, DUE)
    .group_by(*_needs)
)

_HELD = (
    select(tasks.c.block_id, *_needs, func.count().label("count"))
    .join(blocks, blocks.c.id == tasks.c.block_id)
    .where(blocks.c.workflow_id == bindparam("workflow"), IS_OPEN)
    .group_by(tasks.c.block_id, *_needs)
)

# A block that is to end, or works for an earlier run, serves nothing that waits.
_OPEN = (
    select(blocks)
    .where(
        blocks.c.workflow_id == bindparam("workflow"),
        IS_OPEN,
        blocks.c.end_wish.is_(None),
        blocks.c.run_id == CURRENT_RUN,
    )
    .order_by(blocks.c.id)
)

_HAD = select(func.max(blocks.c.cores_per_node).label("cores"), func.max(blocks.c.gpus_per_node).label("gpus")).where(
    blocks.c.workflow_id == bindparam("workflow")
)
