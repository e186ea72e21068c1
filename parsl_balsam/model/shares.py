"""What a task has of the nodes of its block: the record of a placement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from parsl_balsam.model.errors import UnreadableRecord

#: No node has a core of a higher number.
_MOST_CORES = 1_000_000

#: So much of a placement that cannot be read is shown, characters.
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Share:
    """What a task has of one node, for itself alone."""

    node: str  #: name, unique within the block
    cores: tuple[int, ...]  #: numbers, ascending
    gpus: tuple[str, ...] = ()  #: names, as the variables that select GPUs take them


def write_shares(shares: Sequence[Share]) -> str | None:
    """Return a placement as JSON, in the order of its nodes; None where there is none.

    ``[[["n1", "n2"], "0-3", ["0", "1"]], ...]``: neighbours that give the same cores and GPUs are written once, since a
    task may have thousands of nodes.
    """
    if not shares:
        return None
    if len(shares) == 1 and not shares[0].gpus:  # nearly all tasks of most workflows
        return f'[[[{json.dumps(shares[0].node)}], "{compress(shares[0].cores)}", []]]'
    groups = groupby(shares, key=lambda share: (share.cores, share.gpus))
    return json.dumps([[[share.node for share in same], compress(cores), gpus] for (cores, gpus), same in groups])


def read_shares(text: str | None) -> tuple[Share, ...]:
    """Return a placement that `write_shares` wrote.

    Raises
    ------
    UnreadableRecord
        It is damaged.
    """
    if text is None:
        return ()
    try:
        groups = [(_texts(nodes), expand(cores), _texts(gpus)) for nodes, cores, gpus in json.loads(text)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(f"the placement {text[:_SHOWN]!r} cannot be read: {error}") from None
    return tuple(Share(node, cores, gpus) for nodes, cores, gpus in groups for node in nodes)


def compress(numbers: Iterable[int]) -> str:
    """Return ascending numbers as ranges: ``0-3,8``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def expand(text: str) -> tuple[int, ...]:
    """Return the numbers of ranges that `compress` wrote; raises ValueError if it is something else."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers += range(_core(first), _core(last or first) + 1)
    return tuple(numbers)


def _core(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST_CORES:
        raise ValueError(f"no node has a core {number}")
    return number


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r} is no list of names")
    return tuple(values)
