"""How blocks come and go: requests, their records, and what Parsl's poller asks for."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState, JobStatus

from parsl_balsam.executor.blocks import BlockBook

logger = logging.getLogger(__name__)


class ScalingExecutor(BlockProviderExecutor):
    """A Parsl executor whose blocks are recorded in the database before they are requested.

    What Parsl's poller calls here never raises: it would end the poll, and the scaling of all other executors with it.
    """

    _blocks: BlockBook
    _order_file: Path
    _first_blocks_started = False

    def start_first_blocks(self) -> None:
        """Request the initial blocks. Parsl's strategy would do it one strategy period later."""
        super().scale_out_facade(self.provider.init_blocks)
        self._first_blocks_started = True

    def poll_facade(self) -> None:
        """Look at the blocks, and request one if work came after the last one had ended for want of it."""
        try:
            super().poll_facade()
            for block_id, status in self._status.items():
                if status.terminal:
                    self._blocks.note_over(block_id, f"its job is over: {status.message or status.state.name}")
            if self.outstanding() and self._ended_idle() and not self.bad_state_is_set:
                super().scale_out_facade(1)
        except Exception:
            logger.exception("blocks could not be looked at")

    def scale_out_facade(self, n: int) -> list[str]:
        """Request blocks."""
        if self._first_blocks_started:
            # The strategy's first request is for the initial blocks, which `start` has made.
            self._first_blocks_started = False
            return []
        try:
            return super().scale_out_facade(n)  # type: ignore[no-any-return]
        except Exception:
            logger.exception("no block could be requested")
            return []

    def scale_in_facade(self, n: int, max_idletime: float | None = None) -> list[str]:
        """End blocks, those with the least work first. What runs there becomes ready again, at no cost."""
        try:
            return super().scale_in_facade(n)  # type: ignore[no-any-return]
        except Exception:
            logger.exception("no block could be ended")
            return []

    def handle_errors(self, status: dict[str, JobStatus]) -> None:
        """Judge failing blocks."""
        try:
            super().handle_errors(status)
        except Exception:
            logger.exception("the block error handler failed")

    def scale_in(self, blocks: int) -> list[str]:
        """End blocks, those with the least work first; return their ids."""
        return self._cancel_blocks(self._blocks.least_busy_first(self._live_blocks())[:blocks])

    def _launch_block(self, block_id: str) -> Any:
        row = self._blocks.record(block_id)
        try:
            job_id = super()._launch_block(block_id)
        except Exception as error:
            self._blocks.close(row, f"it could not be requested: {error}")
            raise
        self._blocks.note_job(row, str(job_id))
        return job_id

    def _get_launch_command(self, block_id: str) -> str:
        return (
            f"PARSL_WORKER_BLOCK_ID={block_id} exec {shlex.quote(sys.executable)} -m parsl_balsam.launcher "
            f"{shlex.quote(str(self._order_file))} {self._blocks.row(block_id)}"
        )

    def _live_blocks(self) -> list[str]:
        return [block_id for block_id, status in self._status.items() if not status.terminal]

    def _cancel_blocks(self, block_ids: list[str]) -> list[str]:
        if not block_ids:
            return []
        cancelled = self.provider.cancel([self.blocks_to_job_id[block_id] for block_id in block_ids])
        return [block_id for block_id, done in zip(block_ids, cancelled, strict=True) if done]

    def _ended_idle(self) -> bool:
        """Tell whether no block is left and the last one ended by itself. Strategy 'none' would not request another."""
        if not self._status or self._live_blocks():
            return False
        last = max(self._status, key=int)
        return bool(self._status[last].state is JobState.COMPLETED)
