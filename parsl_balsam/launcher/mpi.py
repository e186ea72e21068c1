"""How an MPI program is started on given nodes: from a placement to the words of a command line. Pure.

Options are as in srun(1), MPICH's ``mpiexec -help``, mpiexec(1) of Open MPI 4 and 5, aprun(1) and jsrun(1).
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from parsl_balsam.model.errors import ConfigurationError, ImpossibleTask
from parsl_balsam.model.launch import MpiStyle

#: Programs that :func:`choose` and :func:`launcher_program` want to know of, if they are on the PATH.
PROGRAMS = (
    "srun",
    "aprun",
    "jsrun",
    "palstat",
    "mpiexec",
    "mpirun",
    "mpiexec.hydra",
    "mpiexec.mpich",
    "mpiexec.openmpi",
    "ompi_info",
)

#: Variables in which launchers tell a rank its number, the most particular first: a rank that Hydra or Open MPI started
#: within a Slurm job has Slurm's as well, with the number of the helper process that started it.
RANK = (
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "PALS_RANKID",
    "JSM_NAMESPACE_RANK",
    "ALPS_APP_PE",
    "SLURM_PROCID",
)

_CRAY_HOST = re.compile(r"nid0*(\d+)")


#: Names of an MPI library's launcher, those that no other library has first.
_MPIEXECS = {
    MpiStyle.HYDRA: ("mpiexec.hydra", "mpiexec.mpich", "mpiexec", "mpirun"),
    MpiStyle.OPENMPI: ("mpiexec.openmpi", "mpiexec", "mpirun"),
}


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """Where the ranks of one task run.

    Raises
    ------
    ConfigurationError
        There are no hosts, a count is too small, some host is repeated more often than another, or the options have an
        open quote.
    """

    hosts: tuple[str, ...]  #: one per node; a host that stands for several pretend nodes is repeated
    ranks_per_node: int  #: at least 1
    cores_per_rank: int = 1  #: at least 1
    gpus_per_rank: int = 0  #: GPUs of each rank
    launcher_options: str = ""  #: more options for the launcher, quoted as for a shell
    shared: bool = False  #: whether other tasks run on these nodes
    cores: tuple[int, ...] | None = None  #: those of each node that ranks are to be bound to, where nodes are shared

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ConfigurationError("A placement needs at least one host, and it has none.")
        for name, least in (("ranks_per_node", 1), ("cores_per_rank", 1), ("gpus_per_rank", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigurationError(f"{name}={value!r} of a placement must be an integer of at least {least}.")
        if len(set(Counter(self.hosts).values())) > 1:
            raise ConfigurationError(f"Some of the hosts {self.hosts} of a placement are repeated more than others.")
        try:
            shlex.split(self.launcher_options)
        except ValueError as error:
            raise ConfigurationError(
                f"launcher_options={self.launcher_options!r} cannot be split into words: {error}."
            ) from None

    @property
    def ranks(self) -> int:
        """How many ranks there are on all nodes together."""
        return len(self.hosts) * self.ranks_per_node

    @property
    def distinct_hosts(self) -> tuple[str, ...]:
        """Every host once, in the order of the nodes."""
        return tuple(dict.fromkeys(self.hosts))

    @property
    def ranks_per_host(self) -> int:
        """How many ranks each host runs: more than `ranks_per_node` where hosts stand for several nodes."""
        return self.ranks // len(self.distinct_hosts)


def choose(available: Collection[str], environ: Mapping[str, str], scheduler: str) -> MpiStyle:
    """Pick the launcher of a site: its batch system's own, else that of its MPI library.

    Parameters
    ----------
    available
        Those of :data:`PROGRAMS` that are on the PATH.
    environ
        The environment MPI programs will be started in.
    scheduler
        The batch system of this job, as in :class:`parsl_balsam.launcher.allocation.Allocation`.
    """
    found = set(available)
    if "aprun" in found:
        return MpiStyle.APRUN
    # Outside of a job of its own batch system, srun queues for nodes of its own and jsrun fails.
    if scheduler == "slurm" and "srun" in found:
        return MpiStyle.SRUN
    if scheduler == "lsf" and "jsrun" in found:
        return MpiStyle.JSRUN
    if found & {"palstat", "mpiexec.hydra", "mpiexec.mpich"}:
        return MpiStyle.HYDRA
    if found & {"mpiexec.openmpi", "ompi_info"} and "I_MPI_ROOT" not in environ:
        return MpiStyle.OPENMPI
    return MpiStyle.HYDRA if found & {"mpiexec", "mpirun"} else MpiStyle.NONE


def launcher_program(style: MpiStyle, available: Collection[str]) -> str:
    """Return the name of the program to start, where several MPI libraries are installed side by side.

    Parameters
    ----------
    style
        What :func:`choose` or the user chose; not ``none``.
    available
        Those of :data:`PROGRAMS` that are on the PATH.
    """
    names = _MPIEXECS.get(style, ())
    if style is MpiStyle.HYDRA and "palstat" in available:
        # Beside PALS, mpiexec.hydra is that of some MPI library, which cannot reach the other nodes.
        names = ("mpiexec",)
    return next((name for name in names if name in available), _usual_program(style))


def prefix(style: MpiStyle, placement: RankPlacement, *, root: bool = False, program: str | None = None) -> list[str]:
    """Return what to put before a command so that it starts on every rank of a placement, and nowhere else.

    The user's own options come last: srun and Open MPI follow the last of two that contradict each other; Hydra refuses
    an option that is there twice.

    ``jsrun`` takes no names of hosts: it chooses nodes of the job by itself, those whose cores it has not given out.
    ``srun`` is not told of GPUs, since it would choose them by itself: which ones a rank may use, its environment says.

    Parameters
    ----------
    style
        The launcher.
    placement
        Where the ranks are to run.
    root
        Whether this process runs as root, which Open MPI wants to be told.
    program
        Name or path of the launcher; None for the usual one of its style.

    Raises
    ------
    ImpossibleTask
        There is no launcher and more than one rank.
    """
    ranks, per_host = str(placement.ranks), str(placement.ranks_per_host)
    hosts = placement.distinct_hosts
    cores, gpus = str(placement.cores_per_rank), str(placement.gpus_per_rank)
    if style is MpiStyle.NONE:
        if placement.ranks > 1:
            raise ImpossibleTask(
                f"A task with {ranks} ranks needs an MPI launcher, and there is none here. Put one on the PATH "
                f"(srun, mpiexec, aprun or jsrun; often: load a module), or ask for one rank."
            )
        return []
    words = [program or _usual_program(style)]
    if style is MpiStyle.SRUN:
        # --cpus-per-task confines a step to the first cores, those that the next step gets too, as both overlap.
        words += ["--overlap", "--kill-on-bad-exit=1", f"--nodes={len(hosts)}", f"--ntasks={ranks}"]
        # Within a step, such as that of our agents, srun would take over its distribution, which is cyclic.
        words += [f"--ntasks-per-node={per_host}", "--distribution=block", f"--nodelist={','.join(hosts)}"]
        words += [f"--cpu-bind={_binding(placement)}"] if placement.shared else [f"--cpus-per-task={cores}"]
    elif style is MpiStyle.HYDRA:
        words += ["-n", ranks, "-ppn", per_host, "-hosts", ",".join(hosts)]
    elif style is MpiStyle.OPENMPI:
        # Slots are what the job asked Slurm for, often one a node, whatever -H says: hence OVERSUBSCRIBE.
        words += ["-n", ranks, "--map-by", f"ppr:{per_host}:node:OVERSUBSCRIBE"]
        words += ["-H", ",".join(f"{host}:{per_host}" for host in hosts)]
        # Its own binding gives every program of a node the same first cores, and all threads of a rank one core.
        words += ["--bind-to", "none"] if placement.shared or placement.cores_per_rank > 1 else []
        words += ["--allow-run-as-root"] if root else []
    elif style is MpiStyle.APRUN:
        words += ["-n", ranks, "-N", per_host, "-d", cores, "-L", ",".join(map(_node_id, hosts))]
    else:
        words += ["--nrs", ranks, "--rs_per_host", per_host, "--tasks_per_rs", "1", "--cpu_per_rs", cores]
        words += ["--gpu_per_rs", gpus, "--bind", "rs"]
    return words + shlex.split(placement.launcher_options)


def environment(
    style: MpiStyle, placement: RankPlacement, *, root: bool = False, program: str | None = None
) -> dict[str, str]:
    """Return the variables a task with ranks finds: all that Parsl's MPIExecutor sets, with the same meaning.

    All of them are set every time, so that none is left over from another task. Those of launchers the site does not
    have are set too; ``PARSL_MPIEXEC_PREFIX`` speaks to Open MPI where that is the launcher, else to MPICH's family.

    Parameters
    ----------
    style, placement, root, program
        As for :func:`prefix`.

    Raises
    ------
    ImpossibleTask
        As :func:`prefix` does.
    """
    chosen = shlex.join(prefix(style, placement, root=root, program=program))

    def words(other: MpiStyle) -> str:
        return chosen if style is other else shlex.join(prefix(other, placement, root=root))

    return {
        "PARSL_MPI_PREFIX": chosen,
        "PARSL_SRUN_PREFIX": words(MpiStyle.SRUN),
        "PARSL_MPIEXEC_PREFIX": chosen if style is MpiStyle.OPENMPI else words(MpiStyle.HYDRA),
        "PARSL_APRUN_PREFIX": words(MpiStyle.APRUN),
        "PARSL_NUM_NODES": str(len(placement.hosts)),
        "PARSL_NUM_RANKS": str(placement.ranks),
        "PARSL_RANKS_PER_NODE": str(placement.ranks_per_node),
        "PARSL_LAUNCHER_OPTIONS": placement.launcher_options,
        "PARSL_MPI_NODELIST": ",".join(placement.hosts),
    }


def exporting(style: MpiStyle, names: Iterable[str]) -> list[str]:
    """Return the options by which all ranks find environment variables of the process that starts the launcher.

    Only Open MPI has to be told: between nodes it passes on no others than its own (mpirun(1), -x).
    """
    return [word for name in names for word in ("-x", name)] if style is MpiStyle.OPENMPI else []


def rank_of_environment(environ: Mapping[str, str]) -> int | None:
    """Return the number of this rank; None where no launcher told it."""
    return next((int(environ[name]) for name in RANK if environ.get(name, "").isdigit()), None)


def _binding(placement: RankPlacement) -> str:
    """Return how srun binds ranks on nodes that are shared: to the given cores, or not at all."""
    if placement.cores is None or len(placement.cores) < placement.ranks_per_host * placement.cores_per_rank:
        return "none"
    per_rank = placement.cores_per_rank
    starts = range(0, placement.ranks_per_host * per_rank, per_rank)
    masks = [sum(1 << core for core in placement.cores[start : start + per_rank]) for start in starts]
    return "mask_cpu:" + ",".join(f"{mask:#x}" for mask in masks)


def _usual_program(style: MpiStyle) -> str:
    return "mpiexec" if style in _MPIEXECS else style.value


def _node_id(host: str) -> str:
    """Return the number that ``aprun -L`` calls a Cray node by: 12 for nid00012; other names as they are."""
    cray = _CRAY_HOST.fullmatch(host)
    return cray[1] if cray else host
