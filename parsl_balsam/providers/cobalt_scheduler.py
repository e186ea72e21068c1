"""How to talk to Cobalt: its commands, and scripts for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.cobalt_text import (
    NAME_COLUMNS,
    STATE_COLUMNS,
    read_ending,
    read_id,
    read_names,
    read_states,
    read_submission,
)
from parsl_balsam.providers.commands import Finished
from parsl_balsam.providers.scheduler import (
    Accepted,
    Answer,
    Ask,
    BatchJob,
    Found,
    JobFiles,
    JobReport,
    Refused,
    Scheduler,
    SubmittedJob,
    Unclear,
)


@dataclass(frozen=True, slots=True)
class CobaltOptions:
    """What is the same for all jobs of a provider."""

    queue: str | None = None
    account: str | None = None
    attrs: str | None = None  #: as qsub takes them
    env: str | None = None  #: as qsub takes it
    own_lines: tuple[str, ...] = ()  #: of the user, for the script


class CobaltScheduler(Scheduler):
    """Cobalt.

    It forgets a job as soon as it is over. How it ended is only in its log, and there some seconds later.

    Parameters
    ----------
    user
        Whose jobs are looked through for one whose id is not known.
    """

    def __init__(self, options: CobaltOptions, user: str) -> None:
        self._options = options
        self._user = user

    def check_directory(self, directory: str) -> None:
        """Refuse a directory whose path Cobalt would change."""
        if len(directory.split()) != 1 or "$" in directory:
            raise ConfigurationError(
                f"Cobalt cannot run a script in {directory!r}: it removes blanks from its path, and replaces names "
                "after '$'; use another run_dir in Parsl's Config"
            )

    def files(self, directory: str, name: str) -> JobFiles:
        """Return where the files of a job are."""
        path = os.path.join(directory, name)
        return JobFiles(f"{path}.sh", f"{path}.output", f"{path}.error", f"{path}.cobaltlog")

    def script(self, job: BatchJob) -> str:
        """Return the text of a job's script."""
        # Cobalt reads options from the second line on, and to the first that has none.
        return "\n".join(["#!/bin/bash", *self._options.own_lines, "", *job.body]) + "\n"

    def submit_command(self, job: BatchJob) -> list[str]:
        """Return the command that submits a job whose script is written."""
        prefix, _ = os.path.splitext(job.files.script)
        options = {
            "-n": str(job.nodes),
            "-t": str(job.walltime_min),
            "-q": job.queue or self._options.queue,
            "-A": self._options.account,
            "-O": prefix,
            "--cwd": os.path.dirname(job.files.script),
            "--jobname": job.name,
            "--attrs": self._options.attrs,
            "--env": self._options.env,
        }
        given = [word for name, value in options.items() if value is not None for word in (name, value)]
        # What stands behind the script would be its arguments.
        return ["qsub", *given, job.files.script]

    def check_command(self, script: str) -> None:
        """Return None: Cobalt has no command that only checks."""

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for all commands."""
        return dict(inherited)

    def read_submission(self, done: Finished) -> Accepted | Refused | Unclear:
        """Tell what came of qsub."""
        return read_submission(done)

    def find(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Found:
        """Look jobs up by their names: in their logs, which qsub begins, then among all jobs of the user."""
        ids = {job.name: job_id for job in jobs if (job_id := read_id(_log(job))) is not None}
        lacking = {job.name for job in jobs} - ids.keys()
        if not lacking:
            return Found(ids)
        names = read_names(ask(["qstat", f"--header={':'.join(NAME_COLUMNS)}", "-u", self._user]))
        if names is None:
            return Found(ids)
        ids |= {name: names[name] for name in lacking & names.keys()}
        return Found(ids, frozenset(lacking - ids.keys()))

    def look(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Answer:
        """See how jobs are: in the queue, or by their logs if they are not there."""
        by_id = {job.job_id: job for job in jobs if job.job_id is not None}
        states = read_states(ask(["qstat", f"--header={':'.join(STATE_COLUMNS)}", *by_id]))
        if states is None:
            return Answer()
        reports: dict[str, JobReport] = {}
        unknown: set[str] = set()
        for job_id, job in by_id.items():
            report = states[job_id] if job_id in states else read_ending(_log(job))
            if report is not None:
                reports[job_id] = report
            elif job_id not in states:
                unknown.add(job_id)
        return Answer(reports, frozenset(unknown))

    def cancel(self, ask: Ask, job_ids: Sequence[str]) -> set[str]:
        """Cancel jobs; return those for which qdel took the wish, or which are over: it does not tell them apart."""
        return set(job_ids) if ask(["qdel", *job_ids]).code == 0 else set()


def _log(job: SubmittedJob) -> str:
    """Return what Cobalt has written of a job so far."""
    if job.files is None or job.files.log is None:
        return ""
    try:
        return Path(job.files.log).read_text(errors="replace")
    except OSError:
        return ""
