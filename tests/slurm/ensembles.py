"""Apps, and what is checked of them, for ensembles on Slurm."""

from __future__ import annotations

from typing import Any

from parsl import bash_app, python_app
from parsl.launchers import SimpleLauncher
from parsl.providers import SlurmProvider


class QuickSlurmProvider(SlurmProvider):
    """A SlurmProvider whose blocks may be looked at often."""

    status_polling_interval = 0.5


def provider(nodes: int = 4, **options: Any) -> SlurmProvider:
    """Return a provider of blocks on the test cluster."""
    defaults = {"walltime": "00:10:00", "init_blocks": 1, "max_blocks": 1, "scheduler_options": "#SBATCH --no-kill"}
    return QuickSlurmProvider(nodes_per_block=nodes, launcher=SimpleLauncher(), **{**defaults, **options})


@bash_app
def command(line: str, stdout: Any = None, stderr: Any = None, parsl_resource_specification: Any = None) -> str:
    """Run a command line."""
    return line


@python_app
def variables(seconds: float = 0.0, parsl_resource_specification: Any = None) -> Any:
    """Return what a task finds in its environment."""
    import os
    import time

    time.sleep(seconds)
    names = ("SLURMD_NODENAME", "PARSL_MPI_NODELIST", "PARSL_NUM_RANKS", "PARSL_NUM_NODES", "OMP_NUM_THREADS")
    return {name: os.environ.get(name) for name in names}


@python_app
def rank_and_node(seconds: float = 0.0, parsl_resource_specification: Any = None) -> Any:
    """Return where a rank runs, as srun tells it."""
    import os
    import time

    time.sleep(seconds)
    return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), os.environ["SLURMD_NODENAME"]


@python_app
def sleep(seconds: float, parsl_resource_specification: Any = None) -> None:
    """Take a known time, and hardly any processor."""
    import time

    time.sleep(seconds)
