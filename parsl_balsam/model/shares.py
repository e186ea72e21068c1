"""What a task has of the nodes of its block: the record of a placement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


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
    """Return a placement that `write_shares` wrote."""
    if text is None:
        return ()
    return tuple(Share(node, expand(cores), tuple(gpus)) for nodes, cores, gpus in json.loads(text) for node in nodes)


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
    """Return the numbers of ranges that `compress` wrote."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)
