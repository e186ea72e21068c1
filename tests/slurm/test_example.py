"""The MPI example, as a user runs it: with a kill -9 in the middle."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from parsl_balsam.db.connect import open_database
from parsl_balsam.db.history import list_tasks, read_task
from parsl_balsam.model.states import Outcome, TaskState
from tests.requirements import require
from tests.slurm.cluster import Cluster, until

SCRIPT = Path(__file__).parents[2] / "examples" / "mpi_ensemble.py"

#: Nodes by the number of atoms.
NODES = {500: 1, 1372: 2, 4000: 4}

RUNS = 12

PATIENCE_S = 300.0

_FINISHED = re.compile(r"\s*\d+ of \d+: (\d+) atoms, .*, on (\S+)")
_ROW = re.compile(
    r"\s*(\d+)\s+(\d+)\s+[\d.]+\s+[\d.]+" + 2 * r"\s+(-?\d+\.\d+) ± (\d+\.\d+)\s+(-?\d+\.\d+)" + r"\s*", re.MULTILINE
)
_COUNTS = re.compile(r"(\d+) systems in [\d.]+ s: (\d+) reused, (\d+) re-attached, (\d+) run")

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the example. What is left of it after the test is killed."""
    require(("lmp", "mpiexec.openmpi"), "lammps openmpi-bin")
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), "--database", postgres_url, "--directory", str(tmp_path / "melts")]
        environ = {**cluster.environ, "PYTHONUTF8": "1"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environ, **output))
        return started[-1]

    yield run
    for script in started:
        script.kill()
        script.communicate()


def test_killed_ensemble_goes_on(start: Start, cluster: Cluster, postgres_url: str, tmp_path: Path) -> None:
    first = start()
    assert first.stdout is not None
    seen = [first.stdout.readline(), first.stdout.readline()]
    first.kill()
    assert all(map(_FINISHED.match, seen)), seen + first.stdout.readlines()

    second = start()
    output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output

    counts = _COUNTS.search(output)
    assert counts is not None, output
    total, reused, attached, new = map(int, counts.groups())
    assert (total, reused + attached + new) == (RUNS, RUNS)
    assert reused >= len(seen)

    check_physics(output)
    check_nodes(output, cluster, postgres_url)
    until(lambda: not left_of(tmp_path), lambda: f"still there: {left_of(tmp_path)}")


def check_physics(output: str) -> None:
    """Check the tables: every measured value is that of the theory, within its errors."""
    rows = _ROW.findall(output)
    assert Counter(int(row[0]) for row in rows) == {500: 6, 1372: 3, 4000: 3}, output
    assert len(re.findall("^agree: ", output, re.MULTILINE)) == 2, output
    for atoms, nodes, *values in rows:
        assert NODES[int(atoms)] == int(nodes)
        pressure, pressure_error, pressure_theory, energy, energy_error, energy_theory = map(float, values)
        assert abs(pressure - pressure_theory) < 5 * math.hypot(pressure_error, 0.015), output
        assert abs(energy - energy_theory) < 5 * math.hypot(energy_error, 0.002), output


def check_nodes(output: str, cluster: Cluster, url: str) -> None:
    """Check that programs ran once, on as many nodes as they asked for, and on those that are recorded."""
    lines = [_FINISHED.match(line) for line in output.splitlines()]
    told = [(int(line[1]), tuple(line[2].split(","))) for line in lines if line]
    assert len(told) == RUNS
    for atoms, nodes in told:
        assert len(set(nodes)) == len(nodes) == NODES[atoms]
        assert set(nodes) <= set(cluster.nodes)
    with closing(open_database(url, create=False)) as database:
        tasks = [read_task(database, task.id) for task in list_tasks(database, app="melt")]
    assert [task.state for task in tasks] == [TaskState.DONE] * RUNS
    done = [[attempt for attempt in task.attempts if attempt.outcome is Outcome.DONE] for task in tasks]
    assert [len(attempts) for attempts in done] == [1] * RUNS
    recorded = Counter(tuple(share.node for share in attempt.placement) for (attempt,) in done)
    assert recorded == Counter(nodes for _, nodes in told)


def left_of(directory: Path) -> list[str]:
    """Return the command lines of processes that work in a directory: launchers, mpiexec, lmp."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(str(directory) in word for word in words):
            found.append(" ".join(words))
    return found
