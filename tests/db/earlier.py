"""Databases as earlier versions of parsl-balsam left them, with the history of a workflow.

``python -m tests.db.earlier`` writes the tables of today to ``schemas``, which is to be done once for each version.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import Connection, MetaData, create_mock_engine, make_url, text

from parsl_balsam.db.connect import Database, open_any_version
from parsl_balsam.db.schema import SCHEMA_VERSION, metadata

from .conftest import FUNCTION, rows

SCHEMAS = Path(__file__).with_name("schemas")

#: When the history took place, seconds since the epoch.
THEN = 1_700_000_000.0

#: What the tasks ask for, by their keys.
SPECS: dict[str, dict[str, Any] | None] = {
    "done": None,
    "failed": {"max_retries": 1},
    "lost": None,
    "plain": None,
    "wide": {
        "num_nodes": 2,
        "ranks_per_node": 4,
        "cores_per_rank": 2,
        "gpus_per_rank": 1,
        "walltime_min": 30.0,
        "priority": 7,
    },
    "whole nodes": {"num_nodes": 3, "ranks_per_node": 2},
    "packed": {"node_packing_count": 4},
    "on ranks": {"launch": "ranks"},
    "threads": {"cores_per_rank": 8, "gpus_per_rank": 2},
}


def make_tables(url: str, version: int) -> None:
    """Make the tables of a version in an empty database."""
    dialect = make_url(url).get_backend_name()
    script = (SCHEMAS / f"{dialect}-{version}.sql").read_text()
    if dialect == "sqlite":
        with closing(sqlite3.connect(str(make_url(url).database))) as session:
            session.executescript(script)
    else:
        with closing(psycopg2.connect(make_url(url).set(drivername="postgresql").render_as_string(False))) as session:
            session.cursor().execute(script)
            session.commit()


def make_earlier(url: str, version: int) -> Database:
    """Make the tables of an earlier version in an empty database, and fill them."""
    make_tables(url, version)
    database = open_any_version(url)
    with database.begin() as connection:
        _fill(connection, version)
    return database


def content(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, whatever their version."""
    with database.read() as connection:
        found = MetaData()
        found.reflect(connection)
    return {name: sorted(rows(database, f"SELECT * FROM {name}"), key=repr) for name in found.tables}


def shape(database: Database) -> dict[str, Any]:
    """All that the database knows of its tables, but for the order of columns."""
    queries = _SQLITE if database.is_sqlite else _POSTGRES
    found = {what: sorted(map(repr, rows(database, query))) for what, query in queries.items()}
    assert all(found.values()), "a query that finds nothing compares nothing"
    return found


_SQLITE = {
    "tables": "SELECT name, sql LIKE '%WITHOUT ROWID%' AS without_rowid FROM sqlite_master WHERE type = 'table'",
    "columns": (
        'SELECT t.name AS "table", c.name, c.type, c."notnull", c.dflt_value, c.pk'
        " FROM sqlite_master t, pragma_table_xinfo(t.name) c WHERE t.type = 'table'"
    ),
    "references": (
        'SELECT t.name, f."table", f."from", f."to", f.on_update, f.on_delete'
        " FROM sqlite_master t, pragma_foreign_key_list(t.name) f WHERE t.type = 'table'"
    ),
    "indexes": (
        'SELECT t.name, i.name AS "index", i."unique", i.origin, c.seqno, c.name AS column, c."desc", m.sql'
        " FROM sqlite_master t, pragma_index_list(t.name) i, pragma_index_xinfo(i.name) c, sqlite_master m"
        " WHERE t.type = 'table' AND c.key AND m.name = i.name"
    ),
    "keys": (
        'SELECT t.name, i."unique", i.origin, group_concat(c.name) AS columns'
        " FROM sqlite_master t, pragma_index_list(t.name) i, pragma_index_info(i.name) c"
        " WHERE t.type = 'table' GROUP BY t.name, i.name"
    ),
}

_POSTGRES = {
    "columns": (
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'"
    ),
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": (
        "SELECT conrelid::regclass::text AS table, conname, pg_get_constraintdef(oid) AS definition"
        " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
    ),
    "sequences": (
        "SELECT s.relname, d.refobjid::regclass::text AS table, d.refobjsubid AS column"
        " FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.deptype = 'a' WHERE s.relkind = 'S'"
    ),
}


