"""Sizes the next block by the work that waits."""

from __future__ import annotations

import logging
import time

from parsl_balsam.db.connect import Database
from parsl_balsam.db.demand import read_waiting
from parsl_balsam.executor.limits import Limits
from parsl_balsam.providers.ensemble import Plan, pack
from parsl_balsam.providers.policy import QueuePolicy

logger = logging.getLogger(__name__)

#: What waits is counted again after so many times as long as it took: at most a twentieth of the database's time.
_REST = 20.0


class Planner:
    """Decides whether another block is wanted, and of what size."""

    def __init__(self, database: Database, workflow_id: int, policy: QueuePolicy, limits: Limits) -> None:
        self._database = database
        self._workflow_id = workflow_id
        self._policy = policy
        self._limits = limits
        self._rest_until = 0.0
        self._nothing_since: float | None = None
        self._last: Plan | None = None

    def look(self) -> Plan:
        """Return what to request, as it was a moment ago: what waits is not counted at each look."""
        if self._last is None or time.monotonic() >= self._rest_until:
            return self.plan()
        return self._last

    def plan(self) -> Plan:
        """Return what to request now."""
        began = time.monotonic()
        limits = self._limits
        waiting = read_waiting(self._database, self._workflow_id, limits.cores, limits.gpus, limits.whole_nodes)
        now = time.monotonic()
        self._rest_until = now + (now - began) * _REST
        if waiting.demand.groups:
            self._nothing_since = None
        elif self._nothing_since is None:
            self._nothing_since = now
        plan = pack(waiting.demand, self._policy, waiting.blocks, waiting.at)
        if self._last is None or plan.why != self._last.why:
            logger.info("plan: %s", plan.why)
        self._last = plan
        return plan

    @property
    def idle_s(self) -> float:
        """For how long nothing has waited for a block, seconds."""
        return 0.0 if self._nothing_since is None else time.monotonic() - self._nothing_since
