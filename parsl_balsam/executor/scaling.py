"""How blocks come and go: requests, their records, and what Parsl's poller asks for."""

from __future__ import annotations

import logging
import math
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parsl.executors.errors import ScalingFailed
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobState as ParslState
from parsl.jobs.states import JobStatus
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_balsam.db.blocks import Requested
from parsl_balsam.db.outage import Outage
from parsl_balsam.db.runs import OpenJob, Run
from parsl_balsam.executor.adoption import adopt, scheduler_of
from parsl_balsam.executor.blocks import BlockBook, launch_command
from parsl_balsam.executor.limits import check_script_dir, walltime_of
from parsl_balsam.model.errors import DatabaseUnavailable, WorkflowLost
from parsl_balsam.model.states import JobState
from parsl_balsam.providers.batch import BatchProvider
from parsl_balsam.providers.scheduler import clean_name

if TYPE_CHECKING:
    from parsl_balsam.executor.planner import Planner
    from parsl_balsam.providers.ensemble import Plan

logger = logging.getLogger(__name__)

#: How long launchers have to drain before the jobs of their blocks are cancelled, seconds.
_DRAIN_S = 8.0


class ScalingExecutor(BlockProviderExecutor):
    """A Parsl executor whose blocks are recorded in the database before they are requested.

    What Parsl's poller calls here never raises: it would end the poll, and the scaling of all other executors with it.
    """

    label: str
    idle_timeout_s: float
    on_exit: Literal["cancel", "keep"]
    _blocks: BlockBook
    _order_file: Path
    _planner: Planner | None = None  # None: all blocks have the provider's size
    _plan: Plan | None = None  # what the next block asks for, and why; None: the provider's own size
    _first_blocks_started = False
    _poller: int | None = None
    _work = 0  # cores that calls which wait or run need

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._unrecorded: set[str] = set()  # blocks whose jobs' ids are not in the database yet
        self._outage = Outage(logger)

    def start_blocks(self, run: Run) -> None:
        """Go on with the blocks of earlier runs, and request what is missing of the initial ones.

        Parsl's strategy would request the initial ones one strategy period later.
        """
        for job in run.adopted:
            if job.scheduler is not None:
                self._adopt(str(self._block_id_counter.get_id()), job)
        self._end_left(run)
        if self._planner is None:
            super().scale_out_facade(max(0, self.provider.init_blocks - len(self._status)))
            self._first_blocks_started = True
        elif unheeded := _unheeded(self.provider):
            logger.warning(
                "executor %s: %s of its %s has no effect beside queue_policy, by which blocks are requested when tasks "
                "wait for them",
                self.label,
                unheeded,
                type(self.provider).__name__,
            )

    def see_off_blocks(self, timeout: float) -> None:
        """Wait until local blocks, which Parsl has told to end, are over, at most for a time, in seconds."""
        if isinstance(self._executor_exception, WorkflowLost):
            return  # they work for the run that took the workflow over
        try:
            if self.bad_state_is_set:  # Parsl leaves the blocks of such an executor to themselves
                self._cancel_blocks(self._live_blocks())
            if isinstance(self.provider, LocalProvider):
                self._blocks.wait_until_over(None, timeout)
            for block_id in self._status:
                self._blocks.note_end_by_run(block_id)
        except DatabaseUnavailable as error:
            logger.warning("blocks were told to end; how they end could not be seen or recorded: %s", error)
        except Exception:
            logger.exception("blocks could not be ended")

    def poll_facade(self) -> None:
        """Look at the blocks, and request one if there is work and none is left."""
        self._poller = threading.get_ident()
        try:
            super().poll_facade()
            self._note_jobs()
            if self._planner is not None:
                self._planner.look()
                self._cancel_unwanted(self._planner)
            if self._work and self._none_is_left() and not self.bad_state_is_set:
                self._request(1)
            self._outage.over()
        except DatabaseUnavailable as error:
            self._outage.note(error)
        except Exception:
            logger.exception("blocks could not be looked at")

    def scale_out_facade(self, n: int) -> list[str]:
        """Request blocks."""
        if self._first_blocks_started:
            # The strategy's first request is for the initial blocks, which `start` has made.
            self._first_blocks_started = False
            return []
        try:
            return self._request(n)
        except DatabaseUnavailable as error:
            self._outage.note(error)
            return []
        except Exception:
            logger.exception("no block could be requested")
            return []

    def scale_in_facade(self, n: int, max_idletime: float | None = None) -> list[str]:
        """End blocks, those with the least work first. What runs there becomes ready again, at no cost."""
        # Parsl ends all blocks at its end as a strategy ends idle ones, but not in the poller's thread.
        if self.on_exit == "keep" and threading.get_ident() != self._poller:
            return []
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

    def status(self) -> dict[str, JobStatus]:
        """Return what is known of all blocks. The launcher's word counts more than what a scheduler has forgotten."""
        found: dict[str, JobStatus] = super().status()
        for block_id, status in found.items():
            if status.state is ParslState.HELD:  # Parsl's strategies would request another beside it
                found[block_id] = JobStatus(ParslState.PENDING, f"held: {status.message or 'no reason is given'}")
        missing = [block_id for block_id, status in found.items() if status.state is ParslState.MISSING]
        for block_id in self._blocks.served(missing) if missing else ():
            found[block_id] = JobStatus(ParslState.RUNNING, found[block_id].message)
        return found

    def outstanding(self) -> int:
        """Return how many cores the calls that wait or run need together: Parsl's strategies count slots of one.

        With blocks sized by the work, it is what makes a strategy request one exactly if one is wanted.
        """
        if self._planner is None or not self._work:
            return self._work
        block: int = self.workers_per_node * self.provider.nodes_per_block
        active = (ParslState.RUNNING, ParslState.PENDING)
        slots: int = block * sum(status.state in active for status in self._status.values())
        try:
            wanted = self._planner.look().request is not None
        except DatabaseUnavailable as error:
            self._outage.note(error)
            wanted = False
        parallelism: float = self.provider.parallelism
        if wanted and parallelism > 0:
            return math.ceil((slots + block) / parallelism)
        return max(1, slots)

    def scale_in(self, blocks: int) -> list[str]:
        """End blocks, those with the least work first; return their ids."""
        live = self._live_blocks()
        if blocks < len(live):  # all of them can be ended while the database is away
            live = self._blocks.least_busy_first(live)[:blocks]
        return self._cancel_blocks(live)

    def _request(self, n: int) -> list[str]:
        """Request at most so many blocks: none in a pause, and no more than the work that waits needs."""
        if self._planner is None:
            return [] if self._blocks.paused else super().scale_out_facade(n)
        made: list[str] = []
        while len(made) < n and not self._blocks.paused:
            plan = self._planner.plan()
            if plan.request is None:
                break
            self._plan = plan
            logger.info("requesting a block: %s", plan.why)
            made += super().scale_out_facade(1)
        return made

    def _launch_block(self, block_id: str) -> Any:
        provider, plan = self.provider, self._plan
        tag = f"{clean_name(f'parsl.{self.label}.block-{block_id}')}.{uuid.uuid4().hex[:16]}"
        scheduler = scheduler_of(provider)
        if isinstance(provider, BatchProvider):
            asked = (plan and plan.request) or provider.usual_request
            why = plan.why if plan else None
            requested = Requested(tag, scheduler, asked.nodes, asked.walltime_min, asked.queue, why)
        else:
            walltime_s = walltime_of(provider)
            requested = Requested(tag, scheduler, provider.nodes_per_block, walltime_s and walltime_s / 60)
        row = self._blocks.record(block_id, requested)
        try:
            if isinstance(provider, BatchProvider):
                handle = provider.submit_block(self._get_launch_command(block_id), asked, tag)
            else:
                check_script_dir(provider)
                # Not by Parsl's method: its providers give the name to a shell as it is.
                name = clean_name(f"parsl.{self.label}.block-{block_id}")
                handle = provider.submit(self._get_launch_command(block_id), 1, name)
                if not handle:
                    raise ScalingFailed(self, "the provider has returned no job id")
        except Exception as error:
            self._blocks.note_refusal(block_id, str(error))
            raise
        logger.info("block %d is requested as job %s", row, handle)
        try:
            self._note_job(block_id, handle)
        except DatabaseUnavailable as error:
            self._outage.note(error)
        return handle

    def _get_launch_command(self, block_id: str) -> str:
        return launch_command(self._order_file, block_id, self._blocks.row(block_id))

    def _adopt(self, block_id: str, job: OpenJob) -> None:
        handle = adopt(self.provider, job)
        self.blocks_to_job_id[block_id] = handle
        self.job_ids_to_block[handle] = block_id
        self._status[block_id] = JobStatus(ParslState.PENDING)
        self._blocks.adopt(block_id, job)
        if job.job_id is None:
            self._unrecorded.add(block_id)
        logger.info("block %d (job %s) of an earlier run goes on", job.block_id, job.job_id or job.tag)

    def _note_job(self, block_id: str, handle: str) -> None:
        """Record a block's job; again later where its id is not known yet, or the database is away."""
        provider = self.provider
        job_id = provider.job_id(handle) if isinstance(provider, BatchProvider) else str(handle)
        if job_id is None and block_id in self._unrecorded:
            return
        self._unrecorded.add(block_id)
        known = getattr(provider, "resources", {}).get(handle, {})
        script = known.get("script", known.get("script_path"))
        if script is None and known.get("job_stdout_path"):  # as Parsl's own providers name their files
            script = known["job_stdout_path"].removesuffix(".stdout")
        self._blocks.note_job(block_id, job_id, script)
        if job_id is not None:
            self._unrecorded.discard(block_id)

    def _note_jobs(self) -> None:
        """Record what the scheduler says of blocks."""
        for block_id in list(self._unrecorded):
            self._note_job(block_id, self.blocks_to_job_id[block_id])
        for block_id, status in self._status.items():
            if self._blocks.is_over(block_id):
                continue
            if status.state is ParslState.SCALED_IN:
                self._blocks.note_end_by_run(block_id)
            elif status.state is not ParslState.UNKNOWN:
                self._blocks.note_state(block_id, JobState[status.state.name], _reason(status))
        self._blocks.judge_ends()

    def _end_left(self, run: Run) -> None:
        """End blocks of earlier runs that still wait for their launchers: tasks would not run there as they should.

        Those that run finish what they have begun, and leave.
        """
        queued = [job for job in run.left if not job.running]
        try:
            self._blocks.end_left(queued)
            if isinstance(self.provider, BatchProvider):
                kind = scheduler_of(self.provider)
                self.provider.cancel([adopt(self.provider, job) for job in queued if job.scheduler == kind])
        except Exception:
            logger.exception("blocks of an earlier run could not be cancelled")

    def _cancel_unwanted(self, planner: Planner) -> None:
        """Cancel blocks that wait in a queue while nothing has waited for them for long."""
        if planner.idle_s < self.idle_timeout_s:
            return
        waiting = [block_id for block_id, status in self._status.items() if status.state is ParslState.PENDING]
        for block_id in self._cancel_blocks(waiting):
            self._status[block_id] = self._simulated_status[block_id] = JobStatus(ParslState.SCALED_IN)

    def _live_blocks(self) -> list[str]:
        return [block_id for block_id, status in self._status.items() if not status.terminal]

    def _cancel_blocks(self, block_ids: list[str]) -> list[str]:
        if not block_ids:
            return []
        if not isinstance(self.provider, LocalProvider):  # whose launchers get the signal that makes them drain
            try:
                self._blocks.wish_end(block_ids)
                self._blocks.wait_until_over(block_ids, _DRAIN_S)
            except DatabaseUnavailable as error:
                self._outage.note(error)
            except Exception:
                logger.exception("blocks could not be drained")
        cancelled = self.provider.cancel([self.blocks_to_job_id[block_id] for block_id in block_ids])
        return [block_id for block_id, done in zip(block_ids, cancelled, strict=True) if done]

    def _none_is_left(self) -> bool:
        """Tell whether no block is left, though the strategy, 'none' for one, would not request another."""
        if self._live_blocks() or not self.provider.max_blocks:
            return False
        if not self._status:
            return self._planner is not None
        newest = self._status[max(self._status, key=int)]
        return bool(newest.state is not ParslState.SCALED_IN)


def _unheeded(provider: ExecutionProvider) -> str:
    """Return what a provider asks for, beyond its defaults, that blocks which are sized by the work cannot give."""
    asked = {"init_blocks": (provider.init_blocks, 1), "min_blocks": (provider.min_blocks, 0)}
    return " and ".join(f"{name}={value}" for name, (value, default) in asked.items() if value > default)


def _reason(status: JobStatus) -> str | None:
    """Return how a job fares, or ended, with the last line of its errors if it failed."""
    reason: str | None = status.message
    if reason is None and status.exit_code is not None:
        reason = f"exit code {status.exit_code}"
    if status.state is ParslState.FAILED:
        lines = [line.strip() for line in (status.stderr_summary or "").splitlines() if line.strip()]
        reason = ": ".join(part for part in (reason, *lines[-1:]) if part) or None
    return reason
