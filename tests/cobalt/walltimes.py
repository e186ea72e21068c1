"""Walltimes as qsub reads them."""

from __future__ import annotations

_FORMATS = "time may be specified as minutes, HH:MM, HH:MM:SS, or DD:HH:MM:SS"
_UNITS = {1: ("minutes",), 2: ("hours", "minutes"), 3: ("hours", "minutes", "seconds")}
_MINUTES = {"days": 1440, "hours": 60, "minutes": 1, "seconds": 0}


def minutes(text: str) -> int:
    """Return whole minutes; seconds are looked at and dropped.

    Raises
    ------
    ValueError
        It is no walltime; the message is qsub's.
    """
    parts = text.split(":")
    total = 0
    if len(parts) > 4:
        raise ValueError(f"invalid time specification: {_FORMATS}")
    for part, unit in zip(parts, _UNITS.get(len(parts), ("days", *_UNITS[3])), strict=True):
        if not part.removeprefix("-").isdecimal():
            raise ValueError(f"invalid time specification: illegal value '{part}' for {unit}")
        value = int(part)
        if unit == "seconds" and not 0 <= value <= 59:
            raise ValueError(f"invalid time specification: seconds value '{part}' outside range [0, 59]")
        if value < 0:
            raise ValueError(f"invalid time specification: {unit} value must not be negative")
        total += value * _MINUTES[unit]
    return total
