"""How many tasks are sent ahead to their agents, and when to look again, from how long tasks took lately. Pure."""

from __future__ import annotations

#: Work for so much time is sent ahead, seconds: longer than a message takes from agent to launcher and back when both
#: are busy, and too short to matter if the tasks had rather started elsewhere.
_AHEAD_S = 0.02

#: No more tasks wait behind one.
_MOST = 16

#: What the last task that ended weighs in the mean.
_WEIGHT = 1 / 8

#: A task that has waited so long behind another was sent ahead by mistake: it is called back, seconds.
PATIENCE_S = 0.05

#: With so many tasks behind each that runs, agents need nothing for as long as half of them take.
_PLENTY = 4

#: The launcher lets them work alone for no longer, and they their workers, seconds. The times that are recorded of
#: short tasks are as exact as both together.
_LONGEST_REST_S = 0.002


class Pace:
    """The mean duration of tasks. One long task among short ones is remembered for some dozens of them."""

    def __init__(self) -> None:
        self._mean_s = 1.0

    def note(self, duration_s: float) -> None:
        """Take note of how long a task took."""
        self._mean_s += (duration_s - self._mean_s) * _WEIGHT

    def depth(self) -> int:
        """Return how many tasks may wait behind one."""
        return _MOST if self._mean_s * _MOST <= _AHEAD_S else int(_AHEAD_S / self._mean_s)

    def rest(self, ahead: float) -> float:
        """Return for how long nothing need be done for agents, seconds.

        Parameters
        ----------
        ahead
            How many tasks wait behind one that runs.
        """
        return min(self._mean_s * _PLENTY / 2, _LONGEST_REST_S) if ahead >= _PLENTY else 0.0
