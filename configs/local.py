"""This host, without a batch system. Tasks are kept in an SQLite file.

Nothing here is particular to a machine: the number of cores is that which this process may use, GPUs are those found in
``/dev`` (source: the documentation of `parsl_balsam.BalsamExecutor`).
"""

from __future__ import annotations

import os

from parsl import Config
from parsl.providers import LocalProvider

from parsl_balsam import BalsamExecutor


def make_config(
    workflow: str,
    account: str | None = None,  # there is none to charge
    database: str = "sqlite:///balsam.db",
    worker_init: str = "",  # bash that makes your environment, if the one of this script is not enough
    *,
    nodes: int = 1,
) -> Config:
    """Return a configuration for this host.

    Parameters
    ----------
    workflow
        Name of the campaign.
    account
        Not used: so that one call serves all machines.
    database
        URL of a database, or directory of ``parsl-balsam db init``.
    worker_init
        Lines of bash that are run before the launcher starts.
    nodes
        How many nodes this host is to stand for.
    """
    return Config(
        executors=[
            BalsamExecutor(
                workflow=workflow,
                database=os.path.expanduser(database),
                provider=LocalProvider(nodes_per_block=nodes, worker_init=worker_init),
            )
        ]
    )
