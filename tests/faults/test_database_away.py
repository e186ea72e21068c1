"""The database is away for longer than a lease: work waits, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from parsl_balsam.db.schema import blocks
from parsl_balsam.db.server import Server
from parsl_balsam.db.wills import Will, read_will, will_file
from parsl_balsam.model.states import Outcome
from tests.conftest import new_database
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

LEASE_S = 2.0

#: The first tasks are at work all the time, the others take turns.
TASKS = """
    @python_app
    def hold(number, directory):
        import os, time
        while not os.path.exists(directory + "/gate"):
            time.sleep(0.02)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    @python_app
    def line(number, directory):
        import time
        time.sleep(0.1)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    if __name__ == "__main__":
        with load(workflow="away", lease_s=2.0):
            held = [hold(n, DIRECTORY) for n in range(2)]
            report([future.result() for future in held + [line(n, DIRECTORY) for n in range(2, 80)]])
"""


class Outage(ABC):
    """What keeps everybody from the database."""

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def last(self, seconds: float) -> None:
        """Go through one."""
        self.begin()
        back_at = time.monotonic() + seconds
        until(lambda: time.monotonic() > back_at)
        self.end()


class ServerStopped(Outage):
    def __init__(self, server: Server) -> None:
        self._server = server

    def begin(self) -> None:
        self._server.stop()

    def end(self) -> None:
        self._server.start()


class FileLocked(Outage):
    """Another process holds SQLite's only write lock."""

    _PROGRAM = """if True:
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.read()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        command = [sys.executable, "-c", self._PROGRAM, str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "locked\n"

    def end(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    kind = getattr(request, "param", "postgresql")
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path}/balsam.db"
    else:
        with new_database(request.getfixturevalue("own_server")) as url:
            yield url


@pytest.fixture
def outage(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[Outage]:
    """An outage of this campaign's database, over after the test whatever happens."""
    if url.startswith("sqlite"):
        made: Outage = FileLocked(tmp_path / "balsam.db")
    else:
        made = ServerStopped(request.getfixturevalue("own_server"))
    yield made
    made.end()


both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


def check_each_ran_once(campaign: Campaign, results: Any, count: int) -> None:
    """Check that all results are right, and that every task ran once, and finished."""
    assert results == list(range(count))
    assert Counter(campaign.lines) == Counter(str(n) for n in range(count))
    assert {(state, number, outcome) for _, state, number, outcome in campaign.attempts()} == {("done", 1, "done")}
    campaign.check_invariants()
    until(lambda: not campaign.processes())


@both
def test_database_is_away_for_many_leases(campaign: Campaign, outage: Outage) -> None:
    script = campaign.start(campaign.write(TASKS))
    until(lambda: len(campaign.lines) >= 10)
    outage.last(30.0)
    (campaign.directory / "gate").touch()
    check_each_ran_once(campaign, campaign.finish(script), 80)
    assert [block.state for block in rows(campaign.url, blocks)] == ["ended"]


def test_connections_are_ended_again_and_again(campaign: Campaign) -> None:
    script = campaign.start(campaign.write(TASKS))
    (campaign.directory / "gate").touch()
    ended = 0
    with closing(psycopg2.connect(campaign.url.replace("+psycopg2", "", 1))) as session:
        session.autocommit = True
        for round_ in range(1, 16):
            until(lambda least=5 * round_: len(campaign.lines) >= least)  # type: ignore[misc]
            with session.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                ended += cursor.fetchone()[0]
    assert ended >= 15
    check_each_ran_once(campaign, campaign.finish(script), 80)


