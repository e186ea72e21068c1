"""From a URL, or the directory of a user's own server, to an open database with the right schema."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import URL, Connection, Engine, func, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Float

from parsl_balsam.db.crashpoint import Moment, is_point, pass_point
from parsl_balsam.db.mode import Mode, note_mode
from parsl_balsam.db.refusals import unavailable
from parsl_balsam.db.schema import SCHEMA_VERSION, metadata, schema_version
from parsl_balsam.db.sqlite import NOTICE, sqlite_engine, sync_log, tell
from parsl_balsam.db.statement import send
from parsl_balsam.model.errors import ConfigurationError, DatabaseDenied, SchemaMismatch

#: How long a statement waits for another process that holds SQLite's only write lock, seconds.
SQLITE_BUSY_S = 30.0

#: The same for launchers, which try again by themselves, and must be able to end meanwhile.
LAUNCHER_BUSY_S = 5.0

#: How many transactions a process may have under way at the same time, where it does not say. A script has five threads
#: that use the database: its own, Parsl's poller, and those that submit, complete and renew.
USUAL_CONNECTIONS = 5

#: Serialises the making and the changing of the tables. Any constant will do, as long as it is ours.
CREATE_LOCK = 0x62616C73616D


#: Where a database is. Its password is not shown where it is written as text.
Address: TypeAlias = URL


class clock(GenericFunction[float]):
    """The database's own clock, in seconds since the epoch."""

    type = Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgres_clock(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. Every transaction of the project starts here."""

    url: URL
    engine: Engine
    #: To take one out of SQLAlchemy's pool and to put it back takes longer than a transaction on SQLite.
    _idle: deque[Connection] = field(default_factory=deque, compare=False, repr=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is the embedded database, which serves one host."""
        return self.engine.dialect.name == "sqlite"

    @property
    def address(self) -> str:
        """The URL as a program needs it, password included. Never log it."""
        return self.url.render_as_string(hide_password=False)

    @contextmanager
    def begin(self, name: str = "", early: bool = False) -> Iterator[Connection]:
        """One transaction that may write.

        Parameters
        ----------
        name
            By which tests find its commit, see `parsl_balsam.db.crashpoint`.
        early
            On SQLite, whether it is over when all other processes see it, and not only when it is on disk: `sync` waits
            for that. Between the two it can be lost with the host, and with it all that came later.

        Raises
        ------
        DatabaseUnavailable
            If the database is away, locked for too long, or full. Nothing was written, or all of it was.
        """
        with _translated(self.url), self._connection() as connection:
            note_mode(connection, Mode.EARLY if early else Mode.WRITE)
            with connection.begin():
                connection.info.pop(NOTICE, None)  # of one that was rolled back
                yield connection
                if is_point(name):
                    send(connection)
                pass_point(name, Moment.BEFORE)
            tell(connection)
        pass_point(name, Moment.AFTER)

    def sync(self) -> None:
        """Wait until what was committed early is on disk.

        Raises
        ------
        DatabaseUnavailable
            If it may not be there.
        """
        if self.is_sqlite:
            try:
                sync_log(str(self.url.database))
            except OSError as error:
                raise unavailable(self.url, str(error)) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads. It takes no lock that a writer would wait for.

        Raises
        ------
        DatabaseUnavailable
            If the database is away.
        """
        with _translated(self.url), self._connection() as connection:
            note_mode(connection, Mode.READ)
            with connection.begin():
                yield connection

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if not self.is_sqlite:
            with self.engine.connect() as connection:
                yield connection
            return
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self.engine.connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def close(self) -> None:
        """Close all connections that are not in use."""
        while self._idle:
            self._idle.pop().close()
        self.engine.dispose()


def now(connection: Connection) -> float:
    """Return the database's clock."""
    return float(connection.execute(select(clock())).scalar_one())


def open_database(
    where: str | Path,
    *,
    create: bool = True,
    busy_s: float | None = None,
    connections: int = USUAL_CONNECTIONS,
) -> Database:
    """Open the database at a URL or in the directory of a user's own server.

    Parameters
    ----------
    where
        An SQLAlchemy URL (``sqlite:///balsam.db``, ``postgresql://user:password@host/name``), or a directory made by
        ``parsl-balsam db init``. The path of an SQLite file may be relative; it is made absolute here.
    create
        Whether missing tables, and a missing SQLite file, are made.
    busy_s
        How long a statement waits for another process that writes to SQLite, seconds. By default `SQLITE_BUSY_S`.
    connections
        To PostgreSQL, at most; `parsl_balsam.db.wakeup.listen` has one of its own. A transaction that finds all in use
        waits for one.

    Raises
    ------
    ConfigurationError
        If it is neither a URL of these two kinds nor such a directory.
    DatabaseUnavailable
        If the database cannot be opened; as `DatabaseDenied` if no waiting would cure that.
    SchemaMismatch
        If its tables are of another version.
    """
    database = _connect(resolve(where), create, busy_s, connections)
    try:
        _check_schema(database, create, str(where))
    except BaseException:
        database.close()
        raise
    return database


def open_any_version(where: str | Path) -> Database:
    """Open an existing database to bring its tables up to date; they are not looked at here.

    Raises
    ------
    ConfigurationError
        If it is neither a URL of these two kinds nor the directory of a server.
    DatabaseUnavailable
        If the database cannot be opened.
    """
    return _connect(resolve(where), create=False)


def read_version(connection: Connection, shown: str) -> int:
    """Return the version of a database's tables.

    Parameters
    ----------
    shown
        What messages call the database.

    Raises
    ------
    SchemaMismatch
        If it has no tables of ours, or newer ones than this program knows.
    """
    if not inspect(connection).has_table(schema_version.name):
        raise SchemaMismatch(f"{shown} has no parsl-balsam tables: check the name, or run a workflow on it first")
    version = connection.execute(select(schema_version.c.version)).scalar()
    if version is None or version < 1:
        raise SchemaMismatch(f"{shown} does not say of which version its tables are: use another database")
    if version > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{shown} has schema version {version}, this parsl-balsam works with version {SCHEMA_VERSION}: "
            "the database is newer than the program; install the parsl-balsam that made it, or use another database"
        )
    return int(version)


