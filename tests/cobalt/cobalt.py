"""A stand-in for Argonne's Cobalt on one machine: qsub, qstat and qdel, and a server that runs scripts for real.

Cobalt itself cannot be installed any more. What its commands print, and how jobs fare, is as in its last version.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.cobalt.questions import Refused, answer, user_name
from tests.cobalt.script import python, python_text
from tests.cobalt.settings import Queue, Settings, Site
from tests.wrappers import Wrappers

#: Longer than anything the stand-in does takes on a busy machine, seconds.
PATIENCE_S = 60.0

PROGRAMS = ("qsub", "qstat", "qdel")

#: What MPI libraries must know of nodes that are one host, perhaps without a network; ranks are more than its cores.
_MPI = {
    "HYDRA_IFACE": "lo",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_oob_tcp_if_include": "lo",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "UCX_NET_DEVICES": "lo",
}


class Cobalt:
    """A site with Cobalt; a context manager.

    Everything a job runs descends from one process for the job, and these from the server. All of it ends by itself
    when the process that made the stand-in is killed.

    Parameters
    ----------
    nodes
        How many, called cc001, cc002 and so on, and 1, 2 and so on at a Cray; or their names, which differ.
    queues
        In place of one queue, `default`, without limits.
    settings
        What kind of site, and how fast: see `Settings`.
    """

    def __init__(self, *, nodes: int | Sequence[str] = 4, queues: Sequence[Queue] = (), **settings: Any) -> None:
        self.settings = Settings(**settings)
        if isinstance(nodes, int):
            nodes = [str(number) if self.settings.cray else f"cc{number:03}" for number in range(1, nodes + 1)]
        self.nodes = tuple(nodes)
        self.queues = {queue.name: queue for queue in queues or [Queue("default")]}
        self.home: Path | None = None
        self._at_start = (self.settings, dict(self.queues))
        self._server: subprocess.Popen[bytes] | None = None
        self._wrappers: Wrappers | None = None
        self._broken: set[str] = set()

    def __enter__(self) -> Cobalt:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environ(self) -> dict[str, str]:
        """The environment for commands: that of this process, with this site's programs first on the PATH."""
        # By a variable of ours tests find, and end, the processes of a run: the server is none of them.
        others = ("COBALT_", "QSTAT_", "CQSTAT_", "BALSAM_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**own, "PATH": self._programs.path}

    @property
    def login(self) -> dict[str, str]:
        """The environment in which jobs begin, but for what `settings.login` has."""
        user = user_name()
        return {
            "HOME": os.path.expanduser("~"),
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "PATH": self._programs.path,
            **_MPI,
        }

    @property
    def _directory(self) -> Path:
        assert self.home is not None, "the stand-in is not started"
        return self.home

    @property
    def _programs(self) -> Wrappers:
        assert self._wrappers is not None, "the stand-in is not started"
        return self._wrappers

    def start(self) -> None:
        """Start the server; return when it answers."""
        # Not tmp_path: the path of a socket is short.
        home = self.home = Path(tempfile.mkdtemp(dir="/tmp", prefix="cobalt-"))
        programs = home / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            interpreter, *_ = python("", "")
            text = python_text(f"tests.cobalt.{name}", f"main({str(home)!r}, sys.argv[1:])")
            (programs / name).write_text(f"#!{interpreter} -SE\n{text}")
            (programs / name).chmod(0o755)
        self._wrappers = Wrappers(home / "wrappers", f"{programs}:{os.environ.get('PATH', os.defpath)}")
        self._write_settings()
        site = Site(str(home), self.nodes, list(self.queues.values()), self.settings, self.login)
        with (home / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                python("tests.cobalt.server", f"main({json.dumps(asdict(site))!r})"),
                env=self.environ,
                cwd=home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            said = self.server_log()
            self.stop()
            raise AssertionError(f"the server did not start:\n{said}")

    def stop(self) -> None:
        """Kill everything and remove the directory."""
        if (server := self._server) is not None:
            self._server = None
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                # A line and not only the end of the pipe, of which a forked process may hold a copy.
                server.stdin.write(b"\n")
                server.stdin.close()
            except BrokenPipeError:
                pass
            try:
                server.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                descendants = psutil.Process(server.pid).children(recursive=True)
                server.kill()
                for process in descendants:
                    process.kill()
                server.wait()
                raise
            finally:
                server.stdout.close()
        if self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None

    def reset(self) -> None:
        """Make it as it was at the start: no jobs, the server there, all programs whole, and the first settings.

        Raises
        ------
        AssertionError
            The server had failed; it was started anew.
        """
        if self._server is not None and self._server.poll() is not None:
            said = self.server_log()
            self.stop()
            self.settings, self.queues = self._at_start[0], dict(self._at_start[1])
            self.start()
            raise AssertionError(f"the server failed:\n{said}")
        for name in list(self._broken):
            self.mend_program(name)
        self.start_server()
        self.cancel_all()
        settings, queues = self._at_start
        self.change(**asdict(settings))
        self._set_queues(queues)

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run a command at this site; return what it said."""
        done = self.call(*command, cwd=cwd)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def call(
        self, *command: str, cwd: Path | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at this site, with more variables if need be; return how it ended."""
        return subprocess.run(
            command,
            env={**self.environ, **(environ or {})},
            cwd=cwd or self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def change(self, **settings: Any) -> None:
        """Change settings, for jobs that are there too."""
        self.settings = replace(self.settings, **settings)
        self._write_settings()
        self._tell("settings", settings=asdict(self.settings))

    def set_queue(self, name: str = "default", **values: Any) -> None:
        """Change a queue, or add one."""
        queue = replace(self.queues.get(name, Queue(name)), **values)
        self._set_queues({**self.queues, name: queue})

    def stop_queue(self, name: str = "default") -> None:
        """Let jobs of a queue stay queued."""
        self.set_queue(name, state="stopped")

    def start_queue(self, name: str = "default") -> None:
        """Let jobs of a queue start."""
        self.set_queue(name, state="running")

    def stop_server(self) -> None:
        """Let no command reach Cobalt, and nothing go on but the scripts that run. Methods still reach it."""
        self._tell("away")

    def start_server(self) -> None:
        """Let Cobalt answer again, and go on."""
        self._tell("back")

    @contextmanager
    def stopped_server(self) -> Iterator[None]:
        """Let Cobalt be away meanwhile."""
        self.stop_server()
        try:
            yield
        finally:
            self.start_server()

    def jobs(self) -> dict[str, str]:
        """Return the state of every job in the queue, whatever qstat is able to say."""
        return {job_id: job["state"] for job_id, job in self._all_jobs(False).items()}

    def history(self, job_id: str) -> list[str]:
        """Return all states that a job was in, the present one included; `gone` when it has left the queue."""
        states: list[str] = self._job(job_id)["history"]
        return states

    def state(self, job_id: str) -> str:
        """Return a job's state, or `gone`."""
        return self.history(job_id)[-1]

    def nodes_of(self, job_id: str) -> list[str]:
        """Return the names of a job's nodes, which it has had if it has left the queue."""
        names: list[str] = self._job(job_id)["nodes"]
        return names

    def script_pid(self, job_id: str) -> int | None:
        """Return the pid of a job's script; None before it was started."""
        pid: int | None = self._job(job_id)["script"]
        return pid

    def log(self, job_id: str) -> str:
        """Return what is in a job's .cobaltlog now."""
        return Path(self._job(job_id)["log"]).read_text()

    def wait_for(self, job_id: str, states: str | Iterable[str]) -> None:
        """Wait until a job is, or was, in that state or one of those."""
        wanted = {states} if isinstance(states, str) else set(states)
        until(
            lambda: not wanted.isdisjoint(self.history(job_id)),
            lambda: f"job {job_id} is not {wanted} but was {self.history(job_id)}",
        )

    def hold_job(self, job_id: str) -> None:
        """Hold a queued job as an administrator does."""
        self._tell("hold", job=job_id)

    def release_job(self, job_id: str) -> None:
        """Take all holds from a job, its dependencies included."""
        self._tell("release", job=job_id)

    def forget(self, job_id: str, forgotten: bool = True) -> None:
        """Let qstat not tell of a job that is in the queue, or tell of it again."""
        self._tell("hide", job=job_id, hidden=forgotten)

    def kill_job(self, job_id: str) -> None:
        """Kill all processes of a running job at once; its script ends by signal 9."""
        self._tell("kill", job=job_id)

    def lose_job(self, job_id: str) -> None:
        """Kill all processes of a running job at once, without anybody seeing how its script ends."""
        self._tell("lose", job=job_id)

    def cancel_all(self) -> None:
        """Kill all jobs; return when the queue is empty."""
        self._tell("hurry")
        until(lambda: not self.jobs(), lambda: f"jobs do not end: {self.jobs()}")

    def processes(self, job_id: str | None = None) -> list[psutil.Process]:
        """Return the processes of a job, or of all."""
        found = []
        for each, job in self._all_jobs(False).items():
            if job["forker"] is not None and job_id in (None, each):
                try:
                    found += psutil.Process(job["forker"]).children(recursive=True)
                except psutil.NoSuchProcess:
                    pass
        return found

    def break_program(self, name: str, text: str) -> None:
        """Have lines of bash run in place of a program, which is `real` in them: ``real "$@" >&2; exec sleep 60``."""
        self._programs.put(name, text)
        self._broken.add(name)

    def mend_program(self, name: str) -> None:
        """Have a program run again as it is."""
        self._programs.remove(name)
        self._broken.discard(name)

    def count_calls(self, name: str) -> Path:
        """Note each call of a program from now on as a line of a file; return the file."""
        self._broken.add(name)
        return self._programs.count_calls(name)

    def server_log(self) -> str:
        """Return what the server complained of: nothing, if all is well."""
        return (self._directory / "server.log").read_text(errors="replace")

    def _set_queues(self, queues: dict[str, Queue]) -> None:
        self.queues = dict(queues)
        self._tell("queues", queues=[asdict(queue) for queue in queues.values()])

    def _write_settings(self) -> None:
        new = self._directory / "settings.new"
        new.write_text(json.dumps(asdict(self.settings)))
        new.replace(self._directory / "settings.json")  # in one step: a command may read it

    def _all_jobs(self, also_gone: bool) -> dict[str, dict[str, Any]]:
        jobs: dict[str, dict[str, Any]] = self._tell("jobs", all=also_gone)
        return jobs

    def _job(self, job_id: str) -> dict[str, Any]:
        return self._all_jobs(True)[job_id]

    def _tell(self, do: str, **values: object) -> Any:
        """Ask the server by its other socket."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(PATIENCE_S)
                line.connect(str(self._directory / "control"))
                return answer(line, {"do": do, **values})
        except Refused as refused:
            raise AssertionError(refused.text) from None
        except Exception as error:
            raise AssertionError(f"the server does not answer: {error!r}\n{self.server_log()}") from error


def until(condition: Callable[[], object], otherwise: Callable[[], str] = lambda: "waited in vain") -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)
