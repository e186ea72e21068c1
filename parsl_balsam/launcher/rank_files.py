"""Files by which a worker and the ranks of a function know of each other, in a directory that all of them see."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl_balsam.launcher.channel import unpickled
from parsl_balsam.launcher.messages import Ranks
from parsl_balsam.model.errors import BadMessage, RankFailed
from parsl_balsam.model.payload import encode

_CALL = "call"
_FAILED = "failed"
_RESULT = "result-"


@dataclass(frozen=True, slots=True)
class RankResult:
    """What became of one rank."""

    number: int
    node: str
    at: float  #: on its node's clock, seconds since the epoch
    payload: bytes  #: the encoded value, or a pickle of the exception
    error: str | None  #: its traceback, if it raised


def write_call(directory: Path, body: bytes, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Write what every rank calls."""
    _write(directory / _CALL, (sys.path, body, encode((tuple(args), dict(kwargs)))))


def read_call(directory: Path) -> tuple[list[str], bytes, bytes]:
    """Return where modules are found, the encoded function, and its encoded arguments.

    Raises
    ------
    RankFailed
        They cannot be read.
    """
    file = directory / _CALL
    match _read(file):
        case (list(path), bytes(body), bytes(arguments)):
            return path, body, arguments
        case other:
            raise _unreadable(file, f"it has {type(other)}")


def write_result(directory: Path, result: RankResult) -> None:
    """Write what became of a rank."""
    _write(directory / f"{_RESULT}{result.number}", result)


def write_failure(directory: Path) -> None:
    """Tell the others that some rank has failed."""
    _write(directory / _FAILED, None)


def read_results(directory: Path, count: int) -> dict[int, RankResult]:
    """Return the results that there are, by rank.

    Raises
    ------
    RankFailed
        One of them cannot be read.
    """
    results: dict[int, RankResult] = {}
    for number in range(count):
        file = directory / f"{_RESULT}{number}"
        try:
            result = _read(file)
        except FileNotFoundError:
            continue
        if not isinstance(result, RankResult):
            raise _unreadable(file, f"it has {type(result)}")
        results[number] = result
    return results


def has_failed(directory: Path) -> bool:
    """Tell whether some rank has failed."""
    return (directory / _FAILED).exists()


def forbid(ranks: Ranks) -> None:
    """Let no more ranks of a task begin. To be done before those that have begun are looked for.

    An MPI launcher that is killed as it starts ranks leaves some that begin later, when their nodes have been found to
    be clean and the task has been tried again.
    """
    try:
        ranks.ended.touch(mode=0o600)
    except OSError:  # those that have begun are ended nevertheless
        pass


def forget_forbidden(directory: Path, mark: str) -> None:
    """Remove what `forbid` has left, when nothing of a block can begin any more.

    Parameters
    ----------
    mark
        How the marks of all parallel tasks of the block start.
    """
    for path in directory.glob(f"ended-{mark}*"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    content = unpickled(path.read_bytes())
    if isinstance(content, BadMessage):
        raise _unreadable(path, str(content))
    return content


def _unreadable(path: Path, why: str) -> RankFailed:
    return RankFailed(
        f"{path} cannot be read: {why}. Look whether the file system of the run's directory is full or damaged, and "
        "whether all nodes have one version of parsl-balsam"
    )


def _write(path: Path, content: object) -> None:
    """Write a file that nobody sees before it is complete."""
    new = path.with_name(f"{path.name}.{os.getpid()}-{socket.gethostname()}")
    new.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
    new.rename(path)
