"""Statements that are given to the driver as text, and when they reach the database."""

from __future__ import annotations

import errno
import math
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import extensions
from sqlalchemy import bindparam, event, insert, select, text
from sqlalchemy.exc import IntegrityError

from parsl_balsam.db.among import among
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.schema import attempts, functions, schema_version, tasks
from parsl_balsam.db.statement import Statement
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.tasks import Binding

from .conftest import Campaign, check_invariants, column, statements_of

KEEP = Statement(functions.insert(), "digest", "body")
KEPT = Statement(select(functions).where(functions.c.digest == bindparam("digest")))


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Any:
    """A database without tasks in a file, for what concerns files only."""
    with closing(open_database(f"sqlite:///{tmp_path / 'balsam.db'}")) as database:
        yield database


def kept(database: Database) -> set[bytes]:
    return {bytes(digest) for digest in column(database, "SELECT digest FROM functions")}


@pytest.mark.parametrize("count", [1, 3, 100])
def test_what_was_written_is_read_back_as_sqlalchemy_reads_it(database: Database, count: int) -> None:
    rows = [{"digest": b"%d" % number, "body": b"100%% \0 '?' %s ; \xff"} for number in range(count)]
    with database.begin() as connection:
        KEEP.run_each(connection, rows)
    with database.read() as connection:
        found = [KEPT.first(connection, digest=row["digest"]) for row in rows]
        theirs = connection.execute(select(functions).order_by(functions.c.digest)).all()
    assert [(row.digest, row.body) for row in found] == [(row["digest"], row["body"]) for row in rows]
    assert sorted(tuple(row) for row in found) == [tuple(row) for row in theirs]
    check_invariants(database)


TEXTS = [
    "",
    "plain",
    'it\'s "quoted" \\\\ \n\t',
    "\N{SNOWMAN} \N{GRINNING FACE}",
    "\x01 %s ? :name $[0] {}",
    "null",
    None,
]
NUMBERS = [0, 1, -1, 2**62 - 1, -(2**62), None]
TIMES = [0.0, 0.1 + 0.2, 1764150000.1234567, 1e-300, -2.5e17, math.pi, None]


@pytest.mark.parametrize("count", [1, 3, 4, 500])
def test_many_rows_are_stored_as_sqlalchemy_stores_them_one_by_one(database: Database, count: int) -> None:
    many = [
        {
            "task_id": number,
            "number": 1,
            "block_id": 1,
            "claimed_at": 1764150000 + number / 7,
            "error": TEXTS[number % len(TEXTS)],
            "peak_memory": NUMBERS[number % len(NUMBERS)],
            "cpu_time": TIMES[number % len(TIMES)],
        }
        for number in range(count)
    ]

    def stored() -> list[Any]:
        with database.begin() as connection:
            found = list(connection.execute(select(attempts).order_by(attempts.c.task_id)).all())
            connection.execute(attempts.delete())
        return found

    with database.begin() as connection:
        Statement(attempts.insert(), *many[0]).run_each(connection, many)
    ours = stored()
    with database.begin() as connection:
        connection.execute(attempts.insert(), many)
    assert ours == stored()
    assert len(ours) == count


@pytest.mark.parametrize(("size", "differences"), [(0, 1), (0, 3), (1, 1), (100, 3), (30_000, 3)])
def test_bytes_of_many_rows_stay_apart(database: Database, size: int, differences: int) -> None:
    many = [{"digest": b"%d" % number, "body": os.urandom(size + number % differences)} for number in range(100)]
    with database.begin() as connection:
        KEEP.run_each(connection, many)
    with database.read() as connection:
        found = connection.execute(select(functions)).all()
    assert {bytes(row.digest): bytes(row.body) for row in found} == {row["digest"]: row["body"] for row in many}


def test_many_calls_are_as_many_statements_as_few(sqlite_database: Database) -> None:
    campaign = Campaign(sqlite_database)

    def executions(calls: int) -> int:
        with statements_of(sqlite_database) as seen:
            campaign.submit(*(campaign.call(f"{calls}-{number}") for number in range(calls)))
        # Between rows, other threads of the script run, while others wait for the only write lock.
        assert [sql for sql, _, many in seen if many] == []
        return len(seen)

    executions(10)  # a new connection's settings are statements, too
    assert executions(500) == executions(11)
    check_invariants(sqlite_database)


def test_truth_values_and_missing_rows(database: Database, campaign: Campaign) -> None:
    ids = [campaign.task("one"), campaign.task("two", ranks_per_node=2)]
    parallel = Statement(select(tasks.c.id, tasks.c.parallel).where(among(tasks.c.id, "ids")).order_by(tasks.c.id))
    with database.read() as connection:
        assert [row.parallel for row in parallel.rows(connection, ids=ids)] == [False, True]
        assert parallel.first(connection, ids=[0]) is None
        assert parallel.scalars(connection, ids=ids) == ids
    check_invariants(database)


