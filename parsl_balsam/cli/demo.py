"""``parsl-balsam demo``: kill a scan half-way, start it again, and see that nothing was computed twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from parsl_balsam.model.errors import BalsamError, ConfigurationError

SCRIPT = Path("examples", "water_scan.py")

#: How often the demo looks how far the script is, seconds.
LOOK_EVERY_S = 0.2


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
    console = Console(highlight=False)
    half = points_of(grid) // 2
    script_path = find_script()
    database = fresh_database(directory)
    options = {"--database": database, "--grid": grid, "--directory": str(directory)}
    command = [sys.executable, str(script_path), *chain.from_iterable(options.items())]

    console.rule("First run")
    with started(command) as script:
        done = wait_until_done(script, database, half)
        script.kill()
        script.wait()
    # The script had no chance to bring back the cursor that its progress bar hides.
    console.show_cursor()
    console.print(f"\n[bold red]Killed the script[/] (kill -9 {script.pid}) with {done} tasks done.")

    console.rule("Second run: the same command")
    with started(command) as script:
        code = script.wait()
    if code != 0:
        raise BalsamError(f"The second run of {SCRIPT} ended with exit code {code}; its messages are above.")

    console.rule("Check")
    attempts = done_attempts(database)
    wrong = {task: number for task, number in attempts.items() if number != 1}
    if wrong:
        raise BalsamError(f"Of {len(attempts)} tasks, these were not computed exactly once (task: times): {wrong}")
    console.print(f"[bold green]No point was computed twice:[/] {len(attempts)} tasks, each finished exactly once.")
    console.print(f"See for yourself: parsl-balsam tasks --database {database}", soft_wrap=True)


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


def done_tasks(database: str) -> int:
    """Return how many tasks are done; none while the script has not made the tables."""
    answer = ask("status", "--json", "--database", database)
    return int(answer["done"]) if answer else 0


def done_attempts(database: str) -> dict[int, int]:
    """Return, for each task, how many of its attempts ended with a result."""
    tasks = ask("tasks", "--json", "--limit", "0", "--database", database)
    if not tasks:
        raise BalsamError(f"No tasks can be read from {database}.")
    return {task["id"]: task["attempts"] for task in tasks}


def ask(*arguments: str) -> Any:
    """Return what a command of ``parsl-balsam`` answers in JSON, or None where it fails."""
    program = Path(sys.executable).with_name("parsl-balsam")
    answer = subprocess.run([program, *arguments], capture_output=True, check=False)
    return json.loads(answer.stdout) if answer.returncode == 0 else None
