"""Options that a script has in its lines."""

from __future__ import annotations

_MARK = "#COBALT "


def directives(script: str) -> list[str]:
    """Return the words that qsub puts before those of its command line; none of a file that cannot be read."""
    try:
        with open(script, errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return []
    words: list[str] = []
    if lines[0].startswith("#!"):
        for line in lines[1:]:
            if not line.startswith(_MARK) or len(line) <= len(_MARK):
                break
            words += line.removeprefix(_MARK).split()
    return ["--mode", "script", *words] if words else []