def test_server_is_killed(campaign: Campaign, own_server: Server) -> None:
    script = campaign.start(campaign.write(TASKS))
    (campaign.directory / "gate").touch()
    for least in (10, 40):
        until(lambda least=least: len(campaign.lines) >= least)  # type: ignore[misc]
        main = psutil.Process(own_server.status().pid)
        family = [main, *main.children(recursive=True)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:  # a connection was closed meanwhile
                pass
        psutil.wait_procs(family)
        own_server.start()
    check_each_ran_once(campaign, campaign.finish(script), 80)


LEFT = """
    @python_app
    def line(number, directory, gate):
        import os, time
        while not os.path.exists(directory + "/" + gate):
            time.sleep(0.02)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    if __name__ == "__main__":
        with load(workflow="left", lease_s=2.0, block_pause_s=0.2):
            Path(DIRECTORY, "loaded").touch()
            report([f.result() for f in [line(n, DIRECTORY, "gate" if n < 4 else "later") for n in range(10)]])
"""


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_launcher_ends_while_the_database_is_away(
    campaign: Campaign, outage: Outage, number: signal.Signals, url: str
) -> None:
    script = campaign.start(campaign.write(LEFT))
    until((campaign.directory / "loaded").exists)
    until(lambda: [state for _, state, *_ in campaign.attempts()].count("running") == 4)
    (first,) = rows(campaign.url, blocks)
    outage.begin()
    (campaign.directory / "gate").touch()
    until(lambda: len(read_will(first.directory, first.id).ends) == 4)  # it is written before anybody must end
    psutil.Process(first.pid).send_signal(number)
    until(lambda: not psutil.pid_exists(first.pid))
    will = read_will(first.directory, first.id)
    assert [end.outcome for end in will.ends][:4] == [Outcome.DONE] * 4
    assert will.reason == ("received SIGTERM" if number is signal.SIGTERM else None)
    assert len(campaign.lines) == 4
    outage.end()
    (campaign.directory / "later").touch()
    assert campaign.finish(script) == list(range(10))
    assert Counter(campaign.lines) == Counter(str(n) for n in range(10))
    tries = campaign.attempts()
    assert tries[:4] == [("line", "done", 1, "done")] * 4
    known = {"done", "ended"} if number is signal.SIGTERM else {"done", "ended", "crash"}
    assert {outcome for *_, outcome in tries} <= known
    found = rows(campaign.url, blocks)
    how = ("ended", "received SIGTERM") if number is signal.SIGTERM else ("lost", found[0].reason)
    assert (found[0].state, found[0].reason) == how
    assert read_will(first.directory, first.id) == Will()
    campaign.check_invariants()
    until(lambda: not campaign.processes())


FROZEN = """
    @bash_app
    def line(number, directory):
        return (
            f"cd {directory}; echo {number}-$BALSAM_ATTEMPT >> starts; "
            f"until [ -e gate ]; do sleep 0.02; done; echo {number} >> lines"
        )

    @python_app
    def quick(number):
        return 0

    if __name__ == "__main__":
        with load(workflow="frozen", lease_s=2.0, block_pause_s=0.2):
            # After many short tasks the launcher claims ahead.
            futures = [quick(n) for n in range(200)] + [line(n, DIRECTORY) for n in range(12)]
            Path(DIRECTORY, "loaded").touch()
            report([future.result() for future in futures])
"""


def test_launcher_that_was_given_up_starts_nothing_while_the_server_is_down(campaign: Campaign, outage: Outage) -> None:
    def starts() -> list[str]:
        path = campaign.directory / "starts"
        return path.read_text().split() if path.exists() else []

    script = campaign.start(campaign.write(FROZEN))
    until((campaign.directory / "loaded").exists)
    until(lambda: len(starts()) == 4)
    (first,) = rows(campaign.url, blocks)
    frozen = psutil.Process(first.pid)
    frozen.suspend()
    assert "assigned" in {state for _, state, *_ in campaign.attempts()}
    command = [str(Path(sys.executable).with_name("parsl-balsam")), "launcher", "frozen"]
    with running(command, campaign.directory, {"BALSAM_DATABASE": campaign.url}):
        until(lambda: [row.state for row in rows(campaign.url, blocks)] == ["lost", "running"])
        until(lambda: len(starts()) == 8)
        outage.begin()
        frozen.resume()
        until(lambda: "the database does not answer" in said(campaign))  # it is awake
        over_at = time.monotonic() + LEASE_S
        until(lambda: time.monotonic() > over_at)
        assert len(starts()) == 8
        outage.end()
        (campaign.directory / "gate").touch()
        assert campaign.finish(script) == [0] * 212
    assert Counter(campaign.lines) == Counter(str(n) for n in range(12))
    assert max(Counter(starts()).values()) == 1
    campaign.check_invariants()
    until(lambda: not campaign.processes())


@contextmanager
def running(command: list[str], directory: Path, variables: dict[str, str]) -> Iterator[None]:
    """A process that is told to end after its use."""
    process = subprocess.Popen(
        command, cwd=directory, env={**os.environ, **variables}, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        yield
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait()


LATE = """
    from parsl.providers import LocalProvider

    @python_app
    def line(number, directory):
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    if __name__ == "__main__":
        init = f"until [ -e {DIRECTORY}/gate ]; do sleep 0.02; done"
        with load(workflow="late", lease_s=2.0, block_pause_s=0.2, provider=LocalProvider(worker_init=init)):
            Path(DIRECTORY, "loaded").touch()
            report([future.result() for future in [line(n, DIRECTORY) for n in range(10)]])
"""


def said(campaign: Campaign) -> str:
    """What launchers said."""
    return "".join(path.read_text() for path in campaign.directory.glob("runinfo/*/submit_scripts/*.err"))


def test_launcher_starts_while_the_server_is_down(campaign: Campaign, outage: Outage) -> None:
    script = campaign.start(campaign.write(LATE))
    until((campaign.directory / "loaded").exists)
    until(lambda: [row.job_id is not None for row in rows(campaign.url, blocks)] == [True])
    outage.begin()
    (campaign.directory / "gate").touch()
    until(lambda: "the database does not answer" in said(campaign))
    outage.end()
    check_each_ran_once(campaign, campaign.finish(script), 10)
    assert [block.state for block in rows(campaign.url, blocks)] == ["ended"]


def test_launcher_that_waits_for_the_server_can_be_ended(campaign: Campaign, outage: Outage) -> None:
    script = campaign.start(campaign.write(LATE))
    until((campaign.directory / "loaded").exists)
    until(lambda: [row.job_id is not None for row in rows(campaign.url, blocks)] == [True])
    outage.begin()
    (campaign.directory / "gate").touch()
    until(lambda: "the database does not answer" in said(campaign))
    for process in campaign.processes("parsl_balsam.launcher "):
        process.terminate()
    until(lambda: not campaign.processes("parsl_balsam.launcher "))
    outage.end()
    check_each_ran_once(campaign, campaign.finish(script), 10)


def test_script_ends_while_the_server_is_down(campaign: Campaign, outage: Outage) -> None:
    """The next run finds what the launcher has left."""
    body = LEFT.replace("report([f.result() for f in [", "futures = ([f for f in [") + (
        "            [future.result() for future in futures[:4]]\n"
        "            report(1)\n"
        "            while not Path(DIRECTORY, 'end').exists(): time.sleep(0.02)\n"
    )
    (campaign.directory / "gate").touch()
    ends = campaign.start(campaign.write(body, "ends.py"))
    until((campaign.directory / "report0").exists)
    outage.begin()
    (campaign.directory / "end").touch()
    assert campaign.finish(ends) == 1
    until(lambda: not campaign.processes())
    outage.end()
    (campaign.directory / "later").touch()
    assert campaign.run(campaign.write(LEFT, "ends.py")) == list(range(10))
    assert Counter(campaign.lines) == Counter(str(n) for n in range(10))
    assert {outcome for *_, outcome in campaign.attempts()} == {"done", "ended"}
    assert not list(campaign.directory.glob(f"runinfo/**/{will_file('', 1).name}"))
    campaign.check_invariants()
