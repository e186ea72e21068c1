"""What runs, launchers and the database tell each other about tasks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share
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
    key: bytes  #: what the call is
    occurrence: int  #: how many calls with this key came before it in its run
    app: str
    function: bytes  #: digest of the stored function
    payload: bytes  #: arguments
    spec: ResourceSpec
    stderr: str | None  #: where the user redirected it to
    flaw: str | None = None  #: why its specification cannot be read; then `spec` is the plain one


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
    shares: tuple[Share, ...]  #: its placement; the first node is its head
    started_at: float  #: seconds since the epoch, on the database's clock as its launcher knows it


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt that is over.

    Times are seconds since the epoch, on the database's clock as the launcher knows it: the clock of the host it ran on
    does not matter, and the times of a block's attempts are in order among themselves.
    """

    task_id: int
    number: int
    token: int
    outcome: Outcome
    host: str | None = None  #: the node that is to be blamed, else the task's first
    shares: tuple[Share, ...] = ()
    started_at: float | None = None  #: None where it never had a process
    ended_at: float | None = None  #: None for the time it is recorded
    payload: bytes | None = None  #: the encoded value or exception
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    error: str | None = None  #: traceback, or what the launcher knows
    output: str | None = None  #: the last of what it printed
    stderr_tail: str | None = None  #: the last of the file its stderr was redirected to
    hopeless: bool = False  #: no other try could do better


@dataclass(frozen=True, slots=True)
class Release:
    """A claimed task that a launcher gives back unstarted, at no cost."""

    task_id: int
    token: int
    why: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a launcher has room for: which tasks it would claim, and how many."""

    tasks: int  #: at most
    cores: int  #: of all of them, on all their nodes, at most
    most_nodes: int  #: of one task
    most_cores: int  #: of one task on one node
    most_gpus: int  #: of one task on one node
    node_cores: int  #: of a whole node, which is what a task takes that does not say how many cores it needs
    time_left_min: float | None = None  #: no task that is expected to take longer; None = no limit
    parallel: bool = True  #: whether tasks of several ranks are welcome
    waited_s: float = 0.0  #: only tasks recorded at least so long ago: others may have room for the newer ones
    least_cores: int = 0  #: of one task on all its nodes
    fallback: bool = False  #: granted only if the wishes before it have found nothing


@dataclass(frozen=True, slots=True)
class Unserved:
    """A ready task for which a launcher has no room, not even when nothing else runs there."""

    task_id: int
    nodes: int
    walltime_min: float | None


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a block has to run tasks on."""

    nodes: int  #: that tasks may run on, now
    cores_per_node: int  #: of the largest of them
    gpus_per_node: int
    ends_in_s: float | None  #: None where its batch job has no limit, or none that is known
    lost_nodes: tuple[str, ...] = ()  #: those that were there or should have been, with the reason


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """A task in a terminal state, for the run that waits for it."""

    task_id: int
    state: TaskState
    payload: bytes | None  #: the encoded value or exception
    outcome: Outcome | None  #: of the last attempt
    error: str | None  #: of the last attempt
