"""From a placement to what a worker must know to start a task's ranks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.messages import Ranks
from parsl_balsam.launcher.mpi import RankPlacement, environment
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.launch import MpiStyle
from parsl_balsam.model.shares import Share
from parsl_balsam.model.tasks import ClaimedTask


@dataclass(frozen=True, slots=True)
class MpiSite:
    """How parallel programs are started in a block."""

    style: MpiStyle
    program: str | None  #: name or path of the launcher; None for the usual one of its style
    root: bool  #: whether this is done by root
    directory: str  #: which all nodes see
    everything: bool = False  #: whether tasks of one process are started by it too, since nodes have no agents
    mark: str = ""  #: how the marks of all tasks of the block start


def ranks_of(site: MpiSite, task: ClaimedTask, shares: Sequence[Share], nodes: Mapping[str, Node]) -> Ranks | None:
    """Return how a task's ranks are started; None for one of a single process.

    Raises
    ------
    ImpossibleTask
        There is no MPI launcher for them.
    """
    spec = task.spec
    alone = not spec.is_parallel
    if alone and not site.everything:
        return None
    used = [nodes[share.node] for share in shares]
    threads = spec.cores_per_rank or max(1, min(len(share.cores) for share in shares) // spec.ranks_per_node)
    cores = {share.cores for share in shares}
    enough = spec.ranks_per_node * threads <= min(map(len, cores))
    pinned = len(cores) == 1 and enough and all(node.pin for node in used)
    placement = RankPlacement(
        hosts=tuple(node.host for node in used),
        ranks_per_node=spec.ranks_per_node,
        cores_per_rank=threads,
        gpus_per_rank=spec.gpus_per_rank,
        launcher_options=spec.launcher_options,
        cores=cores.pop() if pinned else None,
        shared=any(len(share.cores) < len(node.cores) for share, node in zip(shares, used, strict=True)),
    )
    variables = environment(site.style, placement, root=site.root, program=site.program)
    # Hydra and Open MPI start their helpers by srun, which would wait for the step of our agents to end; and a job
    # submitted with --export=NONE would pass on nothing.
    variables |= {"SLURM_OVERLAP": "1", "SLURM_EXPORT_ENV": "ALL"}
    if spec.gpus_per_rank:
        by_host: dict[str, tuple[str, ...]] = {}
        for node, share in zip(used, shares, strict=True):  # a host may stand for several pretend nodes
            by_host[node.host] = by_host.get(node.host, ()) + share.gpus
        variables["BALSAM_GPUS"] = gpus.write_table(by_host)
        variables["BALSAM_GPUS_PER_RANK"] = str(spec.gpus_per_rank)
    return Ranks(
        count=spec.num_ranks,
        launch=None if alone else spec.launch,
        alone=alone,
        style=site.style.value,
        variables=variables,
        threads=threads,
        mark=f"{site.mark}{task.task_id}-{task.number}-{task.token:x}",
        directory=site.directory,
    )
