"""A campaign: a user's script with its database and directory, started and killed as often as a test likes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.schema import attempts, events, results, tasks
from tests.processes import all_processes

#: Longer than anything here takes on a busy machine, seconds.
PATIENCE_S = 120.0

#: So many of the last lines of a script, or of a block's log, are shown with a test that failed.
SHOWN_LINES = 40


@dataclass
class Campaign:
    """One script, its database, and the processes that it started."""

    directory: Path
    url: str
    _scripts: list[subprocess.Popen[str]] = field(default_factory=list)
    _said: dict[int, bytes | str] = field(default_factory=dict)  # by the numbers of scripts

    @property
    def lines(self) -> list[str]:
        """What the tasks wrote, one line for each time one ran."""
        path = self.directory / "lines"
        return path.read_text().split() if path.exists() else []

    def write(self, body: str, name: str = "script.py") -> Path:
        """Write the script. In it `load(...)` starts Parsl and `report(...)` hands a value to the test."""
        head = """
            import json, sys, time
            from pathlib import Path
            import parsl
            from parsl import bash_app, python_app
            from parsl_balsam import BalsamExecutor, RetryPolicy

            URL, DIRECTORY, REPORT = sys.argv[1:4]

            def load(retries=0, **options):
                options = {"cores_per_node": 4, "idle_timeout_s": 30.0, "lease_s": 5.0, **options}
                return parsl.load(parsl.Config(
                    executors=[BalsamExecutor(database=URL, **options)], run_dir=DIRECTORY + "/runinfo",
                    strategy_period=0.5, retries=retries, initialize_logging=False))

            def report(value):
                Path(REPORT).write_text(json.dumps(value))
        """
        path = self.directory / name
        path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        return path

    def start(self, script: Path, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the script, with more variables in its environment."""
        number = len(self._scripts)
        started = subprocess.Popen(
            [sys.executable, str(script), self.url, str(self.directory), str(self.directory / f"report{number}")],
            cwd=self.directory,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._scripts.append(started)
        return started

    def finish(self, script: subprocess.Popen[str]) -> Any:
        """Wait for the script's end; return what it reported."""
        number = self._scripts.index(script)
        try:
            output, _ = script.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            self._said[number] = error.stdout or ""
            raise
        self._said[number] = output
        assert script.returncode == 0, output
        return json.loads((self.directory / f"report{number}").read_text())

    def run(self, script: Path) -> Any:
        """Start the script and wait for its end; return what it reported."""
        return self.finish(self.start(script))

    @staticmethod
    def kill(script: subprocess.Popen[str]) -> None:
        """Kill the script's process, and nothing else."""
        script.kill()
        script.wait()

    def processes(self, what: str = "") -> list[psutil.Process]:
        """Return the processes that belong to this campaign, scripts apart, whose command line has a word in it."""
        found = []
        for process in all_processes():
            try:
                command = " ".join(process.cmdline())
                environ = process.environ()
            except psutil.Error:
                continue
            mine = str(self.directory) in command or environ.get("BALSAM_CAMPAIGN") == str(self.directory)
            if mine and what in command and process.pid not in {os.getpid(), *(s.pid for s in self._scripts)}:
                found.append(process)
        return found

    def kill_launchers(self) -> None:
        """Kill all launchers, and wait until everything they had started is gone too."""
        for process in self.processes("parsl_balsam.launcher "):
            process.send_signal(signal.SIGKILL)
        until(lambda: not self.processes())

    def open(self) -> Database:
        """Open the database."""
        return open_database(self.url, create=False)

    def attempts(self) -> list[tuple[str, str, int, str]]:
        """Return app, task state, number and outcome of every attempt, in the order of tasks and attempts."""
        database = self.open()
        with database.read() as connection:
            rows = connection.execute(
                select(tasks.c.app, tasks.c.state, attempts.c.number, attempts.c.outcome)
                .join(attempts, attempts.c.task_id == tasks.c.id)
                .order_by(tasks.c.id, attempts.c.number)
            ).all()
        database.close()
        return [tuple(row) for row in rows]  # type: ignore[misc]

    def check_invariants(self) -> None:
        """Check what must hold whatever was killed: one result and one good attempt for each task that is done."""
        database = self.open()
        with database.read() as connection:
            done = set(connection.execute(select(tasks.c.id).where(tasks.c.state == "done")).scalars())
            good = list(connection.execute(select(attempts.c.task_id).where(attempts.c.outcome == "done")).scalars())
            recorded = set(connection.execute(select(results.c.task_id)).scalars())
            ended = list(connection.execute(select(events.c.task_id).where(events.c.state == "done")).scalars())
        database.close()
        assert sorted(good) == sorted(done)
        assert sorted(ended) == sorted(done)
        assert done <= recorded

    def end(self) -> None:
        """End every process of the campaign."""
        for script in self._scripts:
            self.kill(script)
        for _ in range(3):  # an agent that sees its launcher die ends its workers itself
            for process in self.processes():
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
        try:
            self._show()
        except Exception as error:  # it must not hide how the test has ended
            print(f"what was said cannot be shown: {error!r}")
        for script in self._scripts:
            if script.stdout:
                script.stdout.close()

    def _show(self) -> None:
        """Print the last that scripts and blocks have said: pytest shows it with a test that failed."""
        for number, script in enumerate(self._scripts):
            said = self._said.get(number, b"")
            said = said.encode() if isinstance(said, str) else said
            if script.stdout and not script.stdout.closed:
                said += _waiting_bytes(script.stdout.fileno())
            _print_last(f"start {number} of a script (exit code {script.returncode})", said)
        for pattern in ("*.err", "*.stderr", "*.log"):
            for path in sorted(self.directory.glob(f"runinfo/**/{pattern}")):
                _print_last(str(path.relative_to(self.directory)), path.read_bytes())


def _waiting_bytes(descriptor: int) -> bytes:
    """Return what a pipe has; whoever else could still write to it is not waited for."""
    os.set_blocking(descriptor, False)
    found = b""
    try:
        while more := os.read(descriptor, 1 << 16):
            found += more
    except BlockingIOError:
        pass
    return found


def _print_last(title: str, said: bytes) -> None:
    lines = said.decode(errors="replace").splitlines()
    if lines:
        print(f"--- {title}, the last of {len(lines)} lines:")
        print("\n".join(lines[-SHOWN_LINES:]))


def until(condition: Callable[[], object]) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/balsam.db"


@pytest.fixture
def campaign(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    monkeypatch.setenv("BALSAM_CAMPAIGN", str(tmp_path))
    made = Campaign(tmp_path, url)
    yield made
    made.end()
