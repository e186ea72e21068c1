"""Programs put before those of a batch system, which fail in the ways that those of busy sites do."""

from __future__ import annotations

from pathlib import Path


class Wrappers:
    """A directory that is first on the PATH.

    In the text of a wrapper ``real`` is a function that runs the program itself.
    """

    def __init__(self, directory: Path, path: str) -> None:
        directory.mkdir()
        self.path = f"{directory}:{path}"
        self._directory = directory
        self._behind = path

    def put(self, program: str, text: str) -> None:
        """Have a shell script run in place of a program."""
        wrapper = self._directory / program
        real = f'real() {{ PATH={self._behind!r} command {program} "$@"; }}'
        new = self._directory / f".{program}"
        new.write_text(f"#!/bin/bash\n{real}\n{text}\n")
        new.chmod(0o755)
        new.replace(wrapper)  # in one step: it may be about to run

    def remove(self, program: str) -> None:
        """Have the program itself run again."""
        (self._directory / program).unlink()

    def count_calls(self, program: str) -> Path:
        """Note each call of a program, which is run as it is, as a line of a file; return the file."""
        calls = self._directory / f"{program}.calls"
        calls.touch()
        self.put(program, f'echo "$*" >> {calls}; real "$@"')
        return calls
