"""Real runs of Parsl for tests: load, look at what was recorded, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parsl
import psutil
from parsl import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.dataflow.futures import AppFuture
from parsl.providers import LocalProvider
from sqlalchemy import Row, create_engine, select

from parsl_balsam import BalsamExecutor
from parsl_balsam.db.schema import attempts, tasks
from parsl_balsam.model.shares import Share, read_shares
from tests.processes import all_processes

#: No wait of a test is longer, seconds. None takes nearly as long where the code is right.
LIMIT_S = 30.0

#: Blocks, and all they start, inherit it; so every process of a run can be found.
_MARK = "BALSAM_TEST_DIRECTORY"


class QuickLocalProvider(LocalProvider):
    """A LocalProvider whose blocks may be looked at often."""

    status_polling_interval = 0.1


@dataclass(frozen=True)
class ParslRun:
    """A loaded Parsl whose first executor is a BalsamExecutor."""

    directory: Path
    executor: BalsamExecutor
    kernel: DataFlowKernel
    database: str

    def rows(self, table: Any, *conditions: Any) -> Sequence[Row[Any]]:
        """Read rows of the run's database."""
        return rows(self.database, table, *conditions)

    def attempts(self, future: Future[Any]) -> Sequence[Row[Any]]:
        """Read the ended attempts of a call."""
        return self.rows(attempts, attempts.c.task_id == self.task_id(future), attempts.c.outcome.is_not(None))

    def attempt(self, future: Future[Any]) -> Row[Any]:
        """Read the only attempt of a call."""
        (attempt,) = self.attempts(future)
        return attempt

    def shares(self, future: Future[Any]) -> tuple[Share, ...]:
        """Read the placement of the only attempt of a call."""
        return read_shares(self.attempt(future).placement)

    def state(self, future: Future[Any]) -> str:
        """Read the state of a call's task."""
        (task,) = self.rows(tasks, tasks.c.id == self.task_id(future))
        return str(task.state)

    def task_id(self, future: Future[Any]) -> int:
        """Return a call's task, as soon as it is recorded."""

        def recorded() -> int | None:
            submitted = future.task_record["exec_fu"] if isinstance(future, AppFuture) else future
            task_id = getattr(submitted, "task_id", None)
            assert task_id or not future.done(), f"{future} was never recorded"
            return task_id

        return int(wait_for(recorded, "the call to be recorded"))


def rows(database: str, table: Any, *conditions: Any) -> Sequence[Row[Any]]:
    """Read rows of the database at a URL."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return connection.execute(select(table).where(*conditions).order_by(*table.primary_key)).all()
    finally:
        engine.dispose()


def url(directory: Path) -> str:
    """Return the URL of the database in a directory."""
    return f"sqlite:///{directory}/balsam.db"


@contextmanager
def parsl_run(
    directory: Path,
    config: dict[str, Any] | None = None,
    executors: Sequence[Any] = (),
    *,
    alone: bool = True,
    **options: Any,
) -> Iterator[ParslRun]:
    """Load Parsl with a database and everything else in a directory; end it, and check that nothing is left.

    Parameters
    ----------
    config
        Arguments of Parsl's Config.
    executors
        More executors.
    alone
        Whether nothing else is started meanwhile by this process, so that all descriptors that stay open are ours.
    options
        Arguments of the BalsamExecutor.
    """
    descriptors = _descriptors()
    options = {"database": url(directory), **options}
    executor = BalsamExecutor(**options)
    os.environ[_MARK] = str(directory)
    defaults = {"run_dir": str(directory / "runinfo"), "initialize_logging": False, "strategy_period": 600}
    try:
        kernel = parsl.load(Config(executors=[executor, *executors], **{**defaults, **(config or {})}))
        try:
            yield ParslRun(directory, executor, kernel, options["database"])
        finally:
            if not kernel.cleanup_called:
                kernel.cleanup()
        # A launcher says goodbye to the database a moment before its process is gone.
        wait_for(lambda: not processes(directory), "the processes of the run to end")
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("balsam-")] == []
        assert not alone or sorted(_descriptors().items() - descriptors.items()) == []
    finally:
        os.environ.pop(_MARK, None)
        parsl.clear()
        for process in processes(directory):
            process.kill()


def processes(directory: Path) -> list[psutil.Process]:
    """Return the processes that a run with this directory started, other than zombies."""
    found = []
    for process in all_processes():
        try:
            ours = process.environ().get(_MARK) == str(directory)
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_for(condition: Callable[[], Any], what: str = "", limit_s: float = LIMIT_S) -> Any:
    """Return a condition's value as soon as it is true; fail after a time, in seconds."""
    until = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < until, f"waited {limit_s:g} s for {what or condition}"
        time.sleep(0.01)
    return value


def wait_for_text(path: Path) -> str:
    """Return the text of a file as soon as it has a whole line."""
    return str(wait_for(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), str(path)))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def open_gate(path: Path) -> None:
    """Let those go on who wait with `waiting`."""
    path.touch()


def waiting(path: Path) -> str:
    """Return a shell command that waits until a file is there."""
    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


def _descriptors() -> dict[str, str]:
    gc.collect()
    opened = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            opened[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # that of the listing itself
            pass
    return opened
