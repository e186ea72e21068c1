"""``parsl-balsam demo``: kill a scan half-way, start it again, and see that nothing was computed twice."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import click
from rich.console import Console

from parsl_balsam.cli.options import opened
from parsl_balsam.db.blocklist import open_blocks
from parsl_balsam.db.connect import Database
from parsl_balsam.db.history import TaskLine, count_states, list_tasks
from parsl_balsam.model.errors import BalsamError, ConfigurationError, DatabaseUnavailable, SchemaMismatch
from parsl_balsam.model.states import TaskState

SCRIPT = Path("examples", "water_scan.py")

#: How often the demo looks how far the script is, seconds.
LOOK_EVERY_S = 0.2

#: How long a launcher may take to end, seconds.
LAUNCHER_ENDS_S = 10.0


@click.command()
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), default="demo", show_default=True, help="Outputs."
)
@click.option("--grid", default="20x15", show_default=True, help="Bond lengths x angles, at least 5x5.")
def demo(directory: Path, grid: str) -> None:
    """Compute the energy surface of water, with a kill -9 in the middle.

    Runs examples/water_scan.py on a fresh SQLite database, kills it when half of its points are done, starts it again
    and checks that no point was computed twice.
    """
    console = Console(highlight=False, soft_wrap=True)
    points = points_of(grid)
    script_path = find_script()
    database = fresh_database(directory)
    options = {"--database": database, "--grid": grid, "--directory": str(directory)}
    command = [sys.executable, str(script_path), *chain.from_iterable(options.items())]

    with launchers_ended(database):
        console.rule("First run")
        with started(command) as script:
            done = wait_until_done(script, database, points // 2)
            script.kill()
            script.wait()
        # The script had no chance to bring back the cursor that its progress bar hides.
        console.show_cursor()
        console.print(
            f"\n[bold red]Killed the script[/] (kill -9 {script.pid}) with {done} tasks done. "
            "Its launcher is a process of its own and works on meanwhile."
        )

        console.rule("Second run: the same command")
        console.print(
            "What is done by now is answered from recorded results. The other calls re-attach to their tasks, "
            "and the launcher, which the second run adopts, goes on with them."
        )
        with started(command) as script:
            code = script.wait()
        if code != 0:
            raise BalsamError(f"The second run of {SCRIPT} ended with exit code {code}; its messages are above.")

    console.rule("Check")
    with opened(database) as tasks_of:
        console.print(judge(list_tasks(tasks_of), points))
    console.print(f"See for yourself: parsl-balsam tasks --database {database.removeprefix('sqlite:///')}")


def judge(tasks: Sequence[TaskLine], points: int) -> str:
    """Return what the recorded attempts say about both runs.

    Raises
    ------
    BalsamError
        A task was not computed exactly once.
    """
    wrong = {task.id: task.done_attempts for task in tasks if task.done_attempts != 1}
    if wrong:
        raise BalsamError(f"Of {len(tasks)} tasks, these were not computed exactly once (task: times): {wrong}")
    computed = sum(task.app == "energy" for task in tasks)
    if computed <= points:  # the minimum is one more
        raise BalsamError(f"Only {computed} energies are recorded, of {points} points and the minimum.")
    early = sum(task.attempts - task.done_attempts for task in tasks)
    return (
        f"[bold green]No point was computed twice:[/] {len(tasks)} tasks, {computed} of them energies, "
        f"each has exactly one attempt with a result. Attempts that ended early: {early}."
    )


def find_script() -> Path:
    """Return the path of the example.

    Raises
    ------
    ConfigurationError
        The example is not here, or something it imports is not installed.
    """
    checkout = Path(__file__).resolve().parents[2]
    for root in (Path.cwd(), checkout):
        if (root / SCRIPT).is_file():
            break
    else:
        raise ConfigurationError(f"There is no {SCRIPT} here. Run the demo from a checkout of parsl-balsam.")
    missing = [module for module in ("pyscf", "matplotlib") if find_spec(module) is None]
    if missing:
        raise ConfigurationError(f"The demo needs {' and '.join(missing)}: pip install 'parsl-balsam[examples]'")
    return root / SCRIPT


def points_of(grid: str) -> int:
    """Return the number of points of a grid such as "20x15".

    Raises
    ------
    ConfigurationError
        The text is not of this form.
    """
    try:
        lengths, angles = (int(number) for number in grid.split("x"))
    except ValueError:
        raise ConfigurationError(f"--grid {grid} is not of the form 20x15.") from None
    return lengths * angles


def fresh_database(directory: Path) -> str:
    """Remove what an earlier demo left in its own database file, and return the file's URL."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory.resolve() / "kill-and-restart.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    return f"sqlite:///{file}"


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script in its own process group; interrupt it where the demo ends before it."""
    script = subprocess.Popen(command, start_new_session=True)
    try:
        yield script
    finally:
        if script.poll() is None:
            script.send_signal(signal.SIGINT)
            script.wait()


@contextmanager
def launchers_ended(url: str) -> Iterator[None]:
    """See to it that no launcher outlives the demo: the one of a script that was killed goes on by itself."""
    try:
        yield
    finally:
        try:
            with opened(url) as database:
                end_launchers(database)
        except (DatabaseUnavailable, SchemaMismatch):  # no script came so far as to make the tables
            pass


def end_launchers(database: Database) -> None:
    """End the launchers of this host that still work for a database."""
    for block in open_blocks(database):
        if block.pid is not None and block.host == platform.node():
            end_process(block.pid)
    until = time.monotonic() + LAUNCHER_ENDS_S
    while any(block.pid is not None for block in open_blocks(database)) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)


def end_process(pid: int) -> None:
    """Ask a process to end, if it is still there."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


def wait_until_done(script: subprocess.Popen[bytes], database: str, enough: int) -> int:
    """Wait until so many tasks are done, and return how many are.

    Raises
    ------
    BalsamError
        The script ended before.
    """
    while True:
        try:
            code = script.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            raise BalsamError(
                f"The first run ended with exit code {code} before it could be killed. "
                "If it succeeded, give it more to do: --grid 40x30"
            )
        done = done_tasks(database)
        if done >= enough:
            return done


def done_tasks(url: str) -> int:
    """Return how many tasks are done; none while the script has not made the tables."""
    try:
        with opened(url) as database:
            return count_states(database)[TaskState.DONE]
    except (DatabaseUnavailable, SchemaMismatch):
        return 0
