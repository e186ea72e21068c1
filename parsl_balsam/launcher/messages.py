"""What launcher, agents and workers say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.resources import Launch
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

#: Of the messages below. An agent of another one is refused, so it must change with whatever one of them has or means.
PROTOCOL = 3

#: Environment variable by which the processes of a parallel task are known on every node of its placement.
MARK = "BALSAM_RANK_OF"

#: Environment variable by which a rank finds `Ranks.ended`.
ENDED = "BALSAM_RANKS_ENDED"

#: Agents are given a little less than the launcher's own lease, so that their tasks are dead when it is over.
LEASE_SHARE = 0.9

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}

#: What is passed on as it is, however long: arguments, or a result.
Load = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the ranks of a task are started."""

    count: int
    launch: Launch | None  #: as in `ResourceSpec`
    alone: bool  #: a task of one process that only a parallel launcher can start: its result is no list
    style: str  #: of the launcher, as in `parsl_balsam.launcher.mpi.MpiStyle`
    variables: Mapping[str, str]  #: what the task and its ranks find in their environment
    threads: int  #: cores of each rank
    mark: str  #: value of `MARK` in the environment of all its processes, on every node
    directory: str  #: which all nodes see

    @property
    def scratch(self) -> Path:
        """The directory in which the ranks of a function find it and leave their results."""
        return Path(self.directory) / f"ranks-{self.mark}"

    @property
    def ended(self) -> Path:
        """The file that is there when the task was given up, see `parsl_balsam.launcher.rank_files.forbid`."""
        return Path(self.directory) / f"ended-{self.mark}"


class Start(NamedTuple):
    """Launcher to agent, and agent to worker: run a task."""

    task_id: int
    number: int  #: of the attempt
    cores: tuple[int, ...]  #: of this node
    pin: bool  #: whether the cores are real, so that the worker may be bound to them
    function: bytes  #: digest
    body: bytes | None  #: the function, where the receiver does not have it
    payload: Load
    timeout_s: float | None
    stderr: str | None  #: the file its stderr is redirected to
    nodes: tuple[str, ...] = ()  #: of its placement, in order
    gpus: tuple[str, ...] = ()  #: those of this node that it may use
    ranks: Ranks | None = None  #: None for a task of one process
    behind: bool = False  #: it is sent ahead: it starts when those sent before it for the same cores are over
    ticket: int = 0  #: which its worker must find, see `parsl_balsam.launcher.tickets`; 0 if it is to begin at once


@dataclass(frozen=True, slots=True)
class Kill:
    """Launcher to agent: end a task and everything it started."""

    task_id: int
    outcome: Outcome  #: to be reported
    why: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Launcher to agent: give a task back if it still waits behind another."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Returned:
    """Agent to launcher: a task that was called back has not started, and will not."""

    task_id: int


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

    node: Node
    # Fields are pickled in their order, and this one must be found by every version: it has to stay the second, after
    # the only one that there was when there were no versions.
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Died:
    """An agent's guard to launcher: the agent is dead, and nothing of its tasks is left."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Agent to launcher: I live, and ask how long my tasks may."""

    at: float  #: on the agent's own clock


@dataclass(frozen=True, slots=True)
class Lease:
    """Launcher to agent, in answer to a beat: kill all tasks so many seconds after you sent it, unless told otherwise.

    Counted from the question, not from the answer: the launcher, which counts from when it heard the question, never
    thinks that the agent's tasks are dead before they are, however long the answer was on its way.
    """

    beat_at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Farewell:
    """Launcher to agent: end all tasks, and yourself."""


class Ended(NamedTuple):
    """Worker to agent, and agent to launcher: a task is over and everything it started on this node is gone."""

    task_id: int
    outcome: Outcome
    payload: Load | None = None
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    error: str | None = None
    output: str | None = None
    stderr_tail: str | None = None


def taken_apart(message: object) -> tuple[object, Load | None]:
    """Return what a message says, and its load: None for one of those that never have any.

    There are as many starts and ends as tasks, and an agent passes them all on. Classes take long to pickle, so these
    are built-in values; and a load need not be looked at on its way.
    """
    if type(message) is Start:
        return ("start", *message[:6], *message[7:]), message.payload
    if type(message) is Ended:
        task_id, outcome, payload, exit_code, signal, usage, *texts = message
        loaded = payload is not None
        said = ("ended", task_id, outcome.value, loaded, exit_code, signal, usage.peak_memory, usage.cpu_time, *texts)
        return said, payload or b""
    return message, None


def put_together(said: Any, load: Load) -> Start | Ended:
    """Return the message of which `taken_apart` has made this.

    Raises
    ------
    Exception
        If it is nothing that it makes.
    """
    kind, *values = said
    if kind == "start":
        return Start._make([*values[:6], load, *values[6:]])
    if kind != "ended":
        raise ValueError(f"no message is called {kind!r}")
    task_id, outcome, loaded, exit_code, signal, peak_memory, cpu_time, *texts = values
    usage = Usage(peak_memory, cpu_time)
    return Ended(task_id, _OUTCOMES[outcome], load if loaded else None, exit_code, signal, usage, *texts)
