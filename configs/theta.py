"""Theta of ALCF: Cray XC40, 4,392 nodes with 64 cores (Intel KNL 7230), Cobalt, ``aprun``. Retired at the end of 2023.

Jobs of one user, by queue; nodes of a job and its minutes:

================  ========  =======  ======  =======
queue             nodes     minutes  queued  running
================  ========  =======  ======  =======
default           128-255   30-180   20      10
default           256-383   30-360   20      10
default           384-639   30-540   20      10
default           640-801   30-720   20      10
default           802-4392  30-1440  20      10
debug-cache-quad  1-16      1-60     1       1
================  ========  =======  ======  =======

ALCF's own guide gives the debugging queue 8 nodes of a job at most, and the other one 4,100.

Sources: ``balsam/django_config/theta_policy.ini`` of Balsam (https://github.com/argonne-lcf/balsam, commit 83a5781);
"Job Scheduling and Submission on Theta" and "Theta", ALCF user guides (https://github.com/argonne-lcf/user-guides,
``docs/theta``, commits 79fc7d2 and 92e630b).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from parsl import Config

from parsl_balsam import BalsamExecutor, CobaltProvider, NodeRange, Queue, QueuePolicy

POLICY = QueuePolicy(
    (
        Queue(
            (
                NodeRange(128, 255, max_walltime_min=180, min_walltime_min=30),
                NodeRange(256, 383, max_walltime_min=360, min_walltime_min=30),
                NodeRange(384, 639, max_walltime_min=540, min_walltime_min=30),
                NodeRange(640, 801, max_walltime_min=720, min_walltime_min=30),
                NodeRange(802, 4392, max_walltime_min=1440, min_walltime_min=30),
            ),
            name="default",
            max_queued=20,
            max_running=10,
        ),
        Queue((NodeRange(1, 16, max_walltime_min=60),), name="debug-cache-quad", max_queued=1, max_running=1),
    )
)


def make_config(
    workflow: str,
    account: str,  # your project
    database: str = "~/balsam",  # the directory of 'parsl-balsam db init'
    worker_init: str = "module load miniconda-3",  # bash that makes your environment
    *,
    job_mode: Literal["mpi", "serial"] = "mpi",
    max_nodes: int | None = None,
    max_blocks: int = 1,
) -> Config:
    """Return a configuration for Theta.

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
    job_mode
        ``mpi`` for tasks that ``aprun`` starts, each on nodes of its own; ``serial`` for many tasks of one process on a
        node: ``aprun`` does not start two programs on a node.
    max_nodes
        Nodes of the largest block; None = as the queues admit.
    max_blocks
        Most blocks at a time.
    """
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=CobaltProvider(
                    queue="default",
                    account=account,
                    nodes_per_block=128,
                    walltime="03:00:00",
                    # A job waits while a file system that it names is down; without a name, while any is.
                    attrs={"mcdram": "cache", "numa": "quad", "filesystems": "home,theta-fs0"},
                    max_blocks=max_blocks,
                    worker_init=worker_init,
                ),
                queue_policy=replace(POLICY, max_nodes=max_nodes),
                mpi="aprun",
                job_mode=job_mode,
                cores_per_node=64,
                gpus_per_node=0,
            )
        ]
    )