def test_statements_of_sqlalchemy_see_what_was_written_before_them(database: Database) -> None:
    with database.begin() as connection:
        KEEP.run(connection, digest=b"a", body=b"")
        assert connection.execute(select(functions.c.digest)).scalars().all() == [b"a"]
        connection.execute(insert(functions).values(digest=b"b", body=b""))
        KEEP.run(connection, digest=b"c", body=b"")
        assert KEPT.scalars(connection, digest=b"c") == [b"c"]
        KEEP.run(connection, digest=b"d", body=b"")
    assert kept(database) == {b"a", b"b", b"c", b"d"}
    check_invariants(database)


def test_transaction_that_fails_writes_nothing_and_leaves_nothing_to_the_next(database: Database) -> None:
    def fail() -> None:
        with database.begin() as connection:
            KEEP.run(connection, digest=b"a", body=b"")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.begin() as connection:
        KEEP.run(connection, digest=b"b", body=b"")
    assert kept(database) == {b"b"}
    check_invariants(database)


def test_write_that_fails_is_noticed_by_the_commit_at_the_latest(database: Database) -> None:
    def write_twice() -> None:
        with database.begin() as connection:
            KEEP.run(connection, digest=b"a", body=b"")
            KEEP.run(connection, digest=b"a", body=b"")

    with pytest.raises(IntegrityError):
        write_twice()
    assert kept(database) == set()
    with database.begin() as connection:
        KEEP.run(connection, digest=b"a", body=b"")
    assert kept(database) == {b"a"}
    check_invariants(database)


def test_savepoint_takes_back_what_came_after_it(database: Database) -> None:
    with database.begin() as connection:
        KEEP.run(connection, digest=b"a", body=b"")
        with connection.begin_nested() as nested:
            KEEP.run(connection, digest=b"b", body=b"")
            nested.rollback()
        KEEP.run(connection, digest=b"c", body=b"")
    assert kept(database) == {b"a", b"c"}
    check_invariants(database)


def test_writes_go_to_the_server_with_the_next_question(postgres_database: Database) -> None:
    with postgres_database.begin() as connection:
        raw: Any = connection.connection.dbapi_connection
        for number in range(3):
            KEEP.run(connection, digest=b"%d" % number, body=b"")
        assert raw.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE  # it has not even begun
        assert KEPT.first(connection, digest=b"2") is not None
        assert raw.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
    assert raw.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
    assert len(kept(postgres_database)) == 3
    check_invariants(postgres_database)


def test_connection_that_was_ended_while_idle_is_replaced(postgres_database: Database, empty_postgres_url: str) -> None:
    (pid,) = column(postgres_database, "SELECT pg_backend_pid()")
    with closing(open_database(empty_postgres_url)) as administrator:
        assert column(administrator, "SELECT pg_terminate_backend(:pid, 10000)", pid=pid) == [True]
    with postgres_database.begin() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid
    check_invariants(postgres_database)


def test_only_early_transactions_do_not_wait_for_the_disk(sqlite_database: Database) -> None:
    levels: list[int] = []
    for early in (False, True, True, False):
        with sqlite_database.begin(early=early) as connection:
            levels.append(connection.execute(text("PRAGMA synchronous")).scalar_one())
            connection.execute(schema_version.select())
    assert levels == [2, 1, 1, 2]  # FULL, NORMAL
    check_invariants(sqlite_database)


def test_call_that_may_not_be_on_disk_is_not_acknowledged(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign(sqlite_database)
    with monkeypatch.context() as patch:

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(DatabaseUnavailable, match="Input/output error"):
            campaign.task()
    (bound,) = campaign.submit(campaign.call())
    assert bound.binding is Binding.ATTACHED
    assert column(sqlite_database, "SELECT id FROM tasks") == [bound.task_id]
    check_invariants(sqlite_database)


def test_listeners_are_told_of_each_statement(database: Database) -> None:
    heard: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: heard.append(given[2]))
    with database.begin() as connection:
        KEEP.run(connection, digest=b"a", body=b"")
        assert any(statement.startswith("INSERT INTO functions") for statement in heard)
        assert connection.execute(select(functions.c.digest)).scalars().all() == [b"a"]
    check_invariants(database)


def test_many_rows_with_nothing_in_them(sqlite_database: Database) -> None:
    campaign = Campaign(sqlite_database)
    bound = campaign.submit(*(campaign.call(f"{number}", payload=b"") for number in range(10)))
    assert column(sqlite_database, "SELECT payload FROM arguments ORDER BY task_id") == [b""] * 10
    assert [task.binding for task in bound] == [Binding.NEW] * 10
