"""Which GPUs a node has, and how a program is told which of them it may use. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

#: Environment variables that limit programs to some GPUs: of NVIDIA, AMD and Intel (CUDA C++ Programming Guide,
#: ROCm documentation, oneAPI Level Zero specification).
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

#: Variables in which MPI launchers tell a rank its number among those on its node, the most particular first: a rank
#: that Hydra or Open MPI started within a Slurm job has Slurm's as well, with the number of the helper that started it.
LOCAL_RANK = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PALS_LOCAL_RANKID",
    "JSM_NAMESPACE_LOCAL_RANK",
    "SLURM_LOCALID",
)


def names(environ: Mapping[str, str], devices: Iterable[str], count: int | None) -> tuple[str, ...]:
    """Return the names of a node's GPUs, as the variables in `VISIBLE` take them.

    Parameters
    ----------
    environ
        The environment of a process that may use all of them: a batch system may have limited it already.
    devices
        Names of the files in ``/dev``; ``nvidia0`` is a GPU.
    count
        How many there are, where that is known otherwise; None = look.
    """
    for variable in VISIBLE:
        if visible := [name.strip() for name in environ.get(variable, "").split(",") if name.strip()]:
            return tuple(visible[:count])
    if count is None:
        count = sum(name.startswith("nvidia") and name[len("nvidia") :].isdigit() for name in devices)
    return tuple(map(str, range(count)))


def variables(gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that limit a program to these GPUs."""
    return dict.fromkeys(VISIBLE, ",".join(gpus))


def of_rank(gpus: Sequence[str], per_rank: int, local_rank: int) -> tuple[str, ...]:
    """Return the GPUs of one rank, from all that its task has on its node."""
    return tuple(gpus[local_rank * per_rank : (local_rank + 1) * per_rank])


def write_table(by_host: Mapping[str, Sequence[str]]) -> str:
    """Return the GPUs of a task on every node: ``*=0,1`` where they are the same on all, else ``n1=0,1 n2=2,3``."""
    distinct = {",".join(gpus) for gpus in by_host.values()}
    if len(distinct) == 1:
        return f"*={distinct.pop()}"
    return " ".join(f"{host}={','.join(gpus)}" for host, gpus in by_host.items())


def read_table(table: str, host: str) -> tuple[str, ...]:
    """Return the GPUs of a task on one host, from what `write_table` wrote. Its domain does not matter."""
    for row in table.split():
        name, _, gpus = row.partition("=")
        if name == "*" or name.partition(".")[0] == host.partition(".")[0]:
            return tuple(filter(None, gpus.split(",")))
    return ()
