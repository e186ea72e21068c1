"""Where a secret can be seen: in the processes of a machine, and in the files of a run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path


def seen_in_processes(secrets: Iterable[str]) -> list[str]:
    """Return the command lines of processes that show a secret in their arguments or environment."""
    sought = [secret.encode() for secret in secrets]
    assert all(sought)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            shown = arguments + (process / "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if any(secret in shown for secret in sought):
            found.append(arguments.replace(b"\0", b" ").decode(errors="replace"))
    return found


def files_with(secret: str, *directories: Path) -> Iterator[Path]:
    """Yield the files in which a secret is; each is its owner's alone."""
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                found = path.stat()
                assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid()), path
                yield path
