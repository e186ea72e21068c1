"""From what a user passes as ``database=`` to an open database, or to an error that says what to do."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url, text

from parsl_balsam.db.connect import Database, open_database, resolve
from parsl_balsam.db.outage import until_it_answers
from parsl_balsam.db.refusals import unavailable
from parsl_balsam.db.schema import SCHEMA_VERSION, metadata
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import (
    ConfigurationError,
    DatabaseDenied,
    DatabaseDown,
    DatabaseUnavailable,
    SchemaMismatch,
    ServerError,
)

from .conftest import Story, at_once, check_invariants, column, rows

SECRET = "s3cr3t"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'balsam.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """Give up root's right to write everywhere; return a directory of that user."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="balsam-test-"))
    user, nobody = os.geteuid(), 65534
    if user == 0:
        os.chown(directory, nobody, nobody)
        os.seteuid(nobody)
    try:
        yield directory
    finally:
        os.seteuid(user)
        directory.chmod(0o700)
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("balsam.db", "sqlite:///balsam.db"),
        ("/no/such/directory", "parsl-balsam db init DIR"),
        ("", "sqlite:///balsam.db"),
        (".", "parsl-balsam db init DIR"),
        (f"mysql://me:{SECRET}@host/db", "sqlite:/// or postgresql://"),
        (f"nosuch://me:{SECRET}@host/db", "sqlite:/// or postgresql://"),
        ("://", "sqlite:/// or postgresql://"),
        (f"postgresql://me:{SECRET}@host:port/db", "sqlite:/// or postgresql://"),
        ("sqlite://", "must be a file"),
        ("sqlite:///", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
    ],
)
def test_what_is_no_database_is_refused(url: str, advice: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_database(url)
    assert advice in str(refused.value)
    assert SECRET not in "".join(traceback.format_exception_only(refused.value))


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_database("sqlite:///mine.db")) as database:
        assert database.url.database == str(tmp_path / "mine.db")
        monkeypatch.chdir("/")
        check_invariants(database)
    assert resolve(database.address) == database.url


def test_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(open_database(f"sqlite:///{tmp_path / 'mine.db'}")) as database, database.begin():
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"mine.db": 0o600, "mine.db-wal": 0o600, "mine.db-shm": 0o600}


def test_acknowledged_transactions_survive_a_power_failure(tmp_path: Path) -> None:
    with closing(open_database(f"sqlite:///{tmp_path / 'mine.db'}")) as database:
        assert column(database, "PRAGMA journal_mode") == ["wal"]
        assert column(database, "PRAGMA synchronous") == [2]


@pytest.mark.parametrize("create", [True, False])
def test_missing_directory(tmp_path: Path, create: bool) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"missing/mine\.db: No such file or directory"):
        open_database(f"sqlite:///{tmp_path}/missing/mine.db", create=create)


def test_missing_file_is_not_made_for_one_who_only_looks(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="No such file"):
        open_database(f"sqlite:///{tmp_path}/mine.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("words " * 1000)
    with pytest.raises(DatabaseUnavailable, match="file is not a database"):
        open_database(f"sqlite:///{file}")
    assert file.read_text() == "words " * 1000


def test_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="Is a directory"):
        open_database(f"sqlite:///{tmp_path}")


def test_unwritable_file(as_ordinary_user: Path) -> None:
    file = as_ordinary_user / "mine.db"
    open_database(f"sqlite:///{file}").close()
    file.chmod(0o400)
    with pytest.raises(DatabaseUnavailable, match=r"mine\.db: Permission denied"):
        open_database(f"sqlite:///{file}")


def test_unwritable_directory(as_ordinary_user: Path) -> None:
    file = as_ordinary_user / "mine.db"
    open_database(f"sqlite:///{file}").close()
    as_ordinary_user.chmod(0o500)
    with pytest.raises(DatabaseUnavailable, match=r"mine\.db: "):
        open_database(f"sqlite:///{file}")


def test_tables_are_made_once(empty_url: str) -> None:
    def first() -> list[int]:
        with closing(open_database(empty_url)) as database:
            return column(database, "SELECT version FROM schema_version")

    assert at_once(*[first] * 4) == [[SCHEMA_VERSION]] * 4


