"""What a scheduler is to the providers: texts for it, and readings of what it says. All it is asked, it is asked by
a function that is passed in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from parsl.jobs.states import JobState

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.commands import Finished

#: Runs a command of the scheduler.
Ask = Callable[[Sequence[str]], Finished]


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of a batch job; absolute paths."""

    script: str
    stdout: str
    stderr: str
    log: str | None = None  #: what the scheduler itself writes of the job, where it does


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job as it is asked for."""

    name: str  #: unique; letters, digits, dots, dashes and underscores
    files: JobFiles
    nodes: int
    walltime_min: int
    queue: str | None  #: None = the provider's own
    command: str  #: what the script ends with
    tasks_per_node: int = 1
    cores_per_node: int | None = None
    memory_per_node_gb: int | None = None
    worker_init: str = ""
    one_process: bool = False  #: whether the command is one launcher, which starts its own processes on the nodes

    @property
    def cores_per_task(self) -> int | None:
        """Cores for each of the tasks on a node."""
        return None if self.cores_per_node is None else max(1, self.cores_per_node // self.tasks_per_node)

    @property
    def body(self) -> list[str]:
        """The lines of the script that bash runs."""
        lines = [self.worker_init] if self.worker_init else []
        if self.memory_per_node_gb is not None:
            lines.append(f"export PARSL_MEMORY_GB={self.memory_per_node_gb}")
        if self.cores_per_task is not None:
            lines.append(f"export PARSL_CORES={self.cores_per_task}")
        if not self.one_process:
            lines.append(f'export JOBNAME="{self.name}"')  # Parsl's launchers read it
        return [*lines, self.command]


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that was submitted, or may have been."""

    name: str
    job_id: str | None  #: None where it is not known whether the scheduler has it
    files: JobFiles | None  #: None where they are not known: another run submitted it


@dataclass(frozen=True, slots=True)
class Accepted:
    """The scheduler has the job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The scheduler does not take the job."""

    words: str  #: its own


@dataclass(frozen=True, slots=True)
class Unclear:
    """The scheduler may have the job: its answer was lost."""

    words: str  #: what came in its place


@dataclass(frozen=True, slots=True)
class JobReport:
    """How a job is."""

    state: JobState
    reason: str | None = None  #: what it waits for, or how it ended
    exit_code: int | None = None  #: of one that has ended; 128 + the signal that ended it

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.state in _ENDED


_ENDED = frozenset({JobState.CANCELLED, JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT, JobState.MISSING})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a scheduler said of jobs. Of those in neither it said nothing, or nothing that can be read."""

    reports: Mapping[str, JobReport] = field(default_factory=dict)  #: by job id
    unknown: frozenset[str] = frozenset()  #: job ids that it says it does not know


@dataclass(frozen=True, slots=True)
class Found:
    """What a scheduler said of job names. Of those in neither it said nothing, or nothing that can be read."""

    ids: Mapping[str, str] = field(default_factory=dict)  #: job ids, by name
    unknown: frozenset[str] = frozenset()  #: names that none of its jobs has


class Scheduler(ABC):
    """How to talk to a scheduler."""

    @abstractmethod
    def check_directory(self, directory: str) -> None:
        """Refuse a directory that the files of jobs cannot be in.

        Raises
        ------
        ConfigurationError
            The scheduler could not reach them there.
        """

    @abstractmethod
    def files(self, directory: str, name: str) -> JobFiles:
        """Return where the files of a job are."""

    @abstractmethod
    def script(self, job: BatchJob) -> str:
        """Return the text of a job's script."""

    @abstractmethod
    def submit_command(self, job: BatchJob) -> list[str]:
        """Return the command that submits a job whose script is written."""

    @abstractmethod
    def check_command(self, script: str) -> list[str] | None:
        """Return a command by which the scheduler says whether it would take a script; None if there is no such."""

    @abstractmethod
    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for all commands: without variables that would change what they mean or print."""

    @abstractmethod
    def read_submission(self, done: Finished) -> Accepted | Refused | Unclear:
        """Tell what came of a submission."""

    @abstractmethod
    def find(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Found:
        """Look jobs up by their names."""

    @abstractmethod
    def look(self, ask: Ask, jobs: Sequence[SubmittedJob]) -> Answer:
        """See how jobs are whose ids are known."""

    @abstractmethod
    def cancel(self, ask: Ask, job_ids: Sequence[str]) -> set[str]:
        """Cancel jobs; return those for which the scheduler has taken the wish, or which are over."""


def clean_name(name: str) -> str:
    """Return a name as it can be a job's and a file's: of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name) or "_"


def option_lines(text: str, mark: str) -> tuple[str, ...]:
    """Return the lines in which a user gives options to a scheduler, as they can go into a script.

    Raises
    ------
    ConfigurationError
        A line is not one of options, nor a comment: schedulers would overlook all that comes after it.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    for line in lines:
        if not line.startswith("#"):
            raise ConfigurationError(
                f"scheduler_options has a line that does not begin with {mark}: {line!r}; put commands into worker_init"
            )
    return lines
