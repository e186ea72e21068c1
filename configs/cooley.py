"""Cooley of ALCF: 126 nodes with 12 cores (Intel Haswell) and a dual NVIDIA K80, Cobalt. Retired at the end of 2023.

Jobs of one user, by queue; nodes of a job and its minutes:

=======  =====  =======  ======  =======
queue    nodes  minutes  queued  running
=======  =====  =======  ======  =======
default  1-110  5-720    30      10
debug    1-16   5-120    1       1
=======  =====  =======  ======  =======

The 30 of ``default`` are those that run, too. Cobalt takes no job of less than five minutes on a cluster.

Sources: "Queueing and Job Submission on Cooley" and "Cooley System Overview", ALCF user guides
(https://github.com/argonne-lcf/user-guides, ``docs/cooley``, commits 0d85cf7 and 4f06268).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from parsl import Config

from parsl_balsam import BalsamExecutor, CobaltProvider, NodeRange, Queue, QueuePolicy

POLICIES = {
    "default": QueuePolicy((Queue((NodeRange(1, 110, 720, 5),), "default", max_queued=30, max_running=10),)),
    "debug": QueuePolicy((Queue((NodeRange(1, 16, 120, 5),), "debug", max_queued=1, max_running=1),)),
}


def make_config(
    workflow: str,
    account: str,  # your project
    database: str = "~/balsam",  # the directory of 'parsl-balsam db init'
    worker_init: str = "source /etc/bashrc",  # bash that makes your environment
    *,
    queue: Literal["default", "debug"] = "default",
    max_nodes: int | None = None,
    max_blocks: int = 1,
) -> Config:
    """Return a configuration for Cooley.

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
    queue
        Queue that blocks are requested from.
    max_nodes
        Nodes of the largest block; None = as the queue admits.
    max_blocks
        Most blocks at a time.
    """
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=CobaltProvider(
                    queue=queue,
                    account=account,
                    nodes_per_block=1,
                    walltime="01:00:00",
                    # nox11: no X server beside programs that compute on GPUs. A job waits while a file system that it
                    # names is down; without a name, while any is.
                    attrs={"nox11": True, "filesystems": "home,theta-fs0"},
                    max_blocks=max_blocks,
                    worker_init=worker_init,
                ),
                queue_policy=replace(POLICIES[queue], max_nodes=max_nodes),
                mpi="hydra",
                cores_per_node=12,
                gpus_per_node=2,
            )
        ]
    )
