"""What kind of site the stand-in is, and how fast: values that its maker, its server and its commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Queue:
    """A queue. Times are in minutes of walltime, and None is no limit."""

    name: str
    state: str = "running"  #: running, stopped (jobs stay queued), draining or dead (no jobs are taken)
    min_time: int | None = None
    max_time: int | None = None
    max_running: int | None = None  #: jobs of a user that run at once; the others are in maxrun_hold
    max_queued: int | None = None  #: jobs of a user in the queue, those that run included
    users: Sequence[str] | None = None  #: who may submit; None = all
    min_nodes: int | None = None  #: the site's filter refuses fewer
    max_nodes: int | None = None  #: the site's filter refuses more


@dataclass(frozen=True)
class Settings:
    """What may be changed while the stand-in runs. Waits that have begun go by what is set now."""

    schedule_s: float = 0.05  #: between passes of the scheduler, each of which starts one job at most
    prologue_s: float = 0.05  #: how long jobs are `starting`
    epilogue_s: float = 0.05  #: how long jobs are `exiting`; then all that a job has left on its nodes is killed
    kill_delay_s: float = 5.0  #: from SIGTERM to SIGKILL
    log_lag_s: float = 0.1  #: from an event to its line in the .cobaltlog; the end's line: from when the job has left
    dependency_check_s: float = 0.1  #: between looks for dependencies that have failed
    retry_s: float = 0.1  #: how long commands try to reach a server that is away
    qdel_s: float = 0.05  #: how long qdel takes at least
    minute_s: float = 60.0  #: seconds that a minute of walltime takes

    min_walltime: int = 5  #: minutes; clusters refuse less, whatever the queue
    max_walltime: int = 1440  #: minutes that `-t 0` gives where the queue has no maximum
    remote: bool = False  #: whether the script is started by ssh: fewer variables, words parsed twice, no SIGTERM
    cray: bool = False  #: whether the site is a Cray: no node file, nodes with numbers for names, short walltimes
    host_name: str | None = None  #: what node files call every node, `localhost` say; None = its own name
    need_project: bool = False  #: whether the site's filter refuses jobs without -A
    filter_notice: str = ""  #: what the site's filter says on stderr of each job that it lets through
    qstat_header: str = ""  #: the site's own default columns of qstat, separated by colons
    login: Mapping[str, str] = field(default_factory=dict)  #: variables that login files set, over those that are set


@dataclass(frozen=True)
class Site:
    """What the server is started with."""

    home: str  #: its directory
    nodes: Sequence[str]  #: their names, which differ
    queues: Sequence[Queue]
    settings: Settings
    login: Mapping[str, str]  #: environment in which all jobs begin

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Site:
        """Make it of what `dataclasses.asdict` made of one."""
        queues = [Queue(**queue) for queue in values["queues"]]
        return cls(**{**values, "queues": queues, "settings": Settings(**values["settings"])})
