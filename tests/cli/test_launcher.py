"""``parsl-balsam launcher``: a workflow's tasks on nodes that the user holds, whether its script runs or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from parsl_balsam.db.connect import open_database
from parsl_balsam.db.schema import attempts, blocks, tasks
from tests.executor.parsl_runs import wait_for

BALSAM = Path(sys.executable).with_name("parsl-balsam")

#: A script that is gone before anything has run.
SCRIPT = """
import os, sys
import parsl
from parsl import bash_app
from parsl.providers import LocalProvider
from parsl_balsam import BalsamExecutor

@bash_app
def command(line):
    return line

if __name__ == "__main__":
    url, *labels = sys.argv[1:]
    nowhere = {"init_blocks": 0, "min_blocks": 0, "max_blocks": 0}
    executors = [
        BalsamExecutor(label=label, workflow="scan", database=url, cores_per_node=1, provider=LocalProvider(**nowhere))
        for label in labels
    ]
    parsl.load(parsl.Config(executors=executors, run_dir="runinfo", initialize_logging=False))
    calls = [command(f"[ -e gate{number} ] || sleep 600") for number in range(4)]
    while None in [call.task_record["exec_fu"] and call.task_record["exec_fu"].task_id for call in calls]:
        pass
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def left_by_script(tmp_path: Path) -> Callable[..., str]:
    """Runs the script with executors of these labels; returns the URL of the database that it leaves."""

    def run(*labels: str) -> str:
        url = f"sqlite:///{tmp_path}/balsam.db"
        script = subprocess.run([sys.executable, "-c", SCRIPT, url, *labels], cwd=tmp_path, timeout=60)
        assert script.returncode == -signal.SIGKILL
        return url

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command. It is killed after the test, if it is still there."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([BALSAM, "launcher", *words], cwd=tmp_path, **output))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def rows(url: str, *columns: object) -> list[tuple[object, ...]]:
    with closing(open_database(url)) as database, database.read() as connection:
        return [tuple(row) for row in connection.execute(select(*columns))]  # type: ignore[call-overload]


def start_on_two_nodes(url: str, start: Callable[..., subprocess.Popen[str]], directory: Path) -> subprocess.Popen[str]:
    """Let the tasks end as soon as they begin, and start a launcher that hardly waits for others."""
    for number in range(4):
        (directory / f"gate{number}").touch()
    return start("scan", "--database", url, "--nodes", "2", "--idle-timeout", "0.2")


def agents_of(launcher: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(launcher).children():
        with suppress(psutil.NoSuchProcess):
            found += [process] if "parsl_balsam.launcher.agent" in process.cmdline() else []
    return found


def test_tasks_run_without_their_script(
    left_by_script: Callable[..., str], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    url = left_by_script("balsam")
    launcher = start_on_two_nodes(url, start, tmp_path)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert "2 nodes (local)" in output
    assert "has ended: no work for 0.2 s" in output
    assert rows(url, tasks.c.state) == [("done",)] * 4, output
    assert rows(url, blocks.c.nodes, blocks.c.cores_per_node, blocks.c.state) == [(2, 1, "ended")]


def test_waiting_for_a_node_is_not_idle(
    left_by_script: Callable[..., str], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    url = left_by_script("balsam")
    launcher = start_on_two_nodes(url, start, tmp_path)
    late = wait_for(lambda: agents_of(launcher.pid)[1:], "its agents")[0]
    late.suspend()
    try:
        wait_for(lambda: rows(url, blocks.c.nodes) != [(None,)], "one node to be there")
        time.sleep(0.5)  # longer than it may be idle
    finally:
        late.resume()
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert rows(url, tasks.c.state) == [("done",)] * 4, output


def test_ctrl_c_costs_nothing(left_by_script: Callable[..., str], start: Callable[..., subprocess.Popen[str]]) -> None:
    url = left_by_script("balsam")
    launcher = start("scan", "--database", url, "--nodes", "4")
    wait_for(lambda: rows(url, tasks.c.state) == [("running",)] * 4, "the tasks to run")
    os.kill(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert rows(url, tasks.c.state) == [("ready",)] * 4
    assert rows(url, attempts.c.outcome) == [("ended",)] * 4
    assert rows(url, blocks.c.reason) == [("received SIGINT",)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["scam"], "no workflow 'scam' in this database: it has 'scan'"),
        (["scan"], "workflow 'scan' has the executors 'fast', 'slow': name one of them with --executor"),
        (["scan", "--executor", "other"], "workflow 'scan' has the executors 'fast', 'slow'"),
        (["scan", "--executor", "fast", "--job-mode", "mpi", "--mpi", "none"], "job_mode='mpi' starts every task by"),
    ],
)
def test_what_it_cannot_do(
    left_by_script: Callable[..., str], start: Callable[..., subprocess.Popen[str]], words: list[str], reason: str
) -> None:
    url = left_by_script("fast", "slow")
    output, _ = start(*words, "--database", url).communicate(timeout=60)
    assert reason in output
    assert "Traceback" not in output
    assert rows(url, tasks.c.state) == [("ready",)] * 4
