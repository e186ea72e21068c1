"""qstat: shows jobs that are in the queue, or queues."""

from __future__ import annotations

import optparse
import os
import sys
from collections.abc import Mapping, Sequence

from tests.cobalt.questions import Away, ask, fail, fail_without, settings
from tests.cobalt.tables import blocks, table

_SHORT = "JobID:User:WallTime:Nodes:State:Location"
_FULL = (
    "JobID:JobName:User:WallTime:QueuedTime:RunTime:TimeRemaining:Nodes:State:Location:Mode:Procs:Preemptable:Queue:"
    "StartTime:Index"
)
_ALL = (
    "JobID:JobName:User:WallTime:QueuedTime:RunTime:TimeRemaining:Nodes:State:Location:Mode:Procs:Preemptable:User_Hold:"
    "Admin_Hold:Queue:StartTime:Index:SubmitTime:Path:OutputDir:ErrorPath:OutputPath:Envs:Command:Args:Kernel:"
    "KernelOptions:ION_Kernel:ION_KernelOptions:Project:Dependencies:S:Notify:Score:Maxtasktime:attrs:dep_frac:user_list:"
    "Geometry:Est_Start_Time"
)
_QUEUES = "Name:Users:Groups:MinTime:MaxTime:MaxRunning:MaxQueued:MaxUserNodes:MaxNodeHours:TotalNodes:State"


def main(home: str, argv: Sequence[str]) -> None:
    """Show what the server has whose directory is `home`."""
    parser = optparse.OptionParser("%prog [options] [<jobid|queue> ...]", prog="qstat.py", add_help_option=False)
    parser.add_option("--help", action="help")
    for option, name in (("-f", "full"), ("-l", "long"), ("-Q", "queues")):
        parser.add_option(option, dest=name, action="store_true", default=False)
    parser.add_option("-u", dest="user")
    parser.add_option("--header")
    options, words = parser.parse_args(list(argv))
    try:
        known = ask(home, "get_jobs")
    except Away:
        fail_without("queue-manager", "get_queues")
    queues = {queue["name"]: queue for queue in known["queues"]}
    if options.queues:
        rows = [queue for name, queue in queues.items() if not words or name in words]
        header = _QUEUES
    else:
        for word in words:
            if not word.isdecimal() and word not in queues:
                fail(f"{word} is not a valid jobid or queue name")
        rows = [
            job
            for job in known["jobs"]
            if (not words or job["jobid"] in words or job["queue"] in words) and options.user in (None, job["user"])
        ]
        header = _header(home, options)
    if words and not rows:
        sys.exit(1)
    columns = header.split(":")
    if options.long and not options.queues:
        print(blocks(columns, rows), end="")
    else:
        width = max((len(row.get("jobid", "")) for row in rows), default=0)
        print(table(columns, [{**row, "jobid": row.get("jobid", "").rjust(width)} for row in rows]), end="")


def _header(home: str, options: optparse.Values) -> str:
    """Return what users and sites can change in many ways."""
    if options.full and options.long:
        return _ALL
    if options.full:
        return _first(os.environ, "CQSTAT_HEADER_FULL", "QSTAT_HEADER_FULL") or _FULL
    header: str = options.header or _first(os.environ, "CQSTAT_HEADER", "QSTAT_HEADER")
    return header or settings(home)["qstat_header"] or _SHORT


def _first(values: Mapping[str, str], *names: str) -> str:
    return next((values[name] for name in names if values.get(name)), "")
