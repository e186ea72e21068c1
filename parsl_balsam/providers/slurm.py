"""Blocks from Slurm."""

from __future__ import annotations

import re
from typing import ClassVar

import typeguard
from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.batch import BatchProvider
from parsl_balsam.providers.scheduler import option_lines
from parsl_balsam.providers.slurm_scheduler import SlurmOptions, SlurmScheduler


class SlurmProvider(BatchProvider):
    """A Parsl provider that requests blocks from Slurm with sbatch.

    Parameters
    ----------
    partition
        Partition that blocks are requested from. By default Slurm's own, or the user's.
    account
        Account that blocks are charged to.
    qos
        Quality of service of the blocks.
    constraint
        Features that nodes must have, as sbatch's ``--constraint`` takes them.
    clusters
        A cluster, or several with commas between them, where Slurm has more than one.
    nodes_per_block
        Nodes of a block, where nothing else decides its size.
    cores_per_node
        Cores to ask for on each node. By default nothing is said of them.
    mem_per_node
        Memory to ask for on each node, GB. By default nothing is said of it.
    gpus_per_node
        GPUs to ask for on each node.
    gres
        Other resources, as sbatch's ``--gres`` takes them.
    init_blocks
        Blocks at the start of a run.
    min_blocks, max_blocks
        Fewest and most blocks at a time.
    parallelism
        Share of the waiting tasks for which Parsl's strategies request slots, 0 to 1.
    walltime
        Time limit of a block, ``HH:MM:SS`` or ``D-HH:MM:SS``.
    scheduler_options
        Lines for the script that begin with ``#SBATCH``. They win over what other parameters say, except for names,
        sizes and times of blocks.
    regex_job_id
        Matches the start of the line in which sbatch tells the job id, its group ``id``.
    worker_init
        Lines of bash that are run in a block before anything else.
    cmd_timeout
        A command of Slurm that takes longer is given up, seconds.
    status_batch_size
        At most so many jobs are asked for at once.
    exclusive
        Whether blocks have their nodes alone.
    launcher
        How Parsl's own executors start their workers on the nodes.
    reservation
        Reservation that blocks are requested from.
    poll_interval_s
        How often Parsl asks for the status of blocks, seconds.

    Raises
    ------
    ConfigurationError
        If an argument is wrong.
    """

    scheduler: ClassVar[str] = "slurm"

    @typeguard.typechecked
    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        clusters: str | None = None,
        nodes_per_block: int = 1,
        cores_per_node: int | None = None,
        mem_per_node: int | None = None,
        gpus_per_node: int | None = None,
        gres: str | None = None,
        init_blocks: int = 1,
        min_blocks: int = 0,
        max_blocks: int = 1,
        parallelism: float = 1,
        walltime: str = "00:10:00",
        scheduler_options: str = "",
        regex_job_id: str = r"Submitted batch job (?P<id>\S*)",
        worker_init: str = "",
        cmd_timeout: float = 10,
        status_batch_size: int = 50,
        exclusive: bool = True,
        launcher: Launcher = SingleNodeLauncher(),  # noqa: B008  as Parsl's providers have it; it has no state
        reservation: str | None = None,
        poll_interval_s: float = 20,
    ) -> None:
        texts = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "reservation": reservation,
            "clusters": clusters,
            "gres": gres,
        }
        for name, value in texts.items():
            if value is not None and (not value.strip() or not value.isprintable()):
                raise ConfigurationError(f"{name}={value!r} must be text on one line, or left out")
        if status_batch_size < 1:
            raise ConfigurationError(f"status_batch_size={status_batch_size} must be greater than zero")
        if gpus_per_node is not None and gpus_per_node < 0:
            raise ConfigurationError(f"gpus_per_node={gpus_per_node} must not be negative")
        options = SlurmOptions(
            **texts,
            gpus_per_node=gpus_per_node or None,
            exclusive=exclusive,
            own_lines=option_lines(scheduler_options, "#SBATCH"),
        )
        super().__init__(
            SlurmScheduler(options, _id_pattern(regex_job_id), status_batch_size),
            nodes_per_block=nodes_per_block,
            cores_per_node=cores_per_node,
            mem_per_node=mem_per_node,
            init_blocks=init_blocks,
            min_blocks=min_blocks,
            max_blocks=max_blocks,
            parallelism=parallelism,
            walltime=walltime,
            worker_init=worker_init,
            cmd_timeout=cmd_timeout,
            launcher=launcher,
            poll_interval_s=poll_interval_s,
        )
        self.partition = partition
        self.account = account
        self.qos = qos
        self.constraint = constraint
        self.clusters = clusters
        self.gpus_per_node = gpus_per_node
        self.gres = gres
        self.scheduler_options = scheduler_options
        self.regex_job_id = regex_job_id
        self.status_batch_size = status_batch_size
        self.exclusive = exclusive
        self.reservation = reservation


def _id_pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigurationError(f"regex_job_id={text!r} is no regular expression: {error}") from None
    if "id" not in pattern.groupindex:
        raise ConfigurationError(f"regex_job_id={text!r} must have a group (?P<id>...)")
    return pattern
