"""Which nodes, and for how long, the batch job has that this process runs in. Reads nothing by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from parsl_balsam.model.errors import AllocationError
from parsl_balsam.model.nodelists import MOST, UnreadableList, cray_nodes, numbers, slurm_counts, slurm_nodes

_CONFIGURATION_AS_OF = re.compile(r"Configuration data as of (\d{1,18})$", re.ASCII | re.MULTILINE)
_NUMBER = re.compile(r"[0-9]{1,18}")
_HOST = re.compile(r"[\w.-]+", re.ASCII)
#: On CORAL machines a job's script runs on a launch node, the first of its hosts, which takes no ranks.
_LAUNCH_HOST = re.compile(r"(?:batch|login)\d*")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a batch job was given."""

    scheduler: str  #: slurm, cobalt, pbs, lsf, or local where there is none
    job_id: str | None  #: None where there is no batch system
    nodes: tuple[str, ...]  #: host names; a host that stands for several pretend nodes is repeated
    end_s: float | None  #: seconds from now to the end of the job; None = not told
    cores_per_node: int | None  #: cores on the node that has fewest; None = not told: count them there
    gpus_per_node: int  #: GPUs on a node; 0 also where the batch system does not tell


def detect(environ: Mapping[str, str], read: Callable[[str], str], now: float, *, pretend_nodes: int = 1) -> Allocation:
    """Return what the batch job of this process was given.

    Parameters
    ----------
    environ
        The environment of the process.
    read
        Returns the text of a file; raises OSError or UnicodeError if it cannot.
    now
        Seconds since the epoch, on the batch system's clock where that can be asked for.
    pretend_nodes
        How many nodes this host stands for where there is no batch system.

    Raises
    ------
    AllocationError
        A variable is missing, or it or its file cannot be understood; the message names it and its value.
    """
    if "SLURM_JOB_ID" in environ:
        return _slurm(environ, now)
    if "COBALT_JOBID" in environ:
        return _cobalt(environ, read, now)
    if "PBS_JOBID" in environ:
        return _pbs(environ, read)
    if "LSB_JOBID" in environ:
        return _lsf(environ, read)
    return Allocation("local", None, ("localhost",) * pretend_nodes, None, None, 0)


def parse_node_file(text: str, variable: str, path: str) -> Counter[str]:
    """Return the hosts of a node file, in its order, and how many lines each of them has.

    One host name a line, repeated for every slot or MPI process where the batch system counts those: the files of
    COBALT_NODEFILE, PBS_NODEFILE (PBS Professional's User's Guide) and LSB_DJOB_HOSTFILE.

    Raises
    ------
    AllocationError
        It has no hosts, or a line that is none; the message says that `path` is the value of `variable`.
    """
    hosts = [line.strip() for line in text.splitlines() if line.strip()]
    if not hosts:
        raise _unreadable(variable, path, "that file is empty")
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise _unreadable(variable, path, f"line {host!r} of that file is not a host name")
    return Counter(hosts)


def parse_lsf_hosts(text: str, variable: str = "LSB_MCPU_HOSTS") -> Counter[str]:
    """Return the hosts and slots of ``hostA 4 hostB 2`` (LSF's environment variable reference, LSB_MCPU_HOSTS).

    Raises
    ------
    AllocationError
        It is not such a list; the message says it is the value of `variable`.
    """
    words = text.split()
    hosts: Counter[str] = Counter()
    if not words or len(words) % 2:
        raise _unreadable(variable, text, "expected host names, each followed by its number of slots")
    for host, slots in zip(words[::2], words[1::2], strict=True):
        if not _HOST.fullmatch(host):
            raise _unreadable(variable, text, f"{host!r} is not a host name")
        hosts[host] += _count(variable, slots, text)
    return hosts


