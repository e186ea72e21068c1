"""Says that a run lives, and takes back the tasks of launchers that do not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from parsl_balsam.db.blocks import reap
from parsl_balsam.db.connect import Database
from parsl_balsam.db.outage import Outage
from parsl_balsam.db.runs import renew_run
from parsl_balsam.model.errors import DatabaseUnavailable, WorkflowLost

logger = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """A thread of its own: users' callbacks may keep other threads busy for longer than a lease."""

    def __init__(
        self, database: Database, run_id: int, lease_s: float, on_failure: Callable[[Exception], None]
    ) -> None:
        super().__init__(name="balsam-heartbeat", daemon=True)
        self._database = database
        self._run_id = run_id
        self._lease_s = lease_s
        self._on_failure = on_failure
        self._closing = threading.Event()
        self._outage = Outage(logger)

    def close(self, timeout: float) -> None:
        """End; give up after a time, in seconds."""
        self._closing.set()
        self.join(timeout)

    def run(self) -> None:
        """Renew until closed. Never called directly."""
        while not self._closing.wait(self._lease_s / 5):
            try:
                renew_run(self._database, self._run_id, self._lease_s)
                self._outage.over()
                for block_id in reap(self._database):
                    logger.warning("block %d was lost; its tasks are ready again", block_id)
            except DatabaseUnavailable as error:
                self._outage.note(error)
            except WorkflowLost as error:
                self._on_failure(error)
                return
