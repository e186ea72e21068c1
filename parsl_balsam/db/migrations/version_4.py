"""Databases that are away: what launchers leave beside them, and how long a run may take to renew its lease."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import Column, Float, Text


def upgrade(op: Operations) -> None:
    """Make version 4 of version 3."""
    op.add_column("runs", Column("lease_s", Float))
    op.add_column("blocks", Column("directory", Text))
