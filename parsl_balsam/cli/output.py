"""How the commands write times, sizes and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Wide enough for anything: programs that read the output must not get lines that were cut.
_NO_TERMINAL_WIDTH = 100_000

STATE_COLOURS = {"running": "cyan", "assigned": "cyan", "done": "green", "failed": "red", "cancelled": "yellow"}


def console() -> Console:
    """Return where tables go. They fit a terminal, and are never cut where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _NO_TERMINAL_WIDTH)


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    elastic: Sequence[str] = (),
    notes: Sequence[str | None] = (),
) -> None:
    """Print a table, one line a row.

    Parameters
    ----------
    numbers
        Headings of columns that are aligned to the right.
    elastic
        Headings of columns that are cut first where the terminal is too narrow.
    notes
        What is said below each row, in full; None for nothing.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # To rich, only columns that may wrap are elastic. Their cells, below, do not.
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=heading not in elastic)
    for row in rows:
        table.add_row(
            *(
                Text(one_line(value), style=STATE_COLOURS.get(str(value), ""), no_wrap=True, overflow="ellipsis")
                for value in map(text, row)
            )
        )
    screen = console()
    with screen.capture() as lines:
        screen.print(table)
    written = lines.get().splitlines()
    below = [None] * (len(written) - len(notes)) + list(notes)
    for line, note in zip(written, below, strict=True):
        click.echo(line.rstrip())
        if note:
            click.echo(f"       {one_line(note)}")


def print_fields(fields: Iterable[tuple[str, object]], indent: int = 0) -> None:
    """Print names and values, one a line; what is absent is left out."""
    present = [(name, text(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in present), default=0)
    for name, value in present:
        click.echo(f"{' ' * indent}{click.style(name.ljust(width), bold=True)}  {one_line(value)}")


def print_text(title: str, content: str | None, indent: int = 0) -> None:
    """Print a text of several lines below its title, unless there is none."""
    if content and content.strip():
        click.echo(f"{' ' * indent}{click.style(title, bold=True)}")
        for line in content.rstrip().splitlines():
            click.echo(f"{' ' * indent}  {printable(line)}")


def print_json(value: object) -> None:
    """Print a value on one line."""
    click.echo(json.dumps(value))


def text(value: object) -> str:
    """Return a value as text, a dash where there is none."""
    if isinstance(value, str):
        return str.__str__(value)  # an enum's value, not its name
    return "-" if value is None else str(value)


def one_line(value: str) -> str:
    """Return a text without line breaks and control characters."""
    return printable(" ".join(value.split()))


def printable(line: str) -> str:
    """Return a line without the control characters by which a task's output could change the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "\N{REPLACEMENT CHARACTER}" for letter in line)


def when(time: float | None) -> str | None:
    """Return a time, in seconds since the epoch, on the local clock."""
    return None if time is None else f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str | None:
    """Return a time span in two units at most."""
    if seconds is None:
        return None
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def minutes(count: float | None) -> str | None:
    """Return a time span that is counted in minutes."""
    if count is None:
        return None
    hours, rest = divmod(count, 60)
    parts = ([f"{hours:.0f} h"] if hours else []) + ([f"{rest:g} min"] if rest or not hours else [])
    return " ".join(parts)


def size(count: int | None) -> str | None:
    """Return a number of bytes, in a unit that makes it readable."""
    if count is None:
        return None
    units = ["B", "kB", "MB", "GB", "TB"]
    amount = float(count)
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"
