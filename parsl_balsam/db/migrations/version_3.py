"""Blocks from batch systems: what was asked for, what the scheduler says, and pauses of workflows."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import Column, Float, Integer, Text, text


def upgrade(op: Operations) -> None:
    """Make version 3 of version 2."""
    op.add_column("workflows", Column("pause_count", Integer, nullable=False, server_default=text("0")))
    op.add_column("workflows", Column("pause_until", Float))
    op.add_column("workflows", Column("pause_why", Text))

    op.add_column("runs", Column("block_rules", Text))

    op.add_column("blocks", Column("scheduler", Text))
    op.add_column("blocks", Column("script", Text))
    op.add_column("blocks", Column("queue", Text))
    op.add_column("blocks", Column("requested_nodes", Integer))
    op.add_column("blocks", Column("walltime_min", Float))
    op.add_column("blocks", Column("why", Text))
    op.add_column("blocks", Column("job_state", Text))
    op.add_column("blocks", Column("job_reason", Text))
    op.add_column("blocks", Column("end_wish", Text))
