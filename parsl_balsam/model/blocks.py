"""What is asked of a scheduler for a block, and what blocks that were requested have for tasks."""

from __future__ import annotations

from dataclasses import dataclass

from parsl_balsam.model.demand import TaskGroup


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """What a batch job asks for."""

    nodes: int
    walltime_min: int  #: whole minutes, which is what all schedulers count in
    queue: str | None = None  #: None = the provider's own


@dataclass(frozen=True, slots=True)
class BlockSupply:
    """A block that waits in a queue or runs, as far as it will serve what waits."""

    block_id: int
    nodes: int  #: that it has, or will have
    walltime_min: float | None  #: that was asked for; None = no end
    queue: str | None = None
    ends_at: float | None = None  #: of one that runs, seconds since the epoch; None = it waits, or has no end
    running: bool = False
    held: tuple[TaskGroup, ...] = ()  #: tasks that it has claimed and not ended
