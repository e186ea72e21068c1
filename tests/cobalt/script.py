"""The script of a job as the server sees it: a process under a forker of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Where the packages of the stand-in are found.
ROOT = Path(__file__).parents[2]


def python(module: str, call: str) -> list[str]:
    """Return the command that calls a function of a module, without anything that is installed, so it starts fast."""
    return [sys.executable, "-SE", "-c", python_text(module, call)]


def python_text(module: str, call: str) -> str:
    """Return the text of a program that calls a function of a module."""
    return f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom {module} import {call.partition('(')[0]}\n{call}\n"


class Script:
    """A script that was started.

    Parameters
    ----------
    order
        What the forker is to do: `command`, `environ`, `cwd`, `umask`, `stdin`, `stdout` and `stderr`.
    tell
        Is called when something of it has changed.
    """

    def __init__(self, order: Mapping[str, Any], tell: Callable[[], None]) -> None:
        self.pid: int | None = None
        self.code: int | None = None
        self.notes: list[str] = []  #: of what went wrong with its files
        self.ended = False  #: whether the forker and all processes of the job are gone
        self._tell = tell
        self._read = b""
        self._forker = subprocess.Popen(
            python("tests.cobalt.forker", f"main({os.getpid()})"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.send(json.dumps(order))
        assert self._forker.stdout is not None
        self._answers = self._forker.stdout.fileno()
        asyncio.get_running_loop().add_reader(self._answers, self._hear)

    @property
    def forker(self) -> int:
        """The pid of the forker, from which all processes of the job descend."""
        return self._forker.pid

    def send(self, word: str) -> None:
        """Send a line to the forker."""
        assert self._forker.stdin is not None
        if self.ended:
            return
        try:
            self._forker.stdin.write(word.encode() + b"\n")
            self._forker.stdin.flush()
        except BrokenPipeError:  # it was killed
            pass

    def _hear(self) -> None:
        said = os.read(self._answers, 65536)
        *lines, self._read = (self._read + said).split(b"\n")
        for line in lines:
            for what, value in json.loads(line).items():
                if what == "note":
                    self.notes.append(value)
                elif what == "pid":
                    self.pid = value
                else:
                    self.code = value
        if not said:
            asyncio.get_running_loop().remove_reader(self._answers)
            self._forker.wait()
            for pipe in (self._forker.stdin, self._forker.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
            self.ended = True
        self._tell()
