"""Which cores and how much memory the launcher has on its node."""

from __future__ import annotations

import os

import psutil

from parsl_balsam.launcher.placement import Node
from parsl_balsam.model.errors import AllocationError


def local_node(cores_per_node: int | None) -> Node:
    """Return the node this process runs on.

    Parameters
    ----------
    cores_per_node
        How many cores to count with. More than there are makes them pretend cores, to which nothing is bound. None for
        those this process may use.

    Raises
    ------
    AllocationError
        If it may use none.
    """
    usable = sorted(os.sched_getaffinity(0))
    if not usable:
        raise AllocationError("this process may use no core: check the affinity the batch system gives to its jobs")
    memory_gb = psutil.virtual_memory().total / 1e9
    count = cores_per_node or len(usable)
    if count > len(usable):
        return Node(tuple(range(count)), memory_gb, pin=False)
    return Node(tuple(usable[:count]), memory_gb, pin=True)
