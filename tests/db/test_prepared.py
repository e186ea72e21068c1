"""Statements that PostgreSQL reads and plans once for each connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg2 import extensions
from sqlalchemy import NullPool, bindparam, column, create_engine, select, text
from sqlalchemy.exc import ProgrammingError

from benchmarks.rows import WaitingTasks
from parsl_balsam.db import postgres
from parsl_balsam.db.connect import Database
from parsl_balsam.db.schema import functions
from parsl_balsam.db.statement import Statement
from parsl_balsam.db.tasks import cancel_tasks
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.states import Outcome

from .conftest import Campaign, Launcher, check_invariants, ended, rows

KEEP = Statement(functions.insert(), "digest", "body")
KEPT = Statement(select(functions).where(functions.c.digest == bindparam("digest")))

#: Tables that grow with the tasks.
LONG = ("tasks", "attempts", "results", "arguments", "events")


#: What differs from attempt to attempt.
TIMES = ("claimed_at", "started_at", "ended_at")


class Life:
    """Tasks that have all of a life, on one connection."""

    def __init__(self, database: Database) -> None:
        self._campaign = Campaign(database)
        self._launcher = Launcher(self._campaign)
        self._finish = 0
        self._last = 0

    def __call__(self, tasks: int = 1) -> None:
        numbers = range(self._last, self._last + tasks)
        self._last += tasks
        self._campaign.store.submit([self._campaign.call(str(number)) for number in numbers], {})
        claimed = self._launcher.claim(tasks + 1)
        self._launcher.claims.exchange([], [ended(task, Outcome.DONE) for task in claimed])
        found, others, self._finish = self._campaign.store.fetch_since(self._finish, list, 100)
        assert others == []
        assert len(claimed) >= tasks  # one that failed before may have left some
        assert [task.payload for task in found] == [b"result"] * len(claimed)


@pytest.fixture
def life(postgres_database: Database) -> Life:
    return Life(postgres_database)


def administer(database: Database, statement: str) -> None:
    with create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql(statement)


def kept_plans(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Return the steps of the plans that the idle connection of a database keeps, by their statements."""
    found: dict[str, list[dict[str, Any]]] = {}
    with database.read() as connection:
        kept = connection.execute(
            text("SELECT name, statement, cardinality(parameter_types) AS count FROM pg_prepared_statements")
        ).all()
        for name, statement, count in kept:
            values = f"({', '.join(['NULL'] * count)})" if count else ""
            (explained,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT json) EXECUTE {name}{values}").scalar_one()
            found[statement] = list(steps(explained["Plan"]))
    return found


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for step in plan.get("Plans", ()):
        yield from steps(step)


def assert_short(database: Database) -> None:
    """Assert that no plan reads all of a long table, or all that may be claimed."""
    plans = kept_plans(database)
    assert len(plans) > 15
    reads = [step for plan in plans.values() for step in plan if step.get("Relation Name") in LONG]
    assert [step for step in reads if "Scan" in step["Node Type"] and "Index Cond" not in step] == []
    (claim,) = (plan for statement, plan in plans.items() if "SKIP LOCKED" in statement)
    assert [step["Index Name"] for step in claim if step.get("Alias") == "tasks" and "Index Name" in step] == [
        "tasks_to_claim"
    ]
    assert not any(step["Node Type"] == "Sort" for step in claim)


