"""A real Slurm on one machine: munged, slurmctld, and one slurmd for each pretend node."""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import psutil

from parsl_balsam.launcher.processes import die_with_parent, inherit_orphans, sweep_all

#: Longer than anything Slurm does here takes on a busy machine, seconds.
PATIENCE_S = 60.0

#: What a cluster needs on the PATH, and how to get it.
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
PACKAGES = "slurm-wlm munge"

#: Slurm's daemons are where the PATH of a normal user often does not go.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

#: What MPI libraries must know of nodes that are one host. Open MPI names the memory its ranks share after the host and
#: the rank's number on its node, so two nodes would take each other's; binds the first rank of every node to the first
#: core; and its ranks wait in busy loops, which takes 10 times as long where they are more than the cores.
_MPI = {
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_oob_tcp_if_include": "lo",
    "HYDRA_IFACE": "lo",
    "UCX_NET_DEVICES": "lo",
}

_CONFIGURATION = """
ClusterName=balsam
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny

StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdSpoolDir={home}/%n
SlurmdPidFile={home}/%n.pid
SlurmdLogFile={home}/%n.log

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides

ReturnToService=2
SlurmdTimeout={node_timeout_s}
TreeWidth=1
KillWait=2
CompleteWait=0
InactiveLimit=0

NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs={cpus} State=UNKNOWN
PartitionName=nodes Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=quick Nodes=ALL MaxNodes=1 MaxTime=5 State=UP OverSubscribe=NO
"""


