"""What launchers leave beside a database that is away."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import Column, Text


def upgrade(op: Operations) -> None:
    """Make version 4 of version 3."""
    op.add_column("blocks", Column("directory", Text))
