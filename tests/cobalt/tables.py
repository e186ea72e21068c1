"""Tables as Cobalt's commands print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Columns that are headed otherwise than they are asked for.
_HEADINGS = {"short_state": "S"}


def table(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Return lines of cells, each as wide as the widest of its column and two blanks."""
    cells = [[_HEADINGS.get(name.lower(), name) for name in header]]
    cells += [[row.get(name.lower(), "-") for name in header] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["".join(f"{cell:{width}}  " for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "=" * len(lines[0]))
    return "\n".join(lines) + "\n"


def blocks(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Return a block of lines for each job."""
    names = [name for name in header if name.lower() != "jobid"]
    width = max(map(len, names), default=0) + 1
    text = ""
    for row in rows:
        text += f"JobID: {row['jobid']}\n"
        for name in names:
            text += f"    {_HEADINGS.get(name.lower(), name):{width}}: {row.get(name.lower(), '-')}\n"
        text += "\n"
    return text
