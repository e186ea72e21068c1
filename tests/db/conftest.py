"""A database of either kind, and the parts that write to it: runs and launchers."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from parsl_balsam.db import connect
from parsl_balsam.db.blocks import open_block, record_block
from parsl_balsam.db.claims import ClaimStore, Exchange
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.runs import Driver, begin_run
from parsl_balsam.db.schema import metadata
from parsl_balsam.db.server import Server
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import LEGAL, REOPENED, Outcome, TaskState
from parsl_balsam.model.tasks import AttemptEnd, AttemptStart, Bound, Call, ClaimedTask, Wish

#: No wait of a test is longer, seconds. None takes nearly as long where the code is right.
LIMIT_S = 30.0

FUNCTION = b"digest of square"


@pytest.fixture
def empty_postgres_url(postgres_server: Server) -> str:
    """URL of a database on PostgreSQL that has our tables and nothing in them."""
    url = postgres_server.url()
    with closing(open_database(url)) as database, database.begin() as connection:
        # A new database for each test would take three times as long. What a failed test left must not block this.
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )
        connection.execute(text(f"TRUNCATE {', '.join(set(metadata.tables) - {'schema_version'})} RESTART IDENTITY"))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without tasks, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'balsam.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database without tasks, of each kind in turn."""
    with closing(open_database(database_url)) as database:
        yield database


@pytest.fixture
def postgres_database(empty_postgres_url: str) -> Iterator[Database]:
    """A database without tasks on PostgreSQL, for what concerns its locks and its server only."""
    with closing(open_database(empty_postgres_url)) as database:
        yield database


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """A workflow with a run."""
    return Campaign(database)


@pytest.fixture
def launcher(campaign: Campaign) -> Launcher:
    """An open block of the campaign."""
    return Launcher(campaign)


class Campaign:
    """A workflow with the run that drives it."""

    def __init__(
        self, database: Database, policy: RetryPolicy | None = None, name: str = "campaign", lease_s: float = 60.0
    ) -> None:
        self.database = database
        driver = Driver("login1", "login1 boot", 4711, 0.0)
        self.run = begin_run(database, name, "balsam", "000", driver, lambda _: True, policy or RetryPolicy(), lease_s)
        self.store = TaskStore(database, self.run.workflow_id, self.run.run_id)

    def call(self, key: str = "task", payload: bytes = b"arguments", stderr: str | None = None, **spec: Any) -> Call:
        """One call; those with the same key are the same task."""
        return Call(key.encode(), 0, "square", FUNCTION, payload, ResourceSpec(**spec), stderr=stderr)

    def submit(self, *calls: Call) -> list[Bound]:
        """Record calls."""
        return self.store.submit(calls, {FUNCTION: b"def square"})

    def task(self, key: str = "task", **spec: Any) -> int:
        """Record one call and return its task."""
        (bound,) = self.submit(self.call(key, **spec))
        return bound.task_id


class Launcher:
    """A launcher without a node: it claims and reports what the test says."""

    def __init__(self, campaign: Campaign, lease_s: float = 60.0, database: Database | None = None) -> None:
        run = campaign.run
        self.database = database or campaign.database
        self.block_id = record_block(self.database, run.workflow_id, run.run_id, "0", lease_s)
        open_block(self.database, self.block_id, "node1", 1)
        self.claims = ClaimStore(self.database, run.workflow_id, self.block_id)

    def exchange(self, want: int = 0, nodes: int = 1) -> Exchange:
        """Report nothing."""
        return self.claims.exchange(wishes=[wish(want, nodes)] if want else [])

    def claim(self, want: int = 1, nodes: int = 1) -> list[ClaimedTask]:
        """Claim tasks that are ready."""
        return self.exchange(want, nodes).claimed

    def start(self, *tasks: ClaimedTask, host: str = "node1") -> None:
        """Report that tasks have processes now."""
        self.claims.exchange([started(task, host) for task in tasks])

    def begin(self, host: str = "node1") -> ClaimedTask:
        """Claim one task and start it."""
        (task,) = self.claim()
        self.start(task, host=host)
        return task

    def end(self, task: ClaimedTask, outcome: Outcome, **more: Any) -> Exchange:
        """Report the end of a task that was started."""
        return self.claims.exchange(ends=[ended(task, outcome, **more)])

    def run(self, outcome: Outcome = Outcome.DONE, host: str = "node1", **more: Any) -> ClaimedTask:
        """Claim one task, start it and report its end."""
        task = self.begin(host)
        self.end(task, outcome, host=host, **more)
        return task

    def outlive_lease(self) -> None:
        """Say nothing until the lease is over."""
        (until,) = column(self.database, "SELECT lease_until FROM blocks WHERE id = :id", id=self.block_id)
        wait_until(lambda: now(self.database) > until)


