"""Texts of the .cobaltlog, and how they get there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

COMPLETED = "Info: task completed normally with an exit code of {code}; initiating job cleanup and removal"
OUT_OF_TIME = "Info: maximum execution time exceeded; initiating job termination"
DELETED = "Info: user delete requested; removing job from the queue"
KILLED = "Info: user delete requested with signal SIGTERM by user {user}"
PENDING = f"{KILLED} now pending"
RELEASING = "Info: pending user delete; releasing resources"
RELEASED = "Info: resources released; initiating job cleanup and removal"
ALREADY_KILLED = "Info: job is in the process of being killed; user delete request ignored"
ALREADY_ENDED = "Info: job is in the process of exiting; user delete request ignored"


def stamp(now: float) -> str:
    """Return a time as Cobalt writes it."""
    return time.strftime("%a %b %d %H:%M:%S %Y %z (%Z)", time.localtime(now))


def beginning(command: Sequence[str], environ: Mapping[str, str], files: tuple[str, str, str]) -> Iterator[str]:
    """Return what is logged when a script is started."""
    yield ""
    yield "Command: " + " ".join(f"'{word}'" for word in command)
    yield ""
    yield "Environment:"
    for name, value in environ.items():
        yield f"{name}={value}"
    yield ""
    yield f"Info: stdin received from {files[0]}"
    yield f"Info: stdout sent to {files[1]}"
    yield f"Info: stderr sent to {files[2]}"
    yield ""


def append(path: str, text: str, now: float) -> None:
    """Write a line; without the file, or the right to write to it, the line is lost."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return
    try:
        os.write(descriptor, f"{stamp(now)} {text}\n".encode())
    finally:
        os.close(descriptor)
