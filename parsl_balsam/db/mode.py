"""What a transaction is for. `Database` notes it for those who carry BEGIN and COMMIT out."""

from __future__ import annotations

from enum import Enum

from sqlalchemy import Connection

_KEY = "balsam_mode"


class Mode(Enum):
    """How a transaction begins and ends."""

    WRITE = 1  # what it writes is on disk when it is over
    EARLY = 2  # on SQLite, it may not yet be
    READ = 3


def note_mode(connection: Connection, mode: Mode) -> None:
    """Say of what kind a connection's next transaction is."""
    connection.info[_KEY] = mode


def take_mode(connection: Connection) -> Mode:
    """Return of what kind the transaction is that begins now."""
    mode = connection.info.pop(_KEY, Mode.WRITE)
    assert isinstance(mode, Mode)
    return mode