def wish(tasks: int = 1, nodes: int = 1, **more: Any) -> Wish:
    """What a launcher has room for that counts nothing but nodes."""
    unlimited = {"cores": 10**6, "most_cores": 10**6, "most_gpus": 10**6, "node_cores": 4}
    return Wish(tasks, most_nodes=nodes, **{**unlimited, **more})


def started(task: ClaimedTask, host: str = "node1") -> AttemptStart:
    """What a launcher reports of a start."""
    return AttemptStart(task.task_id, task.number, task.token, (Share(host, (0,)),), time.time())


def ended(task: ClaimedTask, outcome: Outcome, has_started: bool = True, **more: Any) -> AttemptEnd:
    """What a launcher reports of an end."""
    if outcome is Outcome.DONE:
        more.setdefault("payload", b"result")
    return AttemptEnd(
        task.task_id, task.number, task.token, outcome, started_at=time.time() if has_started else None, **more
    )


def now(database: Database) -> float:
    """The database's clock."""
    with database.read() as connection:
        return connect.now(connection)


def rows(database: Database, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    """Rows by plain SQL."""
    with database.read() as connection:
        found = connection.execute(text(statement), parameters).mappings().all()
    return [{name: _plain(value) for name, value in row.items()} for row in found]


def column(database: Database, statement: str, **parameters: Any) -> list[Any]:
    """The only column of rows by plain SQL."""
    with database.read() as connection:
        return [_plain(value) for value in connection.execute(text(statement), parameters).scalars()]


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def state(database: Database, task_id: int) -> str:
    """Where a task is in its life."""
    (found,) = column(database, "SELECT state FROM tasks WHERE id = :id", id=task_id)
    return str(found)


def outcomes(database: Database, task_id: int) -> list[str | None]:
    """How the attempts of a task ended."""
    return column(database, "SELECT outcome FROM attempts WHERE task_id = :id ORDER BY number", id=task_id)


def history(database: Database, task_id: int) -> list[str]:
    """The states a task went through."""
    return column(database, "SELECT state FROM events WHERE task_id = :id ORDER BY id", id=task_id)


def snapshot(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All that is in the database, but for the leases that a launcher renews whenever it speaks."""
    content = {}
    for name in metadata.tables:
        found = rows(database, f"SELECT * FROM {name}")
        for row in found:
            row.pop("lease_until", None)
        content[name] = sorted(found, key=repr)
    return content


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    give_up = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        pause.wait(0.01)


class Story(threading.Thread):
    """Does something at the same time; `result` gives what it returned, or raises what it raised."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._returned: Any = None
        self._raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._returned = self._act()
        except BaseException as error:
            self._raised = error

    def result(self) -> Any:
        self.join(LIMIT_S)
        assert not self.is_alive(), "waited in vain"
        if self._raised is not None:
            raise self._raised
        return self._returned


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Do several things at the same time; return what each returned."""
    barrier = threading.Barrier(len(acts))

    def story(act: Callable[[], Any]) -> Story:
        def wait_and_act() -> Any:
            barrier.wait(LIMIT_S)
            return act()

        return Story(wait_and_act)

    return [begun.result() for begun in [story(act) for act in acts]]


class Pause:
    """A place where a transaction has stopped."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go_on = threading.Event()

    def stop(self) -> None:
        """Stop here."""
        self._reached.set()
        assert self._go_on.wait(LIMIT_S)

    def wait_until_reached(self) -> None:
        """Return when somebody has stopped."""
        assert self._reached.wait(LIMIT_S)

    def go_on(self) -> None:
        """Let it go on."""
        self._go_on.set()


@contextmanager
def statements_of(database: Database) -> Iterator[list[tuple[str, Any, bool]]]:
    """Note the statements that are run meanwhile, with their values, and whether these are those of many rows."""
    seen: list[tuple[str, Any, bool]] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        seen.append((statement, values, many))

    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


@contextmanager
def paused_before(database: Database, beginning: str) -> Iterator[Pause]:
    """Stop a transaction of this `Database` before its first statement that begins so."""
    pause = Pause()

    @event.listens_for(database.engine, "before_cursor_execute")
    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning):
            pause.stop()

    try:
        yield pause
    finally:
        pause.go_on()
        event.remove(database.engine, "before_cursor_execute", stop)


def wait_until_blocked(database: Database) -> None:
    """Return when a transaction waits for another's lock. PostgreSQL only."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: column(database, waiting) == [1])


def check_invariants(database: Database) -> None:
    """Assert what must hold whenever nobody is in the middle of a transaction."""
    tries: dict[int, list[Any]] = defaultdict(list)
    for attempt in rows(database, "SELECT * FROM attempts ORDER BY task_id, number"):
        tries[attempt["task_id"]].append(attempt)
    paths: dict[int, list[TaskState]] = defaultdict(list)
    for change in rows(database, "SELECT * FROM events ORDER BY task_id, id"):
        paths[change["task_id"]].append(TaskState(change["state"]))
    results = Counter(column(database, "SELECT task_id FROM results"))
    arguments = Counter(column(database, "SELECT task_id FROM arguments"))
    block_states = {block["id"]: block["state"] for block in rows(database, "SELECT id, state FROM blocks")}
    found = rows(database, "SELECT * FROM tasks")
    assert {task["id"] for task in found} == set(paths) == set(arguments)
    assert set(tries) | set(results) <= set(paths)
    for task in found:
        assert arguments[task["id"]] == 1
        _check_attempts(task, tries[task["id"]])
        _check_state(task, tries[task["id"]], results[task["id"]], block_states)
        _check_path(task, paths[task["id"]])


def _check_attempts(task: Any, tries: Sequence[Any]) -> None:
    assert [attempt["number"] for attempt in tries] == list(range(1, task["attempts"] + 1)), task
    assert task["budget_from"] <= task["attempts"], task
    for attempt in tries:
        times = [attempt["claimed_at"], attempt["started_at"], attempt["ended_at"]]
        known = [time for time in times if time is not None]
        assert known == sorted(known), attempt
    for before, after in pairwise(tries):
        assert before["ended_at"] is not None, before
        assert before["ended_at"] <= after["claimed_at"], (before, after)


def _check_state(task: Any, tries: Sequence[Any], results: int, block_states: dict[int, str]) -> None:
    over = [attempt["outcome"] is not None and attempt["ended_at"] is not None for attempt in tries]
    if task["state"] in ("assigned", "running"):
        assert block_states[task["block_id"]] == "running", task
        assert task["token"] is not None, task
        assert over == [True] * (len(over) - 1) + [False], tries
        assert tries[-1]["block_id"] == task["block_id"], task
        assert (tries[-1]["started_at"] is not None) == (task["state"] == "running"), task
    else:
        assert task["block_id"] is None, task
        assert task["token"] is None, task
        assert all(over), tries
    if task["state"] in ("done", "failed", "cancelled"):
        assert task["finish"] is not None, task
        assert task["finished_at"] is not None, task
        assert results <= 1, task
    else:
        assert task["finish"] is None, task
        assert task["finished_at"] is None, task
        assert results == 0, task
    done = [attempt["number"] for attempt in tries if attempt["outcome"] == "done"]
    if task["state"] == "done":
        assert results == 1, task
        assert done == [task["attempts"]], tries
    else:
        assert done == [], tries


def _check_path(task: Any, path: Sequence[TaskState]) -> None:
    assert path[0] is TaskState.READY, path
    assert path[-1].value == task["state"], (task, path)
    illegal = [step for step in pairwise(path) if step not in LEGAL | REOPENED]
    assert illegal == [], (task, path)