def _fill(connection: Connection, version: int) -> None:
    """Record a workflow: its script has ended, one block too, one was lost, and one waits in the queue."""
    found = MetaData()
    found.reflect(connection)

    def insert(table: str, *recorded: dict[str, Any]) -> None:
        for row in recorded:
            connection.execute(found.tables[table].insert().values(**row))

    insert("workflows", {"name": "scan", "label": "balsam", "created_at": THEN, "current_run": 1, "last_finish": 2})
    insert(
        "runs",
        {
            "workflow_id": 1,
            "parsl_run_id": "000",
            "host": "login1",
            "host_key": "login1 boot",
            "pid": 4711,
            "pid_started": THEN,
            "retry_policy": "{}",
            "started_at": THEN,
            "lease_until": THEN + 60,
            "ended_at": THEN + 90,
        },
    )
    insert("functions", {"digest": FUNCTION, "body": b"def square"})
    insert(
        "blocks",
        {**_block(0, "ended"), "lease_until": THEN + 60, "ended_at": THEN + 70, "reason": "no work"},
        {**_block(1, "running"), "lease_until": THEN + 60},
        {**_block(2, "requested"), "started_at": None, "host": None, "pid": None, "job_id": "88"},
    )
    for task, (key, spec) in enumerate(SPECS.items(), 1):
        insert("tasks", _task(task, key, spec, version))
        insert("arguments", {"task_id": task, "payload": f"arguments of {key}".encode()})
    insert("results", {"task_id": 1, "payload": b"result"}, {"task_id": 2, "payload": b"exception"})
    insert(
        "attempts",
        {**_attempt(1, 1, "done", version), "peak_memory": 2**40, "cpu_time": 3.5},
        {**_attempt(2, 1, "error", version), "error": "ValueError: no"},
        {**_attempt(2, 2, "error", version), "error": "ValueError: no"},
        {**_attempt(3, 1, None, version), "block_id": 2, "ended_at": None},
    )
    if version > 1:
        connection.execute(text("UPDATE blocks SET nodes = 2, cores_per_node = 4 WHERE state <> 'requested'"))
        connection.execute(text("UPDATE runs SET launch_order = '{}'"))
    tried = ["assigned", "running"]
    paths = {1: [*tried, "done"], 2: [*tried, "ready", *tried, "failed"], 3: tried}
    for task in range(1, len(SPECS) + 1):
        for at, state in enumerate(["ready", *paths.get(task, [])]):
            insert("events", {"task_id": task, "at": THEN + at, "state": state, "who": "block 1", "why": "story"})


def _block(number: int, state: str) -> dict[str, Any]:
    return {
        "workflow_id": 1,
        "run_id": 1,
        "name": str(number),
        "tag": f"tag {number}",
        "job_id": None,
        "state": state,
        "host": "node1",
        "pid": 12,
        "requested_at": THEN,
        "started_at": THEN,
        # So short that nobody waits for it, however short a time ago the server was started.
        "lease_s": 0.001,
    }


def _task(task: int, key: str, spec: dict[str, Any] | None, version: int) -> dict[str, Any]:
    asked = spec or {}
    states = {1: ("done", 1), 2: ("failed", 2), 3: ("running", 1)}
    state, attempts = states.get(task, ("ready", 0))
    ended = state in ("done", "failed")
    row = {
        "workflow_id": 1,
        "run_id": 1,
        "key": key.encode(),
        "occurrence": 0,
        "state": state,
        "app": "square",
        "function": FUNCTION,
        "priority": asked.get("priority", 0),
        "nodes": asked.get("num_nodes", 1),
        "spec": None if spec is None else json.dumps(spec),
        "attempts": attempts,
        "block_id": 2 if state == "running" else None,
        "token": 2**61 if state == "running" else None,
        "submitted_at": THEN,
        "finished_at": THEN + 9 if ended else None,
        "finish": task if ended else None,
    }
    return row if version == 1 else {**row, **_NEEDS.get(key, {"cores": 1})}


#: What version 2 wrote of `SPECS` to columns.
_NEEDS: dict[str, dict[str, Any]] = {
    "wide": {"cores": 8, "gpus": 4, "parallel": True, "walltime_min": 30.0},
    "whole nodes": {"cores": None, "parallel": True},
    "packed": {"cores": None, "packing": 4},
    "on ranks": {"cores": 1, "parallel": True},
    "threads": {"cores": 8, "gpus": 2},
}


def _attempt(task: int, number: int, outcome: str | None, version: int) -> dict[str, Any]:
    placement = {"cores": "0,1,3"} if version == 1 else {"placement": '[[["node1"], "0-1,3", []]]'}
    return {
        "task_id": task,
        "number": number,
        "block_id": 1,
        "host": "node1",
        "claimed_at": THEN + 2 * number,
        "started_at": THEN + 2 * number,
        "ended_at": THEN + 2 * number + 1,
        "outcome": outcome,
        **placement,
    }


def write_schemas() -> None:
    """Write the tables of today as SQL."""
    for dialect in ("sqlite", "postgresql"):
        statements: list[str] = []

        def keep(statement: Any, *_: object, **__: object) -> None:
            written = str(statement.compile(dialect=engine.dialect)).strip().replace("\t", "    ")  # noqa: B023
            statements.append("\n".join(line.rstrip() for line in written.splitlines()))  # noqa: B023

        engine = create_mock_engine(f"{dialect}://", keep)
        metadata.create_all(engine, checkfirst=False)
        statements.append(f"INSERT INTO schema_version (version) VALUES ({SCHEMA_VERSION})")
        heading = f"-- The tables of schema version {SCHEMA_VERSION}, as parsl-balsam made them.\n\n"
        (SCHEMAS / f"{dialect}-{SCHEMA_VERSION}.sql").write_text(heading + ";\n\n".join(statements) + ";\n")


if __name__ == "__main__":
    write_schemas()
