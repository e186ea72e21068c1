"""Upgrades of databases that earlier versions made."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from alembic.operations import Operations
from click.testing import CliRunner, Result
from sqlalchemy import MetaData, make_url, text

from parsl_balsam.cli.main import main
from parsl_balsam.db import history
from parsl_balsam.db import upgrade as upgrades
from parsl_balsam.db.binaries import BINARIES_VARIABLE
from parsl_balsam.db.blocks import reap
from parsl_balsam.db.connect import Database, open_any_version, open_database
from parsl_balsam.db.drivers import this_process
from parsl_balsam.db.migrations import STEPS
from parsl_balsam.db.postgres import POSTGRES_OPTIONS
from parsl_balsam.db.runs import Driver
from parsl_balsam.db.schema import SCHEMA_VERSION
from parsl_balsam.db.server import Server
from parsl_balsam.db.upgrade import upgrade
from parsl_balsam.model.errors import BackupFailed, DatabaseInUse, DatabaseUnavailable, SchemaMismatch
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Binding

from .conftest import (
    LIMIT_S,
    Campaign,
    Launcher,
    at_once,
    check_invariants,
    column,
    now,
    outcomes,
    rows,
    state,
    wait_until,
)
from .earlier import SPECS, content, make_earlier, make_tables, shape

VERSIONS = range(1, SCHEMA_VERSION)

#: Upgrades the database of its first argument, and stops after the first statement that begins with its second.
UPGRADE_AND_STOP = """
import sys
from sqlalchemy import event
from parsl_balsam.db.connect import open_any_version
from parsl_balsam.db.upgrade import upgrade

database = open_any_version(sys.argv[1])

@event.listens_for(database.engine, "after_cursor_execute")
def stop(connection, cursor, statement, *rest):
    if statement.startswith(sys.argv[2]):
        print("stopped", flush=True)
        sys.stdin.read()

upgrade(database, lambda words: None, None)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'balsam.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def earlier(empty_url: str, version: int) -> Iterator[Database]:
    """A database that an earlier version has filled."""
    with closing(make_earlier(empty_url, version)) as database:
        yield database


@pytest.fixture
def oldest(empty_url: str) -> Iterator[Database]:
    """A database that the first version has filled."""
    with closing(make_earlier(empty_url, 1)) as database:
        yield database


def silent(_: str) -> None:
    """Listen to nothing that an upgrade says."""


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def write(database: Database, *statements: str, **parameters: Any) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), parameters)


# The tables


def test_every_version_has_a_step_to_the_next() -> None:
    assert list(STEPS) == list(range(2, SCHEMA_VERSION + 1))


def test_tables_are_those_of_their_version(empty_url: str) -> None:
    """Who changes the tables raises the version, adds a step, and writes them to ``schemas``, see `earlier`."""
    make_tables(empty_url, SCHEMA_VERSION)
    with closing(open_any_version(empty_url)) as database:
        assert shape(database) == shape_when_new(database)


def test_upgraded_tables_equal_new_ones(earlier: Database) -> None:
    before = shape(earlier)
    assert upgrade(earlier, silent, None)
    assert column(earlier, "SELECT version FROM schema_version") == [SCHEMA_VERSION]
    assert before != shape(earlier)
    assert shape(earlier) == shape_when_new(earlier)


