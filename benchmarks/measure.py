"""What a benchmark yields, and how two things are compared: in turns, and each pair by itself. Pure."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Goal:
    """What the median of a measure should be."""

    limit: float
    at_least: bool = True  #: False: at most

    def met_by(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return operator.ge(value, self.limit) if self.at_least else operator.le(value, self.limit)

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:,g}"


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table."""

    name: str
    unit: str
    values: tuple[float, ...]  #: one for each repetition; none where it could not be measured
    goal: Goal | None = None
    note: str = ""  #: how it was measured, where the name does not say it

    @property
    def skipped(self) -> bool:
        """Whether nothing was measured; the note says why."""
        return not self.values

    @property
    def median(self) -> float | None:
        """What the goal is about."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the largest value."""
        return (min(self.values), max(self.values)) if self.values else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing was measured."""
        if self.goal is None or self.median is None:
            return None
        return self.goal.met_by(self.median)


def at_least(limit: float) -> Goal:
    """Return a goal that larger values reach."""
    return Goal(limit)


def at_most(limit: float) -> Goal:
    """Return a goal that smaller values reach."""
    return Goal(limit, at_least=False)


def ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], goal: Goal | None = None, note: str = ""
) -> Measure:
    """Compare two things that were measured in turns: the first of one with the first of the other, and so on."""
    return Measure(name, "x", tuple(a / b for a, b in zip(ours, theirs, strict=True)), goal, note)


def skipped(name: str, why: str) -> Measure:
    """Return the line of something that cannot be measured here."""
    return Measure(name, "", (), None, f"skipped: {why}")


def in_turns(subjects: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure each subject once, then each once more, and so on: what slows the machine down slows them all down."""
    found: dict[str, list[T]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, act in subjects.items():
            found[name].append(act())
    return found


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value that so many percent of the others do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
