"""A batch job that tries whether the database can be reached from where blocks run."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parsl_balsam.cli.output import duration, one_line, print_text
from parsl_balsam.executor.blocks import order_file, write_order
from parsl_balsam.launcher.reach import Reached
from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.launch import LaunchOrder

if TYPE_CHECKING:
    from parsl.jobs.states import JobStatus

    from parsl_balsam.cli.check import Findings
    from parsl_balsam.executor.executor import BalsamExecutor
    from parsl_balsam.providers.batch import BatchProvider

#: How often the scheduler is asked for the job, seconds.
_LOOK_S = 2.0

#: How long a file that a node has written may take to be seen here, seconds.
_FILE_S = 15.0

#: What a job is given, if its queue allows: Python may take minutes to start from a slow file system.
_WALLTIME_MIN = 5


def try_there(executor: BalsamExecutor, run_dir: Path, findings: Findings) -> None:
    """Submit a small job that tries to reach the database, and wait until it has ended. Ctrl-C cancels it."""
    name = f"parsl.{executor.label}.check-{secrets.token_hex(4)}"
    directory = run_dir / name
    directory.mkdir(parents=True, mode=0o700)
    try:
        if _tried(executor, name, directory, findings):
            shutil.rmtree(directory, ignore_errors=True)
        else:
            click.echo(f"The job's files are in {directory}")
    finally:
        order_file(directory).unlink(missing_ok=True)  # it has the password


def _tried(executor: BalsamExecutor, name: str, directory: Path, findings: Findings) -> bool:
    provider: BatchProvider = executor.provider
    provider.script_dir = str(directory)
    order = write_order(
        LaunchOrder(
            database=executor.database_url.render_as_string(hide_password=False),
            workflow_id=0,
            lease_s=executor.lease_s,
            idle_timeout_s=executor.idle_timeout_s,
            cores_per_node=None,
            python_path=(),
            directory=str(directory),
        )
    )
    result = directory / "result.json"
    words = (sys.executable, "-m", "parsl_balsam.launcher.reach", str(order), str(result))
    request = _smallest(executor)
    try:
        handle = provider.submit_block(f"exec {shlex.join(words)}", request, name)
    except KeyboardInterrupt:
        # It may have been submitted: then it is found by its name.
        _cancel(provider, provider.adopt(None, name, None))
        raise
    except BalsamError as error:
        findings.problem(str(error))
        return False
    try:
        status = _wait(provider, handle)
    except KeyboardInterrupt:
        _cancel(provider, handle)
        raise
    reached = _read(result)
    if reached is not None and reached.error is None:
        findings.good(f"The database was reached from {reached.host} in {duration(reached.seconds)}.")
        return True
    if reached is not None:
        findings.problem(f"The database was not reached from {reached.host}: {reached.error}")
    else:
        findings.problem(f"The job has not tried to reach the database: {_words(status)}.")
        print_text("its errors", status.stderr_summary, indent=9)
    return False


def _smallest(executor: BalsamExecutor) -> BlockRequest:
    """Return the smallest block that an executor may ask for, of one node if nothing is said of it."""
    if executor.queue_policy is None:
        return BlockRequest(1, min(_WALLTIME_MIN, executor.provider.usual_request.walltime_min))
    least = min(executor.queue_policy.offers, key=lambda offer: (offer.min_nodes, offer.min_walltime_min))
    walltime_min = max(least.min_walltime_min, min(_WALLTIME_MIN, least.max_walltime_min))
    return BlockRequest(least.min_nodes, walltime_min, least.queue.name)


def _wait(provider: BatchProvider, handle: str) -> JobStatus:
    """Return how a job ended, and say meanwhile how it is whenever that changes."""
    last = ""
    while True:
        (status,) = provider.status([handle])
        now = f"Job {provider.job_id(handle) or handle}: {_words(status)}"
        if now != last:
            click.echo(f"{time.strftime('%H:%M:%S')}  {one_line(now)}")
            last = now
        if status.terminal:
            return status
        time.sleep(_LOOK_S)


def _words(status: JobStatus) -> str:
    state = status.state.name.lower()
    return f"{state} ({status.message})" if status.message else state


def _read(result: Path) -> Reached | None:
    """Return what a job has written, which a shared file system may show late."""
    until = time.monotonic() + _FILE_S
    while True:
        list(result.parent.iterdir())  # NFS remembers for a while that a file was not there, but not so its directory
        try:
            return Reached.loads(result.read_bytes())
        except FileNotFoundError:
            if time.monotonic() >= until:
                return None
            time.sleep(0.2)


def _cancel(provider: BatchProvider, handle: str) -> None:
    (taken,) = provider.cancel([handle])
    job_id = provider.job_id(handle)
    if taken and job_id is not None:
        click.echo(f"Job {job_id} was cancelled.", err=True)
    else:
        click.echo(
            f"Job {job_id or handle.lstrip('?')} could not be cancelled, or there is none: look yourself.", err=True
        )
