"""What all providers of batch jobs do alike: submit, find again what may have been submitted, watch, cancel."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from parsl.jobs.states import JobState, JobStatus
from parsl.launchers.base import Launcher
from parsl.providers.base import ExecutionProvider
from parsl.utils import RepresentationMixin

from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import ConfigurationError, SchedulerUnavailable, SubmitRefused
from parsl_balsam.providers import job as jobs
from parsl_balsam.providers.commands import Finished, run
from parsl_balsam.providers.job import Job
from parsl_balsam.providers.jobbook import JobBook
from parsl_balsam.providers.scheduler import (
    Accepted,
    BatchJob,
    Found,
    JobFiles,
    Refused,
    Scheduler,
    Unclear,
    clean_name,
)
from parsl_balsam.providers.walltime import minutes

logger = logging.getLogger(__name__)

#: How a handle begins that was given out before the job's id was known.
_PROVISIONAL = "?"


class BatchProvider(ExecutionProvider, RepresentationMixin):
    """A Parsl provider for a batch scheduler.

    A job is known by its handle: its id or, where the scheduler's answer to the submission was lost, ``?name``, which
    stays the same when the id is found. What the scheduler does not say changes nothing, and a job that is over stays
    as it is. All methods may be called from any thread.

    Parameters
    ----------
    scheduler
        How the scheduler is talked to. All else is as users give it to the providers.
    """

    scheduler: ClassVar[str]  #: its name

    #: A request is given up when the scheduler has said for so long that there is no such job, seconds.
    lost_request_s: float = 120.0
    #: A job is over when the scheduler has said for so long that it does not know it, seconds.
    forgotten_s: float = 60.0
    #: Pauses before each time that a job is looked up whose submission was not answered, seconds.
    lookup_pauses_s: tuple[float, ...] = (0.0, 0.5, 1.5)

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        nodes_per_block: int,
        cores_per_node: int | None,
        mem_per_node: int | None,
        init_blocks: int,
        min_blocks: int,
        max_blocks: int,
        parallelism: float,
        walltime: str,
        worker_init: str,
        cmd_timeout: float,
        launcher: Launcher,
        poll_interval_s: float,
    ) -> None:
        minutes(walltime)
        positive = {
            "nodes_per_block": nodes_per_block,
            "cores_per_node": cores_per_node,
            "mem_per_node": mem_per_node,
            "cmd_timeout": cmd_timeout,
            "poll_interval_s": poll_interval_s,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ConfigurationError(f"{name}={value!r} must be greater than zero")
        counts = {"init_blocks": init_blocks, "min_blocks": min_blocks, "parallelism": parallelism}
        for name, value in counts.items():
            if value < 0:
                raise ConfigurationError(f"{name}={value!r} must not be negative")
        if max_blocks < min_blocks:
            raise ConfigurationError(f"max_blocks={max_blocks} is less than min_blocks={min_blocks}")
        self.nodes_per_block = nodes_per_block
        self.cores_per_node = cores_per_node
        self.mem_per_node = mem_per_node
        self.init_blocks = init_blocks
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.parallelism = parallelism
        self.walltime = walltime
        self.worker_init = worker_init
        self.cmd_timeout = cmd_timeout
        self.launcher = launcher
        self.poll_interval_s = poll_interval_s
        self._scheduler = scheduler
        self._clock: Callable[[], float] = time.monotonic
        self._asking = threading.Lock()  # so that of two looks at the queue the later one counts
        self._book = JobBook()
        self._silent = False  # whether the scheduler lately did not say how jobs are
        self._script_dir: str | None = None
        self.resources = self._book.resources

    @property
    def label(self) -> str:
        """The provider's name in Parsl."""
        return self.scheduler

    @property
    def status_polling_interval(self) -> float:
        """How often the status should be asked for, seconds."""
        return self.poll_interval_s

    @property
    def script_dir(self) -> str | None:
        """Where the files of jobs are. Parsl sets it."""
        return self._script_dir

    @script_dir.setter
    def script_dir(self, directory: str | None) -> None:
        if directory is not None:
            self._scheduler.check_directory(os.path.abspath(directory))
        self._script_dir = directory

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.auto") -> str:
        """Submit a block of the provider's own size, with its Parsl launcher; return its handle.

        Raises
        ------
        SubmitRefused, SchedulerUnavailable
            There will be no such job.
        """
        name = f"{clean_name(job_name)}.{secrets.token_hex(4)}"
        nodes = self.nodes_per_block
        started = self.launcher(command, tasks_per_node, nodes, self._directory())
        return self._submit(self._batch_job(started, self.usual_request, name, tasks_per_node))

    def submit_block(self, command: str, request: BlockRequest, job_name: str) -> str:
        """Submit a block of any size for one launcher process on its first node; return its handle.

        Parameters
        ----------
        command
            Ends the script; with ``exec`` its process takes the place of the script's.
        job_name
            Unique among all jobs of the user: the job is found by it when the scheduler's answer is lost.

        Raises
        ------
        SubmitRefused, SchedulerUnavailable
            There will be no such job.
        """
        return self._submit(self._batch_job(command, request, job_name))

    def render(self, command: str, request: BlockRequest, job_name: str) -> str:
        """Return the script that `submit_block` would submit."""
        return self._scheduler.script(self._batch_job(command, request, job_name))

    @property
    def usual_request(self) -> BlockRequest:
        """What is asked for where nothing else decides the size of a block."""
        return BlockRequest(self.nodes_per_block, minutes(self.walltime))

    def preview(self, command: str, request: BlockRequest, job_name: str) -> tuple[list[str], str]:
        """Return the command by which `submit_block` would submit, and the script."""
        job = self._batch_job(command, request, job_name)
        return self._scheduler.submit_command(job), self._scheduler.script(job)

    @property
    def dialect(self) -> Scheduler:
        """How its scheduler is talked to."""
        return self._scheduler

    def check_command(self, script_path: str) -> list[str] | None:
        """Return a command by which the scheduler says whether it would take a script; None if it has no such."""
        return self._scheduler.check_command(script_path)

    def adopt(self, handle_or_job_id: str | None, job_name: str, script: str | None) -> str:
        """Watch a job that an earlier run submitted, or may have submitted; return its handle. Nothing is asked yet.

        Parameters
        ----------
        handle_or_job_id
            None if that run did not come to know it.
        script
            Path of the job's script, beside which its other files are; None if it is not known.
        """
        name = clean_name(job_name)
        known = handle_or_job_id is not None and not handle_or_job_id.startswith(_PROVISIONAL)
        handle = str(handle_or_job_id) if known else _PROVISIONAL + name
        files = None if script is None else self._scheduler.files(os.path.dirname(os.path.abspath(script)), name)
        pending = JobStatus(JobState.PENDING, message="an earlier run submitted it")
        job = Job(handle, name, handle if known else None, files, pending, adopted=True)
        return self._book.put_once(job).handle

    def job_id(self, handle: str) -> str | None:
        """Return the scheduler's id of a job; None as long as it is not known."""
        job = self._book.get(handle)
        return None if job is None else job.job_id

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """Return how jobs are, by their handles, as far as the scheduler says it. It never raises."""
        with self._asking:
            self._resolve(self._book.living(job_ids, known=False))
            self._look(self._book.living(job_ids, known=True))
        stranger = JobStatus(JobState.UNKNOWN, message="not a job of this provider")
        return [stranger if job is None else job.status for job in map(self._book.get, job_ids)]

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        """Cancel jobs, by their handles; tell for each whether the scheduler has taken the wish, or it is over.

        How a job is then, only `status` tells. A job whose id is not known is cancelled as soon as it is.
        """
        # Before they are looked up: whoever finds one meanwhile cancels it.
        self._book.want_cancelled(job_ids)
        self._find(self._book.living(job_ids, known=False))
        living = self._book.living(job_ids, known=True)
        taken = self._cancel(living)
        failed = {job.handle for job in living if job.handle not in taken}
        return [job is not None and job.handle not in failed for job in map(self._book.get, job_ids)]

    def _batch_job(
        self, command: str, request: BlockRequest, job_name: str, tasks_per_node: int | None = None
    ) -> BatchJob:
        name = clean_name(job_name)
        return BatchJob(
            name=name,
            files=self._scheduler.files(self._directory(), name),
            nodes=request.nodes,
            walltime_min=request.walltime_min,
            queue=request.queue,
            command=command,
            tasks_per_node=tasks_per_node or 1,
            cores_per_node=self.cores_per_node,
            memory_per_node_gb=self.mem_per_node,
            worker_init=self.worker_init,
            one_process=tasks_per_node is None,
        )

    def _directory(self) -> str:
        if self._script_dir is None:
            raise ConfigurationError(f"{type(self).__name__}: script_dir is not set; Parsl sets it when it starts")
        return os.path.abspath(self._script_dir)

    def _submit(self, batch_job: BatchJob) -> str:
        files = batch_job.files
        _write(files.script, self._scheduler.script(batch_job))
        done = self._ask(self._scheduler.submit_command(batch_job))
        if done.missing:
            raise SchedulerUnavailable(f"block {batch_job.name} cannot be requested: {done.words}")
        said = self._scheduler.read_submission(done)
        if isinstance(said, Refused):
            raise SubmitRefused(f"{done.argv[0]} refused {batch_job.name}: {said.words}")
        if isinstance(said, Accepted):
            job = Job(said.job_id, batch_job.name, said.job_id, files, JobStatus(JobState.PENDING))
        else:
            job = self._search(batch_job.name, files, said)
        job = replace(job, status=jobs.status(job, job.status.state, job.status.message))
        self._book.put(job)
        logger.debug("block %s is job %s", job.name, job.handle)
        return job.handle

    def _search(self, name: str, files: JobFiles, said: Unclear) -> Job:
        """Return a job which the scheduler may have, with its id if it is found soon."""
        message = f"not known whether the scheduler has it: {said.words}"
        job = Job(_PROVISIONAL + name, name, None, files, JobStatus(JobState.PENDING, message), doubt=said.words)
        for pause_s in self.lookup_pauses_s:
            time.sleep(pause_s)
            answer = self._scheduler.find(self._ask, [job.submitted])
            if name in answer.ids:
                job_id = answer.ids[name]
                return Job(job_id, name, job_id, files, JobStatus(JobState.PENDING))
            if name not in answer.unknown:
                break  # it does not answer, and every try may take as long as this one
        logger.warning("block %s: %s", name, message)
        return job

    def _resolve(self, lost: list[Job]) -> None:
        """Look for jobs whose ids are not known, and cancel those that are to be."""
        answer = self._find(lost)
        now = self._clock()
        for job in lost:
            if job.name in answer.unknown:
                ran = job.files is not None and os.path.exists(job.files.stdout)
                self._book.change(job.handle, partial(jobs.denied, now=now, patience_s=self.lost_request_s, ran=ran))
        self._cancel(self._book.to_cancel())

    def _find(self, lost: list[Job]) -> Found:
        """Look for jobs whose ids are not known, and note those of which they became known."""
        if not lost:
            return Found()
        answer = self._scheduler.find(self._ask, [job.submitted for job in lost])
        for job in lost:
            if job.name in answer.ids:
                self._book.change(job.handle, partial(jobs.found, job_id=answer.ids[job.name]))
        return answer

    def _look(self, living: list[Job]) -> None:
        if not living:
            return
        asked: list[Finished] = []

        def ask(argv: Sequence[str]) -> Finished:
            asked.append(self._ask(argv))
            return asked[-1]

        answer = self._scheduler.look(ask, [job.submitted for job in living])
        now = self._clock()
        silent = []
        for job in living:
            report = answer.reports.get(str(job.job_id))
            if report is not None:
                self._book.change(job.handle, partial(jobs.reported, report=report))
            elif job.job_id in answer.unknown:
                self._book.change(job.handle, partial(jobs.denied, now=now, patience_s=self.forgotten_s))
            else:
                silent.append(job.name)
        if silent and not self._silent:
            words = [done.words for done in asked if done.code != 0] or [asked[-1].words]
            logger.warning("%s does not say how %s are: %s", self.label, ", ".join(silent), "; ".join(words))
        elif self._silent and not silent:
            logger.info("%s says again how all blocks are", self.label)
        self._silent = bool(silent)

    def _cancel(self, living: list[Job]) -> set[str]:
        """Ask the scheduler to cancel jobs; return the handles of those of which it took the wish."""
        if not living:
            return set()
        taken = self._scheduler.cancel(self._ask, [str(job.job_id) for job in living])
        handles = {job.handle for job in living if job.job_id in taken}
        for job in living:
            if job.handle in handles:
                self._book.change(job.handle, partial(replace, cancel_wanted=False))
            else:
                logger.warning("block %s, job %s, could not be cancelled", job.name, job.job_id)
        return handles

    def _ask(self, argv: Sequence[str]) -> Finished:
        return run(argv, self.cmd_timeout, self._scheduler.environment(os.environ))


def _write(path: str, text: str) -> None:
    """Write a script that only its owner can read and run: users may have put secrets into it."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w") as script:
        script.write(text)