def resolve(where: str | Path) -> URL:
    """Turn what a user passes as ``database=`` into a URL with an absolute path.

    Raises
    ------
    ConfigurationError
        If it is neither a URL of a known kind nor the directory of a server.
    """
    if "://" not in str(where):
        from parsl_balsam.db.server import Server, is_server_directory

        if is_server_directory(where):
            return make_url(Server(where).url())
        raise ConfigurationError(
            f"{str(where)!r} is not a database: give a URL such as sqlite:///balsam.db, or a directory made by "
            "'parsl-balsam db init DIR'"
        )
    try:
        url = make_url(str(where))
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):  # ValueError: a port that is no number
        backend = "unreadable"
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "an SQLite database must be a file, such as sqlite:///balsam.db: tasks outlive a run"
            )
        return url.set(drivername="sqlite", database=str(Path(str(url.database)).absolute()))
    if backend == "postgresql":
        url = url.set(drivername="postgresql+psycopg2")
        if password := url.query.get("password"):  # libpq takes it there too, but there it would be shown
            password = password if isinstance(password, str) else password[-1]
            url = url.set(password=password).difference_update_query(["password"])
        if "sslpassword" in url.query:
            raise ConfigurationError(
                "the database URL has sslpassword, which would be shown in messages and lists of processes: leave it "
                "out, and use a key file of mode 0600 that has no password of its own"
            )
        return url
    raise ConfigurationError(
        "the database URL cannot be used: it must start with sqlite:/// or postgresql://, as in "
        "sqlite:///balsam.db or postgresql://user:password@host:5432/name"
    )


def _connect(url: URL, create: bool, busy_s: float | None = None, connections: int = USUAL_CONNECTIONS) -> Database:
    if url.get_backend_name() == "sqlite":
        return Database(url, sqlite_engine(url, create, SQLITE_BUSY_S if busy_s is None else busy_s))
    from parsl_balsam.db.postgres import postgres_engine

    return Database(url, postgres_engine(url, connections))


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if not isinstance(error, DBAPIError) or isinstance(error, OperationalError) or error.connection_invalidated:
            reason = str(getattr(error, "orig", None) or error).strip()
            raise unavailable(url, reason) from error
        raise


def _check_schema(database: Database, create: bool, where: str) -> None:
    shown = database.url.render_as_string()
    try:
        with database.read() as connection:  # most often they are there, and looking must not wait for writers
            if inspect(connection).has_table(schema_version.name):
                return _check_version(connection, shown, _upgrade_command(database, where))
        with database.begin("check_schema") as connection:
            if not database.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(CREATE_LOCK)))
            found = set(inspect(connection).get_table_names())
            if schema_version.name not in found:
                if found & set(metadata.tables):
                    raise SchemaMismatch(
                        f"{shown} has tables of the same names that are not parsl-balsam's: use another database"
                    )
                if create:
                    metadata.create_all(connection)
                    connection.execute(schema_version.insert().values(version=SCHEMA_VERSION))
            _check_version(connection, shown, _upgrade_command(database, where))
    except DBAPIError as error:  # such as "file is not a database"
        raise DatabaseDenied(f"{shown}: {error.orig}") from error


def _check_version(connection: Connection, shown: str, upgrade: str) -> None:
    version = read_version(connection, shown)
    if version < SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{shown} has schema version {version}, this parsl-balsam works with version {SCHEMA_VERSION}: "
            f"`{upgrade}` brings it up to date"
        )


def _upgrade_command(database: Database, where: str) -> str:
    if database.is_sqlite:
        where = str(database.url.database)
    elif "://" in where:
        where = database.url.render_as_string()  # without its password
    return f"parsl-balsam db upgrade --database {shlex.quote(where)}"


def server_started(connection: Connection) -> float:
    """Return when the database server came up, on its clock; 0 where there is no server."""
    if connection.dialect.name == "sqlite":
        return 0.0
    return float(connection.execute(text("SELECT extract(epoch FROM pg_postmaster_start_time())")).scalar_one())
