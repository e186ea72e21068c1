"""Blocks of earlier runs that this one goes on with, in place of requesting others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parsl.jobs.states import JobState, JobStatus
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.providers.cluster_provider import ClusterProvider

from parsl_balsam.db.runs import OpenJob
from parsl_balsam.model.errors import UntrustedPayload
from parsl_balsam.model.launch import LaunchOrder
from parsl_balsam.model.signing import Signer
from parsl_balsam.providers.batch import BatchProvider


def scheduler_of(provider: ExecutionProvider) -> str:
    """Return the kind of a provider: jobs of one are known to all providers of the same kind."""
    if isinstance(provider, BatchProvider):
        return provider.scheduler
    return "local" if isinstance(provider, LocalProvider) else f"Parsl's {type(provider).__name__}"


def trusted_order(job: OpenJob, signer: Signer) -> LaunchOrder | None:
    """Return what the launchers of a block's run are told; None where this version or this user has not written it."""
    try:
        return LaunchOrder.loads(signer.open_order(job.order)) if job.order else None
    except (UntrustedPayload, TypeError, ValueError, KeyError):
        return None


def can_adopt(provider: ExecutionProvider, job: OpenJob, theirs: LaunchOrder | None, ours: LaunchOrder) -> bool:
    """Tell whether a block may go on for this run: its job can be looked after, and tasks run there as in a new one."""
    if job.scheduler is None:
        return True  # somebody holds its nodes and looks after them
    if job.scheduler != scheduler_of(provider) or theirs is None or not ours.starts_alike(theirs):
        return False
    if isinstance(provider, LocalProvider):
        return _lives_here(job)
    return isinstance(provider, BatchProvider) or (isinstance(provider, ClusterProvider) and job.job_id is not None)


def adopt(provider: ExecutionProvider, job: OpenJob) -> str:
    """Make a provider look after a job that it did not submit; return what the provider calls it."""
    if isinstance(provider, BatchProvider):
        return provider.adopt(job.job_id, job.tag, job.script)
    assert job.job_id is not None
    files: dict[str, Any] = {"job_stdout_path": f"{job.script}.stdout", "job_stderr_path": f"{job.script}.stderr"}
    if isinstance(provider, LocalProvider):
        files = {"remote_pid": int(job.job_id), "script_path": job.script}
    provider.resources[job.job_id] = {"job_id": job.job_id, "status": JobStatus(JobState.PENDING), **files}
    return job.job_id


def _lives_here(job: OpenJob) -> bool:
    """Tell whether a process of this host runs the block's script."""
    if job.job_id is None or job.script is None or not Path(f"{job.script}.ec").exists():
        return False
    try:
        return job.script in Path(f"/proc/{int(job.job_id)}/cmdline").read_text(errors="replace")
    except (OSError, ValueError):
        return False
