"""What a launcher leaves on disk while the database is away, for those who end its block later.

``will-<block>.jsonl`` in the block's directory: a line of JSON for each attempt that has ended, and one with the reason
when the launcher itself must end. Only the user can read it. A launcher that dies in the middle of a line loses that
one.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parsl_balsam.model.shares import read_shares, write_shares
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Will:
    """What was left."""

    ends: tuple[AttemptEnd, ...] = ()
    reason: str | None = None  #: why the launcher had to end; None if it died before it could tell


def will_file(directory: str, block_id: int) -> Path:
    """Return where the launcher of a block leaves it."""
    return Path(directory) / f"will-{block_id}.jsonl"


def add_to_will(directory: str, block_id: int, ends: Iterable[AttemptEnd] = (), reason: str | None = None) -> None:
    """Write what must outlive this process. It does when this returns.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    lines = [json.dumps(_to_json(end)) for end in ends]
    if reason is not None:
        lines.append(json.dumps({"reason": reason}))
    path = will_file(directory, block_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "wb") as file:
        # The first newline ends a line that was cut short when the disk was full.
        file.write(("\n" + "\n".join(lines) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_will(directory: str | None, block_id: int) -> Will:
    """Return what the launcher of a block has left; nothing if it cannot be seen from here."""
    if directory is None:
        return Will()
    path = will_file(directory, block_id)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                logger.warning("%s belongs to another user and is left alone", path)
                return Will()
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return Will()
    except OSError as error:
        logger.warning("what the launcher of block %d has left cannot be read: %s", block_id, error)
        return Will()
    ends: dict[tuple[int, int], AttemptEnd] = {}
    reason: str | None = None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            found = json.loads(line)
            if "reason" in found:
                reason = str(found["reason"])
            else:
                end = _from_json(found)
                ends[end.task_id, end.number] = end
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("line %d of %s is broken and is left out: %r", number, path, error)
    return Will(tuple(ends.values()), reason)


def remove_will(directory: str | None, block_id: int) -> None:
    """Remove what was left, since all of it is in the database, or is no longer wanted."""
    if directory is not None:
        try:
            will_file(directory, block_id).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("what the launcher of block %d has left cannot be removed: %s", block_id, error)


def _to_json(end: AttemptEnd) -> dict[str, Any]:
    written = {field.name: getattr(end, field.name) for field in fields(end)}
    written["outcome"] = end.outcome.value
    written["shares"] = write_shares(end.shares)
    written["usage"] = asdict(end.usage)
    written["payload"] = None if end.payload is None else base64.b64encode(end.payload).decode()
    return written


def _from_json(found: dict[str, Any]) -> AttemptEnd:
    read = dict(found)
    for name, kind in _NUMBERS.items():
        if not isinstance(read[name], kind) or isinstance(read[name], bool):
            raise ValueError(f"{name} is {read[name]!r}")
    read["outcome"] = Outcome(read["outcome"])
    read["shares"] = read_shares(read["shares"])
    read["usage"] = Usage(**read["usage"])
    read["payload"] = None if read["payload"] is None else base64.b64decode(read["payload"], validate=True)
    for name in ("host", "error", "output", "stderr_tail"):
        if not isinstance(read[name], str | None):
            raise ValueError(f"{name} is {read[name]!r}")
    return AttemptEnd(**read)


_NUMBERS: dict[str, Any] = {
    "task_id": int,
    "number": int,
    "token": int,
    "started_at": int | float | None,
    "ended_at": int | float | None,
    "exit_code": int | None,
    "signal": int | None,
}