class Cluster:
    """Four nodes, each with its own slurmd, in one short directory; a context manager.

    Everything a node runs descends from one process that stands for the node; with it the node dies. Those processes
    end by themselves when the process that made the cluster is killed.

    Parameters
    ----------
    nodes
        How many; they are called n1, n2 and so on.
    cpus
        How many each of them pretends to have.
    node_timeout_s
        How long slurmctld waits for a node that does not answer, before it is down. Short ones take nodes of a busy
        machine for dead.
    """

    def __init__(self, *, nodes: int = 4, cpus: int = 2, node_timeout_s: int = 30) -> None:
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.cpus = cpus
        self.node_timeout_s = node_timeout_s
        self.home: Path | None = None
        self._inits: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environ(self) -> dict[str, str]:
        """The environment for Slurm's and MPI's commands: that of this process, with this cluster and not another."""
        # By variables of ours tests find, and end, the processes of a run: the cluster's daemons are none of them.
        others = ("SLURM_", "SLURMD_", "BALSAM_CAMPAIGN", "BALSAM_TEST_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**own, **_MPI, "PATH": PATH, "SLURM_CONF": str(self._directory / "slurm.conf")}

    @property
    def _directory(self) -> Path:
        assert self.home is not None, "the cluster is not started"
        return self.home

    def start(self) -> None:
        """Start everything; return when all nodes are idle."""
        for attempt in range(3):
            # Not tmp_path: slurmstepd's sockets are in it, and their paths are short; munged wants every parent of its
            # own closed to other accounts.
            self.home = Path(tempfile.mkdtemp(dir="/tmp", prefix="slurm-"))
            self.home.chmod(0o755)
            try:
                self._configure()
                self._start_controller()
                for name in self.nodes:
                    self._start_node(name)
                self.wait_for("idle")
                return
            except BaseException as error:
                logs = self.logs()
                self.stop()
                # Someone else took a port after it was chosen.
                if not isinstance(error, AssertionError) or "already in use" not in logs or attempt == 2:
                    if isinstance(error, AssertionError):
                        raise AssertionError(f"{error}\n{logs}") from None
                    raise

    def stop(self) -> None:
        """Kill everything and remove the directory."""
        for name in list(self._inits):
            self._end(name)
        if self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None

    def kill_node(self, name: str) -> None:
        """Kill all that runs on a node, and its slurmd, and tell slurmctld that it is down."""
        self.crash_node(name)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def crash_node(self, name: str) -> None:
        """Kill all that runs on a node, and its slurmd. Slurmctld notices by itself, after `node_timeout_s` or more."""
        self._end(name)

    def restart_node(self, name: str) -> None:
        """Start a killed node again; return when slurmctld takes it as one that works."""
        self._start_node(name)
        self.wait_for(("idle", "mixed", "allocated", "completing"), [name])

    @property
    def dead_nodes(self) -> list[str]:
        """Nodes that were killed and not started again."""
        return [name for name in self.nodes if name not in self._inits]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on this cluster; return what it said."""
        done = subprocess.run(
            command, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of every node, in sinfo's words: idle, allocated, down and so on, without flags."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return {name: state.rstrip("*~#!%$@^-") for name, state in map(str.split, lines)}

    def jobs(self) -> dict[str, str]:
        """Return the state of every job that waits or runs: PENDING, RUNNING, COMPLETING and so on."""
        lines = self.run("squeue", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def cancel_all(self) -> None:
        """Cancel all jobs; return when the queue is empty."""
        self.run("scancel", "--user", getpass.getuser())
        until(lambda: not self.jobs(), lambda: f"jobs do not end: {self.jobs()}")

    def wait_for(self, states: str | Iterable[str], nodes: Iterable[str] | None = None) -> None:
        """Wait until these nodes, or all, are in that state or one of those."""
        wanted = {states} if isinstance(states, str) else set(states)
        names = list(self.nodes if nodes is None else nodes)

        def reached() -> bool:
            for name, init in self._inits.items():
                assert init.poll() is None, f"what runs {name} has ended"
            now = self.states()
            return all(now.get(name) in wanted for name in names)

        until(reached, lambda: f"{names} are not {wanted} but {self.states()}")

    def processes(self, name: str | None = None) -> list[psutil.Process]:
        """Return the processes of a node, slurmd included, or of the whole cluster."""
        found = []
        for node, init in self._inits.items():
            if name in (None, node):
                try:
                    found += psutil.Process(init.pid).children(recursive=True)
                except psutil.NoSuchProcess:
                    pass
        return found

    @contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """Let no command be answered meanwhile; what runs on nodes goes on."""
        (controller,) = [process for process in self.processes("controller") if _name(process) == "slurmctld"]
        controller.suspend()
        try:
            yield
        finally:
            controller.resume()

    def names(self, name: str | None = None) -> list[str]:
        """Return the names of the processes of a node, or of the whole cluster."""
        return [found for process in self.processes(name) if (found := _name(process))]

    def logs(self) -> str:
        """Return the last lines of all daemons' logs."""
        tails = []
        for log in sorted(self._directory.glob("*.log")):
            tails += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-20:]]
        return "\n".join(tails)

    def _configure(self) -> None:
        home = self._directory
        controller_port, *ports = _free_ports(1 + len(self.nodes))
        (home / "state").mkdir()
        for name in self.nodes:
            (home / name).mkdir()
        key = home / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (home / "slurm.conf").write_text(
            _CONFIGURATION.format(
                home=home,
                host=platform.node().partition(".")[0],
                user=getpass.getuser(),
                controller_port=controller_port,
                names=",".join(self.nodes),
                ports=",".join(map(str, ports)),
                cpus=self.cpus,
                node_timeout_s=self.node_timeout_s,
            )
        )

    def _start_controller(self) -> None:
        munge = self._directory / "munge"
        paths = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        self._begin(
            "controller",
            ["munged", "--foreground", *(f"--{option}={munge}.{suffix}" for option, suffix in paths.items())],
            ["slurmctld", "-D"],
        )

    def _start_node(self, name: str) -> None:
        self._begin(name, ["slurmd", "-D", "-N", name])

    def _begin(self, name: str, *commands: list[str]) -> None:
        with ExitStack() as files:
            output = files.enter_context((self._directory / f"{name}.output.log").open("ab"))
            self._inits[name] = subprocess.Popen(
                [sys.executable, __file__, json.dumps(commands)],
                env=self.environ,
                cwd=self._directory,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the tests
            )

    def _end(self, name: str) -> None:
        init = self._inits.pop(name)
        assert init.stdin is not None
        try:
            # A line and not only the end of the pipe, of which a forked process may hold a copy.
            init.stdin.write(b"\n")
            init.stdin.close()
        except BrokenPipeError:
            pass
        init.wait(PATIENCE_S)


def _stand_for_node(commands: list[list[str]]) -> None:
    """Start commands and stay the ancestor of everything they start, daemons included, until stdin has a line or ends.

    Then, told so or because whoever started this process is gone, kill all of it.
    """

    def reap(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    inherit_orphans()
    signal.signal(signal.SIGCHLD, reap)
    me = os.getpid()
    for command in commands:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with_parent(me))
    sys.stdin.readline()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sweep_all()


def _name(process: psutil.Process) -> str:
    """Return the name of a process; empty if it has ended meanwhile."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def until(condition: Callable[[], object], otherwise: Callable[[], str] = lambda: "waited in vain") -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    """Let the system choose ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


if __name__ == "__main__":
    _stand_for_node(json.loads(sys.argv[1]))
