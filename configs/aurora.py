"""Aurora of ALCF: nodes with 102 cores for users and 12 tiles of 6 Intel GPUs, PBS Professional, ``mpiexec`` of PALS.

Nodes of a job and its minutes, by queue:

=============  =========  =======
queue          nodes      minutes
=============  =========  =======
debug          1-2        5-60
debug-scaling  2-31       5-60
prod           1-512      5-360
prod           513-1024   5-720
prod           1025-1919  5-1080
prod           1920-7300  5-1440
=============  =========  =======

Of one user ``debug`` and ``debug-scaling`` take one job each; of a project ``prod`` runs ten. Two of a node's 104
cores are reserved for the system. A job must name the file systems it needs, and waits while one of them is down.

Sources: "Running Jobs on Aurora", https://docs.alcf.anl.gov/aurora/running-jobs-aurora/, as of autumn 2025, and
"Parsl on Aurora" (https://github.com/argonne-lcf/user-guides, ``docs/aurora``, commits 0037d9f and 0cf4e58).
"""

from __future__ import annotations

import os
from typing import Literal

from parsl import Config
from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider

from parsl_balsam import BalsamExecutor


def make_config(
    workflow: str,
    account: str,  # your project
    database: str = "~/balsam",  # the directory of 'parsl-balsam db init'
    worker_init: str = "module load frameworks",  # bash that makes your environment
    *,
    queue: Literal["debug", "debug-scaling", "prod"] = "debug",
    nodes: int = 1,
    walltime: str = "01:00:00",
    max_blocks: int = 1,
    filesystems: str = "home:flare",
) -> Config:
    """Return a configuration for Aurora. All blocks have one size, which must be one that the queue admits.

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
    nodes
        Nodes of a block.
    walltime
        Time limit of a block, ``HH:MM:SS``.
    max_blocks
        Most blocks at a time.
    filesystems
        File systems that tasks need, with colons between them.
    """
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=PBSProProvider(
                    queue=queue,
                    account=account,
                    nodes_per_block=nodes,
                    cpus_per_node=208,  # hardware threads
                    walltime=walltime,
                    scheduler_options=f"#PBS -l filesystems={filesystems}\n#PBS -l place=scatter",
                    init_blocks=0,
                    max_blocks=max_blocks,
                    # Tiles are numbered from 0 to 11 only in the flat view; the usual one has numbers such as 0.1.
                    worker_init=f"{worker_init}\nexport ZE_FLAT_DEVICE_HIERARCHY=FLAT",
                    launcher=SimpleLauncher(),
                ),
                mpi="hydra",
                cores_per_node=102,
                gpus_per_node=12,
            )
        ]
    )
