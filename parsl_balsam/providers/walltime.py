"""Walltimes as users write them and as schedulers count them."""

from __future__ import annotations

import math
import re

from parsl_balsam.model.errors import ConfigurationError

_WALLTIME = re.compile(r"(?:([0-9]{1,6})-)?([0-9]{1,6}):([0-9]{2}):([0-9]{2})")


def seconds(walltime: str) -> int | None:
    """Return a walltime in seconds; None if it is not of the form HH:MM:SS or D-HH:MM:SS."""
    found = _WALLTIME.fullmatch(walltime)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def minutes(walltime: str) -> int:
    """Return a walltime in whole minutes, rounded up.

    Raises
    ------
    ConfigurationError
        It is not of the form HH:MM:SS or D-HH:MM:SS, which all schedulers understand alike, or is zero.
    """
    total = seconds(walltime)
    if total is None:
        raise ConfigurationError(
            f"walltime={walltime!r} must be like '01:30:00' (HH:MM:SS) or '1-12:00:00' (D-HH:MM:SS)"
        )
    if total == 0:
        raise ConfigurationError(f"walltime={walltime!r} must be greater than zero")
    return math.ceil(total / 60)