def test_plans_made_for_a_few_tasks_serve_many(postgres_database: Database, life: Life) -> None:
    life(1)
    life(10)
    assert_short(postgres_database)
    administer(postgres_database, "VACUUM ANALYZE")
    assert_short(postgres_database)
    administer(postgres_database, f"TRUNCATE {', '.join(LONG)}")
    assert_short(postgres_database)
    administer(postgres_database, "VACUUM ANALYZE")  # now it is known that they are empty
    assert_short(postgres_database)
    many = WaitingTasks(postgres_database)
    many.add(20_000)
    assert_short(postgres_database)
    many.analyze()
    assert_short(postgres_database)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to the server, each time, from databases that are opened in this test."""
    sent: list[str] = []

    class Cursor(extensions.cursor):
        def execute(self, query: Any, values: Any = None) -> None:
            sent.append(query.decode() if isinstance(query, bytes) else query)
            super().execute(query, values)

    monkeypatch.setitem(postgres.POSTGRES_OPTIONS, "cursor_factory", Cursor)
    return sent


def test_task_takes_twelve_ways_to_the_server(sent: list[str], life: Life) -> None:
    life()
    sent.clear()
    life()
    assert len(sent) == 12
    assert not any("PREPARE" in statement or "SELECT" in statement for statement in sent)


def test_many_tasks_take_few_more(sent: list[str], life: Life) -> None:
    life(20)
    sent.clear()
    life(20)
    assert len(sent) <= 16


def test_rows_written_together_are_like_those_written_alone(postgres_database: Database) -> None:
    campaign = Campaign(postgres_database)
    keys = [f"{alone}{number}" for number in range(8) for alone in ("alone", "together")]
    launcher = Launcher(campaign)
    campaign.submit(*(campaign.call(key) for key in keys))
    claimed = launcher.claim(len(keys))
    ends = [
        {"outcome": Outcome.ERROR, "error": "\"'\\ %s \N{SNOWMAN}\n", "output": "", "exit_code": -1, "host": None},
        {"outcome": Outcome.DONE, "payload": bytes(range(256)), "signal": 9, "host": "node"},
    ]
    tries = [ended(task, **ends[place // 2 % 2]) for place, task in enumerate(claimed)]
    for place in range(0, len(tries), 2):
        launcher.claims.exchange(ends=[tries[place]])
    launcher.claims.exchange(ends=tries[1::2])
    found = rows(postgres_database, "SELECT * FROM attempts LEFT JOIN results USING (task_id) ORDER BY task_id")
    same = [{name: row[name] for name in row if name not in TIMES} for row in found]
    assert [{**row, "task_id": 0} for row in same[::2]] == [{**row, "task_id": 0} for row in same[1::2]]
    assert {row["exit_code"] for row in same} == {-1, None}
    check_invariants(postgres_database)


def test_plans_that_are_gone_are_missed_once(postgres_database: Database, life: Life) -> None:
    # Some poolers give each transaction another connection of theirs.
    life()
    with postgres_database.read() as connection:
        connection.exec_driver_sql("DEALLOCATE ALL")
    with pytest.raises(DatabaseUnavailable, match=r"prepared statement .* does not exist"):
        life()
    life()
    life(10)
    assert kept_plans(postgres_database) == {}
    check_invariants(postgres_database)


def test_plan_of_somebody_else_by_the_same_name_is_no_obstacle(postgres_database: Database) -> None:
    with postgres_database.begin() as connection:
        KEEP.run(connection, digest=b"a", body=b"b")
        assert KEPT.first(connection, digest=b"a").body == b"b"
    names = kept_names(postgres_database)
    postgres_database.engine.dispose()
    with postgres_database.read() as connection:
        for name in names:
            connection.exec_driver_sql(f"PREPARE {name} AS SELECT 1")
    with pytest.raises(DatabaseUnavailable, match="already exists"), postgres_database.read() as connection:
        KEPT.first(connection, digest=b"a")
    with postgres_database.read() as connection:
        assert KEPT.first(connection, digest=b"a").body == b"b"


def test_plans_outlive_changes_of_tables(postgres_database: Database, life: Life) -> None:
    life()
    try:
        administer(postgres_database, "ALTER TABLE tasks ADD COLUMN more integer")
        life()
        administer(postgres_database, "ALTER TABLE tasks ALTER COLUMN app TYPE varchar")
        with pytest.raises(DatabaseUnavailable, match="cached plan must not change"):
            life()
        life()
        assert len(kept_plans(postgres_database)) > 5
    finally:
        administer(postgres_database, "ALTER TABLE tasks ALTER COLUMN app TYPE text, DROP COLUMN more")


def setting(database: Database) -> str:
    with database.read() as connection:
        return str(connection.exec_driver_sql("SHOW plan_cache_mode").scalar_one())


def test_other_statements_are_planned_as_ever(postgres_database: Database) -> None:
    task = Campaign(postgres_database).task()
    postgres_database.engine.dispose()
    cancel_tasks(postgres_database, [task], "user")
    assert setting(postgres_database) == "auto"
    assert kept_names(postgres_database) == []
    check_invariants(postgres_database)


def test_settings_outlive_the_transaction_in_which_they_are_first_needed(postgres_database: Database) -> None:
    def write_and_fail() -> None:
        with postgres_database.begin() as connection:
            assert KEPT.first(connection, digest=b"a") is None
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert setting(postgres_database) == "force_generic_plan"
    assert len(kept_names(postgres_database)) == 1


def test_statement_that_cannot_be_planned_undoes_its_transaction(postgres_database: Database) -> None:
    missing = Statement(select(column("nothing")).select_from(functions).where(functions.c.digest == bindparam("d")))

    def write_and_ask() -> None:
        with postgres_database.begin() as connection:
            KEEP.run(connection, digest=b"a", body=b"b")
            assert KEPT.first(connection, digest=b"a")
            missing.rows(connection, d=b"a")

    with pytest.raises(ProgrammingError, match="nothing"):
        write_and_ask()
    with postgres_database.begin() as connection:
        assert KEPT.first(connection, digest=b"a") is None
        KEEP.run(connection, digest=b"a", body=b"c")
    with postgres_database.read() as connection:
        assert KEPT.first(connection, digest=b"a").body == b"c"
    check_invariants(postgres_database)


def kept_names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(text("SELECT name FROM pg_prepared_statements")).scalars())
