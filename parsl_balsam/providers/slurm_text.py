"""What Slurm's commands say. Pure; whatever they print, nothing here raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from parsl.jobs.states import JobState

from parsl_balsam.model.nodelists import UnreadableList, slurm_nodes
from parsl_balsam.providers.commands import Finished, whole_lines
from parsl_balsam.providers.scheduler import Accepted, JobReport, Refused, Unclear

#: Columns of squeue; the reason, which may be any text, comes last.
SQUEUE_FORMAT = "%A|%T|%r"

#: Columns of sacct.
SACCT_FORMAT = "JobIDRaw,State,ExitCode,Timelimit,NodeList,JobName"

#: Words of Slurm's own states, apart from those of jobs that have ended.
_ALIVE = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "POWER_UP_NODE": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD,
    "RESV_DEL_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "SUSPENDED": JobState.HELD,
    "STOPPED": JobState.HELD,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
}

_OVER = {
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELLED,
    "FAILED": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.CANCELLED,  # to Parsl not a failure
    "NODE_FAIL": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
}

_WHAT_IT_DOES = {
    "CONFIGURING": "its nodes are being prepared",
    "POWER_UP_NODE": "its nodes are being switched on",
    "REQUEUED": "waits: it was put back into the queue",
    "REQUEUE_FED": "waits: it was put back into the queue",
    "COMPLETING": "is ending",
    "STAGE_OUT": "is ending: its files are being moved",
    "SUSPENDED": "suspended by the scheduler",
    "STOPPED": "stopped by the scheduler",
}

#: Reasons of jobs that wait until somebody does something.
_HELD = ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied")

#: What sbatch says when the controller may have taken the job, or may take it still.
_UNCLEAR = re.compile(
    r"timed out|Zero Bytes were transmitted|Unable to contact slurm controller|Transport endpoint is not connected"
    r"|Connection (?:refused|reset|timed out)|Communication connection failure|Message (?:send|receive) failure"
    r"|Broken pipe|standby mode|not responding|sleeping and retrying|Unexpected message received",
    re.IGNORECASE,
)

_UNKNOWN_JOB = "Invalid job id specified"

_CANCEL_ERROR = re.compile(r"Kill job error on job id (\d+)\S*?:? (.*)")


@dataclass(frozen=True, slots=True)
class Row:
    """A job in the queue."""

    word: str  #: its state, as Slurm calls it
    reason: str

    @property
    def report(self) -> JobReport | None:
        """How the job is, as far as the queue tells; None if the word is not known."""
        if self.word in _OVER:
            return _ending(self.word, self.reason)
        state = _ALIVE.get(self.word)
        if state is None:
            return None
        message = _WHAT_IT_DOES.get(self.word)
        if state in (JobState.PENDING, JobState.HELD) and message is None:
            message = "waits" if self.reason in ("", "None") else f"waits: {self.reason}"
        if state is JobState.PENDING and self.reason.startswith(_HELD):
            state = JobState.HELD
        return JobReport(state, message)


def read_submission(done: Finished, id_pattern: re.Pattern[str]) -> Accepted | Refused | Unclear:
    """Tell what came of sbatch.

    Parameters
    ----------
    id_pattern
        Matches the start of the line that tells the job id, its group ``id``.
    """
    # A command that was killed may have said it before.
    for line in whole_lines(done):
        found = id_pattern.match(line)
        if found is not None and re.fullmatch(r"[0-9]+", found["id"] or ""):
            cluster = re.search(r"\bon cluster (\S+)", line)
            return Accepted(found["id"] if cluster is None else f"{found['id']};{cluster[1]}")
    words = done.words.replace("sbatch: error: ", "")
    # Without an exit code of its own, and without a word, nothing is known of what became of the request.
    if done.code is None or done.code <= 0 or not done.stderr.strip() or _UNCLEAR.search(done.stderr):
        return Unclear(words)
    return Refused(words)


def read_squeue(done: Finished) -> dict[str, Row] | None:
    """Return the jobs that squeue shows; None if it does not answer."""
    if done.code != 0:
        return {} if _knows_none(done) else None
    rows = {}
    for fields in _rows(done.stdout, "|", 3):
        if fields[0].isdecimal():
            rows[fields[0]] = Row(fields[1], fields[2])
    return rows


def read_sacct(done: Finished, names: dict[str, str]) -> dict[str, JobReport]:
    """Return how jobs ended of which sacct knows it.

    Parameters
    ----------
    names
        Of the jobs asked for, by job id. Ids may have been given twice, where a controller was set up anew.
    """
    reports = {}
    for job_id, words, exit_code, limit, nodes, name in _rows(done.stdout if done.code == 0 else "", "|", 6):
        word, _, by = words.partition(" by ")
        if names.get(job_id) == name and word in _OVER:
            reports[job_id] = _ending(word, "", _exit(exit_code), limit, nodes, by)
    return reports


def has_accounting(done: Finished) -> bool | None:
    """Tell from what sacct said whether there is an accounting database; None if it does not answer."""
    if done.missing or "accounting storage is disabled" in done.stderr:
        return False
    return True if done.code == 0 else None


def read_scontrol(done: Finished, job_id: str) -> JobReport | None:
    """Return how ``scontrol show job`` says a job is; None if it does not say."""
    text = done.stdout if done.code == 0 else ""
    if _value("JobId", text) != job_id:
        return None
    word = _value("JobState", text)
    reason = re.search(r"\sReason=(.*?)\s+Dependency=", text)
    row = Row(word, reason[1] if reason else _value("Reason", text))
    if word not in _OVER:
        return row.report
    nodes, first = _value("NodeList", text), _value("BatchHost", text)
    limit, exit_code = _value("TimeLimit", text), _exit(_value("ExitCode", text))
    # A job that was to outlive its nodes ends so when it loses the one of its script, which is then none of its nodes.
    if row.reason == "JobLaunchFailure" and _lacks(nodes, first):
        return _ending("NODE_FAIL", row.reason, exit_code, limit, first)
    return _ending(word, row.reason, exit_code, limit, nodes)


def is_unknown(done: Finished) -> bool:
    """Tell whether ``scontrol show job`` says that there is no such job."""
    return done.code is not None and _knows_none(done)


def read_names(done: Finished) -> tuple[list[tuple[str, str]], bool]:
    """Return names and ids of the jobs that squeue or sacct shows, and whether that is all they say.

    Ids have their cluster where it is named.
    """
    found, is_all, cluster = [], done.code == 0, ""
    for line in filter(None, map(str.strip, done.stdout.splitlines() if is_all else [])):
        if line.startswith("CLUSTER:"):
            cluster = line.partition(":")[2].strip()
            continue
        name, _, rest = line.partition("|")
        job_id, _, own_cluster = rest.partition("|")
        if job_id.isdecimal():
            at = own_cluster or cluster
            found.append((name, f"{job_id};{at}" if at else job_id))
        else:
            is_all = False
    return found, is_all


def read_scancel(done: Finished, job_ids: list[str]) -> set[str]:
    """Return the jobs of which scancel took the wish, or which are over."""
    if done.code == 0:
        return set(job_ids)
    refused = set()
    for line in done.stderr.splitlines():
        found = _CANCEL_ERROR.search(line)
        if found is None:
            return set()
        if _UNKNOWN_JOB not in found[2] and "already completing or completed" not in found[2]:
            refused.add(found[1])
    return set(job_ids) - refused if done.stderr.strip() else set()


def _ending(
    word: str,
    reason: str,
    exit_code: tuple[int, int] | None = None,
    limit: str = "",
    nodes: str = "",
    by: str = "",
) -> JobReport:
    """Return how a job ended.

    Parameters
    ----------
    exit_code
        The code, and the signal that ended it.
    by
        The user who cancelled it.
    """
    state = _OVER[word]
    code, signal = exit_code or (0, 0)
    if word == "COMPLETED":
        return JobReport(state, None, 0)
    if word == "FAILED" and signal:
        message = f"killed by signal {signal}"
    elif word == "FAILED" and code:
        message = f"exit code {code}"
    elif word == "CANCELLED":
        message = f"cancelled by user {by}" if by else "cancelled by its user or an administrator"
    elif word == "TIMEOUT":
        message = f"walltime of {limit} reached" if limit else "walltime reached"
    elif word in ("NODE_FAIL", "BOOT_FAIL"):
        message = f"node failure ({nodes})" if re.match(r"\w", nodes) and nodes != "None assigned" else "node failure"
    else:
        message = _ENDINGS.get(word) or (f"failed: {reason}" if reason not in ("", "None") else "failed")
    told = None if exit_code is None else 128 + signal if signal else code
    return JobReport(state, message, told if state is JobState.FAILED else None)


_ENDINGS = {
    "DEADLINE": "its deadline was reached",
    "PREEMPTED": "preempted: its nodes were given to another job",
    "OUT_OF_MEMORY": "out of memory",
    "LAUNCH_FAILED": "it could not be launched",
    "RECONFIG_FAIL": "its nodes could not be prepared",
}


def _rows(text: str, separator: str, columns: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(separator, columns - 1)]
        if len(fields) == columns:
            yield fields


def _lacks(nodes: str, name: str) -> bool:
    """Tell whether a node is none of a list; a list that cannot be read does not say so."""
    try:
        return bool(name) and (not nodes or name not in slurm_nodes(nodes))
    except UnreadableList:
        return False


def _value(name: str, text: str) -> str:
    """Return the first value of a name in what ``scontrol --oneliner`` prints; empty if there is none."""
    found = re.search(rf"(?:^|\s){name}=(\S*)", text)
    return found[1] if found and found[1] not in ("(null)", "N/A") else ""


def _exit(text: str) -> tuple[int, int] | None:
    """Return the code and the signal of ``code:signal``."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    return (int(found[1]), int(found[2])) if found else None


def _knows_none(done: Finished) -> bool:
    return done.code is not None and _UNKNOWN_JOB in done.stderr
