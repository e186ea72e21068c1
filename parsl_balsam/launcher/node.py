"""What the node of this process has for tasks."""

from __future__ import annotations

import os

import psutil

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.errors import AllocationError


def this_node(name: str, host: str, cores_per_node: int | None, gpus_per_node: int | None, index: int = 0) -> Node:
    """Return the node this process runs on.

    Parameters
    ----------
    name
        What the block calls it.
    host
        What MPI launchers call it.
    cores_per_node
        How many cores to count with. More than there are makes them pretend cores, to which nothing is bound. None for
        those this process may use.
    gpus_per_node
        How many GPUs to count with. None for those this process may use.
    index
        Its place among the nodes of the block.

    Raises
    ------
    AllocationError
        If it may use no core.
    """
    usable = sorted(os.sched_getaffinity(0))
    if not usable:
        raise AllocationError("this process may use no core: check the affinity the batch system gives to its jobs")
    memory_gb = psutil.virtual_memory().total / 1e9
    found = gpus.names(os.environ, os.listdir("/dev"), gpus_per_node)
    count = cores_per_node or len(usable)
    if count > len(usable):
        return Node(name, host, tuple(range(count)), memory_gb, found, pin=False, index=index)
    return Node(name, host, tuple(usable[:count]), memory_gb, found, pin=True, index=index)