def test_one_who_only_looks_makes_no_tables(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        Path(str(make_url(empty_url).database)).touch()
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match="has no parsl-balsam tables"):
            open_database(empty_url, create=False)
    open_database(empty_url).close()
    open_database(empty_url, create=False).close()


def test_unknown_version_is_refused(empty_url: str) -> None:
    with closing(open_database(empty_url)) as database, database.begin() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    with pytest.raises(SchemaMismatch, match=f"version 99, this parsl-balsam works with version {SCHEMA_VERSION}"):
        open_database(empty_url)


def test_tables_of_someone_else_are_left_alone(empty_url: str) -> None:
    with closing(open_database(empty_url)) as database:
        metadata.drop_all(database.engine)
        with database.begin() as connection:
            connection.execute(text("CREATE TABLE tasks (mine INTEGER)"))
            connection.execute(text("INSERT INTO tasks VALUES (42)"))
        with pytest.raises(SchemaMismatch, match="not parsl-balsam's"):
            open_database(empty_url)
        assert rows(database, "SELECT * FROM tasks") == [{"mine": 42}]


def test_other_tables_do_no_harm(empty_url: str) -> None:
    with closing(open_database(empty_url)) as database:
        metadata.drop_all(database.engine)
        with database.begin() as connection:
            connection.execute(text("CREATE TABLE measurements (mine INTEGER)"))
    with closing(open_database(empty_url)) as database:
        assert rows(database, "SELECT * FROM measurements") == []
        check_invariants(database)


def test_directory_of_a_server_is_a_database(postgres_server: Server, empty_postgres_url: str) -> None:
    for where in (postgres_server.directory, str(postgres_server.directory)):
        with closing(open_database(where)) as database:
            assert database.address == empty_postgres_url
            check_invariants(database)


def test_server_that_does_not_run(own_server: Server) -> None:
    url = own_server.url()
    with closing(open_database(url)) as database:
        own_server.stop()
        try:
            with pytest.raises(ServerError, match="parsl-balsam db start"):
                open_database(own_server.directory)
            with pytest.raises(DatabaseDown) as down:
                open_database(url)
            assert str(make_url(url).password) not in str(down.value)
            with pytest.raises(DatabaseUnavailable):
                check_invariants(database)
            with pytest.raises(DatabaseDown):
                check_invariants(database)
        finally:
            own_server.start()
        check_invariants(database)


def test_end_of_one_connection_is_not_taken_for_the_end_of_the_server(
    postgres_database: Database, empty_postgres_url: str
) -> None:
    def lose_connection(administrator: Database) -> None:
        with postgres_database.begin() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            assert column(administrator, "SELECT pg_terminate_backend(:pid, 10000)", pid=pid) == [True]
            connection.execute(text("SELECT 1"))

    with closing(open_database(empty_postgres_url)) as administrator, pytest.raises(DatabaseUnavailable) as lost:
        lose_connection(administrator)
    assert not isinstance(lost.value, DatabaseDown)
    check_invariants(postgres_database)


def test_transactions_wait_for_a_connection(empty_postgres_url: str) -> None:
    with closing(open_database(empty_postgres_url, connections=2)) as database:
        with database.begin(), database.begin():
            waiting = Story(lambda: column(database, "SELECT 1"))
            waiting.join(0.2)
            assert waiting.is_alive()
        assert waiting.result() == [1]
        check_invariants(database)


