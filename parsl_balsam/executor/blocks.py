"""The blocks of this run, in Parsl's count and in the database's."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from parsl_balsam.db import blocks
from parsl_balsam.db.blocks import Requested
from parsl_balsam.db.connect import Database
from parsl_balsam.db.pauses import end_pause, note_failed_block, read_pause
from parsl_balsam.db.private import write_private
from parsl_balsam.db.runs import OpenJob, Run
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.launch import LaunchOrder
from parsl_balsam.model.pauses import GOOD_AFTER_S, Pause, died_at_once
from parsl_balsam.model.states import JOB_OVER, BlockState, JobState

logger = logging.getLogger(__name__)

#: How often blocks that are ending are looked at, seconds.
_LOOK_S = 0.05


class BlockBook:
    """Records each block before it is requested, and what the scheduler says of it.

    Parameters
    ----------
    pause_s
        After a block was refused or died at once no other is requested for this time, doubled each time, seconds.
    """

    def __init__(self, database: Database, run: Run, lease_s: float, pause_s: float) -> None:
        self._database = database
        self._run = run
        self._lease_s = lease_s
        self._pause_s = pause_s
        self._rows: dict[str, int] = {}
        self._noted: dict[str, tuple[JobState, str | None]] = {}
        self._refusals: dict[str, str] = {}
        self._ending: set[str] = set()
        self._doubtful: set[str] = set()  # tags of blocks that may be recorded, and were not requested
        self._ended_by_run: set[str] = set()
        self._pause: Pause | None = None
        end_pause(database, [run.workflow_id])  # whoever starts a script again may have mended what was wrong

    def record(self, name: str, requested: Requested) -> int:
        """Record a block that is about to be requested; return its row."""
        run = self._run
        try:
            row = blocks.record_block(self._database, run.workflow_id, run.run_id, name, self._lease_s, requested)
        except DatabaseUnavailable:
            self._doubtful.add(requested.tag)
            raise
        self._rows[name] = row
        return row

    def adopt(self, name: str, job: OpenJob) -> None:
        """Record what Parsl calls a block of an earlier run."""
        blocks.rename_block(self._database, job.block_id, name)
        self._rows[name] = job.block_id

    def row(self, name: str) -> int:
        """Return the row of a block."""
        return self._rows[name]

    def note_job(self, name: str, job_id: str | None, script: str | None) -> None:
        """Record which batch job a block became."""
        blocks.record_job(self._database, self._rows[name], job_id, script)

    def note_refusal(self, name: str, why: str) -> None:
        """Record that a block was not requested, since the scheduler would not have it; a pause begins."""
        self._refusals[name] = why
        self._record_refusals()

    def note_end_by_run(self, name: str) -> None:
        """Record that this run has ended a block."""
        self._ended_by_run.add(name)
        self.note_state(name, JobState.CANCELLED, "its run has ended it")

    def note_state(self, name: str, state: JobState, reason: str | None) -> None:
        """Record what the scheduler says of a block's job, if it is news. One that is over stays as it ended."""
        if name not in self._rows or self.is_over(name) or self._noted.get(name) == (state, reason):
            return
        blocks.note_job_state(self._database, self._rows[name], state, reason)
        self._noted[name] = (state, reason)
        if state in JOB_OVER:
            self._ending.add(name)

    def is_over(self, name: str) -> bool:
        """Tell whether it is recorded how a block's job ended."""
        return name in self._noted and self._noted[name][0] in JOB_OVER

    def judge_ends(self) -> None:
        """Begin a pause if a block has died at once, end it if one has served well."""
        self._record_refusals()
        for name in sorted(self._ending):
            end = blocks.read_end(self._database, self._rows[name])
            if end is None:  # its launcher is silent, and its lease not yet over
                continue
            self._ending.remove(name)
            in_good_order = end.started and end.state is BlockState.ENDED
            wished = end.wished or name in self._ended_by_run
            if died_at_once(end.started, end.lived_s, in_good_order, wished):
                self._begin_pause(f"block {self._rows[name]} died at once: {end.reason}")
            elif in_good_order:
                self._end_pause()
        if self._pause and any(status.served_s >= GOOD_AFTER_S for status in self._statuses(self._rows)):
            self._end_pause()

    @property
    def paused(self) -> bool:
        """Whether no block is to be requested now."""
        if self._pause is None:
            return False
        # Somebody may have ended it by the command line.
        return read_pause(self._database, self._run.workflow_id) is not None

    def wish_end(self, names: Iterable[str]) -> None:
        """Have launchers drain their blocks."""
        blocks.wish_end(self._database, [self._rows[name] for name in names], "its run")

    def end_left(self, jobs: Iterable[OpenJob]) -> None:
        """Record that blocks of earlier runs are over before their launchers came: one that still comes finds it so."""
        for job in jobs:
            blocks.abandon_block(self._database, job.block_id, "a later run did without it")

    def served(self, names: Sequence[str]) -> set[str]:
        """Return those blocks whose launchers live."""
        served = {status.block_id for status in self._statuses(names) if status.served_s}
        return {name for name in names if self._rows.get(name) in served}

    def least_busy_first(self, names: Sequence[str]) -> list[str]:
        """Return blocks in the order in which they may be spared."""
        held = {status.block_id: status.held for status in self._statuses(names)}
        return sorted(names, key=lambda name: held.get(self._rows[name], 0))

    def wait_until_over(self, names: Iterable[str] | None, timeout: float) -> None:
        """Wait until no launcher of these blocks, or of all, is at work, at most for a time, in seconds."""
        names = list(self._rows if names is None else names)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if all(status.state is not BlockState.RUNNING for status in self._statuses(names)):
                return
            time.sleep(_LOOK_S)

    def _record_refusals(self) -> None:
        if self._doubtful:
            blocks.abandon_unrequested(self._database, self._doubtful, "not requested: the database was away")
            self._doubtful.clear()
        for name, why in list(self._refusals.items()):  # more than one where the database was away
            row = self._rows[name]
            blocks.close_block(self._database, row, f"it could not be requested: {why}")
            del self._refusals[name], self._rows[name]
            self._begin_pause(f"block {row} could not be requested: {why}")

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause = None
            end_pause(self._database, [self._run.workflow_id])

    def _begin_pause(self, why: str) -> None:
        self._pause = note_failed_block(self._database, self._run.workflow_id, why, self._pause_s)
        logger.warning(
            "%s. No other is requested for %.0f s, or until 'parsl-balsam blocks resume'; tasks stay ready",
            why,
            self._pause.left_s,
        )

    def _statuses(self, names: Iterable[str]) -> list[blocks.BlockStatus]:
        return blocks.statuses(self._database, [self._rows[name] for name in names if name in self._rows])


def launch_command(order: Path, name: str, row: int) -> str:
    """Return the shell command that runs a block's launcher, in place of the shell."""
    words = (sys.executable, "-m", "parsl_balsam.launcher", str(order), str(row))
    return f"PARSL_WORKER_BLOCK_ID={name} exec {shlex.join(words)}"


def order_file(directory: Path) -> Path:
    """Return where the launchers of a run find what they must know."""
    return directory / "launch.json"


def write_order(order: LaunchOrder) -> Path:
    """Write what the launchers of this run must know to a file that only its owner can read; return the file."""
    path = order_file(Path(order.directory))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, order.dumps())
    return path
