"""Perlmutter of NERSC: Slurm, ``srun``; 3,072 nodes with 128 cores, 1,792 nodes with 64 cores and 4 NVIDIA A100.

Jobs of one user, by quality of service and kind of node; nodes of a job and its minutes:

===========  ======  =======  ======  =======
qos/nodes    nodes   minutes  queued  running
===========  ======  =======  ======  =======
regular/cpu  1-3072  1-2880   5000    any
regular/gpu  1-1792  1-2880   5000    any
debug/cpu    1-8     1-30     5       2
debug/gpu    1-8     1-30     5       2
===========  ======  =======  ======  =======

Those queued are those that run, too. NERSC does not limit the nodes of regular jobs: the limit here is all there are.

Sources: "QOSes and Charges", https://docs.nersc.gov/jobs/policy, and "Perlmutter Architecture",
https://docs.nersc.gov/systems/perlmutter/architecture, NERSC documentation as of July 2026.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from parsl import Config

from parsl_balsam import BalsamExecutor, NodeRange, Queue, QueuePolicy, SlurmProvider


@dataclass(frozen=True, slots=True)
class NodeKind:
    """What one kind of node has."""

    nodes: int  #: how many there are
    cores: int  #: of each
    gpus: int  #: of each


KINDS = {"cpu": NodeKind(3072, 128, 0), "gpu": NodeKind(1792, 64, 4)}


def make_policy(
    constraint: Literal["cpu", "gpu"], qos: Literal["regular", "debug"], max_nodes: int | None = None
) -> QueuePolicy:
    """Return which jobs are admitted. The qualities of service share one queue, Slurm's default partition."""
    if qos == "debug":
        queue = Queue((NodeRange(1, 8, max_walltime_min=30),), max_queued=5, max_running=2)
    else:
        queue = Queue((NodeRange(1, KINDS[constraint].nodes, max_walltime_min=2880),), max_queued=5000)
    return QueuePolicy((queue,), max_nodes=max_nodes)


def make_config(
    workflow: str,
    account: str,  # your project
    database: str = "~/balsam",  # the directory of 'parsl-balsam db init'
    worker_init: str = "module load python",  # bash that makes your environment
    *,
    constraint: Literal["cpu", "gpu"] = "cpu",
    qos: Literal["regular", "debug"] = "regular",
    max_nodes: int | None = None,
    max_blocks: int = 1,
) -> Config:
    """Return a configuration for Perlmutter.

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
    constraint
        Kind of the nodes.
    qos
        Quality of service.
    max_nodes
        Nodes of the largest block; None = as the quality of service admits.
    max_blocks
        Most blocks at a time.
    """
    kind = KINDS[constraint]
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=SlurmProvider(
                    account=account,
                    qos=qos,
                    constraint=constraint,
                    gpus_per_node=kind.gpus or None,
                    nodes_per_block=1,
                    walltime="00:30:00",
                    max_blocks=max_blocks,
                    worker_init=worker_init,
                ),
                queue_policy=make_policy(constraint, qos, max_nodes),
                mpi="srun",
                cores_per_node=kind.cores,
                gpus_per_node=kind.gpus,
            )
        ]
    )
