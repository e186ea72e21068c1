"""What the blocks of a provider can have at most, as far as it can be told before there is one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_balsam.model.errors import ConfigurationError, ImpossibleTask
from parsl_balsam.model.launch import JobMode
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.providers.policy import QueuePolicy
from parsl_balsam.providers.rules import BlockRules
from parsl_balsam.providers.walltime import seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest block; None for what cannot be told."""

    nodes: int
    cores: int | None  #: of one node
    gpus: int | None  #: of one node
    parallel: bool  #: whether tasks of several ranks are run
    policy: QueuePolicy | None = None  #: which blocks may be requested; None where they have no walltime
    whole_nodes: bool = False  #: whether each task gets nodes of its own
    sized: bool = False  #: whether each block is sized for the tasks that wait; else all have one size

    def check(self, spec: ResourceSpec) -> None:
        """Refuse a call that no block could run.

        Raises
        ------
        ImpossibleTask
            It needs more than any block has.
        """
        if not self.sized and spec.num_nodes > self.nodes:
            raise ImpossibleTask(
                f"num_nodes={spec.num_nodes} is more than the {self.nodes} nodes of a block: "
                "raise the provider's nodes_per_block, or ask for fewer"
            )
        if self.policy is not None and (why := self.policy.refusal(spec.num_nodes, spec.walltime_min)):
            larger = "the executor's queue_policy" if self.sized else "the provider's walltime"
            raise ImpossibleTask(f"{why}: raise the limit in {larger}, or ask for less")
        if spec.is_parallel and not self.parallel:
            raise ImpossibleTask(
                f"num_nodes={spec.num_nodes}, ranks_per_node={spec.ranks_per_node}: "
                "with job_mode='serial' only tasks of one process run; use job_mode='mixed' or 'mpi'"
            )
        if self.cores is not None and (needed := spec.cores_on(self.cores)) > self.cores:
            raise ImpossibleTask(
                f"{_asked(spec, 'cores_per_rank')} needs {needed} cores on a node, "
                f"which is more than the {self.cores} cores of a node"
            )
        if self.gpus is not None and spec.gpus_on_node > self.gpus:
            raise ImpossibleTask(
                f"{_asked(spec, 'gpus_per_rank')} needs {spec.gpus_on_node} GPUs on a node, "
                f"which is more than the {self.gpus} that it has; "
                "if it has more, set the executor's gpus_per_node"
            )

    def weight(self, spec: ResourceSpec) -> int:
        """Return how many one-core slots a call takes on all its nodes."""
        return spec.num_nodes * spec.cores_on(self.cores or 1)

    def rules(self, max_blocks: int) -> BlockRules:
        """Return what the command line must know to tell which block would be requested."""
        return BlockRules(self.policy, self.sized, max_blocks, self.cores, self.gpus, self.whole_nodes)


def _asked(spec: ResourceSpec, of_rank: str) -> str:
    """Return what of a specification decides how much a node must have."""
    asked = {name: getattr(spec, name) for name in ("ranks_per_node", of_rank)}
    return ", ".join(f"{name}={value}" for name, value in asked.items() if value not in (None, 1)) or of_rank


def limits_of(
    provider: ExecutionProvider,
    cores_per_node: int | None,
    gpus_per_node: int | None,
    mode: JobMode,
    queue_policy: QueuePolicy | None = None,
) -> Limits:
    """Return the limits of a provider's blocks.

    Parameters
    ----------
    cores_per_node, gpus_per_node
        What the user has said of nodes.
    """
    cores = cores_per_node or getattr(provider, "cores_per_node", None)
    if cores is None and isinstance(provider, LocalProvider):
        cores = len(os.sched_getaffinity(0))
    parallel, whole = mode is not JobMode.SERIAL, mode is JobMode.MPI
    if queue_policy is not None:
        return Limits(queue_policy.most_nodes, cores, gpus_per_node, parallel, queue_policy, whole, sized=True)
    walltime_s = walltime_of(provider)
    nodes = provider.nodes_per_block
    policy = None if walltime_s is None else QueuePolicy.fixed(nodes, walltime_s / 60, provider.max_blocks)
    return Limits(nodes, cores, gpus_per_node, parallel, policy, whole)


def walltime_of(provider: ExecutionProvider) -> float | None:
    """Return how long a provider's blocks last, seconds; None where that is not known."""
    return None if isinstance(provider, LocalProvider) else seconds(str(getattr(provider, "walltime", "")))


def check_script_dir(provider: ExecutionProvider) -> None:
    """Refuse a directory of job scripts whose path one of Parsl's own providers would give to a shell as it is.

    Raises
    ------
    ConfigurationError
        The shell would not take the path for one word, or would run parts of it.
    """
    directory = str(getattr(provider, "script_dir", None) or "")
    if re.search(r"""[\s'"$`\\;&|<>(){}]""", directory):
        raise ConfigurationError(
            f"{type(provider).__name__} gives the paths of its scripts to a shell as they are, and the shell would not "
            f"understand {directory!r}: use another run_dir in Parsl's Config"
        )


def take_launcher(provider: ExecutionProvider) -> None:
    """See to it that a provider starts one launcher of ours in a block: it starts its own agents on the nodes.

    Parsl's `SingleNodeLauncher`, the default of its providers, would start it once for each node, all on the first.

    Raises
    ------
    ConfigurationError
        The provider has a Parsl launcher that starts a process on every node.
    """
    launcher = getattr(provider, "launcher", None)
    if launcher is None or isinstance(launcher, SimpleLauncher):
        return
    if not isinstance(launcher, SingleNodeLauncher):
        raise ConfigurationError(
            f"{type(provider).__name__}(launcher={type(launcher).__name__}()) would start a launcher on every node; "
            "one on the first is enough, since it starts its own agents: use launcher=SimpleLauncher()"
        )
    if provider.nodes_per_block > 1:
        provider.launcher = SimpleLauncher()
