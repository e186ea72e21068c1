"""How to talk to Slurm: its commands, and scripts for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parsl_balsam.model.errors import ConfigurationError
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
from parsl_balsam.providers.slurm_text import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    has_accounting,
    is_unknown,
    read_names,
    read_sacct,
    read_scancel,
    read_scontrol,
    read_squeue,
    read_submission,
)

#: A launcher is told so long before the end of its block that it comes, seconds.
_WARNING_S = 15

#: Variables by which users set options of sbatch. They would win over what a script says.
_VARIABLES = {
    "account": ("SBATCH_ACCOUNT",),
    "clusters": ("SBATCH_CLUSTERS", "SLURM_CLUSTERS"),
    "constraint": ("SBATCH_CONSTRAINT",),
    "exclusive": ("SBATCH_EXCLUSIVE",),
    "gpus-per-node": ("SBATCH_GPUS_PER_NODE",),
    "gres": ("SBATCH_GRES",),
    "partition": ("SBATCH_PARTITION",),
    "qos": ("SBATCH_QOS",),
    "reservation": ("SBATCH_RESERVATION",),
}

#: Variables that would keep sbatch from doing what is meant, whatever the options are.
_NEVER = (
    "SBATCH_ARRAY_INX",
    "SBATCH_ERROR",
    "SBATCH_JOB_NAME",
    "SBATCH_NO_KILL",
    "SBATCH_NO_REQUEUE",
    "SBATCH_OUTPUT",
    "SBATCH_REQUEUE",
    "SBATCH_SIGNAL",
    "SBATCH_TIMELIMIT",
    "SBATCH_WAIT",
)

#: By variables that begin so users filter and shape what these commands print, or have them ask questions.
_SHAPING = ("SACCT_", "SCANCEL_", "SQUEUE_")


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What is the same for all jobs of a provider."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    clusters: str | None = None
    gpus_per_node: int | None = None
    gres: str | None = None
    exclusive: bool = True
    own_lines: tuple[str, ...] = ()  #: of the user, for the script

    def directives(self, queue: str | None) -> dict[str, str | None]:
        """Return the options, by name; None for those without a value.

        Parameters
        ----------
        queue
            A partition in place of the provider's.
        """
        options = {
            "partition": queue or self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "clusters": self.clusters,
            "gpus-per-node": self.gpus_per_node,
            "gres": self.gres,
        }
        given: dict[str, str | None] = {name: str(value) for name, value in options.items() if value is not None}
        if self.exclusive:
            given["exclusive"] = None
        return given


class SlurmScheduler(Scheduler):
    """Slurm.

    A job id is Slurm's number, or ``number;cluster`` where sbatch said that it chose a cluster.

    Parameters
    ----------
    id_pattern
        Matches sbatch's line that tells the job id, its group ``id``.
    batch_size
        At most so many jobs are asked for at once.
    """

    def __init__(self, options: SlurmOptions, id_pattern: re.Pattern[str], batch_size: int) -> None:
        self._options = options
        self._id_pattern = id_pattern
        self._batch_size = batch_size
        self._accounting: bool | None = None  # whether there is any; None = not known yet

    def check_directory(self, directory: str) -> None:
        """Refuse a directory that cannot be written into a script."""
        if "\n" in directory or "\r" in directory:
            raise ConfigurationError(f"{directory!r} cannot be named in a Slurm script: it has a line break in it")

    def files(self, directory: str, name: str) -> JobFiles:
        """Return where the files of a job are."""
        path = os.path.join(directory, name)
        return JobFiles(f"{path}.sh", f"{path}.stdout", f"{path}.stderr")

    def script(self, job: BatchJob) -> str:
        """Return the text of a job's script."""
        soft = self._options.directives(job.queue)
        if job.memory_per_node_gb is not None:
            soft["mem"] = f"{job.memory_per_node_gb}G"
        if job.cores_per_task is not None:
            soft["cpus-per-task"] = str(job.cores_per_task)
        if job.one_process:
            soft |= {"no-kill": None, "no-requeue": None, "signal": f"B:TERM@{_WARNING_S}"}
        hard = {
            "job-name": job.name,
            "output": _literal_path(job.files.stdout),
            "error": _literal_path(job.files.stderr),
            "nodes": str(job.nodes),
            "ntasks-per-node": str(job.tasks_per_node),
            "time": str(job.walltime_min),
        }
        # The last of two like options holds: users may replace the first ones, and not what the provider goes by.
        lines = [
            "#!/bin/bash",
            *(_directive(name, value) for name, value in soft.items()),
            *self._options.own_lines,
            *(_directive(name, value) for name, value in hard.items()),
            "",
            *job.body,
        ]
        return "\n".join(lines) + "\n"

    def submit_command(self, job: BatchJob) -> list[str]:
        """Return the command that submits a job whose script is written."""
        # Once more, since SBATCH_PARTITION would win over what the script says.
        queue = [] if job.queue is None else [f"--partition={job.queue}"]
        return ["sbatch", *queue, job.files.script]

    def check_command(self, script: str) -> list[str]:
        """Return the command by which sbatch only says whether and when a script's job could start."""
        return ["sbatch", "--test-only", script]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for all commands."""
        unwanted = {*_NEVER}
        for option in self._options.directives(None):
            unwanted.update(_VARIABLES.get(option, ()))
        return {
            name: value for name, value in inherited.items() if name not in unwanted and not name.startswith(_SHAPING)
        }

    def read_submission(self, done: Finished) -> Accepted | Refused | Unclear:
        """Tell what came of sbatch."""
        said = read_submission(done, self._id_pattern)
        if isinstance(said, Accepted) and said.job_id.partition(";")[2] == self._options.clusters:
            return Accepted(said.job_id.partition(";")[0])  # all commands name that cluster anyway
        return said

    def find(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Found:
        """Look jobs up by their names: in the queue, then among those that have ended."""
        ids: dict[str, str] = {}
        unknown: set[str] = set()
        for batch in self._batches(jobs):
            names = {job.name for job in batch}
            wanted = f"--name={','.join(sorted(names))}"
            done = ask(["squeue", *self._at(None), *_SHOW_ALL, wanted, "--format=%j|%A"])
            answered = self._note_ids(done, names, ids)
            if answered and names - ids.keys() and self._accounting is not False:
                columns = "--format=JobName,JobIDRaw" + (",Cluster" if self._several_clusters else "")
                done = ask(["sacct", *self._at(None), *_PLAIN, wanted, "--starttime=now-14days", columns])
                if self._note_accounting(done):
                    answered = self._note_ids(done, names, ids)
            if answered:
                unknown |= names - ids.keys()
        return Found(ids, frozenset(unknown))

    def look(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Answer:
        """See how jobs are: in the queue, and those that it does not show or that have ended, one by one."""
        reports: dict[str, JobReport] = {}
        unknown: set[str] = set()
        for cluster, group in _by_cluster(jobs):
            to_ask: dict[str, str] = {}  # names, by number
            for batch in self._batches(group):
                named = {_number(job): job.name for job in batch}
                numbers = f"--jobs={','.join(named)}"
                done = ask(["squeue", *self._at(cluster), *_SHOW_ALL, numbers, f"--format={SQUEUE_FORMAT}"])
                if done.code is None:
                    break  # nor would it answer for the others
                rows = read_squeue(done)
                if rows is None:
                    continue
                for number, name in named.items():
                    report = rows[number].report if number in rows else None
                    if report is not None:
                        reports[_id(number, cluster)] = report
                    if number not in rows or (report is not None and report.ended):
                        to_ask[number] = name
            for number, report in self._closer(ask, cluster, to_ask):
                if report is not None:
                    reports[_id(number, cluster)] = report
                elif _id(number, cluster) not in reports:
                    unknown.add(_id(number, cluster))
        return Answer(reports, frozenset(unknown))

    def cancel(self, ask: Ask, job_ids: Sequence[str]) -> set[str]:
        """Cancel jobs; return those for which scancel took the wish, or which are over."""
        taken: set[str] = set()
        for cluster, group in _by_cluster([SubmittedJob("", job_id, None) for job_id in job_ids]):
            numbers = [_number(job) for job in group]
            done = ask(["scancel", *self._at(cluster), *numbers])
            taken.update(_id(number, cluster) for number in read_scancel(done, numbers))
        return taken

    def _closer(self, ask: Ask, cluster: str | None, names: dict[str, str]) -> Iterator[tuple[str, JobReport | None]]:
        """Yield how jobs are of which the queue does not tell enough; None for those that Slurm does not know."""
        ended: dict[str, JobReport] = {}
        if names and self._accounting is not False:
            wanted = f"--jobs={','.join(names)}"
            done = ask(["sacct", *self._at(cluster), *_PLAIN, wanted, f"--format={SACCT_FORMAT}"])
            self._note_accounting(done)
            ended = read_sacct(done, names)
        for number in names:
            if number in ended:
                yield number, ended[number]
                continue
            done = ask(["scontrol", *self._at(cluster), "--all", "--oneliner", "show", "job", number])
            if done.code is None:
                return  # nor would it answer for the others
            report = read_scontrol(done, number)
            if report is not None or is_unknown(done):
                yield number, report

    def _note_accounting(self, done: Finished) -> bool:
        """Note from what sacct said whether it has anything to say; return whether it may have."""
        if self._accounting is None:
            self._accounting = has_accounting(done)
        return self._accounting is not False

    @property
    def _several_clusters(self) -> bool:
        return "," in (self._options.clusters or "") or self._options.clusters == "all"

    def _note_ids(self, done: Finished, names: set[str], ids: dict[str, str]) -> bool:
        """Note ids of jobs, of two with one name that of the first; return whether those are all that there are."""
        found, is_all = read_names(done)
        for name, job_id in found:
            if name in names:
                ids.setdefault(name, job_id if self._several_clusters else job_id.partition(";")[0])
        return is_all

    def _at(self, cluster: str | None) -> list[str]:
        at = cluster or self._options.clusters
        return [] if at is None else [f"--clusters={at}"]

    def _batches(self, jobs: Sequence[SubmittedJob]) -> Iterator[Sequence[SubmittedJob]]:
        for start in range(0, len(jobs), self._batch_size):
            yield jobs[start : start + self._batch_size]


#: Jobs in all states and partitions, the hidden ones too.
_SHOW_ALL = ("--all", "--noheader", "--states=all")

_PLAIN = ("--allocations", "--noheader", "--parsable2")


def _by_cluster(jobs: Sequence[SubmittedJob]) -> Iterator[tuple[str | None, list[SubmittedJob]]]:
    groups: dict[str | None, list[SubmittedJob]] = {}
    for job in jobs:
        groups.setdefault((job.job_id or "").partition(";")[2] or None, []).append(job)
    yield from groups.items()


def _number(job: SubmittedJob) -> str:
    return (job.job_id or "").partition(";")[0]


def _id(number: str, cluster: str | None) -> str:
    return number if cluster is None else f"{number};{cluster}"


def _directive(name: str, value: str | None) -> str:
    return f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={_quoted(value)}"


def _quoted(value: str) -> str:
    """Return a value as one word of a line of options."""
    if re.fullmatch(r"[\w@%+=:,./-]+", value, re.ASCII):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal_path(path: str) -> str:
    """Return a path in which Slurm replaces nothing."""
    # A backslash anywhere turns the replacement of %j and the like off; two stand for one.
    return path.replace("\\", "\\\\") if "\\" in path else path.replace("%", "%%")
