"""Where and how thoroughly things are measured: fresh processes, temporary directories, a PostgreSQL of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import in_turns
from parsl_balsam.db.keyfile import KEY_VARIABLE
from parsl_balsam.db.server import Server
from tests.conftest import new_database

#: Tasks that run side by side, of everything that is compared.
WIDTH = 2

#: Programs, and all they start, inherit it; so every process can be found.
_MARK = "BALSAM_BENCHMARK"

#: No program takes nearly as long, seconds.
_LIMIT_S = 600.0

_PROGRAMS = Path(__file__).parent / "programs"


class ProgramFailed(Exception):
    """A program ended with an error, which is shown."""


@dataclass(frozen=True)
class Setting:
    """What all measures need."""

    quick: bool  #: few tasks and one repetition, to see that everything works
    repetitions: int | None  #: instead of what each measure takes by itself
    server: Server | None  #: a running PostgreSQL, where there is one

    def rounds(self, usual: int = 3) -> int:
        """Return how often to measure."""
        return self.repetitions or (1 if self.quick else usual)

    def many(self, full: int, quick: int) -> int:
        """Return how much to do each time."""
        return quick if self.quick else full

    @property
    def kinds(self) -> list[str]:
        """The databases that there are."""
        return ["sqlite", "postgresql"] if self.server else ["sqlite"]

    @contextmanager
    def database(self, kind: str, directory: Path) -> Iterator[str]:
        """Give the URL of a new database."""
        if kind == "sqlite":
            yield f"sqlite:///{directory}/balsam.db"
        else:
            assert self.server is not None
            with new_database(self.server) as url:
                yield url

    def run(self, subject: str, work: str, **options: Any) -> dict[str, Any]:
        """Let a script of its own do some work with an executor on a database of its own; return what it found.

        Parameters
        ----------
        subject
            ``sqlite``, ``postgresql`` or ``htex``.
        """
        with directory() as path:
            ours = self.database(subject, path) if subject != "htex" else nullcontext("")
            with ours as url:
                return run_workflow(subject, url, work, path, **options)

    def compare(self, subjects: Sequence[str], work: str, rounds: int, **options: Any) -> dict[str, list[Any]]:
        """Let executors do the same work in turns."""
        return in_turns(
            {subject: lambda subject=subject: self.run(subject, work, **options) for subject in subjects}, rounds
        )


@contextmanager
def directory() -> Iterator[Path]:
    """Give a directory; end what still runs in it, and remove it."""
    with tempfile.TemporaryDirectory(prefix="balsam-benchmark-") as path:
        try:
            yield Path(path)
        finally:
            _end_processes(path)


def run_workflow(subject: str, url: str, work: str, path: Path, **options: Any) -> dict[str, Any]:
    """Let a script do some work with an executor on a database that is there."""
    return run_program("workflow.py", [subject, url, work, json.dumps(options)], path)


def run_program(name: str, arguments: Sequence[str], path: Path) -> dict[str, Any]:
    """Run one of our programs in a directory; return the JSON that it prints last."""
    return Program(name, arguments, path).finish()


class Program:
    """One of our programs, which runs in a directory."""

    def __init__(self, name: str, arguments: Sequence[str], path: Path) -> None:
        self._command = [sys.executable, str(_PROGRAMS / name), *arguments]
        # Files, not pipes: what a program leaves behind would hold them open.
        self._output, self._errors = (tempfile.TemporaryFile(mode="w+", dir=path) for _ in range(2))  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command, cwd=path, env=_environment(path), stdout=self._output, stderr=self._errors
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Wait for its end; return the JSON that it printed last."""
        with self._output, self._errors:
            try:
                code = self._process.wait(_LIMIT_S)
            finally:
                self._process.kill()
            self._output.seek(0)
            self._errors.seek(0)
            if code != 0:
                raise ProgramFailed(f"{' '.join(self._command)} ended with {code}:\n{self._errors.read()[-4000:]}")
            found: dict[str, Any] = json.loads(self._output.read().splitlines()[-1])
            return found


def _environment(path: Path) -> Mapping[str, str]:
    root = str(Path(__file__).parent.parent)
    ours = {
        _MARK: str(path),
        KEY_VARIABLE: str(path / "key"),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        # Parsl's executor looks for its programs there, and the environment may not be activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    # What is installed has its bytecode; where none may be written, every process would compile this project anew.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ours


def _end_processes(path: str) -> None:
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(_MARK) == path:
                process.kill()
        except psutil.Error:
            pass
