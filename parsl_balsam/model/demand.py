"""What waits for blocks: the ready tasks of a workflow, by what they need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """Tasks that need the same."""

    count: int
    nodes: int = 1
    cores: int | None = None  #: on each node; None = by `packing`
    packing: int | None = None  #: how many such tasks may share a node; None, with `cores` None = whole nodes
    gpus: int = 0  #: on each node
    walltime_min: float | None = None  #: expected run time, minutes; None where the task does not say


@dataclass(frozen=True, slots=True)
class Demand:
    """All that waits, in no order."""

    groups: tuple[TaskGroup, ...]
    cores_per_node: int | None  #: None where it cannot be told before there is a block
    gpus_per_node: int | None
    oldest_at: float | None = None  #: when the first of these tasks was recorded, seconds since the epoch
    newest_at: float | None = None  #: when the last was

    @property
    def tasks(self) -> int:
        """How many tasks wait."""
        return sum(group.count for group in self.groups)
