"""Lists of nodes, and of what they have, as batch systems write them: ``n[1-3,07-09],m-2``. Pure."""

from __future__ import annotations

import itertools
import math
import re

_ITEM = re.compile(r"(?:[^\s,\[\]]|\[[^\s\[\]]*\])+")
_PART = re.compile(r"\[([^\]]*)\]|([^\[]+)")
# Longer numbers are no numbers of nodes; Python refuses to read very long ones.
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_REPEATED_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")

#: No job has more nodes, and no node more cores: a few characters of garbage may stand for more than fit into memory.
MOST = 1_000_000


class UnreadableList(ValueError):
    """A text is not such a list."""


def slurm_nodes(text: str) -> tuple[str, ...]:
    """Return the nodes of ``n[1-3,07-09],m-2`` or ``r[1-2]c[0-3]``.

    As ``scontrol show hostnames`` does (scontrol(1)): numbers have at least as many digits as the start of their range,
    and of several brackets the last runs fastest.

    Raises
    ------
    UnreadableList
        It is not such a list.
    """
    nodes: list[str] = []
    for item in _items(_ITEM, text):
        choices = [[literal] if literal else numbers(ranges) for ranges, literal in _PART.findall(item[0])]
        _check_size(len(nodes) + math.prod(map(len, choices)))
        nodes += map("".join, itertools.product(*choices))
    return tuple(nodes)


def slurm_counts(text: str) -> tuple[int, ...]:
    """Return one count for each node of ``72(x2),36``: 72, 72, 36 (sbatch(1), SLURM_JOB_CPUS_PER_NODE).

    Raises
    ------
    UnreadableList
        It is not such a list.
    """
    counts: list[int] = []
    for item in _items(_REPEATED_COUNT, text):
        _check_size(max(int(item[1]), len(counts) + int(item[2] or 1)))
        counts += [int(item[1])] * int(item[2] or 1)
    return tuple(counts)


def cray_nodes(text: str) -> tuple[str, ...]:
    """Return the host names of a list of Cray node ids: nid00012 to nid00015 and nid00020 for ``12-15,20``.

    Raises
    ------
    UnreadableList
        It is not such a list.
    """
    return tuple(f"nid{int(number):05d}" for number in numbers(text))


def numbers(text: str) -> list[str]:
    """Return the numbers of ``1,07-09``, with their zeros.

    Raises
    ------
    UnreadableList
        It is not such a list.
    """
    found: list[str] = []
    for item in _items(_RANGE, text):
        first, last = item[1], item[2] or item[1]
        if int(last) < int(first):
            raise UnreadableList(f"the range {item[0]} ends before it starts")
        _check_size(len(found) + int(last) - int(first) + 1)
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _check_size(count: int) -> None:
    if count > MOST:
        raise UnreadableList(f"{count} is more than there can be")


def _items(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Match every item of a comma list; items may have commas inside."""
    items: list[re.Match[str]] = []
    position = 0
    while item := pattern.match(text, position):
        items.append(item)
        position = item.end() + 1
        if text[item.end() : position] != ",":
            break
    if not items or items[-1].end() != len(text):
        where = items[-1].end() if items else 0
        raise UnreadableList(f"{text[where:]!r} is not understood")
    return items
