"""What a launcher finds when it starts: nodes, time, and how programs are started on them."""

from __future__ import annotations

import logging
import math
import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from parsl_balsam.launcher import mpi
from parsl_balsam.launcher.agents import Agents, LocalAgents
from parsl_balsam.launcher.allocation import (
    Allocation,
    detect,
    parse_slurm_clock,
    parse_slurm_end,
    slurm_clock_command,
    slurm_end_command,
)
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.mpi import RankPlacement
from parsl_balsam.launcher.node import this_node
from parsl_balsam.launcher.parallel import MpiSite
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.errors import AllocationError, ConfigurationError
from parsl_balsam.model.launch import JobMode, LaunchOrder, MpiStyle

logger = logging.getLogger(__name__)

#: MPI launchers that do not start a program on a node where another one runs (aprun(1); jsrun gives each resource set
#: cores of its own, and agents would have all of them).
_EXCLUSIVE = frozenset({MpiStyle.APRUN, MpiStyle.JSRUN})

#: How long Slurm may take to say when the job ends, seconds.
_ASK_S = 20.0

#: How long it may take to say whether the job goes on, when a signal has come, seconds. Slurm kills what it ends after
#: half a minute (KillWait).
_CONFIRM_S = 5.0

#: The name of the one agent where nodes have none.
HEAD = "head"


@dataclass(frozen=True, slots=True)
class BlockParts:
    """A block, ready to run tasks."""

    agents: Agents
    site: MpiSite
    ends_at: float | None  #: on the monotonic clock; None = no end is known
    nodes: tuple[Node, ...] = ()  #: those that no agent reports
    home: str | None = None  #: the agent that starts all tasks; None = each node has its own
    #: Asks until when the batch job goes on, on the monotonic clock; it answers None if the job is being ended.
    ask_end: Callable[[], float | None] | None = None


def prepare(order: LaunchOrder, block_id: int) -> BlockParts:
    """Find out what this batch job has; start nothing yet.

    Raises
    ------
    AllocationError
        It cannot be told, or agents cannot be started on its nodes.
    ConfigurationError
        The order cannot be carried out here.
    """
    began = time.monotonic()
    epoch = time.time() - began  # of the monotonic clock, on that by which the batch system ends jobs
    if order.nodes is None:
        epoch = _slurm_epoch() if "SLURM_JOB_ID" in os.environ else epoch
        allocation = _detect(epoch)
    else:
        allocation = Allocation("local", None, ("localhost",) * order.nodes, None, None, 0)
    left = order.walltime_s if allocation.end_s is None else allocation.end_s
    available = [program for program in mpi.PROGRAMS if shutil.which(program)]
    usual = mpi.choose(available, os.environ, allocation.scheduler)
    style = usual if order.mpi == "auto" else MpiStyle(order.mpi)
    site = MpiSite(
        style,
        mpi.launcher_program(style, available),
        os.geteuid() == 0,
        order.directory,
        everything=order.job_mode is JobMode.MPI,
        mark=f"{secrets.token_hex(8)}.",
    )
    invitation = Invitation(
        allocation.nodes,
        order.cores_per_node or allocation.cores_per_node,
        allocation.gpus_per_node or None if order.gpus_per_node is None else order.gpus_per_node,
        order.lease_s,
        order.python_path,
        mark=site.mark,
        # One that goes on when nodes die does so without the first, too, where nobody would use what is left of it.
        give_up=("scancel", str(allocation.job_id)) if allocation.scheduler == "slurm" and order.own_job else (),
    )
    _check(order, style)
    file = Path(order.directory) / f"agents-{block_id}.json"
    logger.info(
        "block %d: %d nodes (%s), MPI programs by %s",
        block_id,
        len(allocation.nodes),
        allocation.scheduler,
        style.value,
    )
    ends_at = None if left is None else began + left
    ask_end = None
    if allocation.scheduler == "slurm" and allocation.job_id is not None and order.own_job:
        ask_end = partial(_ask_slurm_end, allocation.job_id, epoch)
    if order.job_mode is JobMode.MPI:
        invitation.write(file)
        agents: Agents = LocalAgents({HEAD: "localhost"}, file, order.lease_s, order.agent_timeout_s)
        return BlockParts(agents, site, ends_at, _nodes_without_agents(allocation, invitation), HEAD, ask_end)
    if allocation.scheduler == "local" or (len(allocation.nodes) == 1 and usual not in _EXCLUSIVE):
        invitation.write(file)
        names = _names(allocation)
        agents = LocalAgents(names, file, order.lease_s, order.agent_timeout_s)
        return BlockParts(agents, site, ends_at, ask_end=ask_end)
    from parsl_balsam.launcher.remote import RemoteAgents  # not before: blocks of one node do without encryption

    command = _agent_launcher(usual, available, allocation, invitation)
    agents = RemoteAgents(allocation.nodes, command, invitation, file, order.address, order.agent_timeout_s)
    return BlockParts(agents, site, ends_at, ask_end=ask_end)


