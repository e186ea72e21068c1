"""How much of what waits a block can run: a strip, as many nodes wide and as many minutes long as the block. Pure.

Tasks are bars: some nodes wide, and as long as they take. Two simple ways to place bars are estimated, and the better
one counts; what a launcher really does, large ones first and small ones in the gaps, takes about as long.

* On shelves (FFDH: Coffman, Garey, Johnson and Tarjan, "Performance bounds for level-oriented two-dimensional packing
  algorithms", 1980): the longest first, each beside the first shelf's others where there is room, else on a new shelf.
* In a list (Graham, "Bounds for certain multiprocessing anomalies", 1966): the widest first, each as soon as its nodes
  are free, but none before those before it. While one waits for m nodes, at least n - m + 1 of n nodes are busy.

Bars of one kind are placed together, so that thousands cost no more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

#: So many shelves at most are looked through for room; those that have least are closed first.
_OPEN = 16

#: Sums of fractions of minutes may be off by less.
_DRIFT = 1e-9


@dataclass(frozen=True, slots=True)
class Bar:
    """Tasks that are placed alike."""

    key: int  #: to tell them from others
    count: int
    nodes: int
    share: int  #: how many of them the same nodes have room for at once
    minutes: float  #: given to each


@dataclass(frozen=True, slots=True)
class Fit:
    """What a block can run."""

    counts: dict[int, int]  #: how many of which bars, by key
    minutes: float  #: until the last one has ended
    area: float  #: node-minutes that they take
    all: bool  #: whether nothing is left


class Bars:
    """Bars in the orders in which they are placed."""

    def __init__(self, bars: Iterable[Bar]) -> None:
        self.by_length = sorted(bars, key=lambda bar: (-bar.minutes, -bar.nodes, bar.share))
        self.by_width = sorted(self.by_length, key=lambda bar: (-bar.nodes, bar.share, -bar.minutes))
        self.area = sum(bar.count * bar.nodes / bar.share * bar.minutes for bar in self.by_length)
        self.width = sum(bar.nodes * math.ceil(bar.count / bar.share) for bar in self.by_length)

    def fit(self, nodes: int, minutes: float) -> Fit:
        """Return what a block can run, the largest of what it admits in any case.

        The largest is the widest, of these one that shares its nodes with fewest others, and of these the longest.

        Parameters
        ----------
        nodes
            Of the block.
        minutes
            That it has for tasks.
        """
        fits = self._on_shelves(nodes, minutes), self._widest_first(nodes, minutes)
        return min(fits, key=lambda fit: (False, fit.minutes) if fit.all else (True, -fit.area))

    def _on_shelves(self, nodes: int, minutes: float) -> Fit:
        shelves: list[_Shelf] = []
        open_shelves: list[_Shelf] = []
        for bar in self.by_length:
            if bar.nodes > nodes or bar.minutes > minutes + _DRIFT:
                continue
            left = bar.count
            looked_at, open_shelves = open_shelves, []
            for shelf in looked_at:
                left = _fill(shelf, bar, left, shelves, open_shelves) if left else _keep(shelf, open_shelves, left)
            while left:
                shelf = _Shelf(bar.minutes, max(1, left // (nodes // bar.nodes * bar.share)), nodes)
                shelves.append(shelf)
                left = _fill(shelf, bar, left, shelves, open_shelves)
            if len(open_shelves) > _OPEN:
                open_shelves.remove(min(open_shelves, key=lambda shelf: shelf.free))
        return self._chosen(shelves, minutes)

    def _chosen(self, shelves: list[_Shelf], minutes: float) -> Fit:
        """Return what is on as many shelves as there is time for, those with the largest bars first."""
        counts: dict[int, int] = {}
        used = area = 0.0
        if sum(shelf.minutes * shelf.copies for shelf in shelves) > minutes + _DRIFT:
            shelves.sort(key=lambda shelf: (shelf.largest, -shelf.minutes))
        for shelf in shelves:
            copies = shelf.copies
            if shelf.minutes:
                copies = int(min(copies, (minutes + _DRIFT - used) / shelf.minutes))
            used += copies * shelf.minutes
            for bar, count in shelf.bars if copies else ():
                counts[bar.key] = counts.get(bar.key, 0) + copies * count
                area += copies * count * bar.nodes / bar.share * bar.minutes
        return self._fit(counts, used, area)

    def _widest_first(self, nodes: int, minutes: float) -> Fit:
        counts: dict[int, int] = {}
        starts_by = ends_by = area = 0.0
        one_share = len({bar.share for bar in self.by_width if bar.nodes == 1 and bar.share > 1}) == 1
        for bar in self.by_width:
            left = minutes + _DRIFT - starts_by - bar.minutes
            if bar.nodes > nodes or left < 0:
                continue
            if bar.nodes == 1 and bar.share > 1:
                # While one waits on nodes that several share, every node may have nearly its share free.
                each = bar.minutes / nodes / (bar.share if one_share else bar.share - 1)
            elif 2 * bar.nodes > nodes:
                each = bar.minutes  # no two run side by side
            else:
                each = bar.minutes * bar.nodes / (nodes - bar.nodes + 1)
            count = int(min(bar.count, left / each + 1)) if each else bar.count
            counts[bar.key] = count
            area += count * bar.nodes / bar.share * bar.minutes
            ends_by = max(ends_by, starts_by + (count - 1) * each + bar.minutes)
            starts_by += count * each
        return self._fit(counts, ends_by, area)

    def _fit(self, counts: dict[int, int], minutes: float, area: float) -> Fit:
        return Fit(counts, minutes, area, all(counts.get(bar.key) == bar.count for bar in self.by_length))


@dataclass(slots=True)
class _Shelf:
    """Some shelves that have the same bars on them."""

    minutes: float  #: from one to the next
    copies: int
    free: int  #: nodes
    largest: tuple[int, int] = (0, 0)  #: nodes of the widest bar, below zero, and how many share them
    bars: list[tuple[Bar, int]] = field(default_factory=list)  #: on each, and how many
    room: dict[tuple[int, int], int] = field(default_factory=dict)  #: for more of a kind on nodes in use, if any

    def holds(self, bar: Bar) -> int:
        """Return how many such bars have room on each."""
        return self.room.get((bar.nodes, bar.share), 0) + self.free // bar.nodes * bar.share

    def split(self, copies: int) -> _Shelf:
        """Take out some of them."""
        self.copies -= copies
        return _Shelf(self.minutes, copies, self.free, self.largest, self.bars.copy(), self.room.copy())

    def put(self, bar: Bar, count: int) -> None:
        """Put bars on each; there is room for them."""
        self.bars.append((bar, count))
        self.largest = min(self.largest, (-bar.nodes, bar.share))
        kind = bar.nodes, bar.share
        more = count - self.room.pop(kind, 0)
        stacks = max(0, math.ceil(more / bar.share))
        self.free -= stacks * bar.nodes
        if room := stacks * bar.share - more:
            self.room[kind] = room


def _fill(shelf: _Shelf, bar: Bar, left: int, shelves: list[_Shelf], open_shelves: list[_Shelf]) -> int:
    """Put bars on shelves that are alike, the first ones first; return how many are left."""
    holds = shelf.holds(bar)
    if not holds:
        return _keep(shelf, open_shelves, left)
    full = min(shelf.copies, left // holds)
    for copies, count in ((full, holds), (1, left - full * holds)):
        if not copies or not count or not shelf.copies:
            continue
        part = shelf
        if copies < shelf.copies:
            part = shelf.split(copies)
            shelves.append(part)
        part.put(bar, count)
        left -= copies * count
        _keep(part, open_shelves, left)
        if part is shelf:
            return left
    return _keep(shelf, open_shelves, left)


def _keep(shelf: _Shelf, open_shelves: list[_Shelf], left: int) -> int:
    if shelf.free or shelf.room:
        open_shelves.append(shelf)
    return left
