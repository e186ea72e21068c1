"""The server of the stand-in: answers its commands on one socket, and whoever made it on another.

One request a connection: a line of JSON with what is wanted under ``do``, and a line of JSON for an answer. Nothing is
left of its jobs when its stdin has a line, nor of its directory when that ends, or its parent does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from typing import Any

from parsl_balsam.launcher.processes import inherit_orphans, sweep_all
from tests.cobalt.columns import describe_job, describe_queue
from tests.cobalt.jobs import Job, JobSpec
from tests.cobalt.scheduler import Fault, Scheduler
from tests.cobalt.settings import Queue, Settings, Site

#: Sockets in the server's directory.
COMMANDS = "commands"
CONTROL = "control"

#: Bytes of a request.
_LONGEST = 2**24

#: How often it is looked whether the parent is there, seconds.
_LOOK_S = 0.5

Request = dict[str, Any]


def main(site: str) -> None:
    """Serve a site, which is given as JSON, and clean up."""
    inherit_orphans()
    made = Site.of(json.loads(site))
    server = Server(made)
    try:
        asyncio.run(server.serve())
    finally:
        sweep_all()
        if server.abandoned:
            shutil.rmtree(made.home, ignore_errors=True)


class Server:
    """A scheduler with ears."""

    def __init__(self, site: Site) -> None:
        self.abandoned = False  #: whether whoever made it is gone without a word
        self._site = site
        self._ids = 0

    async def serve(self) -> None:
        """Answer until the end."""
        parent = os.getppid()
        told = asyncio.Event()

        def hear() -> None:
            self.abandoned = not os.read(0, 1)
            told.set()

        self._scheduler = Scheduler(self._site)
        self._scheduler.failure.add_done_callback(lambda _: told.set())
        asyncio.get_running_loop().add_reader(0, hear)
        self._commands = await self._listen(COMMANDS, self._answer_command)
        await self._listen(CONTROL, self._answer_maker)
        print("ready", flush=True)
        while not told.is_set() and not self.abandoned:
            try:
                await asyncio.wait_for(told.wait(), _LOOK_S)
            except asyncio.TimeoutError:
                self.abandoned = os.getppid() != parent
        if self._scheduler.failure.done():
            self._scheduler.failure.result()

    async def _listen(
        self, socket: str, answer: Callable[[Request], Coroutine[Any, Any, Any]]
    ) -> asyncio.AbstractServer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                if (line := await reader.readline()).endswith(b"\n"):
                    try:
                        said = {"answer": await answer(json.loads(line))}
                    except Fault as fault:
                        said = {"fault": {"component": fault.component, "code": fault.code, "text": fault.text}}
                    writer.write(json.dumps(said).encode() + b"\n")
                    await writer.drain()
            except ConnectionError:  # whoever asked is gone
                pass
            finally:
                writer.close()

        return await asyncio.start_unix_server(serve, f"{self._site.home}/{socket}", limit=_LONGEST)

    async def _answer_command(self, request: Request) -> Any:
        scheduler, do = self._scheduler, request["do"]
        if do == "validate_job":
            return scheduler.validate(request["nodes"], request["minutes"])
        if do == "filter":
            return scheduler.filter(JobSpec(**request["job"]))
        if do == "add_job":
            return self._submit(request["job"])
        if do == "get_jobs":
            return {
                "jobs": [
                    describe_job(job, scheduler.state(job), time.time(), scheduler.settings.minute_s)
                    for job in scheduler.jobs.values()
                    if not job.hidden
                ],
                "queues": [describe_queue(queue) for queue in scheduler.queues.values()],
            }
        if do == "del_jobs":
            found = [scheduler.jobs[job] for job in request["jobs"] if job in scheduler.jobs]
            for job in found:
                scheduler.delete(job)
            return [{"jobid": str(job.id), "user": job.spec.user} for job in found]
        raise ValueError(f"cannot {do}")

    def _submit(self, values: Request) -> dict[str, Any]:
        job_id = self._ids + 1

        def expand(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            return value.replace("$jobid", str(job_id)).replace("$COBALT_JOBID", str(job_id))

        for name in ("stdout", "stderr", "log", "name"):
            values[name] = expand(values[name])
        values["env"] = {name: expand(value) for name, value in values["env"].items()}
        spec = JobSpec(**values)
        present = set(map(str, self._scheduler.jobs))
        job = self._scheduler.submit(job_id, spec)
        self._ids = job_id
        return {
            "id": str(job.id),
            "log": job.log,
            "unknown_dependencies": [name for name in spec.dependencies if name not in present],
        }

    async def _answer_maker(self, request: Request) -> Any:
        scheduler, do = self._scheduler, request["do"]
        if do == "jobs":
            jobs = {**scheduler.left, **scheduler.jobs} if request["all"] else scheduler.jobs
            return {str(job.id): self._tell_of(scheduler, job) for job in sorted(jobs.values(), key=lambda job: job.id)}
        if do == "settings":
            scheduler.settings = Settings(**request["settings"])
        elif do == "queues":
            scheduler.queues = {queue["name"]: Queue(**queue) for queue in request["queues"]}
        elif do == "away":
            self._commands.close()
            scheduler.up = False
        elif do == "back":
            if not scheduler.up:
                self._commands = await self._listen(COMMANDS, self._answer_command)
                scheduler.up = True
        elif do == "hurry":
            scheduler.hurry()
        else:
            job = scheduler.jobs.get(int(request["job"]))
            if job is None:
                raise Fault("maker", 1, f"no job {request['job']} in the queue")
            if do == "hide":
                job.hidden = request["hidden"]
            elif do == "hold":
                job.admin_hold = True
            elif do == "release":
                job.user_hold = job.admin_hold = job.failed_dependency = False
                job.unmet.clear()
            elif do == "kill":
                if job.script is not None:
                    job.script.send("CRASH")
            elif do == "lose":
                scheduler.lose(job)
            else:
                raise ValueError(f"cannot {do}")
        scheduler.tell()
        return None

    @staticmethod
    def _tell_of(scheduler: Scheduler, job: Job) -> dict[str, Any]:
        script = job.script
        return {
            "state": scheduler.state(job).value,
            "history": job.history,
            "nodes": job.nodes,
            "forker": None if script is None or script.ended else script.forker,
            "script": None if script is None else script.pid,
            "log": job.log,
        }
