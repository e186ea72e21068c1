"""From the tables of an earlier version to those of today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, func, inspect, or_, select, text
from sqlalchemy.exc import DBAPIError

from parsl_balsam.db.backup import back_up
from parsl_balsam.db.connect import CREATE_LOCK, Database, clock, read_version, server_started
from parsl_balsam.db.drivers import is_dead, this_process
from parsl_balsam.db.migrations import NOTES, STEPS
from parsl_balsam.db.runs import Driver
from parsl_balsam.db.schema import IS_RUNNING, SCHEMA_VERSION, blocks, metadata, runs, schema_version, workflows
from parsl_balsam.model.errors import DatabaseInUse, DatabaseUnavailable
from parsl_balsam.model.states import BlockState

#: How long the upgrade waits for somebody who reads or writes a table, seconds.
_LOCK_WAIT_S = 60


def upgrade(database: Database, say: Callable[[str], object], backup_to: Path | None) -> bool:
    """Bring the tables of a database up to date, in one transaction; return whether they were older.

    Parameters
    ----------
    say
        Is told what was found and what is being done.
    backup_to
        Where a dump of PostgreSQL goes, see `back_up`. None for no backup of either kind of database.

    Raises
    ------
    SchemaMismatch
        If the database has no tables of ours, or newer ones.
    DatabaseInUse
        If a script or a launcher works with it.
    BackupFailed
        If it cannot be copied first.
    DatabaseUnavailable
        If the database refuses a change, is locked for too long, or is away. As after any other error, it has its old
        version still, in full.
    """
    shown = database.url.render_as_string()
    try:
        with database.read() as connection:  # most often there is nothing to do, and looking must not disturb
            found = read_version(connection, shown)
        if found < SCHEMA_VERSION:
            with database.begin("upgrade") as connection:
                keep_others_out(connection)
                found = read_version(connection, shown)  # another upgrade may have come before
                if found < SCHEMA_VERSION:
                    say(f"{shown} has schema version {found}.")
                    refuse_while_in_use(connection, shown)
                    if backup_to is not None:
                        backup = back_up(database, found, backup_to)
                        say(f"Backup: {backup.file}\nTo go back to it, end all that use it, and then: {backup.restore}")
                    _take_steps(connection, found, say)
    except DBAPIError as error:
        raise DatabaseUnavailable(f"{shown} has its old version still: {error.orig}") from error
    if found == SCHEMA_VERSION:
        say(f"{shown} has schema version {found}, which is current: there is nothing to do.")
        return False
    say(f"It has schema version {SCHEMA_VERSION} now.")
    for version, note in NOTES.items():
        if version > found:
            say(note)
    return True


def waiting_blocks(database: Database) -> list[str]:
    """Return the blocks, by their jobs where these are known, that wait for a launcher."""
    query = select(blocks.c.id, blocks.c.job_id).where(blocks.c.state == BlockState.REQUESTED.value)
    with database.read() as connection:
        return [_block(row.id, row.job_id) for row in connection.execute(query.order_by(blocks.c.id))]


def keep_others_out(connection: Connection) -> None:
    """Let nobody else write until this transaction ends; who reads may go on. On SQLite that is so already."""
    if connection.dialect.name == "sqlite":
        return
    # This transaction is idle while the backup is made.
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    # Before the limit: another upgrade is waited for as long as it takes.
    connection.execute(select(func.pg_advisory_xact_lock(CREATE_LOCK)))
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
    ours = [name for name in inspect(connection).get_table_names() if name in metadata.tables]
    # EXCLUSIVE: pg_dump can still read.
    connection.execute(text(f"LOCK TABLE {', '.join(ours)} IN EXCLUSIVE MODE"))


def _take_steps(connection: Connection, found: int, say: Callable[[str], object]) -> None:
    operations = Operations(MigrationContext.configure(connection))
    for version in range(found + 1, SCHEMA_VERSION + 1):
        say(f"Upgrading to version {version} ...")
        STEPS[version](operations)
        connection.execute(schema_version.update().values(version=version))


def refuse_while_in_use(connection: Connection, shown: str) -> None:
    """Raise DatabaseInUse if a script or a launcher works with the database."""
    if users := [*_scripts(connection), *_launchers(connection)]:
        raise DatabaseInUse(
            f"{shown} is in use, so nothing was changed. End these, or wait for them, and try again: {'; '.join(users)}"
        )


# Below only columns are named that the tables of all versions have.


def _scripts(connection: Connection) -> list[str]:
    rows = connection.execute(
        select(
            workflows.c.name,
            runs.c.host,
            runs.c.host_key,
            runs.c.pid,
            runs.c.pid_started,
            (runs.c.lease_until - clock()).label("lease_left_s"),
        )
        .join(workflows, workflows.c.current_run == runs.c.id)
        .where(runs.c.ended_at.is_(None))
        .order_by(runs.c.id)
    ).all()
    here = this_process().host_key
    users = []
    for row in rows:
        # One on this host that is frozen, or could not reach its server, lives although its lease is over.
        alive = not is_dead(Driver(row.host, row.host_key, row.pid, row.pid_started))
        if alive and (row.host_key == here or row.lease_left_s > 0):
            users.append(f"the script of workflow {row.name!r}, process {row.pid} on {row.host}{_until(row)}")
    return users


def _launchers(connection: Connection) -> list[str]:
    started = server_started(connection)
    rows = connection.execute(
        select(
            blocks.c.id,
            blocks.c.job_id,
            blocks.c.host,
            blocks.c.pid,
            (blocks.c.lease_until - clock()).label("lease_left_s"),
        )
        # In the first lease after the server came up nobody is given up, see `reap`.
        .where(IS_RUNNING, or_(blocks.c.lease_until >= clock(), clock() - started <= blocks.c.lease_s))
        .order_by(blocks.c.id)
    )
    return [
        f"the launcher of {_block(row.id, row.job_id)}, process {row.pid} on {row.host}{_until(row)}" for row in rows
    ]


def _block(block_id: int, job_id: str | None) -> str:
    return f"block {block_id}" if job_id is None else f"block {block_id} (job {job_id})"


def _until(row: Any) -> str:
    """Say for how long somebody who died just now would still be believed to live."""
    return f" (its lease ends in {row.lease_left_s:.0f} s)" if row.lease_left_s > 0 else ""
