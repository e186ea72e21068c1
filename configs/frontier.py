"""Frontier of OLCF: Slurm, ``srun``; nodes with 56 cores for users and 8 GPUs (the dies of 4 AMD MI250X).

Jobs of one user in the partition ``batch``, by quality of service; nodes of a job and its minutes:

======  =========  =======  ======  =======
qos     nodes      minutes  queued  running
======  =========  =======  ======  =======
normal  1-91       1-120    100     any
normal  92-183     1-360    100     any
normal  184-1881   1-720    100     any
normal  1882-5644  1-720    100     any
normal  5645-9472  1-720    100     any
debug   1-9472     1-120    1       1
======  =========  =======  ======  =======

Those queued are those that run, too; four of a user's jobs are eligible at a time. ``debug`` is neither for
production nor for chains of jobs. Eight of a node's 64 cores are reserved (``-S 8``), and a core shows one hardware
thread, unless a job asks for something else.

Source: "Frontier User Guide", sections "Low-noise Mode Layout", "Common Slurm Options" and "Scheduling Policy",
https://docs.olcf.ornl.gov/systems/frontier_user_guide.html (https://github.com/olcf/olcf-user-docs, commit 000387a).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from parsl import Config

from parsl_balsam import BalsamExecutor, NodeRange, Queue, QueuePolicy, SlurmProvider

#: By quality of service.
POLICIES = {
    "normal": QueuePolicy(
        (
            Queue(
                (
                    NodeRange(1, 91, max_walltime_min=120),
                    NodeRange(92, 183, max_walltime_min=360),
                    NodeRange(184, 1881, max_walltime_min=720),
                    NodeRange(1882, 5644, max_walltime_min=720),
                    NodeRange(5645, 9472, max_walltime_min=720),
                ),
                name="batch",
                max_queued=100,
            ),
        )
    ),
    "debug": QueuePolicy(
        (Queue((NodeRange(1, 9472, max_walltime_min=120),), name="batch", max_queued=1, max_running=1),)
    ),
}


def make_config(
    workflow: str,
    account: str,  # your project
    database: str = "~/balsam",  # the directory of 'parsl-balsam db init'
    worker_init: str = "module load cray-python",  # bash that makes your environment
    *,
    qos: Literal["normal", "debug"] = "normal",
    max_nodes: int | None = None,
    max_blocks: int = 1,
) -> Config:
    """Return a configuration for Frontier.

    Parameters
    ----------
    workflow
        Name of the campaign.
    account
        Project that blocks are charged to.
    database
        Directory of ``parsl-balsam db init``, or the URL of a PostgreSQL database.
    worker_init
        Lines of bash that are run in a block before the launcher starts.
    qos
        Quality of service.
    max_nodes
        Nodes of the largest block; None = as the partition admits.
    max_blocks
        Most blocks at a time.
    """
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=SlurmProvider(
                    partition="batch",
                    account=account,
                    qos=qos,
                    gpus_per_node=8,
                    nodes_per_block=1,
                    walltime="01:00:00",
                    max_blocks=max_blocks,
                    worker_init=worker_init,
                ),
                queue_policy=replace(POLICIES[qos], max_nodes=max_nodes),
                mpi="srun",
                cores_per_node=56,
                gpus_per_node=8,
            )
        ]
    )
