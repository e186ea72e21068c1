"""Databases with many tasks that wait: copies of one that was really recorded."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, NullPool, Text, cast, create_engine, func, literal, select, text

from parsl_balsam.db.connect import Database
from parsl_balsam.db.runs import Driver, Run, begin_run
from parsl_balsam.db.schema import arguments, events, tasks
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.model.payload import digest, encode
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.tasks import Call

_KEY_BYTES = 16

_FUNCTION = b"a function of two thousand bytes" * 64


class WaitingTasks:
    """A workflow in an empty database, with as many ready tasks as wanted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        driver = Driver("login1", "login1 boot", 4711, 0.0)

        def begin(name: str) -> Run:
            return begin_run(database, name, "balsam", "000", driver, lambda _: True, RetryPolicy(), 36_000.0)

        self.run = begin("benchmark")
        copied = begin("copied")  # nobody claims from this one, so what is copied stays as it is
        name = digest(_FUNCTION)
        call = Call(b"k" * _KEY_BYTES, 0, "no_op", name, b"s" * 32 + encode(((), {})), ResourceSpec())
        store = TaskStore(database, copied.workflow_id, copied.run_id)
        (first,) = store.submit([call], {name: _FUNCTION})
        self._first = self._last = first.task_id

    def add(self, count: int) -> None:
        """Record more tasks."""
        first, self._last = self._last + 1, self._last + count
        ours = {
            "key": self._key,
            "workflow_id": lambda _: literal(self.run.workflow_id),
            "run_id": lambda _: literal(self.run.run_id),
        }
        with self._database.begin("add") as connection:
            for table, number, changed in (
                (tasks, tasks.c.id, ours),
                (arguments, arguments.c.task_id, {}),
                (events, events.c.task_id, {}),
            ):
                numbers = select(literal(first, Integer).label("n")).cte("numbers", recursive=True)
                numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < self._last))
                # What the database numbers by itself is left to it.
                names = [column for column in table.c if column is number or not column.primary_key]
                values = [
                    numbers.c.n
                    if column is number
                    else changed[column.name](numbers.c.n)
                    if column.name in changed
                    else column
                    for column in names
                ]
                copies = select(*values).select_from(table.join(numbers, literal(True))).where(number == self._first)
                connection.execute(table.insert().from_select(names, copies))

    def _key(self, number: Any) -> Any:
        """Return an expression for a digest: digests are all over their index."""
        if self._database.is_sqlite:
            return func.randomblob(_KEY_BYTES)
        return func.substr(func.sha256(func.convert_to(cast(number, Text), "UTF8")), 1, _KEY_BYTES)

    def analyze(self) -> None:
        """Let PostgreSQL know what is there, as it would by itself a minute later."""
        if not self._database.is_sqlite:
            # A transaction of the engine's would keep VACUUM from running.
            connect = create_engine(self._database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect
            with connect() as connection:
                connection.execute(text("VACUUM ANALYZE"))

    def bytes(self) -> int:
        """Return the size of the database."""
        with self._database.read() as connection:
            if self._database.is_sqlite:
                pages = connection.execute(text("PRAGMA page_count")).scalar_one()
                return int(pages * connection.execute(text("PRAGMA page_size")).scalar_one())
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
