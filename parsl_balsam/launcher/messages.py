"""What launcher, agent and workers say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parsl_balsam.model.resources import Launch
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

#: Environment variable by which the processes of a parallel task are known on every node of its placement.
MARK = "BALSAM_RANK_OF"


@dataclass(frozen=True, slots=True)
class Start:
    """Launcher to agent, and agent to worker: run a task."""

    task_id: int
    number: int  #: of the attempt
    cores: tuple[int, ...]
    pin: bool  #: whether the cores are real, so that the worker may be bound to them
    function: bytes  #: digest
    body: bytes | None  #: the function, where the receiver does not have it
    payload: bytes
    timeout_s: float | None
    stderr: str | None  #: the file its stderr is redirected to
    gpus: tuple[str, ...] = ()  #: those of this node that it may use
    ranks: Ranks | None = None  #: None for a task of one process


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the ranks of a task are started."""

    count: int
    launch: Launch | None  #: as in `ResourceSpec`
    variables: Mapping[str, str]  #: ``PARSL_MPI_PREFIX`` and its companions, for this placement
    threads: int  #: cores of each rank
    mark: str  #: value of `MARK` in the environment of all its processes, on every node
    directory: str  #: which all nodes see; the task may make a directory of its own in it


@dataclass(frozen=True, slots=True)
class Kill:
    """Launcher to agent: end a task and everything it started."""

    task_id: int
    outcome: Outcome  #: to be reported


@dataclass(frozen=True, slots=True)
class Clean:
    """Launcher to agent: end all processes with this mark on your node, and say when they are gone."""

    task_id: int
    mark: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Agent to launcher: no process of the task is left on this node."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Agent to launcher: the node is ready for tasks."""

    host: str
    cores: tuple[int, ...]  #: that this node's processes may use
    memory_gb: float
    pid: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Launcher to agent: the launcher's lease is good for this many seconds from now. Kill all tasks before it ends."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Worker to agent, and agent to launcher: a task is over and everything it started is gone."""

    task_id: int
    outcome: Outcome
    payload: bytes | None = None
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    output: str | None = None
    stderr_tail: str | None = None
