"""A copy of a database from before its tables are changed."""

from __future__ import annotations

import os
import shlex
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from psycopg2.extensions import make_dsn

from parsl_balsam.db.binaries import Binaries, find_binaries
from parsl_balsam.db.connect import Database
from parsl_balsam.db.schema import metadata
from parsl_balsam.model.errors import BackupFailed, ServerError


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of a database."""

    file: Path  #: of mode 0600
    restore: str  #: what to type to go back to it


def back_up(database: Database, version: int, directory: Path) -> Backup:
    """Copy a database of an earlier version.

    Nobody may write to it meanwhile.

    Parameters
    ----------
    version
        Of the tables; it becomes part of the copy's name.
    directory
        Where a dump of PostgreSQL goes. The copy of an SQLite file is put beside it.

    Raises
    ------
    BackupFailed
        If the copy cannot be made. Nothing is left of it.
    """
    try:
        if database.is_sqlite:
            return _copy_file(Path(str(database.url.database)), version)
        return _dump(database, version, directory)
    except (OSError, sqlite3.Error, ServerError) as error:
        raise BackupFailed(
            f"cannot back up {database.url.render_as_string()}, so nothing was changed: {error}. "
            "To go on without a backup, pass --no-backup"
        ) from error


def _copy_file(source: Path, version: int) -> Backup:
    def copy(target: Path) -> None:
        with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copied:
            original.backup(copied)

    file = _written(source.with_name(f"{source.name}.version-{version}"), copy)
    # With the write-ahead log of another database SQLite would make a mixture of both.
    logs = " ".join(shlex.quote(f"{source}{suffix}") for suffix in ("-wal", "-shm"))
    return Backup(file, f"rm -f {logs} && cp {shlex.quote(str(file))} {shlex.quote(str(source))}")


def _dump(database: Database, version: int, directory: Path) -> Backup:
    with database.read() as connection:
        (major, *_) = connection.dialect.server_version_info or (0,)
    binaries = _dumping(int(major))
    url = database.url
    shown = _without_password(database)
    password = {} if url.password is None else {"PGPASSWORD": str(url.password)}

    def dump(target: Path) -> None:
        binaries.run(
            "pg_dump",
            "--format=custom",
            f"--file={target}",
            *(f"--table={name}" for name in metadata.tables),
            f"--dbname={shown}",
            cwd=target.parent,
            account=None,
            # As any client of the user's: with the variables and files by which libpq finds a server.
            environment={**os.environ, **password},
        )

    file = _written(directory.absolute() / f"{url.database or 'balsam'}.version-{version}.dump", dump)
    program = shlex.quote(str(binaries.directory / "pg_restore"))
    options = f"--clean --if-exists --single-transaction --dbname={shlex.quote(shown)}"
    return Backup(file, f"{program} {options} {shlex.quote(str(file))}")


def _dumping(major: int) -> Binaries:
    """Find a ``pg_dump`` for a server of this major version: its own, or a newer one."""
    try:
        binaries = find_binaries(major)
    except ServerError:
        binaries = find_binaries()
    if binaries.major < major:
        raise ServerError(
            f"the server is PostgreSQL {major}, and {binaries.directory} has pg_dump of {binaries.major} only: "
            f"install the client programs of PostgreSQL {major}"
        )
    if not os.access(binaries.directory / "pg_dump", os.X_OK):
        raise ServerError(
            f"{binaries.directory} has no pg_dump: install the client programs of PostgreSQL {major}, "
            f"such as apt install postgresql-client-{major}"
        )
    return binaries


def _without_password(database: Database) -> str:
    """Return where a database is as libpq takes it, such as may be seen in a list of processes."""
    # Not the URL: SQLAlchemy writes blanks in paths of certificates as "+", which libpq takes literally.
    _, options = database.engine.dialect.create_connect_args(database.url)
    return str(make_dsn(**{name: value for name, value in options.items() if name != "password"}))


def _written(path: Path, write: Callable[[Path], None]) -> Path:
    """Write a file that only its owner can read; return its path, to which a number is added if there is one already.

    It gets its name when it is complete: what is left after a kill is not taken for a backup.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        write(part)
        numbered = (path.with_name(f"{path.name}.{number}") for number in count(2))
        return part.rename(next(file for file in chain([path], numbered) if not file.exists()))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
