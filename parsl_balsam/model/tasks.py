"""What runs, launchers and the database tell each other about tasks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.states import Outcome, TaskState


class Binding(str, Enum):
    """What a call met in the database."""

    NEW = "new"  # nothing: its task was recorded
    ATTACHED = "attached"  # a task that waits or runs
    REUSED = "reused"  # a task with a recorded result
    REOPENED = "reopened"  # a task that had failed or was cancelled, now ready with a fresh budget


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an app, on its way into the database."""

    key: bytes  #: what the call is, see `parsl_balsam.model.identity`
    occurrence: int  #: how many calls with this key came before it in its run
    app: str  #: name of the user's function
    function: bytes  #: digest of the stored function
    payload: bytes  #: arguments, see `parsl_balsam.model.payload`
    spec: ResourceSpec
    stdout: str | None = None  #: where the user redirected it to
    stderr: str | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The task that a call became."""

    task_id: int
    binding: Binding
    payload: bytes | None = None  #: the recorded result, where there is one


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """A task that a launcher may run, once."""

    task_id: int
    number: int  #: of the attempt, from 1
    token: int  #: the right to record what becomes of it
    app: str
    function: bytes  #: digest of the stored function
    payload: bytes
    spec: ResourceSpec
    stderr: str | None  #: where the user redirected it to


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used."""

    peak_memory: int | None = None  #: bytes resident in the largest process, as far as known
    cpu_time: float | None = None  #: seconds, of the worker and all it waited for


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """An attempt that has a process now."""

    task_id: int
    number: int
    token: int
    host: str
    cores: tuple[int, ...]
    age_s: float  #: seconds since it started


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt that is over.

    Times are ages, not dates, so that the clock of the host it ran on does not matter.
    """

    task_id: int
    number: int
    token: int
    outcome: Outcome
    host: str | None = None
    cores: tuple[int, ...] = ()
    started_ago_s: float | None = None  #: None where it never had a process
    ended_ago_s: float = 0.0
    payload: bytes | None = None  #: the encoded value or exception
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    error: str | None = None  #: traceback, or what the launcher knows
    output: str | None = None  #: the last of what it printed
    stderr_tail: str | None = None  #: the last of the file its stderr was redirected to
    hopeless: bool = False  #: no other try could do better


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """A task in a terminal state, for the run that waits for it."""

    task_id: int
    state: TaskState
    payload: bytes | None  #: the encoded value or exception
    outcome: Outcome | None  #: of the last attempt
    error: str | None  #: of the last attempt