def shape_when_new(database: Database) -> dict[str, Any]:
    """Drop all tables, and make them anew."""
    with database.begin() as connection:
        found = MetaData()
        found.reflect(connection)
        found.drop_all(connection)
    with closing(open_database(database.address)) as fresh:
        return shape(fresh)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE runs DROP COLUMN block_rules",
        "ALTER TABLE runs ADD COLUMN block_colour TEXT",
        "ALTER TABLE runs RENAME COLUMN block_rules TO rules",
        "DROP INDEX tasks_to_claim",
        "DROP INDEX tasks_by_finish; CREATE INDEX tasks_by_finish ON tasks (workflow_id, finish)",
        "DROP INDEX ix_events_task_id; CREATE UNIQUE INDEX ix_events_task_id ON events (task_id)",
        "DROP INDEX ix_events_task_id; CREATE INDEX ix_events_task_id ON events (task_id DESC)",
        "ALTER TABLE tasks DROP COLUMN gpus; ALTER TABLE tasks ADD COLUMN gpus INTEGER DEFAULT 0",
        "ALTER TABLE tasks DROP COLUMN gpus; ALTER TABLE tasks ADD COLUMN gpus INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE tasks DROP COLUMN gpus; ALTER TABLE tasks ADD COLUMN gpus BIGINT NOT NULL DEFAULT 0",
        "DROP TABLE notices; CREATE TABLE notices (workflow_id BIGINT NOT NULL, topic TEXT NOT NULL,"
        " count BIGINT NOT NULL, PRIMARY KEY (topic, workflow_id))",
        "DROP TABLE results",
    ],
)
def test_comparison_of_tables_misses_nothing(empty_url: str, change: str) -> None:
    with closing(open_database(empty_url)) as database:
        before = shape(database)
        write(database, *change.split("; "))
        assert shape(database) != before


# What is in them


def test_every_row_is_still_there(earlier: Database, version: int) -> None:
    before = content(earlier)
    upgrade(earlier, silent, None)
    after = content(earlier)
    assert {name: len(found) for name, found in before.items()} == {name: len(found) for name, found in after.items()}
    if version == 1:
        for attempt in before["attempts"]:
            attempt["placement"] = '[[["node1"], "0,1,3", []]]'
            del attempt["cores"]
    before["schema_version"] = [{"version": SCHEMA_VERSION}]
    for name, found in before.items():
        kept = [{known: row[known] for known in found[0]} for row in after[name]] if found else []
        assert sorted(kept, key=sorted_items) == sorted(found, key=sorted_items), name
    check_invariants(earlier)