def test_password_is_never_shown(postgres_server: Server, postgres_url: str) -> None:
    url = make_url(postgres_url)
    # `URL.set` takes None for no change.
    plain = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
    for given in (url, plain.update_query_dict({"password": str(url.password)})):
        with closing(open_database(given.render_as_string(hide_password=False))) as database:
            check_invariants(database)
            assert str(url.password) in database.address
            for shown in (repr(database), str(database), repr(database.engine), repr(database.url)):
                assert str(url.password) not in shown
    wrong = (
        {"password": SECRET},
        {"password": SECRET, "host": "127.0.0.1", "port": 1},
        {"password": SECRET, "database": "no"},
    )
    for change in wrong:
        shown = url.set(**change).render_as_string(hide_password=False)
        elsewhere = {name: value for name, value in change.items() if name != "password"}
        in_query = plain.set(**elsewhere).update_query_dict({"password": SECRET})  # type: ignore[arg-type]
        for given_url in (shown, in_query.render_as_string(hide_password=False), f"{shown}?nonsense=1"):
            with pytest.raises(DatabaseUnavailable) as refused:
                open_database(given_url)
            assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_reader_waits_for_no_writer(database: Database, database_url: str) -> None:
    with closing(open_database(database_url)) as reader, database.begin() as writer:
        writer.execute(text("INSERT INTO functions (digest, body) VALUES ('a', 'b')"))
        assert column(reader, "SELECT count(*) FROM functions") == [0]
    assert column(database, "SELECT count(*) FROM functions") == [1]


def test_transaction_that_fails_writes_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.begin() as connection:
            connection.execute(text("INSERT INTO functions (digest, body) VALUES ('a', 'b')"))
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert column(database, "SELECT count(*) FROM functions") == [0]


def test_writers_on_sqlite_wait_for_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    with closing(open_database(url)) as first, closing(open_database(url)) as second:

        def count_up(database: Database) -> None:
            for _ in range(20):
                with database.begin() as connection:
                    (count,) = connection.execute(text("SELECT version FROM schema_version")).one()
                    connection.execute(text("UPDATE schema_version SET version = :n"), {"n": count + 1})

        at_once(lambda: count_up(first), lambda: count_up(second))
        assert column(first, "SELECT version FROM schema_version") == [SCHEMA_VERSION + 40]


def test_lock_on_sqlite_that_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parsl_balsam.db.connect.SQLITE_BUSY_S", 0.1)
    file = tmp_path / "mine.db"
    with closing(open_database(f"sqlite:///{file}")) as database, closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="database is locked"), database.begin():
            pass
        other.rollback()
        with database.begin():
            pass


def test_lock_on_sqlite_that_is_free_for_a_moment_is_found_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.db"
    with closing(open_database(f"sqlite:///{file}")) as database, closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        waited: list[float] = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 20:
                other.rollback()

        monkeypatch.setattr("parsl_balsam.db.sqlite.time.sleep", wait)
        with database.begin():
            pass
    assert len(waited) == 20
    assert max(waited) <= 0.01  # SQLite itself looks ten times a second by then


_AT = 'connection to server at "db" ({}), port 5432 failed: {}'
_REFUSED = "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (_AT.format("::1", _REFUSED), DatabaseDown),
        (_AT.format("::1", _REFUSED) + _AT.format("10.0.0.1", _REFUSED), DatabaseDown),
        (_AT.format("::1", _REFUSED) + _AT.format("10.0.0.1", "timeout expired\n"), DatabaseUnavailable),
        (_AT.format("::1", "FATAL:  the database system is starting up\n"), DatabaseDown),
        (_AT.format("::1", "FATAL:  the database system is in recovery mode\n"), DatabaseUnavailable),
        (_AT.format("::1", 'FATAL:  password authentication failed for user "me"\n'), DatabaseDenied),
        (_AT.format("::1", 'FATAL:  database "gone" does not exist\n'), DatabaseDenied),
        ("server closed the connection unexpectedly\n\tThis probably means ...\n", DatabaseUnavailable),
    ],
)
def test_only_a_server_that_refuses_at_all_its_addresses_is_down(said: str, kind: type) -> None:
    assert type(unavailable(make_url("postgresql://me:secret@db/x"), said)) is kind


def test_wrong_password_is_not_waited_for(empty_postgres_url: str) -> None:
    wrong = make_url(empty_postgres_url).set(password="wrong")
    tries: list[int] = []

    def connect() -> Database:
        tries.append(1)
        return open_database(wrong.render_as_string(hide_password=False))

    with pytest.raises(DatabaseDenied, match="password authentication failed"):
        until_it_answers(connect, 3600.0, logging.getLogger())
    assert len(tries) == 1
