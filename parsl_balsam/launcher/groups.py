"""Waiting tasks that may be placed alike. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass, field

from parsl_balsam.launcher.pool import Need
from parsl_balsam.model.resources import ResourceSpec

#: Sorts tasks that may be placed alike: what they need, the most demanding first.
Shape = tuple[int, int, float, int, int, int, float]


@dataclass(slots=True)
class Group:
    """Waiting tasks of one shape. Those that nobody knows the duration of count as longest."""

    shape: Shape
    spec: ResourceSpec  #: of one of them
    need: Need  #: of each of them
    came: OrderedDict[int, float] = field(default_factory=OrderedDict)  #: all of them, and when, the oldest first
    unknown: OrderedDict[int, None] = field(default_factory=OrderedDict)
    known: list[tuple[float, int]] = field(default_factory=list)  #: (walltime_s, -task), longest last
    newest: float = -math.inf  #: when the last to come of those that have started came

    def put(self, task: Waiting, *, again: bool = False) -> None:
        """Take a task in; before the others, if it was here before."""
        self.came[task.task_id] = task.since
        if again:
            self.came.move_to_end(task.task_id, last=False)
        if task.walltime_s is None:
            self.unknown[task.task_id] = None
            if again:
                self.unknown.move_to_end(task.task_id, last=False)
        else:
            insort(self.known, (task.walltime_s, -task.task_id))

    def drop(self, task: Waiting) -> None:
        """Take a task out."""
        del self.came[task.task_id]
        if task.walltime_s is None:
            del self.unknown[task.task_id]
        else:
            del self.known[bisect_left(self.known, (task.walltime_s, -task.task_id))]

    def only(self, task: Waiting) -> Group:
        """Return a group of only one of them."""
        group = Group(self.shape, self.spec, self.need)
        group.put(task)
        return group

    def first(self, limit_s: float, *, known: bool = False) -> int | None:
        """Return the first task, of those with a known duration or all, that is not expected to exceed a limit."""
        if self.unknown and not known:
            return next(iter(self.unknown))
        index = bisect_right(self.known, (limit_s, 0))
        return -self.known[index - 1][1] if index else None


@dataclass(slots=True)
class Waiting:
    """A task that waits."""

    task_id: int
    spec: ResourceSpec
    since: float  #: when it came
    walltime_s: float | None  #: expected run time
    group: Group


def by_shape(group: Group) -> Shape:
    """Sort groups, the most demanding first."""
    return group.shape


def shape_of(spec: ResourceSpec) -> Shape:
    """Return the shape of tasks that need this."""
    whole = spec.cores is None and spec.node_packing_count is None
    return (
        -spec.priority,
        -spec.num_nodes,
        -(math.inf if whole else spec.cores or 0),
        # A node with fewer cores than a task has ranks there is too small for it, although it is whole.
        -spec.ranks_per_node if whole else 0,
        spec.node_packing_count or 0,
        -spec.gpus_on_node,
        -(spec.memory_gb or 0.0),
    )