def _ask_slurm_end(job_id: str, epoch: float) -> float | None:
    """Return until when a Slurm job goes on, on the monotonic clock; None if it is being ended, or nobody tells."""
    try:
        ends_at = parse_slurm_end(_told(slurm_end_command(job_id), _CONFIRM_S), epoch)
    except (OSError, subprocess.SubprocessError, AllocationError):
        return None
    return math.inf if ends_at is None else ends_at


def _slurm_epoch() -> float:
    """Return the monotonic clock's epoch on the clock of Slurm's controller: this host's own may be wrong."""
    try:
        now = parse_slurm_clock(_told(slurm_clock_command(), _ASK_S))
    except (OSError, subprocess.SubprocessError, AllocationError) as error:
        logger.warning("Slurm does not tell the time (%s): going by the clock of this host", error)
        now = time.time()
    return now - time.monotonic()


def _detect(epoch: float) -> Allocation:
    now = epoch + time.monotonic()
    allocation = detect(os.environ, lambda path: Path(path).read_text(), now)
    if allocation.scheduler != "slurm" or allocation.end_s is not None or allocation.job_id is None:
        return allocation
    try:
        return replace(allocation, end_s=parse_slurm_end(_told(slurm_end_command(allocation.job_id), _ASK_S), now))
    except (OSError, subprocess.SubprocessError, AllocationError) as error:
        logger.warning("Slurm does not tell when this job ends (%s): going by the walltime that was asked for", error)
        return allocation


def _told(command: Sequence[str], limit_s: float) -> str:
    """Return what a command of Slurm says."""
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=True).stdout


def _check(order: LaunchOrder, style: MpiStyle) -> None:
    if order.job_mode is JobMode.MIXED and style in _EXCLUSIVE:
        raise ConfigurationError(
            f"{style.value} does not start two programs on one node, so this block cannot run tasks of one process and "
            "MPI programs side by side: set job_mode to 'mpi', or to 'serial' if there are no MPI programs"
        )
    if order.job_mode is JobMode.MPI and style is MpiStyle.NONE:
        raise ConfigurationError(
            "job_mode='mpi' starts every task by an MPI launcher, and none of srun, mpiexec, aprun and jsrun is on the "
            "PATH of this block: load its module in the provider's worker_init"
        )


def _names(allocation: Allocation) -> dict[str, str]:
    """Return the nodes that agents on this host stand for, by name, and what MPI launchers call each."""
    if allocation.scheduler != "local":
        return {name: name for name in allocation.nodes}
    name = platform.node()
    if len(allocation.nodes) == 1:
        return {name: "localhost"}
    return {f"{name}-{number}": "localhost" for number in range(1, len(allocation.nodes) + 1)}


def _nodes_without_agents(allocation: Allocation, invitation: Invitation) -> tuple[Node, ...]:
    cores, gpus = invitation.cores_per_node, invitation.gpus_per_node
    return tuple(
        # What the compute nodes have is not seen from here, and tasks take them whole.
        replace(this_node(name, host, cores, gpus, index), memory_gb=None, pin=False)
        for index, (name, host) in enumerate(_names(allocation).items())
    )


def _agent_launcher(
    style: MpiStyle, available: Sequence[str], allocation: Allocation, invitation: Invitation
) -> list[str]:
    """Return the command that starts one process on each node; it must not end them all when one dies."""
    if style is MpiStyle.NONE:
        raise AllocationError(
            f"this batch job has {len(allocation.nodes)} nodes, and no launcher on its PATH could start agents there: "
            "srun, mpiexec, aprun or jsrun is needed. Load its module in the provider's worker_init."
        )
    options = {
        MpiStyle.SRUN: "--no-kill --kill-on-bad-exit=0 --wait=0 --mpi=none --input=none",
        MpiStyle.HYDRA: "-disable-auto-cleanup" if "palstat" not in available else "",
        MpiStyle.OPENMPI: "--enable-recovery --mca orte_abort_on_non_zero_status 0",
    }
    placement = RankPlacement(
        allocation.nodes,
        ranks_per_node=1,
        cores_per_rank=invitation.cores_per_node or 1,
        launcher_options=options.get(style, ""),
        shared=True,
    )
    program = mpi.launcher_program(style, available)
    return mpi.prefix(style, placement, root=os.geteuid() == 0, program=program)
