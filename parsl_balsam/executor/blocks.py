"""The blocks of this run, in Parsl's count and in the database's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from parsl_balsam.db import blocks
from parsl_balsam.db.connect import Database
from parsl_balsam.db.runs import Run
from parsl_balsam.model.launch import LaunchOrder
from parsl_balsam.model.states import BlockState

#: How often blocks that are ending are looked at, seconds.
_LOOK_S = 0.05


class BlockBook:
    """Records each block before it is requested."""

    def __init__(self, database: Database, run: Run, lease_s: float) -> None:
        self._database = database
        self._run = run
        self._lease_s = lease_s
        self._rows: dict[str, int] = {}
        self._open: set[str] = set()

    def record(self, block_id: str) -> int:
        """Record a block that is about to be requested; return its row."""
        row = blocks.record_block(self._database, self._run.workflow_id, self._run.run_id, block_id, self._lease_s)
        self._rows[block_id] = row
        self._open.add(block_id)
        return row

    def row(self, block_id: str) -> int:
        """Return the row of a block."""
        return self._rows[block_id]

    def note_job(self, row: int, job_id: str) -> None:
        """Record which batch job a block became."""
        blocks.record_job(self._database, row, job_id)

    def close(self, row: int, reason: str) -> None:
        """Record that a block will not run."""
        blocks.close_block(self._database, row, reason)

    def note_over(self, block_id: str, reason: str) -> None:
        """Record, once, that the scheduler says a block is over."""
        if block_id in self._open:
            blocks.abandon_block(self._database, self._rows[block_id], reason)
            self._open.remove(block_id)

    def least_busy_first(self, block_ids: Sequence[str]) -> list[str]:
        """Return blocks in the order in which they may be spared."""
        held = {status.block_id: status.held for status in self._statuses(block_ids)}
        return sorted(block_ids, key=lambda block_id: held.get(self._rows[block_id], 0))

    def wait_until_over(self, timeout: float) -> None:
        """Wait until no launcher of this run is at work, at most for a time, in seconds."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if all(status.state is not BlockState.RUNNING for status in self._statuses(list(self._rows))):
                return
            time.sleep(_LOOK_S)

    def _statuses(self, block_ids: Sequence[str]) -> list[blocks.BlockStatus]:
        return blocks.statuses(self._database, [self._rows[block_id] for block_id in block_ids])


def write_order(order: LaunchOrder) -> Path:
    """Write what the launchers of this run must know to a file that only its owner can read; return the file."""
    directory = Path(order.directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "launch.json"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(order.dumps())
    return path
