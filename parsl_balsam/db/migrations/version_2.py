"""Tasks of several nodes: what each needs of a node, what each attempt had, and what a launcher has found."""

from __future__ import annotations

import json
from typing import Any

from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    Text,
    bindparam,
    column,
    false,
    select,
    table,
    text,
)

#: So many tasks are held in memory at a time.
_AT_ONCE = 10_000

_attempts = table("attempts", column("host", Text), column("placement", Text))
_tasks = table(
    "tasks",
    column("id", BigInteger),
    column("spec", Text),
    column("cores", Integer),
    column("packing", Integer),
    column("gpus", Integer),
    column("parallel", Boolean),
    column("walltime_min", Float),
)


def upgrade(op: Operations) -> None:
    """Make version 2 of version 1."""
    op.add_column("runs", Column("launch_order", Text))

    op.add_column("blocks", Column("nodes", Integer))
    op.add_column("blocks", Column("cores_per_node", Integer))
    op.add_column("blocks", Column("gpus_per_node", Integer))
    op.add_column("blocks", Column("ends_at", Float))
    op.add_column("blocks", Column("lost_nodes", Text))

    op.add_column("tasks", Column("cores", Integer))
    op.add_column("tasks", Column("packing", Integer))
    op.add_column("tasks", Column("gpus", Integer, nullable=False, server_default=text("0")))
    op.add_column("tasks", Column("parallel", Boolean, nullable=False, server_default=false()))
    op.add_column("tasks", Column("walltime_min", Float))
    _write_needs(op.get_bind())

    op.alter_column("attempts", "cores", new_column_name="placement")
    # The numbers of the cores on the only node, "0,1", become a list of shares, [[["node"], "0,1", []]].
    shares = '[[["' + _attempts.c.host + '"], "' + _attempts.c.placement + '", []]]'
    op.execute(_attempts.update().where(_attempts.c.placement.is_not(None)).values(placement=shares))


def _write_needs(connection: Connection) -> None:
    """Write what tasks need of a node to columns of their own: launchers search for it."""
    connection.execute(_tasks.update().where(_tasks.c.spec.is_(None)).values(cores=1))
    write = (
        _tasks.update()
        .where(_tasks.c.id == bindparam("task"))
        .values({name: bindparam(name) for name in ("cores", "packing", "gpus", "parallel", "walltime_min")})
    )
    query = select(_tasks.c.id, _tasks.c.spec).where(_tasks.c.spec.is_not(None)).order_by(_tasks.c.id).limit(_AT_ONCE)
    last = 0
    while rows := connection.execute(query.where(_tasks.c.id > last)).all():
        connection.execute(write, [{"task": row.id, **_needs(json.loads(row.spec))} for row in rows])
        last = rows[-1].id


def _needs(spec: dict[str, Any]) -> dict[str, Any]:
    nodes, ranks, packing = spec.get("num_nodes", 1), spec.get("ranks_per_node", 1), spec.get("node_packing_count")
    cores_per_rank = spec.get("cores_per_rank")
    depends_on_node = packing is not None or (nodes > 1 and cores_per_rank is None)
    return {
        "cores": None if depends_on_node else ranks * (cores_per_rank or 1),
        "packing": packing,
        "gpus": ranks * spec.get("gpus_per_rank", 0),
        "parallel": nodes * ranks > 1 or spec.get("launch") == "ranks",
        "walltime_min": spec.get("walltime_min"),
    }
