"""What Cobalt's commands say, and what it writes of a job. Pure; whatever they print, nothing here raises."""

from __future__ import annotations

import re

from parsl.jobs.states import JobState

from parsl_balsam.providers.commands import Finished, whole_lines
from parsl_balsam.providers.scheduler import Accepted, JobReport, Refused, Unclear

#: Columns of qstat. Its own choice of them is changed by sites and users.
STATE_COLUMNS = ("JobID", "State")
NAME_COLUMNS = ("JobID", "JobName")

#: Cobalt's states of jobs; none of them is an end.
_STATES = {
    "queued": JobReport(JobState.PENDING, "waits in the queue"),
    "maxrun_hold": JobReport(JobState.PENDING, "waits: as many jobs run as the queue allows one user"),
    "user_hold": JobReport(JobState.HELD, "held by its user"),
    "admin_hold": JobReport(JobState.HELD, "held by an administrator"),
    "dep_hold": JobReport(JobState.HELD, "held: waits for other jobs"),
    "dep_fail": JobReport(JobState.HELD, "held for good: a job that it depends on has failed"),
    # The script may never run.
    "starting": JobReport(JobState.PENDING, "starting: its nodes are being prepared"),
    "running": JobReport(JobState.RUNNING),
    "killing": JobReport(JobState.RUNNING, "killing: it is being ended"),
    "exiting": JobReport(JobState.RUNNING, "exiting: its nodes are being cleaned up"),
    "done": JobReport(JobState.RUNNING, "exiting: its nodes are being cleaned up"),
    "preempting": JobReport(JobState.RUNNING, "preempting: its nodes are being given to another job"),
    "preempted": JobReport(JobState.PENDING, "preempted: waits to be started again"),
}

#: Noise of Python 2 before all that the server says.
_NOISE = 'No handlers could be found for logger "Proxy"'

#: A program that Cobalt has lost.
_LOST_CODES = (1234567, 256)

_EXIT = re.compile(r"Info: task completed normally with an exit code of (-?\d{1,9});")
_WALLTIME = re.compile(r"Info: maximum execution time exceeded; initiating job termination")
_DELETED = re.compile(r"Info: user delete requested(?: with signal \S+ by user (\S+)|; removing job from the queue)")


def read_submission(done: Finished) -> Accepted | Refused | Unclear:
    """Tell what came of qsub."""
    # The id alone, or a filter's text behind it. A command that was killed may have said it before.
    lines = [line for line in whole_lines(done) if line.strip()]
    found = re.match(r"\s*([0-9]+)(?:\s|$)", lines[-1]) if lines else None
    if found is not None and done.code in (0, None):
        return Accepted(found[1])
    words = told(done)
    # A refusal has a number; without one, the server may have been lost after it took the job.
    is_lost = "component error" in done.stderr and "Fault" not in done.stderr
    if done.code is None or done.code <= 0 or not done.stderr.strip() or is_lost:
        return Unclear(words)
    return Refused(words)


def told(done: Finished) -> str:
    """Return what a command said, in one line, without what it says always."""
    said = done.words.replace(f"{_NOISE}; ", "")
    fault = re.search(r"<Fault \d+: ([\"'])(.*?)(?:\\n)?\1>", said)
    return said if fault is None else fault[2]


def read_states(done: Finished) -> dict[str, JobReport | None] | None:
    """Return how the jobs are that qstat shows, None where its word is not known; None if it does not answer."""
    rows = _table(done, STATE_COLUMNS)
    if rows is None or any(len(row.split()) != 1 for row in rows.values()):
        return None
    return {job_id: _STATES.get(row) for job_id, row in rows.items()}


def read_names(done: Finished) -> dict[str, str] | None:
    """Return job ids by the names of the jobs that qstat shows; None if it does not answer."""
    rows = _table(done, NAME_COLUMNS)
    return None if rows is None else {name: job_id for job_id, name in reversed(rows.items())}


def read_ending(log: str) -> JobReport | None:
    """Return how a job ended, from the file that Cobalt writes of it; None if that does not say."""
    ending = None
    for line in log.splitlines():
        # The last one counts: a file that there was already has been added to.
        if found := _EXIT.search(line):
            ending = _exit(int(found[1]))
        elif _WALLTIME.search(line):
            ending = JobReport(JobState.TIMEOUT, "walltime reached")
        elif found := _DELETED.search(line):
            ending = JobReport(JobState.CANCELLED, f"cancelled by user {found[1]}" if found[1] else "cancelled")
    return ending


def read_id(log: str) -> str | None:
    """Return the id of a job, from the file that qsub begins for it; None if it is not there."""
    found = re.findall(r"^Jobid: (\d+)$", log, re.MULTILINE)
    return found[-1] if found else None


def _exit(code: int) -> JobReport:
    if code == 0:
        return JobReport(JobState.COMPLETED, None, 0)
    if code in _LOST_CODES:
        return JobReport(JobState.FAILED, "the scheduler lost the job's process", code)
    if 128 < code <= 192:
        return JobReport(JobState.FAILED, f"exit code {code}, as if killed by signal {code - 128}", code)
    return JobReport(JobState.FAILED, f"exit code {code}", code)


def _table(done: Finished, columns: tuple[str, ...]) -> dict[str, str] | None:
    """Return what stands beside each job id in what qstat prints; None if that is not a whole table of jobs.

    It must be whole, since a job that is not in it is taken for one that has ended.
    """
    if done.code == 1 and not done.stdout.strip() and not done.stderr.strip():
        return {}  # it has none of the jobs that were asked for
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    head = next((number for number, line in enumerate(lines) if line.split() == list(columns)), None)
    if done.code != 0 or head is None or set("".join(lines[head + 1 : head + 2])) != {"="}:
        return None
    rows = [line.split(maxsplit=1) for line in lines[head + 2 :]]
    if any(len(row) != 2 or not row[0].isdecimal() for row in rows):
        return None
    return {job_id: rest for job_id, rest in rows}