def slurm_end_command(job_id: str) -> list[str]:
    """Return the command that asks Slurm when a job that runs ends; its answer is for :func:`parse_slurm_end`.

    Slurm before 23 does not set SLURM_JOB_END_TIME. SLURM_TIME_FORMAT (squeue(1)) makes the answer seconds since the
    epoch: the usual one is in local time, ambiguous for an hour a year.
    """
    return [
        "env",
        "SLURM_TIME_FORMAT=%s",
        "squeue",
        "--noheader",
        "--states=RUNNING",
        f"--jobs={job_id}",
        "--format=%e",
    ]


def parse_slurm_end(answer: str, now: float) -> float | None:
    """Return the seconds from `now` to the end of a job; None if it has no limit.

    Raises
    ------
    AllocationError
        The answer is not that of :func:`slurm_end_command` for a job that runs.
    """
    text = answer.strip()
    if text in ("N/A", "NONE", "Unknown", "UNLIMITED"):
        return None
    if not _NUMBER.fullmatch(text):
        raise AllocationError(
            f"Slurm's squeue answered {answer!r} when asked for the end of the job; expected seconds since the epoch. "
            f"Set SLURM_JOB_END_TIME to them."
        )
    return int(text) - now


def slurm_clock_command() -> list[str]:
    """Return the command that asks Slurm for its controller's clock; its answer is for :func:`parse_slurm_clock`.

    The end of a job is a time on that clock. What squeue and scontrol show of the time that is left or was used, they
    reckon by the clock of the host they run on, which may be wrong.
    """
    return ["env", "SLURM_TIME_FORMAT=%s", "scontrol", "show", "config"]


def parse_slurm_clock(answer: str) -> float:
    """Return the controller's clock, in seconds since the epoch: ``Configuration data as of 1795376671``.

    Raises
    ------
    AllocationError
        The answer is not that of :func:`slurm_clock_command`.
    """
    if not (told := _CONFIGURATION_AS_OF.match(answer)):
        raise AllocationError(f"Slurm's scontrol did not tell the time before its configuration: {answer[:80]!r}")
    return float(told[1])


def _slurm(environ: Mapping[str, str], now: float) -> Allocation:
    nodes = _read_list(slurm_nodes, "SLURM_JOB_NODELIST", _value(environ, "SLURM_JOB_NODELIST"))
    told = environ.get("SLURM_JOB_NUM_NODES")
    if told is not None and _count("SLURM_JOB_NUM_NODES", told) != len(nodes):
        raise _unreadable("SLURM_JOB_NUM_NODES", told, f"SLURM_JOB_NODELIST has {len(nodes)} nodes")
    cores = None
    if counts := environ.get("SLURM_JOB_CPUS_PER_NODE"):
        per_node = _read_list(slurm_counts, "SLURM_JOB_CPUS_PER_NODE", counts)
        if len(per_node) != len(nodes):
            raise _unreadable("SLURM_JOB_CPUS_PER_NODE", counts, f"SLURM_JOB_NODELIST has {len(nodes)} nodes")
        cores = min(per_node)
    if "SLURM_GPUS_ON_NODE" in environ:
        gpus = _count("SLURM_GPUS_ON_NODE", environ["SLURM_GPUS_ON_NODE"])
    elif ids := environ.get("SLURM_JOB_GPUS"):
        gpus = len(_read_list(numbers, "SLURM_JOB_GPUS", ids))
    else:
        gpus = 0
    return Allocation(
        "slurm", environ["SLURM_JOB_ID"], nodes, _seconds_to(environ, "SLURM_JOB_END_TIME", now), cores, gpus
    )


