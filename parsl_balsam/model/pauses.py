"""When to request a block again after the scheduler has refused one, or one died at once."""

from __future__ import annotations

from dataclasses import dataclass

#: No pause is longer, seconds.
LONGEST_S = 3600.0

#: A block that a launcher has served for so long was a good one, seconds.
GOOD_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which no block is requested."""

    count: int  #: failures in a row
    until: float  #: seconds since the epoch, on the database's clock
    why: str  #: the last failure
    left_s: float  #: seconds


def lengthened(count: int, why: str, base_s: float, now: float) -> Pause:
    """Return the pause that follows a failure: twice as long after each, up to `LONGEST_S`.

    Parameters
    ----------
    count
        Failures in a row before this one.
    base_s
        The first pause, seconds.
    """
    left_s = min(LONGEST_S, base_s * 2.0 ** min(count, 30))
    return Pause(count + 1, now + left_s, why, left_s)


def died_at_once(started: bool, lived_s: float, in_good_order: bool, wished: bool) -> bool:
    """Tell whether the end of a block says that others would fare no better.

    Parameters
    ----------
    started
        Whether its launcher ever came.
    lived_s
        How long the launcher served, seconds.
    in_good_order
        Whether the launcher said goodbye.
    wished
        Whether somebody wanted the block to end, or its walltime was over.
    """
    if wished:
        return False
    return not started or (not in_good_order and lived_s < GOOD_AFTER_S)
