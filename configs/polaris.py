"""Polaris of ALCF: 560 nodes with 32 cores and 4 NVIDIA A100, PBS Professional, ``mpiexec`` of PALS.

Nodes of a job and its minutes, by queue:

=============  =======  =======
queue          nodes    minutes
=============  =======  =======
debug          1-2      5-60
debug-scaling  1-10     5-60
capacity       1-4      5-10080
prod           10-24    5-180
prod           25-99    5-360
prod           100-496  5-1440
=============  =======  =======

Of one user ``debug-scaling`` takes one job, ``capacity`` two; of a project ``prod`` runs ten. A job must name the
file systems it needs, and waits while one of them is down.

Sources: "Running Jobs on Polaris", https://docs.alcf.anl.gov/polaris/running-jobs/, and "Polaris"
(https://github.com/argonne-lcf/user-guides, ``docs/polaris``, commits 11dbfa6 and 0a867f3); "Running Jobs using PBS
at the ALCF" (same place, ``docs/running-jobs``, commit 447a129).
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
    worker_init: str = "module use /soft/modulefiles; module load conda; conda activate",  # makes your environment
    *,
    queue: Literal["debug", "debug-scaling", "capacity", "prod"] = "debug",
    nodes: int = 1,
    walltime: str = "01:00:00",
    max_blocks: int = 1,
    filesystems: str = "home:eagle",
) -> Config:
    """Return a configuration for Polaris. All blocks have one size, which must be one that the queue admits.

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
                    cpus_per_node=64,  # hardware threads
                    select_options="ngpus=4:system=polaris",
                    walltime=walltime,
                    scheduler_options=f"#PBS -l filesystems={filesystems}\n#PBS -l place=scatter",
                    init_blocks=0,
                    max_blocks=max_blocks,
                    worker_init=worker_init,
                    launcher=SimpleLauncher(),
                ),
                mpi="hydra",
                cores_per_node=32,
                gpus_per_node=4,
            )
        ]
    )
