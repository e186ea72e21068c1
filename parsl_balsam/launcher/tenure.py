"""For how long the launcher's tasks may run while the database does not answer."""

from __future__ import annotations

import logging
import time

from parsl_balsam.db.lifeline import Lifeline
from parsl_balsam.launcher.agents import Agents
from parsl_balsam.launcher.messages import LEASE_SHARE

logger = logging.getLogger(__name__)

#: With so much of the lease left, a launcher that no exchange has renewed looks for another way.
_BESIDE_SHARE = 0.5

#: How soon it tries again if that failed, as a part of the lease.
_AGAIN_SHARE = 0.05


class Tenure:
    """Extends the lease that agents are told, as long as nobody can have taken the tasks away.

    Parameters
    ----------
    lifeline
        Where the launcher can say beside the database that it lives; None where it cannot.
    """

    def __init__(self, agents: Agents, lease_s: float, lifeline: Lifeline | None) -> None:
        self._agents = agents
        self._lease_s = lease_s
        self._lifeline = lifeline
        self._renewed_at = 0.0
        self._refused_at = 0.0
        self._beside = False  # since the last exchange
        self._cut = False  # the lifeline is gone
        self._retry_at = 0.0

    def open(self) -> None:
        """Begin, now that the block has its lease."""
        if self._lifeline is not None:
            try:
                self._lifeline.make()
                self._cut = False
            except OSError as error:
                logger.warning("a database that is locked for long will cost what runs: %s", error)
                self._lifeline = None

    def acknowledge(self) -> None:
        """Take note that an exchange has worked."""
        self._beside = False
        if self._cut:
            self.open()

    def over(self, now: float) -> bool:
        """Tell whether tasks may have been given to others."""
        return now >= self._agents.lease_until

    def look_at(self) -> float:
        """Return when `care` may have something to do, on the monotonic clock."""
        return float("inf") if self._lifeline is None or self._cut else self._beside_at()

    def care(self, renewed_at: float, refused_at: float) -> None:
        """Extend the lease if that is right.

        Parameters
        ----------
        renewed_at
            When the last try began that has renewed the lease and did no more, on the monotonic clock.
        refused_at
            When the last try began that the server has refused, on the monotonic clock.
        """
        if renewed_at > self._renewed_at:
            self._renewed_at = renewed_at
            self._extend(renewed_at)
        if refused_at > self._refused_at:
            self._refused_at = refused_at
            # Nobody can take these tasks away while the server is down, nor for a lease after it is back. But before it
            # went down somebody may have, if the lease was over by now.
            if not self.over(time.monotonic()):
                self._extend(refused_at)
        if self._lifeline is not None and not self._cut and time.monotonic() >= self._beside_at():
            self._renew_beside(self._lifeline)

    def _beside_at(self) -> float:
        return max(self._agents.lease_until - self._lease_s * _BESIDE_SHARE, self._retry_at)

    def _renew_beside(self, lifeline: Lifeline) -> None:
        # In this order: whenever this process is frozen in between, it counts on less than it has said.
        began = time.monotonic()
        at = time.time()
        if self.over(time.monotonic()):
            self._retry_at = began + self._lease_s * _AGAIN_SHARE
            return
        try:
            lifeline.renew(at)
        except OSError as error:
            logger.warning("the lease cannot be renewed beside the database: %s", error)
            self._cut = True
            return
        if not self._beside:
            self._beside = True
            logger.warning("the database is locked, full or slow; tasks run on")
        self._extend(began)

    def _extend(self, since: float) -> None:
        self._agents.lease_until = max(self._agents.lease_until, since + self._lease_s * LEASE_SHARE)
