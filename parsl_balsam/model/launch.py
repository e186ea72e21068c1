"""What a run tells the launchers of its blocks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum

from parsl_balsam.model.stored import read_value


class JobMode(str, Enum):
    """Which tasks a block runs, and how its nodes are used."""

    MIXED = "mixed"  # any task: agents start those of one process, an MPI launcher those of several ranks
    SERIAL = "serial"  # only tasks of one process; agents start them
    MPI = "mpi"  # any task, each started by an MPI launcher on nodes of its own


class MpiStyle(str, Enum):
    """Families of MPI launchers that understand the same options."""

    SRUN = "srun"  # Slurm
    HYDRA = "hydra"  # mpiexec of MPICH, Intel MPI, MVAPICH, and HPE's PALS
    OPENMPI = "openmpi"  # mpiexec of Open MPI
    APRUN = "aprun"  # ALPS, on Cray XC and older
    JSRUN = "jsrun"  # IBM's Job Step Manager, on CORAL machines
    NONE = "none"  # no launcher: one rank, started like any other process


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """Everything a launcher must know, and must not be told on a command line."""

    database: str = field(repr=False)  #: URL, password included
    workflow_id: int
    lease_s: float  #: how long a launcher may be unheard of before its tasks are given to others
    idle_timeout_s: float  #: a launcher that had no work for so long ends
    cores_per_node: int | None  #: None for what the node has
    python_path: tuple[str, ...]  #: where the script found its modules
    directory: str  #: of the run, which all nodes of a block see
    nodes: int | None = None  #: that this host stands for; None = those of the launcher's batch job
    gpus_per_node: int | None = None  #: None for what the node has
    walltime_s: float | None = None  #: of the batch job; None = not known here
    mpi: str = "auto"  #: the MPI launcher: auto, or the value of an `MpiStyle`
    job_mode: JobMode = JobMode.MIXED
    address: str | None = None  #: where agents find the launcher; None = try all addresses of its host
    agent_timeout_s: float = 120.0  #: a node whose agent has not reported after this time is left out
    key: str = field(default="", repr=False)  #: with which payloads are signed, in hexadecimal digits
    own_job: bool = True  #: whether the batch job is for the launcher alone, and over when that is dead

    def starts_alike(self, other: LaunchOrder) -> bool:
        """Tell whether tasks run in blocks of the other order as they would in blocks of this one."""
        return all(getattr(self, name) == getattr(other, name) for name in _WHAT_TASKS_SEE)

    def dumps(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str | bytes, what: str = "the order for launchers") -> LaunchOrder:
        """Read it back.

        Parameters
        ----------
        what
            It is, for messages: the name of a file.

        Raises
        ------
        ConfigurationError
            It is damaged, or of another version.
        """
        return read_value(cls, text, what)


_WHAT_TASKS_SEE = ("cores_per_node", "gpus_per_node", "python_path", "nodes", "mpi", "job_mode")
