"""The jobs that a provider knows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from parsl_balsam.providers.job import Job

logger = logging.getLogger(__name__)


class JobBook:
    """How jobs are, by their handles, which may be of any type that is text in the end. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self.resources: dict[object, Any] = {}  #: the same, as Parsl looks for it

    def get(self, handle: object) -> Job | None:
        """Return a job; None if there is none of this handle."""
        with self._lock:
            return self._jobs.get(str(handle))

    def put(self, job: Job) -> None:
        """Note how a job is."""
        with self._lock:
            self._put(job)

    def put_once(self, job: Job) -> Job:
        """Note a job unless there is one of its name; return the one that there is now."""
        with self._lock:
            known = next((known for known in self._jobs.values() if known.name == job.name), None)
            if known is None:
                self._put(job)
            return known or job

    def change(self, handle: str, change: Callable[[Job], Job]) -> None:
        """Note what has become of a job."""
        with self._lock:
            before = self._jobs[handle]
            after = change(before)
            self._put(after)
        if after.status.state is not before.status.state:
            logger.debug("block %s, job %s: %s", after.name, after.job_id, after.status)

    def living(self, handles: Iterable[object], *, known: bool) -> list[Job]:
        """Return those of some jobs that are not over, with ids or without."""
        found = [job for handle in handles if (job := self.get(handle)) is not None]
        return [job for job in found if not job.is_over and (job.job_id is not None) is known]

    def want_cancelled(self, handles: Iterable[object]) -> None:
        """Note that jobs are to be cancelled as soon as their ids are known, as far as they are not known yet."""
        with self._lock:
            for handle in map(str, handles):
                job = self._jobs.get(handle)
                if job is not None and job.job_id is None and not job.is_over:
                    self._put(replace(job, cancel_wanted=True))

    def to_cancel(self) -> list[Job]:
        """Return the jobs that are to be cancelled and whose ids are known."""
        with self._lock:
            return [job for job in self._jobs.values() if job.cancel_wanted and job.job_id and not job.is_over]

    def _put(self, job: Job) -> None:
        self._jobs[job.handle] = job
        files = job.files
        self.resources[job.handle] = {
            "job_id": job.job_id or job.handle,
            "status": job.status,
            "job_stdout_path": None if files is None else files.stdout,
            "job_stderr_path": None if files is None else files.stderr,
            "script": None if files is None else files.script,
        }
