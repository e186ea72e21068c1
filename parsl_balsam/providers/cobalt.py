"""Blocks from Cobalt."""

from __future__ import annotations

import getpass
import os
import pwd
import re
from collections.abc import Mapping
from typing import ClassVar

import typeguard
from parsl.launchers import SingleNodeLauncher
from parsl.launchers.base import Launcher

from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.batch import BatchProvider
from parsl_balsam.providers.cobalt_scheduler import CobaltOptions, CobaltScheduler
from parsl_balsam.providers.scheduler import option_lines

_MARK = "#COBALT "

#: Options by which a job's files would be where they are not looked for.
_FILE_OPTIONS = ("-o", "-e", "-O", "--debuglog")

#: What a value in the environment may consist of: it is read by a shell on its way to the node.
_VALUE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


class CobaltProvider(BatchProvider):
    """A Parsl provider that requests blocks from Cobalt, Argonne's resource manager, with qsub.

    The script's environment is that of a login, not that of this process: what blocks need must be set up in
    `worker_init`.

    Parameters
    ----------
    queue
        Queue that blocks are requested from. By default Cobalt's own.
    account
        Project that blocks are charged to.
    nodes_per_block
        Nodes of a block, where nothing else decides its size.
    init_blocks
        Blocks at the start of a run.
    min_blocks, max_blocks
        Fewest and most blocks at a time.
    parallelism
        Share of the waiting tasks for which Parsl's strategies request slots, 0 to 1.
    walltime
        Time limit of a block, ``HH:MM:SS`` or ``D-HH:MM:SS``; whole minutes are asked for.
    scheduler_options
        Lines for the script that begin with ``#COBALT``.
    worker_init
        Lines of bash that are run in a block before anything else.
    cmd_timeout
        A command of Cobalt that takes longer is given up, seconds.
    launcher
        How Parsl's own executors start their workers on the nodes.
    attrs
        Attributes of the nodes, as qsub's ``--attrs`` takes them, or ``{"mcdram": "flat", "location": "cc001"}``.
    env
        Variables for the script.
    cores_per_node, mem_per_node
        What Parsl's executors may use on each node: cores, and memory in GB.
    poll_interval_s
        How often Parsl asks for the status of blocks, seconds.

    Raises
    ------
    ConfigurationError
        If an argument is wrong.
    """

    scheduler: ClassVar[str] = "cobalt"

    # The line that says how a job ended is written up to 5 s after it has left the queue.
    forgotten_s = 10.0

    @typeguard.typechecked
    def __init__(
        self,
        queue: str | None = None,
        account: str | None = None,
        nodes_per_block: int = 1,
        init_blocks: int = 1,
        min_blocks: int = 0,
        max_blocks: int = 1,
        parallelism: float = 1,
        walltime: str = "00:10:00",
        scheduler_options: str = "",
        worker_init: str = "",
        cmd_timeout: float = 10,
        launcher: Launcher = SingleNodeLauncher(),  # noqa: B008  as Parsl's providers have it; it has no state
        attrs: dict[str, str | int | bool] | str | None = None,
        env: dict[str, str] | None = None,
        cores_per_node: int | None = None,
        mem_per_node: int | None = None,
        poll_interval_s: float = 20,
    ) -> None:
        for name, value in {"queue": queue, "account": account}.items():
            if value is not None and not re.fullmatch(r"[^\s-]\S*", value):
                raise ConfigurationError(f"{name}={value!r} must be one word, or left out")
        lines = option_lines(scheduler_options, _MARK)
        _check_lines(lines, attrs_given=bool(attrs))
        options = CobaltOptions(queue, account, _attributes(attrs), _environment(env), lines)
        super().__init__(
            CobaltScheduler(options, _user()),
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
        self.queue = queue
        self.account = account
        self.scheduler_options = scheduler_options
        self.attrs = attrs
        self.env = env


def _check_lines(lines: tuple[str, ...], attrs_given: bool) -> None:
    """Refuse lines of options that Cobalt would not read, or that would lead the provider astray."""
    for line in lines:
        words = line[len(_MARK) :].split()
        if not line.startswith(_MARK) or not words:
            raise ConfigurationError(
                f"scheduler_options has the line {line!r}: Cobalt reads only lines that begin with '#COBALT' and one "
                "blank, and none after another one"
            )
        for word in words:
            if word.startswith(_FILE_OPTIONS):
                raise ConfigurationError(f"scheduler_options has {word}: the provider itself says where files are")
            if word.startswith("--attrs") and attrs_given:
                raise ConfigurationError("scheduler_options has --attrs, and attrs is given: Cobalt takes only one")


def _attributes(attrs: Mapping[str, str | int | bool] | str | None) -> str | None:
    """Return attributes as qsub takes them."""
    if not attrs:
        return None
    if isinstance(attrs, str):
        items = attrs.split(":")
    else:
        items = [
            name if value is True else f"no_{name}" if value is False else f"{name}={value}"
            for name, value in attrs.items()
        ]
    for item in items:
        if not re.fullmatch(r"[^\s:=]+(=[^\s:=]*)?", item):
            raise ConfigurationError(f"attrs has {item!r}: it must be NAME or NAME=VALUE, without blanks, ':' or '='")
    return ":".join(items)


def _environment(env: Mapping[str, str] | None) -> str | None:
    """Return variables as qsub takes them."""
    if not env:
        return None
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ConfigurationError(f"env has {name!r}, which is no name of a variable")
        if not _VALUE.fullmatch(value):
            raise ConfigurationError(
                f"env has {name}={value!r}: Cobalt does not pass blanks, quotes and the like on as they are; "
                f"put a line 'export {name}=...' into worker_init"
            )
    return ":".join(f"{name}={re.sub('[:=]', _escape, value)}" for name, value in env.items())


def _escape(found: re.Match[str]) -> str:
    return "\\" + found[0]


def _user() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return getpass.getuser()
