"""Durable ensembles of MPI and serial tasks for Parsl.

`BalsamExecutor` keeps every call of an app as a row in a task database; a launcher in every block claims tasks, runs
them and records each attempt. Kill the script, run it again: what is finished is reused, what runs is waited for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parsl_balsam.executor.cancellation import cancel
    from parsl_balsam.executor.executor import BalsamExecutor
    from parsl_balsam.model.current import current_task
    from parsl_balsam.model.resources import ResourceSpec
    from parsl_balsam.model.retry import RetryPolicy
    from parsl_balsam.providers.cobalt import CobaltProvider
    from parsl_balsam.providers.policy import NodeRange, Queue, QueuePolicy
    from parsl_balsam.providers.slurm import SlurmProvider

__all__ = [
    "BalsamExecutor",
    "CobaltProvider",
    "SlurmProvider",
    "QueuePolicy",
    "Queue",
    "NodeRange",
    "ResourceSpec",
    "RetryPolicy",
    "cancel",
    "current_task",
]

_HOMES = {
    "BalsamExecutor": "parsl_balsam.executor.executor",
    "CobaltProvider": "parsl_balsam.providers.cobalt",
    "SlurmProvider": "parsl_balsam.providers.slurm",
    "QueuePolicy": "parsl_balsam.providers.policy",
    "Queue": "parsl_balsam.providers.policy",
    "NodeRange": "parsl_balsam.providers.policy",
    "ResourceSpec": "parsl_balsam.model.resources",
    "RetryPolicy": "parsl_balsam.model.retry",
    "cancel": "parsl_balsam.executor.cancellation",
    "current_task": "parsl_balsam.model.current",
}


def __getattr__(name: str) -> object:
    # The launcher and the command line must not pay for importing Parsl, which the executor needs.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
