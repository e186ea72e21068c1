"""What qstat can say of jobs and queues, as text by column."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from tests.cobalt.joblog import stamp
from tests.cobalt.jobs import WITH_NODES, Job, JobState
from tests.cobalt.settings import Queue

_SHORT = {
    JobState.QUEUED: "Q",
    JobState.USER_HOLD: "H",
    JobState.ADMIN_HOLD: "H",
    JobState.DEP_HOLD: "H",
    JobState.DEP_FAIL: "H",
    JobState.MAXRUN_HOLD: "H",
    JobState.STARTING: "R",
    JobState.RUNNING: "R",
    JobState.KILLING: "K",
    JobState.EXITING: "E",
}


def describe_job(job: Job, state: JobState, now: float, minute_s: float) -> dict[str, str]:
    """Return a job's columns, by name in small letters."""
    spec = job.spec
    started = job.phase in WITH_NODES
    running_s = (now - job.running_at) * 60 / minute_s if job.running_at is not None else None
    return {
        "jobid": str(job.id),
        "jobname": spec.name or "N/A",
        "user": spec.user,
        "walltime": clock(60 * job.minutes),
        "queuedtime": clock((job.started_at or now) - job.submitted_at),
        "runtime": "N/A" if running_s is None else clock(running_s),
        "timeremaining": "N/A" if running_s is None else clock(max(0.0, 60 * job.minutes - running_s)),
        "nodes": str(spec.nodes),
        "state": state.value,
        "location": location(job.nodes) if started else "None",
        "mode": spec.mode,
        "procs": str(job.processes),
        "preemptable": "False",
        "user_hold": str(job.user_hold),
        "admin_hold": str(job.admin_hold),
        "queue": spec.queue,
        "starttime": "N/A" if job.started_at is None else stamp(job.started_at),
        "index": "None",
        "submittime": stamp(job.submitted_at),
        "path": spec.path,
        "outputdir": spec.cwd,
        "errorpath": str(job.stderr if started else spec.stderr),
        "outputpath": str(job.stdout if started else spec.stdout),
        "envs": " ".join(f"{name}={value}" for name, value in spec.env.items()),
        "command": spec.script,
        "args": " ".join(spec.args),
        "kernel": "default",
        "kerneloptions": "None",
        "ion_kernel": "default",
        "ion_kerneloptions": "None",
        "project": str(spec.project),
        "dependencies": ":".join(spec.dependencies),
        "s": _SHORT[state],
        "short_state": _SHORT[state],
        "notify": str(spec.notify),
        "score": "50.0",
        "maxtasktime": "None",
        "attrs": str(dict(spec.attrs)),
        "dep_frac": "None",
        "user_list": ":".join(spec.run_users or [spec.user]),
        "geometry": "None",
        "est_start_time": "-",
    }


def describe_queue(queue: Queue) -> dict[str, str]:
    """Return a queue's columns, by name in small letters."""

    def minutes(limit: int | None) -> str:
        return "None" if limit is None else clock(60 * limit)

    return {
        "name": queue.name,
        "users": "None" if queue.users is None else ":".join(queue.users),
        "groups": "None",
        "mintime": minutes(queue.min_time),
        "maxtime": minutes(queue.max_time),
        "maxrunning": str(queue.max_running),
        "maxqueued": str(queue.max_queued),
        "maxusernodes": "None",
        "maxnodehours": "None",
        "totalnodes": "None",
        "state": queue.state,
    }


def clock(seconds: float) -> str:
    """Return a length of time; hours can be more than 24."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def location(nodes: Iterable[str]) -> str:
    """Return nodes in short: ``cc[001-003],cc007``, or ``12-15,20`` on a Cray."""
    kinds: dict[str, list[str]] = {}
    for node in sorted(nodes):
        kinds.setdefault(re.sub(r"\d+$", "", node), []).append(node)
    return ",".join(itertools.chain.from_iterable(_runs(prefix, names) for prefix, names in sorted(kinds.items())))


def _runs(prefix: str, names: Sequence[str]) -> Iterable[str]:
    numbers = [name[len(prefix) :] for name in names]
    if not all(numbers):
        return names
    numbers.sort(key=int)
    # Numbers of unlike widths are shown oddly by Cobalt, too.
    odd = prefix and len(set(map(len, numbers))) > 1

    def run(item: tuple[int, str]) -> tuple[int, int]:
        position, number = item
        return int(number) - position, len(number) if prefix else 0

    found = []
    for _, items in itertools.groupby(enumerate(numbers), key=run):
        first, *rest = [number for _, number in items]
        if not rest:
            found.append(prefix + first)
        elif odd:
            found.append(f"[{prefix}{first}-{rest[-1]}]")
        else:
            found.append(f"{prefix}[{first}-{rest[-1]}]" if prefix else f"{first}-{rest[-1]}")
    return found
