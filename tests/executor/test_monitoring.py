"""Parsl's own monitoring sees our tasks."""

from __future__ import annotations

import platform
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from parsl_balsam.db.schema import tasks
from tests.executor.parsl_runs import rows, url

# MonitoringHub starts a process of its own that imports the script again.
SCRIPT = """
import sys
import time
import parsl
from parsl import Config, bash_app, python_app
from parsl.monitoring import MonitoringHub
from parsl_balsam import BalsamExecutor

@python_app
def add(first, second):
    return first + second

@python_app
def limited(number, walltime=30):
    return number

@bash_app
def shell(command):
    return command

if __name__ == "__main__":
    config = Config(
        executors=[BalsamExecutor(database=sys.argv[1])],
        monitoring=MonitoringHub(resource_monitoring_interval=0.2, logging_endpoint=sys.argv[2]),
        run_dir=sys.argv[3],
        initialize_logging=False,
    )
    with parsl.load(config):
        assert [call.result() for call in [add(1, 2), add(1, 2), limited(5), shell("sleep 0.5")]] == [3, 3, 5, 0]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run that was monitored."""
    directory = tmp_path_factory.mktemp("monitored")
    (directory / "script.py").write_text(SCRIPT)
    answer = subprocess.run(
        [
            sys.executable,
            str(directory / "script.py"),
            url(directory),
            f"sqlite:///{directory}/monitoring.db",
            str(directory / "runinfo"),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return directory


def ask(directory: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(directory / "monitoring.db")) as connection:
        return connection.execute(query).fetchall()


def test_tries_have_host_block_and_times(directory: Path) -> None:
    tries = ask(directory, "SELECT hostname, block_id, task_try_time_running IS NOT NULL FROM try ORDER BY task_id")
    assert tries == [(platform.node(), "0", 1)] * 4


def test_blocks_and_states_are_reported(directory: Path) -> None:
    assert set(ask(directory, "SELECT block_id, executor_label FROM block")) == {("0", "balsam")}
    assert ask(directory, "SELECT count(*) FROM status WHERE task_status_name = 'exec_done'") == [(4,)]


def test_resources_are_reported(directory: Path) -> None:
    assert ask(directory, "SELECT count(DISTINCT task_id) FROM resource") == [(4,)]


def test_monitoring_does_not_change_what_a_function_is(directory: Path) -> None:
    recorded = rows(url(directory), tasks)
    assert len(recorded) == 4
    assert len({task.function for task in recorded if task.app == "add"}) == 1
