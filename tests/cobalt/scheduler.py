"""The scheduler of the stand-in: the queue, and the life of every job from its submission to its end."""

from __future__ import annotations

import asyncio
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from parsl_balsam.launcher.processes import sweep
from tests.cobalt import joblog, launch
from tests.cobalt.columns import location
from tests.cobalt.jobs import WITH_NODES, Job, JobSpec, JobState
from tests.cobalt.script import Script
from tests.cobalt.settings import Site

#: Exit code of a job of which the forker has lost sight.
LOST = 1234567

#: Passes of the scheduler leave the server time for other things, seconds.
_SHORTEST_PERIOD_S = 0.005


class Fault(Exception):
    """A refusal of the server.

    Parameters
    ----------
    component
        Who refuses: system, queue-manager, filter; or client, who is only told what to say.
    """

    def __init__(self, component: str, code: int, text: str) -> None:
        super().__init__(text)
        self.component = component
        self.code = code
        self.text = text


class Scheduler:
    """All jobs. Its coroutines need a loop that runs; one that fails ends the server."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.settings = site.settings
        self.queues = {queue.name: queue for queue in site.queues}
        self.jobs: dict[int, Job] = {}
        self.left: dict[int, Job] = {}  #: jobs that have left the queue, which only the maker of the stand-in sees
        self.up = True  #: whether anything goes on but the scripts
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()  #: done when a coroutine fails
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = list(site.nodes)
        self._last_pass = self._last_check = 0.0
        self._begin(self._schedule())

    def tell(self) -> None:
        """Have everything that waits look again: something has changed."""
        for job in self.jobs.values():
            self._remember(job)
        self._news.set_result(None)
        self._news = asyncio.get_running_loop().create_future()

    def state(self, job: Job) -> JobState:
        """Return a job's state as qstat shows it."""
        if job.phase is not JobState.QUEUED:
            return job.phase
        if job.user_hold:
            return JobState.USER_HOLD
        if job.failed_dependency:
            return JobState.DEP_FAIL
        if job.unmet:
            return JobState.DEP_HOLD
        if job.admin_hold:
            return JobState.ADMIN_HOLD
        limit = self.queues[job.spec.queue].max_running
        if limit is not None and limit <= sum(
            other.phase in WITH_NODES and (other.spec.user, other.spec.queue) == (job.spec.user, job.spec.queue)
            for other in self.jobs.values()
        ):
            return JobState.MAXRUN_HOLD
        return JobState.QUEUED

    def validate(self, nodes: int, minutes: int) -> None:
        """Refuse what no queue could take."""
        if not 1 <= nodes <= len(self.site.nodes):
            raise Fault("client", 1, "node count out of realistic range")
        if 0 < minutes < self.settings.min_walltime and not self.settings.cray:
            raise Fault("system", 1004, "Walltime less than minimum")

    def filter(self, spec: JobSpec) -> str:
        """Return what the site's filter says of a job."""
        queue = self.queues.get(spec.queue)
        if self.settings.need_project and spec.project is None:
            raise Fault("filter", 1, "No project was given: use -A")
        if queue is not None:
            least, most = queue.min_nodes or 1, queue.max_nodes or math.inf
            if not least <= spec.nodes <= most:
                raise Fault("filter", 1, f"Queue {queue.name} takes jobs of {least} to {most} nodes, not {spec.nodes}")
        return self.settings.filter_notice

    def submit(self, job_id: int, spec: JobSpec) -> Job:
        """Take a job into the queue."""
        self._admit(spec)
        job = Job(job_id, spec, time.time(), minutes=spec.minutes, user_hold=spec.held)
        job.unmet = {int(other) for other in spec.dependencies if other.isdecimal()}
        self.jobs[job.id] = job
        self._begin(self._log(job))
        self.tell()
        return job

    def delete(self, job: Job) -> None:
        """Do as the user of a job wishes, who wants to be rid of it."""
        now = time.time()
        user = job.spec.user
        if job.phase is JobState.QUEUED:
            job.say(joblog.DELETED, now)
            self._leave(job)
        elif job.phase is JobState.STARTING and not job.unwanted:
            job.say(joblog.PENDING.format(user=user), now)
        elif job.phase is JobState.EXITING:
            job.say(joblog.ALREADY_ENDED, now, of_end=True)
        elif job.unwanted or job.phase is JobState.KILLING:
            job.say(joblog.ALREADY_KILLED, now)
        job.unwanted = True
        self.tell()

    def hurry(self) -> None:
        """Have all jobs killed, and gone as soon as can be."""
        for job in list(self.jobs.values()):
            job.hurried = True
            self.delete(job)
            if job.script is not None:
                job.script.send("CRASH")

    def lose(self, job: Job) -> None:
        """Kill all processes of a job; what becomes of its script is not known."""
        job.lost = True
        if job.script is not None:
            job.script.send("CRASH")
        self.tell()

    def _admit(self, spec: JobSpec) -> None:
        name, queue = spec.queue, self.queues.get(spec.queue)

        def refuse(text: str) -> Fault:
            return Fault("queue-manager", 1001, text)

        if queue is None:
            raise refuse(f"trying to add job to non-existent queue '{name}'")
        if queue.state in ("draining", "dead"):
            raise refuse(f"The '{name}' queue is {queue.state}")
        if queue.users is not None and spec.user not in queue.users:
            raise refuse(f"You are not allowed to submit to the '{name}' queue\n")
        for limit, word, most in ((queue.max_time, "greater", "max"), (queue.min_time, "less", "min")):
            if limit is not None and spec.minutes and (spec.minutes > limit if most == "max" else spec.minutes < limit):
                clock = f"{limit // 60:02}:{limit % 60:02}:00"
                raise refuse(f"Walltime {word} than the '{name}' queue {most} walltime of {clock}\n")
        has = sum((job.spec.user, job.spec.queue) == (spec.user, name) for job in self.jobs.values())
        if queue.max_queued is not None and has >= queue.max_queued:
            raise refuse(f"The limit of {queue.max_queued} jobs per user in the '{name}' queue has been reached\n")

    def _begin(self, story: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(story)
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not self.failure.done():
                self.failure.set_exception(error)

        task.add_done_callback(end)

    async def _until(self, left: Callable[[], float]) -> None:
        """Wait until no time is left, which is asked again whenever something has changed."""
        while not self.up or left() > 0:
            seconds = left() if self.up else math.inf
            await asyncio.wait([self._news], timeout=None if seconds == math.inf else max(0.0, seconds))

    async def _schedule(self) -> None:
        while True:
            await self._until(self._until_pass)
            now = self._last_pass = time.time()
            if now >= self._last_check + self.settings.dependency_check_s:
                self._last_check = now
                for job in self.jobs.values():
                    job.failed_dependency = any(other not in self.jobs for other in job.unmet)
            for job in self.jobs.values():
                if nodes := self._nodes_for(job):
                    self._allocate(job, nodes, now)
                    break
            self.tell()

    def _until_pass(self) -> float:
        if not any(job.phase is JobState.QUEUED for job in self.jobs.values()):
            return math.inf
        return self._last_pass + max(self.settings.schedule_s, _SHORTEST_PERIOD_S) - time.time()

    def _nodes_for(self, job: Job) -> Sequence[str]:
        if self.state(job) is not JobState.QUEUED or self.queues[job.spec.queue].state in ("stopped", "dead"):
            return ()
        wanted = job.spec.attrs.get("location")
        free = [node for node in self._free if wanted is None or node in wanted.split(",")]
        return free[: job.spec.nodes] if len(free) >= job.spec.nodes else ()

    def _allocate(self, job: Job, nodes: Sequence[str], now: float) -> None:
        self._free = [node for node in self._free if node not in nodes]
        job.nodes, job.started_at = nodes, now
        job.minutes = job.minutes or self.queues[job.spec.queue].max_time or self.settings.max_walltime
        job.enter(JobState.STARTING, now)
        self._begin(self._live(job))

    async def _live(self, job: Job) -> None:
        """Carry a job from its nodes to its end."""
        await self._until(lambda: self._left(job, self.settings.prologue_s))
        if job.unwanted:
            job.say(joblog.RELEASING, time.time())
            job.enter(JobState.EXITING, time.time())
        else:
            await self._run(job)
        self.tell()
        await self._until(lambda: self._left(job, self.settings.epilogue_s))
        if (script := job.script) is not None:
            script.send("END")
            await self._until(lambda: 0 if script.ended else math.inf)
            Path(self._node_file(job)).unlink(missing_ok=True)
        else:
            job.say(joblog.RELEASED, time.time(), of_end=True)
        self._free = [node for node in self.site.nodes if node in self._free or node in job.nodes]
        self._leave(job)
        self.tell()

    async def _run(self, job: Job) -> None:
        script = self._start(job)
        await self._until(lambda: 0 if script.pid is not None or script.ended else math.inf)
        for note in script.notes:
            job.say(note, time.time())
        await self._until(lambda: 0 if self._over(job) or job.unwanted else self._walltime_left(job))
        if not self._over(job):
            now = time.time()
            job.say(joblog.KILLED.format(user=job.spec.user) if job.unwanted else joblog.OUT_OF_TIME, now)
            job.enter(JobState.KILLING, now)
            self.tell()
            head = "-HEAD" if "nopgkill" in job.spec.attrs else ""
            # Far away the signal reaches only the ssh client here, which ends; the script goes on until the epilogue.
            if not self.settings.remote:
                script.send(f"TERM{head}")
                await self._until(lambda: 0 if self._over(job) else self._left(job, self.settings.kill_delay_s))
                if not self._over(job):
                    script.send(f"KILL{head}")
                    await self._until(lambda: 0 if self._over(job) else math.inf)
        else:
            job.code = LOST if job.lost or script.code is None else script.code
            job.say(joblog.COMPLETED.format(code=job.code), time.time(), of_end=True)
        job.enter(JobState.EXITING, time.time())
        if script.ended:
            await self._sweep()

    async def _sweep(self) -> None:
        """Kill what a forker had that somebody has killed: all of it are children of this process now."""
        while not sweep({job.script.forker for job in self.jobs.values() if job.script and not job.script.ended}):
            await asyncio.sleep(0.01)

    def _start(self, job: Job) -> Script:
        """Start the script of a job."""
        spec, settings = job.spec, self.settings
        assert job.started_at is not None
        names = job.nodes if settings.host_name is None else [settings.host_name] * len(job.nodes)
        own = {"COBALT_JOBID": str(job.id)}
        if not settings.cray:
            own["COBALT_NODEFILE"] = self._node_file(job)
            # The head node is first; the order of the others means nothing.
            Path(own["COBALT_NODEFILE"]).write_text("".join(f"{name}\n" for name in [names[0], *names[:0:-1]]))
        environ = {**spec.env, **own, "COBALT_PARTNAME": location(job.nodes) if settings.cray else names[0]}
        environ["COBALT_PARTSIZE"] = environ["COBALT_JOBSIZE"] = str(spec.nodes if settings.cray else job.processes)
        environ["COBALT_STARTTIME"] = str(int(job.started_at))
        environ["COBALT_ENDTIME"] = str(int(job.started_at) + round(job.minutes * settings.minute_s))
        if settings.cray:
            environ |= {"COBALT_PARTCORES": "72", "COBALT_PROJECT": str(spec.project), "COBALT_QUEUE": spec.queue}
        passed_on = {name: value for name, value in environ.items() if name == "COBALT_JOBID" or name in spec.env}
        command = logged = [spec.script, *spec.args]
        if not settings.cray:
            words = ["--nf", environ["COBALT_NODEFILE"], "--jobid", str(job.id), "--cwd", spec.cwd]
            for item in passed_on.items():
                words += ["--env", "=".join(item)]
            logged = [launch.__file__, *words, *command]
        files = (spec.stdin or os.devnull, job.stdout, job.stderr)
        now = time.time()
        # Where the script is elsewhere, Cobalt shows a node file that was never there.
        shown = {**environ, "COBALT_NODEFILE": f"/tmp/cobalt.{job.id}"} if settings.remote else environ
        for line in joblog.beginning(logged, shown, files):
            job.say(line, now)
        if settings.remote:
            # The client of ssh puts blanks between the words, and the shell over there parses them again.
            python = shlex.join([sys.executable, "-SE"])
            command = ["/bin/sh", "-c", f"{python} {' '.join(logged)}"]
            environ = {}
        order = {
            "command": command,
            "environ": {**self.site.login, **settings.login, **environ},
            "cwd": spec.cwd,
            "umask": spec.umask,
            **dict(zip(("stdin", "stdout", "stderr"), files, strict=True)),
        }
        job.script = Script(order, self.tell)
        job.running_at = now
        job.enter(JobState.RUNNING, now)
        self.tell()
        return job.script

    def _node_file(self, job: Job) -> str:
        return f"{self.site.home}/cobalt.{job.id}"

    @staticmethod
    def _over(job: Job) -> bool:
        """Tell whether nothing more is to be waited for from a job's script."""
        assert job.script is not None
        return job.script.code is not None or job.script.ended

    @staticmethod
    def _left(job: Job, wait_s: float) -> float:
        return 0.0 if job.hurried else job.since + wait_s - time.time()

    def _walltime_left(self, job: Job) -> float:
        assert job.running_at is not None
        return job.running_at + job.minutes * self.settings.minute_s - time.time()

    def _leave(self, job: Job) -> None:
        now = time.time()
        job.left_at = now
        job.enter(JobState.GONE, now)
        self._remember(job)
        self.left[job.id] = self.jobs.pop(job.id)
        for other in self.jobs.values():
            if job.code == 0:
                other.unmet.discard(job.id)

    def _remember(self, job: Job) -> None:
        state = self.state(job).value
        if job.history[-1:] != [state]:
            job.history.append(state)

    async def _log(self, job: Job) -> None:
        """Write the lines of a job's log, each when it has waited long enough."""

        def left() -> float:
            if not job.lines:
                return math.inf if job.left_at is None else 0.0
            line = job.lines[0]
            since = line.said_at if not line.of_end else math.inf if job.left_at is None else job.left_at
            return -1.0 if job.hurried and job.left_at else since + self.settings.log_lag_s - time.time()

        while job.left_at is None or job.lines:
            await self._until(left)
            if job.lines:
                joblog.append(job.log, job.lines.popleft().text, time.time())
