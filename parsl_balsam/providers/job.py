"""A job as its provider knows it, and what news change of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parsl.jobs.states import JobState, JobStatus

from parsl_balsam.providers.scheduler import JobFiles, JobReport, SubmittedJob

#: A scheduler says at least so often that it does not know a job, before it is believed.
_DENIALS = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was submitted, or may have been."""

    handle: str  #: by which Parsl knows it
    name: str
    job_id: str | None  #: None as long as it is not known whether the scheduler has it
    files: JobFiles | None
    status: JobStatus
    doubt: str = ""  #: why it was not known at once whether the scheduler has it
    adopted: bool = False  #: whether an earlier run submitted it
    cancel_wanted: bool = False  #: whether it is to be cancelled as soon as its id is known
    denials: int = 0  #: how often in a row the scheduler said that it does not know it
    denied_since: float | None = None  #: when the first of these was; on the clock of whoever asks

    @property
    def is_over(self) -> bool:
        """Whether it has ended. Then nothing changes any more."""
        return bool(self.status.terminal)

    @property
    def submitted(self) -> SubmittedJob:
        """What the scheduler must be told to find it."""
        return SubmittedJob(self.name, self.job_id, self.files)


def status(job: Job, state: JobState, message: str | None, exit_code: int | None = None) -> JobStatus:
    """Return a status of a job, as Parsl takes it."""
    files = job.files
    return JobStatus(
        state,
        message=message,
        exit_code=exit_code,
        stdout_path=None if files is None else files.stdout,
        stderr_path=None if files is None else files.stderr,
    )


def reported(job: Job, report: JobReport) -> Job:
    """Return a job after the scheduler said how it is."""
    if job.is_over:
        return job
    now = status(job, report.state, report.reason, report.exit_code)
    return replace(job, status=now, denials=0, denied_since=None)


def found(job: Job, job_id: str) -> Job:
    """Return a job after its id became known."""
    if job.is_over or job.job_id is not None:
        return job
    now = status(job, job.status.state, None)
    return replace(job, job_id=job_id, status=now, denials=0, denied_since=None)


def denied(job: Job, now: float, patience_s: float, ran: bool = False) -> Job:
    """Return a job after the scheduler said that it does not know it.

    It is believed when it has said so for a while, and nothing else in between.

    Parameters
    ----------
    ran
        Whether the job has left output.
    """
    if job.is_over:
        return job
    since = now if job.denied_since is None else job.denied_since
    job = replace(job, denials=job.denials + 1, denied_since=since)
    if job.denials < _DENIALS or now - since < patience_s:
        return job
    if job.job_id is not None:
        return _over(job, JobState.MISSING, "the scheduler no longer knows the job; how it ended is not recorded")
    if ran:
        return _over(job, JobState.MISSING, "the job ran, but neither its id nor how it ended is recorded")
    if job.cancel_wanted:
        return _over(job, JobState.CANCELLED, "cancelled; the scheduler never had it")
    if job.adopted:
        return _over(job, JobState.MISSING, "the scheduler knows no job of this name: it is over, or never was one")
    return _over(job, JobState.FAILED, f"the scheduler never had it: {job.doubt}")


def _over(job: Job, state: JobState, message: str) -> Job:
    return replace(job, status=status(job, state, message))
