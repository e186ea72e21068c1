"""The command line, on databases that a real run has filled."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import make_url

from parsl_balsam.cli.feed import EventFeed
from parsl_balsam.cli.main import main
from parsl_balsam.cli.output import duration, printable, size
from parsl_balsam.db import history
from parsl_balsam.db.blocklist import open_blocks
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.schema import events, schema_version
from parsl_balsam.model.states import TaskState
from tests.processes import all_processes

WORKFLOW = Path(__file__).with_name("small_workflow.py")
PROGRAM = Path(sys.executable).with_name("parsl-balsam")


class Postgres:
    """Makes databases on the tests' server, empty or as copies of others, and drops them at the end."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")
        self._made: list[str] = []

    def create(self, template: str | None = None) -> str:
        name = f"cli_{secrets.token_hex(8)}"
        self._execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {make_url(template).database}" if template else ""))
        self._made.append(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_all(self) -> None:
        for name in self._made:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with closing(psycopg2.connect(self._url.render_as_string(hide_password=False))) as session:
            session.autocommit = True
            session.cursor().execute(statement)


@pytest.fixture(scope="module")
def postgres(postgres_server: Any) -> Iterator[Postgres]:
    server = Postgres(postgres_server.url())
    yield server
    server.drop_all()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def empty_database(
    backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    if backend == "postgresql":
        return request.getfixturevalue("postgres").create  # type: ignore[no-any-return]
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('database')}/small.db"


@pytest.fixture(scope="module")
def database(empty_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database in which tasks ended in every way. Only to be read."""
    url = empty_database()
    run_dir = tmp_path_factory.mktemp("run")
    subprocess.run([sys.executable, WORKFLOW, url, run_dir, "every way"], check=True, timeout=120)
    return url


@pytest.fixture
def own(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A copy of it to write to."""
    if database.startswith("sqlite"):
        shutil.copy(database.removeprefix("sqlite:///"), tmp_path / "own.db")
        return f"sqlite:///{tmp_path}/own.db"
    return request.getfixturevalue("postgres").create(template=database)  # type: ignore[no-any-return]


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def task_of(database: str, app: str) -> int:
    (task, *_) = answer("tasks", "--app", app, "--database", database)
    return int(task["id"])


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url, create=False)
    yield database
    database.close()


# status and tasks


def test_status_counts_every_state(database: str) -> None:
    counts = {"ready": 0, "assigned": 0, "running": 0, "done": 3, "failed": 2, "cancelled": 1}
    assert answer("status", "--database", database) == counts
    assert answer("status", "--workflow", "small", "--database", database) == counts
    heading, numbers = run("status", "--database", database).stdout.splitlines()
    assert dict(zip(heading.split(), map(int, numbers.split()), strict=True)) == counts


def test_tasks_are_listed_with_what_became_of_them(database: str) -> None:
    tasks = answer("tasks", "--database", database)
    assert [task["id"] for task in tasks] == sorted((task["id"] for task in tasks), reverse=True)
    assert {task["workflow"] for task in tasks} == {"small"}
    assert sorted((task["app"], task["state"], task["attempts"], task["done_attempts"]) for task in tasks) == [
        ("double", "done", 1, 1),
        ("double", "done", 1, 1),
        ("double", "done", 1, 1),
        ("fails", "failed", 2, 0),
        ("leaves", "failed", 2, 0),
        ("waits", "cancelled", 1, 0),
    ]
    errors = {task["app"]: task["error"] for task in tasks}
    assert errors["fails"] == "ValueError: no value for anything"
    assert errors["double"] is None


def test_tasks_are_filtered(database: str) -> None:
    failed = answer("tasks", "--state", "failed", "--database", database)
    assert sorted(task["app"] for task in failed) == ["fails", "leaves"]
    assert [task["app"] for task in answer("tasks", "--state", "failed", "--app", "fails", "--database", database)] == [
        "fails"
    ]
    assert answer("tasks", "--state", "running", "--database", database) == []


def test_limit_says_that_there_are_more(database: str) -> None:
    two = run("tasks", "--limit", 2, "--database", database)
    assert len(two.stdout.splitlines()) == 1 + 2
    assert "there are more" in two.stderr
    assert len(answer("tasks", "--limit", 2, "--database", database)) == 2
    for enough in (0, 6):
        everything = run("tasks", "--limit", enough, "--database", database)
        assert len(everything.stdout.splitlines()) == 1 + 6
        assert everything.stderr == ""


def test_table_is_not_cut_where_there_is_no_terminal(database: str) -> None:
    lines = run("tasks", "--database", database).stdout.splitlines()
    assert len([line for line in lines if line.endswith("ValueError: no value for anything")]) == 1
    assert all(line == line.rstrip() for line in lines)


def test_unknown_workflow_is_named_together_with_those_there_are(database: str) -> None:
    for command in ("status", "tasks"):
        result = run(command, "--workflow", "large", "--database", database)
        assert result.exit_code == 1
        assert result.stderr == "Error: no workflow 'large' in this database: it has 'small'\n"


# show and events


def test_show_has_every_attempt(database: str) -> None:
    task = answer("show", task_of(database, "leaves"), "--database", database)
    assert [(attempt["number"], attempt["outcome"], attempt["exit_code"]) for attempt in task["attempts"]] == [
        (1, "exit", 3),
        (2, "exit", 3),
    ]
    for attempt in task["attempts"]:
        assert "before the end\n" in attempt["output"]
        assert attempt["started_at"] <= attempt["ended_at"]
        assert attempt["peak_memory"] > 1_000_000
    assert task["arguments_size"] > 0
    assert (task["events"][0]["state"], task["events"][-1]["state"]) == ("ready", "failed")


def test_show_is_readable_and_harmless_to_the_terminal(database: str) -> None:
    shown = run("show", task_of(database, "leaves"), "--database", database).stdout
    for expected in (
        "state      failed",
        "attempt 2      exit",
        "exit code    3",
        "    before the end",
        "BashExitFailure",
    ):
        assert expected in shown
    assert "\033" not in shown


def test_show_of_a_task_that_is_not_there(database: str) -> None:
    result = run("show", 987654, "--database", database)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no task 987654 in this database")


def test_events_of_one_task_and_of_all(database: str) -> None:
    task_id = task_of(database, "fails")
    lines = run("events", task_id, "--json", "--database", database).stdout.splitlines()
    of_one = [json.loads(line) for line in lines]
    assert [event["state"] for event in of_one] == [
        *("ready", "assigned", "running"),
        *("ready", "assigned", "running", "failed"),
    ]
    assert {event["task_id"] for event in of_one} == {task_id}
    everything = run("events", "--limit", 0, "--json", "--database", database).stdout.splitlines()
    assert set(lines) < set(everything)
    assert run("events", "--limit", 2, "--json", "--database", database).stdout.splitlines() == everything[-2:]
    assert "max_retries=1" in run("events", task_id, "--database", database).stdout.splitlines()[-1]
    assert run("events", 987654, "--database", database).exit_code == 1


def test_feed_brings_events_that_were_committed_late(postgres: Postgres) -> None:
    url = postgres.create()
    database = open_database(url)

    def event(task_id: int) -> dict[str, Any]:
        return {"task_id": task_id, "at": 0.0, "state": TaskState.READY.value, "who": "a test", "why": "called"}

    with database.begin() as connection:
        connection.execute(events.insert(), event(1))
    feed = EventFeed(database, None, history.last_events(database))
    with database.begin() as slow:
        slow.execute(events.insert(), event(2))
        with database.begin() as fast:
            fast.execute(events.insert(), event(3))
        assert [found.task_id for found in feed.new()] == [3]
    assert [found.task_id for found in feed.new()] == [2]
    assert feed.new() == []
    database.close()


# retry and cancel


def test_retry_makes_a_failed_task_ready_and_says_when_it_runs(own: str) -> None:
    failed, done = task_of(own, "fails"), task_of(own, "double")
    result = run("retry", failed, done, failed, "--database", own)
    assert result.stdout.splitlines() == [
        f"{failed} is ready again.",
        f"{done} is done: only what failed or was cancelled can be retried.",
        "No block works for small now: it runs when the script is started again.",
    ]
    task = answer("show", failed, "--database", own)
    assert task["state"] == "ready"
    assert task["budget_from"] == len(task["attempts"]) == 2
    assert task["events"][-1]["why"] == "retry"


def test_retry_of_all_that_failed(own: str) -> None:
    assert run("retry", "--state", "failed", "--database", own).stdout.splitlines() == [
        "2 failed tasks are ready again.",
        "No block works for small now: they run when the script is started again.",
    ]
    assert answer("status", "--database", own)["ready"] == 2
    assert run("retry", "--state", "failed", "--database", own).stdout == "No task is failed.\n"


def test_script_started_again_runs_what_was_retried(own: str, tmp_path: Path) -> None:
    failed = task_of(own, "leaves")
    run("retry", failed, "--database", own)
    subprocess.run([sys.executable, WORKFLOW, own, tmp_path, "every way"], check=True, timeout=120)
    assert len(answer("show", failed, "--database", own)["attempts"]) == 4
    assert {task["attempts"] for task in answer("tasks", "--app", "double", "--database", own)} == {1}


def test_cancel_tells_what_waits_from_what_is_over(own: str) -> None:
    task_id, done = task_of(own, "fails"), task_of(own, "double")
    run("retry", task_id, "--database", own)
    assert set(run("cancel", task_id, done, "--database", own).stdout.splitlines()) == {
        f"{task_id} is cancelled.",
        f"{done} is over already (done).",
    }
    assert answer("status", "--database", own)["cancelled"] == 2


def test_unknown_id_changes_nothing(own: str) -> None:
    before = answer("status", "--database", own)
    for command in ("retry", "cancel"):
        result = run(command, task_of(own, "fails"), 987654, "--database", own)
        assert result.exit_code == 1
        assert "no task 987654" in result.stderr
    assert answer("status", "--database", own) == before


# with a run at work


@contextmanager
def lingering(url: str, run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A run whose only task waits for its end."""
    command = [sys.executable, str(WORKFLOW), url, str(run_dir), "linger"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "linger\n"
        try:
            yield script
        finally:
            script.kill()
            for process in all_processes():  # a block outlives its script, unless that has ended it
                with suppress(psutil.Error):
                    if str(run_dir) in " ".join(process.cmdline()):
                        process.kill()


@contextmanager
def followed(url: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Follow events; what is yielded waits for a state and returns its event. Ctrl-C ends it at the end."""
    command = [PROGRAM, "events", "--follow", "--json", "--database", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        lines = follower.stdout

        def wait_for(state: str) -> dict[str, Any]:
            while (event := json.loads(lines.readline()))["state"] != state:
                pass
            return event  # type: ignore[no-any-return]

        try:
            yield wait_for
            follower.send_signal(signal.SIGINT)
            assert follower.wait() == 0
        finally:
            follower.kill()


def test_a_run_at_work_is_shown_and_its_task_is_cancelled(empty_database: Callable[[], str], tmp_path: Path) -> None:
    url = empty_database()
    with lingering(url, tmp_path) as script, followed(url) as wait_for:
        task_id = wait_for("running")["task_id"]
        shown = run("status", "--database", url).stdout
        assert f"small (executor balsam) is driven by process {script.pid}" in shown
        (block,) = (line for line in shown.splitlines() if line.endswith("left"))
        assert " running " in block
        assert run("cancel", task_id, "--database", url).stdout == f"{task_id} is running: it is being ended.\n"
        assert wait_for("cancelled")["task_id"] == task_id
        assert script.wait() == 0
    assert run("status", "--database", url).stdout.splitlines()[1:] == [
        "    0         0        0     0       0          1"
    ]


def test_status_takes_back_the_tasks_of_a_dead_launcher(empty_database: Callable[[], str], tmp_path: Path) -> None:
    url = empty_database()
    with lingering(url, tmp_path) as script, followed(url) as wait_for:
        task_id = wait_for("running")["task_id"]
        with opened(url) as database:
            (block,) = open_blocks(database)
        script.kill()  # first, since a run takes tasks back, too
        script.wait()
        assert block.pid is not None
        os.kill(block.pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while not (notice := run("status", "--json", "--database", url).stderr):
            assert time.monotonic() < until
        assert notice.startswith(f"Took back the tasks of block {block.id}")
        assert wait_for("ready")["task_id"] == task_id
    assert answer("status", "--database", url)["ready"] == 1
    assert "is driven by" not in run("status", "--database", url).stdout
    assert answer("show", task_id, "--database", url)["attempts"][0]["outcome"] == "crash"


# what is wrong on the command line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["retry"], "which tasks?"),
        (["retry", "1", "--state", "failed"], "not both"),
        (["retry", "--state", "done"], "'done' is not one of 'failed', 'cancelled'"),
        (["cancel"], "which tasks?"),
        (["tasks", "--limit", "-1"], "-1 is not in the range"),
        (["tasks", "--state", "lost"], "'lost' is not one of"),
        (["show"], "Missing argument 'ID'"),
        (["show", "one"], "'one' is not a valid integer"),
    ],
)
def test_usage_errors(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "balsam.db").touch()
    result = run(*arguments, BALSAM_DATABASE=str(tmp_path / "balsam.db"))
    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.mark.parametrize("command", ["status", "tasks", "show 1", "events", "retry 1", "cancel 1"])
@pytest.mark.parametrize("where", ["{}/none.db", "sqlite:///{}/none.db"])
def test_missing_database_is_not_made(command: str, where: str, tmp_path: Path) -> None:
    result = run(*command.split(), "--database", where.format(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "none.db").exists()


def test_database_without_tables_of_ours_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text(
        "This is not a database, but a text that is long enough to be taken for one." * 20
    )
    for name, expected in (
        ("empty.db", "has no parsl-balsam tables"),
        ("text.db", "not a database"),
        ("", "not a database"),
    ):
        result = run("status", "--database", tmp_path / name)
        assert result.exit_code == 1
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1


def test_other_schema_version_is_refused(own: str) -> None:
    with opened(own) as database, database.begin() as connection:
        connection.execute(schema_version.update().values(version=99))
    result = run("status", "--database", own)
    assert result.exit_code == 1
    assert "has schema version 99" in result.stderr


def test_server_that_is_away_is_an_error_of_one_line() -> None:
    result = run("status", "--database", "postgresql://nobody:secret@127.0.0.1:1/none")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "refused" in result.stderr
    assert "secret" not in result.output


def test_database_may_be_a_path_a_variable_or_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_database(f"sqlite:///{tmp_path}/balsam.db").close()
    (tmp_path / "balsam.db").rename(tmp_path / "water.db")
    monkeypatch.chdir(tmp_path)
    assert run("status").stderr.startswith("Error: there is no database balsam.db")
    assert run("status", "--database", "./water.db").exit_code == 0
    assert run("status", BALSAM_DATABASE="water.db").exit_code == 0
    (tmp_path / "water.db").rename(tmp_path / "balsam.db")
    assert run("status").exit_code == 0


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/balsam.db").close()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as nobody:
        for command in ("status", "tasks"):
            ended = subprocess.run(
                [PROGRAM, command, "--database", tmp_path / "balsam.db"],
                stdout=nobody,
                stderr=subprocess.PIPE,
                check=False,
            )
            assert ended.stderr == b""


# how things are written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-0.1, "0 ms"),
        (0.0123, "12 ms"),
        (0.99951, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (90061, "1 d 1 h"),
        (None, None),
    ],
)
def test_duration(seconds: float | None, written: str | None) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("count", "written"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (56_131_584, "56.1 MB"), (999_600, "1 MB"), (2 * 10**12, "2 TB")],
)
def test_size(count: int, written: str) -> None:
    assert size(count) == written


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\033[2Jb\tå\x9b") == "a\N{REPLACEMENT CHARACTER}[2Jb\tå\N{REPLACEMENT CHARACTER}"


# the demo


def test_demo_kills_a_run_and_computes_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("pyscf", reason="pip install 'parsl-balsam[examples]'")
    command = [PROGRAM, "demo", "--grid", "12x10", "--directory", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Killed the script" in ended.stdout
    assert "No point was computed twice: 135 tasks, 121 of them energies" in " ".join(ended.stdout.split())
    with closing(sqlite3.connect(tmp_path / "kill-and-restart.db")) as connection:
        assert connection.execute("SELECT DISTINCT state FROM blocks").fetchall() == [("ended",)]
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
