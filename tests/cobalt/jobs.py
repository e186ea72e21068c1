"""Jobs of the stand-in: what was submitted, and what has become of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tests.cobalt.script import Script


class JobState(str, Enum):
    """A job's state, as qstat names it."""

    QUEUED = "queued"  # may start, or waits for nodes
    USER_HOLD = "user_hold"
    ADMIN_HOLD = "admin_hold"
    DEP_HOLD = "dep_hold"  # waits for other jobs to end well
    DEP_FAIL = "dep_fail"  # one of them did not
    MAXRUN_HOLD = "maxrun_hold"  # as many jobs of its user run as may
    STARTING = "starting"  # has nodes; prologue
    RUNNING = "running"
    KILLING = "killing"  # SIGTERM was sent
    EXITING = "exiting"  # the script is over; epilogue
    GONE = "gone"  # has left the queue; qstat never says so


#: States of jobs that have nodes.
WITH_NODES = (JobState.STARTING, JobState.RUNNING, JobState.KILLING, JobState.EXITING)


@dataclass(frozen=True)
class JobSpec:
    """A job as it was submitted. Paths are absolute; None where nothing was said."""

    script: str
    args: Sequence[str]
    nodes: int
    minutes: int  #: walltime; 0 = as much as there is
    queue: str
    user: str
    cwd: str
    stdin: str | None
    stdout: str | None
    stderr: str | None
    log: str | None
    name: str | None
    project: str | None
    env: Mapping[str, str]
    attrs: Mapping[str, str]
    mode: str
    held: bool
    dependencies: Sequence[str]
    proccount: int | None
    umask: int
    notify: str | None
    run_users: Sequence[str]
    path: str  #: the submitter's PATH


@dataclass(frozen=True)
class LogLine:
    """A line for the .cobaltlog that is not written yet."""

    text: str
    said_at: float
    of_end: bool  #: whether it waits until the job has left the queue


@dataclass
class Job:
    """A job in the queue. Times are in seconds since the epoch."""

    id: int
    spec: JobSpec
    submitted_at: float
    phase: JobState = JobState.QUEUED  #: without the reasons for which it may wait
    since: float = 0.0  #: when it reached this phase
    minutes: int = 0  #: walltime
    nodes: Sequence[str] = ()
    started_at: float | None = None  #: when it got nodes
    running_at: float | None = None  #: when its script was started
    left_at: float | None = None  #: when it left the queue
    code: int | None = None  #: exit code of its script; None = it was killed, or never ran
    script: Script | None = None
    user_hold: bool = False
    admin_hold: bool = False
    failed_dependency: bool = False
    unmet: set[int] = field(default_factory=set)  #: jobs that it waits for
    unwanted: bool = False  #: whether its user has deleted it
    lost: bool = False  #: whether the forker is to lose it
    hurried: bool = False  #: whether it is to be gone as fast as can be
    hidden: bool = False  #: whether qstat does not tell of it
    history: list[str] = field(default_factory=list)  #: all states that it was in
    lines: deque[LogLine] = field(default_factory=deque)

    @property
    def stdout(self) -> str:
        """Where its output goes."""
        return self.spec.stdout or f"{self.spec.cwd}/{self.id}.output"

    @property
    def stderr(self) -> str:
        """Where its errors go."""
        return self.spec.stderr or f"{self.spec.cwd}/{self.id}.error"

    @property
    def log(self) -> str:
        """Where Cobalt writes what becomes of it."""
        return self.spec.log or f"{self.spec.cwd}/{self.id}.cobaltlog"

    @property
    def processes(self) -> int:
        """How many processes it says it will have."""
        return self.spec.proccount or self.spec.nodes

    def enter(self, phase: JobState, now: float) -> None:
        """Note that it has reached a phase."""
        self.phase, self.since = phase, now

    def say(self, text: str, now: float, of_end: bool = False) -> None:
        """Have a line of the .cobaltlog written, in its turn."""
        self.lines.append(LogLine(text, now, of_end))