def sorted_items(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def test_columns_say_what_the_specification_says(earlier: Database) -> None:
    upgrade(earlier, silent, None)
    found = rows(earlier, "SELECT key, spec, nodes, cores, packing, gpus, parallel, walltime_min FROM tasks")
    assert len(found) == len(SPECS)
    for row in found:
        spec = ResourceSpec.parse(json.loads(row["spec"] or "{}"))
        assert (row["nodes"], row["cores"], row["packing"]) == (spec.num_nodes, spec.cores, spec.node_packing_count)
        needs = (row["gpus"], bool(row["parallel"]), row["walltime_min"])
        assert needs == (spec.gpus_on_node, spec.is_parallel, spec.walltime_min)


def test_more_tasks_than_are_held_in_memory(oldest: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parsl_balsam.db.migrations.version_2._AT_ONCE", 2)
    test_columns_say_what_the_specification_says(oldest)


def test_work_goes_on_where_it_stopped(earlier: Database) -> None:
    upgrade(earlier, silent, None)
    assert reap(earlier) == [2]
    done, failed, lost = 1, 2, 3
    assert outcomes(earlier, lost) == ["crash"]
    with closing(open_database(earlier.address)) as database:
        campaign = Campaign(database, name="scan")
        calls = [campaign.call(key, f"arguments of {key}".encode(), **(spec or {})) for key, spec in SPECS.items()]
        bound = {one.task_id: one for one in campaign.submit(*calls)}
        assert set(bound) == set(range(1, len(SPECS) + 1))
        assert (bound[done].binding, bound[done].payload) == (Binding.REUSED, b"result")
        launcher = Launcher(campaign)
        claimed = {task.task_id: task for task in launcher.claim(want=100, nodes=3)}
        assert set(claimed) == set(bound) - {done}
        assert claimed[lost].payload == b"arguments of lost"
        for task in claimed.values():
            launcher.start(task)
            launcher.end(task, Outcome.DONE)
        assert {state(database, task) for task in bound} == {"done"}
        assert outcomes(database, failed) == ["error", "error", "done"]
        past, _ = history.read_task(database, lost).attempts
        assert past.placement == (Share("node1", (0, 1, 3)),)
        assert campaign.task("new") > len(SPECS)
        check_invariants(database)


# Errors, kills, and others


@pytest.mark.parametrize("error", ["of the database", "of the step"])
def test_upgrade_that_fails_leaves_the_old_version(
    earlier: Database, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = STEPS[SCHEMA_VERSION]

    def fail(op: Operations) -> None:
        last(op)
        if error == "of the database":
            op.execute("UPDATE tasks SET no_such_column = 1")
        raise KeyError

    before = shape(earlier), content(earlier)
    with monkeypatch.context() as patched:
        patched.setitem(STEPS, SCHEMA_VERSION, fail)  # type: ignore[arg-type]
        with pytest.raises(DatabaseUnavailable if error == "of the database" else KeyError):
            upgrade(earlier, silent, None)
    assert (shape(earlier), content(earlier)) == before
    assert upgrade(earlier, silent, None)


@pytest.mark.parametrize("statement", ["ALTER TABLE runs ADD COLUMN", "UPDATE attempts", "UPDATE schema_version"])
def test_upgrade_that_is_killed_leaves_the_old_version(oldest: Database, statement: str) -> None:
    before = shape(oldest), content(oldest)
    child = subprocess.Popen(
        [sys.executable, "-c", UPGRADE_AND_STOP, oldest.address, statement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "stopped\n"
        finally:
            child.kill()
    assert (shape(oldest), content(oldest)) == before
    with pytest.raises(SchemaMismatch, match="schema version 1"):
        open_database(oldest.address)
    assert upgrade(oldest, silent, None)
    check_invariants(oldest)


def test_one_of_several_upgrades_does_it_and_the_others_find_it_done(oldest: Database, tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    said: list[str] = []

    def one() -> bool:
        with closing(open_any_version(oldest.address)) as database:
            return upgrade(database, said.append, backups)

    assert sorted(at_once(*[one] * 3)) == [False, False, True]
    assert len([words for words in said if words.startswith("Backup: ")]) == 1
    assert len([words for words in said if "nothing to do" in words]) == 2
    check_invariants(oldest)


def test_nobody_writes_while_the_backup_is_made(
    oldest: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        statement = "UPDATE workflows SET label = 'changed'"
        if oldest.is_sqlite:
            with (
                closing(sqlite3.connect(str(oldest.url.database), timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError, match="locked"),
            ):
                other.execute(statement)
        else:
            with (
                closing(psycopg2.connect(dsn(oldest), options="-c lock_timeout=100")) as other,
                pytest.raises(psycopg2.errors.LockNotAvailable),
            ):
                other.cursor().execute(statement)
        raise BackupFailed("it was only looked at")

    monkeypatch.setattr(upgrades, "back_up", refused)
    with pytest.raises(BackupFailed):
        upgrade(oldest, silent, tmp_path)
    write(oldest, "UPDATE workflows SET label = 'changed'")


def dsn(database: Database) -> str:
    return make_url(database.address).set(drivername="postgresql").render_as_string(hide_password=False)


def test_backup_may_take_longer_than_transactions_may_be_idle(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_earlier(postgres_url, 1).close()
    monkeypatch.setitem(POSTGRES_OPTIONS, "options", "-c idle_in_transaction_session_timeout=100")
    back_up = upgrades.back_up

    def take_long(database: Database, *rest: Any) -> Any:
        idle = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'idle in transaction' AND clock_timestamp() - state_change > '400 ms'"
        )
        with closing(psycopg2.connect(dsn(database))) as other, other.cursor() as cursor:
            other.autocommit = True

            def long_idle() -> bool:
                cursor.execute(idle)
                return cursor.fetchone() == (1,)

            wait_until(long_idle)
        return back_up(database, *rest)

    monkeypatch.setattr(upgrades, "back_up", take_long)
    with closing(open_any_version(postgres_url)) as database:
        assert upgrade(database, silent, tmp_path)


# Refusals


def test_launcher_with_a_lease_is_named(earlier: Database) -> None:
    until = now(earlier) + 1000
    write(earlier, "UPDATE blocks SET lease_until = :until, job_id = '87' WHERE id = 2", until=until)
    before = shape(earlier), content(earlier)
    with pytest.raises(DatabaseInUse, match=r"launcher of block 2 \(job 87\), process 12 on node1 \(its lease ends in"):
        upgrade(earlier, silent, None)
    assert (shape(earlier), content(earlier)) == before
    write(earlier, "UPDATE blocks SET lease_until = :until WHERE id = 2", until=now(earlier) - 1)
    assert upgrade(earlier, silent, None)


def test_launcher_is_given_its_chance_after_the_server_came_up(postgres_url: str) -> None:
    with closing(make_earlier(postgres_url, 1)) as database:
        write(database, "UPDATE blocks SET lease_s = 1e9 WHERE id = 2")
        with pytest.raises(DatabaseInUse, match="launcher of block 2"):
            upgrade(database, silent, None)


def script(driver: Driver, lease_left_s: float, database: Database) -> None:
    """Let a script drive the workflow."""
    write(
        database,
        "UPDATE runs SET ended_at = NULL, lease_until = :until, host = :host, host_key = :key, pid = :pid,"
        " pid_started = :started",
        until=now(database) + lease_left_s,
        host=driver.host,
        key=driver.host_key,
        pid=driver.pid,
        started=driver.pid_started,
    )


@pytest.mark.parametrize("lease_left_s", [1000, -1000])
def test_script_that_lives_here_is_named(earlier: Database, lease_left_s: float) -> None:
    me = this_process()
    script(me, lease_left_s, earlier)
    with pytest.raises(DatabaseInUse, match=f"script of workflow 'scan', process {me.pid} on "):
        upgrade(earlier, silent, None)


def test_script_elsewhere_is_believed_to_live_for_its_lease(earlier: Database) -> None:
    elsewhere = Driver("login2", "login2 boot", 4711, 0.0)
    script(elsewhere, 1000, earlier)
    with pytest.raises(DatabaseInUse, match="script of workflow 'scan', process 4711 on login2"):
        upgrade(earlier, silent, None)
    script(elsewhere, -1, earlier)
    assert upgrade(earlier, silent, None)


def test_script_that_died_here_is_no_hindrance(earlier: Database) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait(LIMIT_S)
    script(Driver("here", this_process().host_key, child.pid, 0.0), 1000, earlier)
    assert upgrade(earlier, silent, None)


def test_current_database_is_left_alone_and_in_use(database: Database) -> None:
    launcher = Launcher(Campaign(database))
    said: list[str] = []
    with database.begin() as connection:  # somebody writes: it is not waited for
        connection.execute(text("UPDATE workflows SET label = 'x'"))
        assert not upgrade(database, said.append, None)
        connection.rollback()
    assert len(said) == 1
    assert "nothing to do" in said[0]
    launcher.exchange()


def test_newer_database_is_refused(empty_url: str) -> None:
    with closing(open_database(empty_url)) as database:
        write(database, "UPDATE schema_version SET version = 99")
        with pytest.raises(SchemaMismatch, match="the database is newer than the program"):
            upgrade(database, silent, None)
        with pytest.raises(SchemaMismatch, match="the database is newer than the program"):
            open_database(empty_url)
        assert column(database, "SELECT version FROM schema_version") == [99]


@pytest.mark.parametrize("change", ["DROP TABLE schema_version", "DELETE FROM schema_version"])
def test_database_without_a_version_is_refused(oldest: Database, change: str) -> None:
    write(oldest, change)
    before = shape(oldest), content(oldest)
    with pytest.raises(SchemaMismatch):
        upgrade(oldest, silent, None)
    assert (shape(oldest), content(oldest)) == before


# The command


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def restore_command(output: str) -> str:
    found = re.search(r"and then: (.*)", output)
    assert found is not None, output
    return found.group(1)


def test_backup_restores_the_old_version(earlier: Database, version: int, in_tmp_path: Path) -> None:
    before = shape(earlier), content(earlier)
    result = run("db", "upgrade", "--database", earlier.address)
    assert result.exit_code == 0, result.output
    assert f"has schema version {version}." in result.stdout
    assert f"It has schema version {SCHEMA_VERSION} now." in result.stdout
    assert "(job 88)" in result.stdout
    assert ("Calls are recognised in another way" in result.stdout) == (version == 1)
    assert "block 2" in result.stderr
    assert str(make_url(earlier.address).password) not in result.output
    found = re.search(r"Backup: (.*)", result.stdout)
    assert found is not None
    file = Path(found.group(1))
    assert file.parent == (Path(str(earlier.url.database)).parent if earlier.is_sqlite else in_tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    campaign = Campaign(earlier, name="after the upgrade")
    campaign.task()
    earlier.close()
    password = {} if earlier.is_sqlite else {"PGPASSWORD": str(earlier.url.password)}
    subprocess.run(restore_command(result.stdout), shell=True, check=True, env={**os.environ, **password})
    with closing(open_any_version(earlier.address)) as restored:
        assert (shape(restored), content(restored)) == before
        assert upgrade(restored, silent, in_tmp_path)
    assert len(list(file.parent.glob(f"*.version-{version}*"))) == 2


def test_message_of_a_mismatch_has_the_command(tmp_path: Path, version: int) -> None:
    odd = tmp_path / "it's my database.db"
    make_earlier(f"sqlite:///{odd}", version).close()
    refused = run("status", "--database", odd)
    assert refused.exit_code == 1
    found = re.search(r"`parsl-balsam (db upgrade --database .*)`", refused.stderr)
    assert found is not None, refused.stderr
    done = run(*shlex.split(found.group(1)))
    assert done.exit_code == 0, done.output
    assert run("status", "--database", odd).exit_code == 0
    again = run("db", "upgrade", "--database", odd)
    assert (again.exit_code, len(again.stdout.splitlines())) == (0, 1)
    assert "nothing to do" in again.stdout


def test_command_names_the_server_as_the_user_did(own_server: Server) -> None:
    url = make_url(own_server.url())
    directory = str(own_server.directory)
    shown = {directory: shlex.quote(directory), url.render_as_string(False): shlex.quote(url.render_as_string())}
    with closing(open_database(directory)) as database:
        write(database, "UPDATE schema_version SET version = 1")
        try:
            for where, named in shown.items():
                with pytest.raises(SchemaMismatch) as refused:
                    open_database(where)
                assert f"`parsl-balsam db upgrade --database {named}`" in str(refused.value)
        finally:
            write(database, f"UPDATE schema_version SET version = {SCHEMA_VERSION}")


def test_without_programs_there_is_no_dump_and_no_upgrade(postgres_url: str, in_tmp_path: Path) -> None:
    with closing(make_earlier(postgres_url, 1)) as database:
        nothing = {BINARIES_VARIABLE: str(in_tmp_path)}
        refused = run("db", "upgrade", "--database", postgres_url, **nothing)
        assert refused.exit_code == 1
        assert "pass --no-backup" in refused.stderr
        assert column(database, "SELECT version FROM schema_version") == [1]
        assert list(in_tmp_path.iterdir()) == []
        done = run("db", "upgrade", "--database", postgres_url, "--no-backup", **nothing)
        assert done.exit_code == 0, done.output
        assert column(database, "SELECT version FROM schema_version") == [SCHEMA_VERSION]


def test_dump_that_fails_leaves_nothing(postgres_url: str, in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(make_earlier(postgres_url, 1)) as database:
        monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=nonsense")  # psycopg2 is given options that come first
        with pytest.raises(BackupFailed, match="pg_dump failed"):
            upgrade(database, silent, in_tmp_path)
        assert list(in_tmp_path.iterdir()) == []
        assert column(database, "SELECT version FROM schema_version") == [1]


def test_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "balsam.db"
    with closing(make_earlier(f"sqlite:///{file}", 1)) as database:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr("parsl_balsam.db.backup.sqlite3.connect", full)
        with pytest.raises(BackupFailed, match="disk is full"):
            upgrade(database, silent, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"balsam.db", "balsam.db-wal", "balsam.db-shm"}
        assert column(database, "SELECT version FROM schema_version") == [1]


def test_other_commands_do_without_alembic() -> None:
    loaded = "import sys, parsl_balsam.cli.main, parsl_balsam; print('alembic' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True, timeout=LIMIT_S)
    assert answer.stdout == "False\n"
