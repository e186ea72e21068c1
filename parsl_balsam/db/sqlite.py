"""Connections to an SQLite file."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from parsl_balsam.db.mode import Mode, take_mode
from parsl_balsam.db.statement import execute
from parsl_balsam.db.watch import touch
from parsl_balsam.model.errors import DatabaseDenied

#: How soon to try again where SQLite itself does not wait, at first and later, seconds.
_SOON_S = 0.0005
_AGAIN_S = 0.01

#: In a connection's `info`: the transaction has a notice for others.
NOTICE = "balsam_notice"


def sqlite_engine(url: URL, create: bool, busy_s: float) -> Engine:
    """Return what makes connections to a file.

    Parameters
    ----------
    create
        Whether a missing file is made.
    busy_s
        How long a statement waits for another process that writes, seconds.

    Raises
    ------
    DatabaseDenied
        If the file cannot be opened.
    """
    path = Path(str(url.database))
    try:
        _check_file(path, create)
    except OSError as error:
        raise DatabaseDenied(f"cannot open the database file {path}: {error.strerror}") from None
    engine = create_engine(url, connect_args={"timeout": busy_s})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the sqlite3 module
        cursor = connection.cursor()
        _use_wal(cursor, busy_s)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = take_mode(connection)
        if mode is Mode.READ:
            _set(connection, "busy_timeout", str(round(busy_s * 1000)))
            execute(connection, "BEGIN")
            return
        # FULL: an acknowledged result survives a power failure. In WAL mode that is one fsync a transaction.
        _set(connection, "synchronous", "NORMAL" if mode is Mode.EARLY else "FULL")
        # IMMEDIATE: a transaction that reads first and writes later fails with "database is locked" without waiting.
        # SQLite itself looks again after up to 0.1 s. A script that records many calls leaves the lock alone for a
        # millisecond between two transactions: launchers would wait until it has recorded them all.
        _set(connection, "busy_timeout", "0")
        _when_free(lambda: execute(connection, "BEGIN IMMEDIATE"), busy_s)

    return engine


def _set(connection: Connection, name: str, value: str) -> None:
    if connection.info.get(name) != value:
        execute(connection, f"PRAGMA {name}={value}")
        connection.info[name] = value


def tell(connection: Connection) -> None:
    """Wake those who wait for a notice, if there was one in the transaction that was committed."""
    if connection.info.pop(NOTICE, False):
        touch(str(connection.engine.url.database))


def sync_log(path: str) -> None:
    """Wait until all that was committed is on disk.

    Raises
    ------
    OSError
        If it may not be there.
    """
    # No lock is held on this file: it may be closed.
    try:
        log = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # all was copied to the database itself
        return
    try:
        os.fdatasync(log)
    finally:
        os.close(log)


def _check_file(path: Path, create: bool) -> None:
    # Made here and not by SQLite, so that nobody else can read it. An existing file is not opened, only looked at: to
    # close any descriptor of it takes away the locks that other connections of this process hold.
    if create and not path.exists():
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:  # another process was first
            pass
    path.stat()
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    if not os.access(path, os.R_OK | (os.W_OK if create else 0), effective_ids=True):
        raise PermissionError(EACCES, os.strerror(EACCES))


def _use_wal(cursor: sqlite3.Cursor, patience_s: float) -> None:
    # Of several processes that change the mode of a new file at the same time, all but one are told at once that it is
    # locked: SQLite does not wait here, whatever its timeout.
    _when_free(lambda: cursor.execute("PRAGMA journal_mode=WAL"), patience_s)


def _when_free(act: Callable[[], object], patience_s: float) -> None:
    """Do what SQLite refuses while another process holds a lock, as soon as that is given up."""
    until = time.monotonic() + patience_s
    pause_s = _SOON_S
    while True:
        try:
            act()
            return
        except (sqlite3.OperationalError, OperationalError) as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _AGAIN_S)
