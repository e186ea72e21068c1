"""The results as a page and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import Measure

Sections = Mapping[str, Sequence[Measure]]

_HEAD = ("measure", "unit", "goal", "median", "least .. most", "n", "met", "note")

_INTRODUCTION = """\
# Benchmarks

`make bench` makes this page. Whatever is compared was measured on the same machine in the same run, in turns (A B A B
...), and each time in a fresh process with a new database. A ratio is the median of those of neighbours: each is taken
from two measurements that were made one after the other. Everything has two workers. Parsl's own logging is off, but
where the table says otherwise. HighThroughputExecutor (HTEX) has one block with `max_workers_per_node=2,
encrypted=False`; BalsamExecutor has `cores_per_node=2`, and otherwise its defaults.
"""


def markdown(machine: Mapping[str, str], sections: Sections, date: str, took_s: float) -> str:
    """Return the page."""
    lines = [_INTRODUCTION, f"Measured on {date}, in {took_s / 60:.0f} min.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    with_goal = [measure for measures in sections.values() for measure in measures if measure.goal]
    lines += ["", "## Goals", "", *_table(with_goal)]
    for title, measures in sections.items():
        lines += ["", f"## {title}", "", *_table(measures)]
    return "\n".join(lines) + "\n"


def as_json(machine: Mapping[str, str], sections: Sections, date: str, took_s: float) -> str:
    """Return the same for programs, with the value of each repetition."""
    content = {
        "date": date,
        "took_s": round(took_s, 1),
        "machine": dict(machine),
        "measures": [_entry(title, measure) for title, measures in sections.items() for measure in measures],
    }
    return json.dumps(content, indent=1) + "\n"


def line(measure: Measure) -> str:
    """Return a measure as a line of text."""
    if measure.skipped:
        return f"{measure.name}: {measure.note}"
    goal = f" (goal {measure.goal}: {_met(measure)})" if measure.goal else ""
    return f"{measure.name}: {_figure(measure.median)} {measure.unit}{goal}"


def _table(measures: Sequence[Measure]) -> list[str]:
    return [_row(_HEAD), _row("---" for _ in _HEAD), *(_row(_cells(measure)) for measure in measures)]


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(measure: Measure) -> tuple[str, ...]:
    spread = measure.spread
    return (
        measure.name,
        measure.unit,
        str(measure.goal or ""),
        _figure(measure.median),
        f"{_figure(spread[0])} .. {_figure(spread[1])}" if spread and len(measure.values) > 1 else "",
        str(len(measure.values) or ""),
        _met(measure),
        measure.note.replace("|", "\\|"),
    )


def _entry(title: str, measure: Measure) -> dict[str, Any]:
    least, most = measure.spread or (None, None)
    return {
        "section": title,
        "name": measure.name,
        "unit": measure.unit,
        "goal": str(measure.goal) if measure.goal else None,
        "median": measure.median,
        "least": least,
        "most": most,
        "met": measure.met,
        "values": list(measure.values),
        "note": measure.note,
    }


def _met(measure: Measure) -> str:
    return {True: "yes", False: "**no**", None: ""}[measure.met]


def _figure(value: float | None) -> str:
    """Return a number with three digits that matter."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")
