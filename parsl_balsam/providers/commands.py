"""Runs the commands of schedulers: the one place where the providers start processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: How long the pipes of a killed command are listened to, seconds: what it started may have left its process group.
_PIPES_S = 1.0

#: As much of what a command said goes into messages, characters.
_WORDS = 1000


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that was run, or was to be."""

    argv: tuple[str, ...]
    code: int | None = 0  #: exit code; minus the signal that ended it; None = it did not end in time, or never began
    stdout: str = ""
    stderr: str = ""
    trouble: str | None = None  #: why there is no exit code
    missing: bool = False  #: whether there is no such program

    @property
    def words(self) -> str:
        """What it said, in one line, or why it said nothing."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        said = "; ".join(line.strip() for line in lines if line.strip())[:_WORDS]
        if self.trouble is not None:
            return f"{self.trouble}: {said}" if said else self.trouble
        return said or f"{self.argv[0]} ended with code {self.code} and without a word"


def whole_lines(done: Finished) -> list[str]:
    """Return the lines that a command printed; of one that was killed only those that it had ended."""
    lines = done.stdout.splitlines(keepends=True)
    if done.code is None and lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [line.rstrip("\r\n") for line in lines]


def run(argv: Sequence[str], timeout_s: float, environ: Mapping[str, str]) -> Finished:
    """Run a command to its end, or until its time is over: then it is killed, with its process group.

    What it had said until then is returned all the same. It never raises for what the command does.
    """
    command = tuple(argv)
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group to kill; and Ctrl-C is not for it
        )
    except FileNotFoundError:
        return Finished(command, None, trouble=f"{command[0]} is not on the PATH", missing=True)
    except (OSError, ValueError) as error:
        return Finished(command, None, trouble=f"{command[0]} cannot be run: {error}", missing=True)
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
            return Finished(command, process.returncode, _text(out), _text(err))
        except subprocess.TimeoutExpired:
            said = _end(process)
            trouble = f"{command[0]} did not answer within {timeout_s:g} s"
            return Finished(command, None, _text(said[0]), _text(said[1]), trouble)
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> tuple[bytes | None, bytes | None]:
    """Kill a command and its process group; return what it had said."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    try:
        return process.communicate(timeout=_PIPES_S)
    except subprocess.TimeoutExpired as error:
        return error.stdout, error.stderr


def _text(said: bytes | None) -> str:
    return (said or b"").decode(errors="replace")