def _cobalt(environ: Mapping[str, str], read: Callable[[str], str], now: float) -> Allocation:
    """Read the node file of a cluster, else the node ids of a Cray; a cluster has its head node in COBALT_PARTNAME."""
    if "COBALT_NODEFILE" in environ:
        nodes = tuple(_node_file(environ, "COBALT_NODEFILE", read))
    elif "COBALT_PARTNAME" in environ:
        nodes = _read_list(cray_nodes, "COBALT_PARTNAME", environ["COBALT_PARTNAME"])
    else:
        raise AllocationError(
            "Neither COBALT_NODEFILE (clusters) nor COBALT_PARTNAME (Cray) is set in this Cobalt job. "
            "Set the one that lists the nodes of the job."
        )
    end_s = _seconds_to(environ, "COBALT_ENDTIME", now)
    started = _seconds_to(environ, "COBALT_STARTTIME", now)
    if end_s is not None and started is not None:
        # This host's clock may be behind Cobalt's, which no command tells: what qstat shows of the time that is left it
        # reckons by the clock of the host it runs on. But no job has more left than it was given.
        end_s = min(end_s, end_s - started)
    return Allocation("cobalt", environ["COBALT_JOBID"], nodes, end_s, None, 0)


def _pbs(environ: Mapping[str, str], read: Callable[[str], str]) -> Allocation:
    """Read the hosts; how often each is repeated is its MPI processes, not its cores, which only Torque tells."""
    nodes = tuple(_node_file(environ, "PBS_NODEFILE", read))
    cores = _count("PBS_NUM_PPN", environ["PBS_NUM_PPN"]) if "PBS_NUM_PPN" in environ else None
    return Allocation("pbs", environ["PBS_JOBID"], nodes, None, cores, 0)


def _lsf(environ: Mapping[str, str], read: Callable[[str], str]) -> Allocation:
    if "LSB_DJOB_HOSTFILE" in environ:
        slots = _node_file(environ, "LSB_DJOB_HOSTFILE", read)
    elif "LSB_MCPU_HOSTS" in environ:
        slots = parse_lsf_hosts(environ["LSB_MCPU_HOSTS"])
    else:
        raise AllocationError(
            "Neither LSB_DJOB_HOSTFILE nor LSB_MCPU_HOSTS is set in this LSF job. "
            "Set one of them to the hosts of the job."
        )
    nodes = tuple(slots)
    if len(nodes) > 1 and _LAUNCH_HOST.fullmatch(nodes[0].partition(".")[0]):
        nodes = nodes[1:]
    return Allocation("lsf", environ["LSB_JOBID"], nodes, None, min(slots[node] for node in nodes), 0)


def _read_list(read: Callable[[str], _T], variable: str, value: str) -> _T:
    """Read a list that is the value of a variable."""
    try:
        return read(value)
    except UnreadableList as error:
        raise _unreadable(variable, value, str(error)) from None


def _value(environ: Mapping[str, str], variable: str) -> str:
    if variable not in environ:
        raise AllocationError(
            f"{variable} is not set in this batch job. Set it, or start the launcher in the job itself."
        )
    return environ[variable]


def _node_file(environ: Mapping[str, str], variable: str, read: Callable[[str], str]) -> Counter[str]:
    path = _value(environ, variable)
    try:
        text = read(path)
    except (OSError, UnicodeError) as error:
        raise _unreadable(variable, path, f"that file cannot be read: {error}") from error
    return parse_node_file(text, variable, path)


def _count(variable: str, number: str, value: str | None = None) -> int:
    """Read a number, which is all of `value` or a part of it."""
    value = number if value is None else value
    if not _NUMBER.fullmatch(number):
        raise _unreadable(variable, value, f"{number!r} is not a whole number")
    if int(number) > MOST:
        raise _unreadable(variable, value, f"{int(number)} is more than there can be")
    return int(number)


def _seconds_to(environ: Mapping[str, str], variable: str, now: float) -> float | None:
    """Return the seconds from now to a time since the epoch; None if it is not set."""
    if variable not in environ:
        return None
    if not _NUMBER.fullmatch(environ[variable]):
        raise _unreadable(variable, environ[variable], "that is not a whole number of seconds")
    return int(environ[variable]) - now


def _unreadable(variable: str, value: str, why: str) -> AllocationError:
    return AllocationError(f"{variable}={value!r} does not tell what this batch job has: {why}. Set it right.")
