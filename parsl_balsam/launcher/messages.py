"""What launcher, agent and workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage


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


@dataclass(frozen=True, slots=True)
class Kill:
    """Launcher to agent: end a task and everything it started."""

    task_id: int
    outcome: Outcome  #: to be reported


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
