"""A storm: processes of a campaign are killed and frozen at random, and what came of it is checked.

The schedule and the checks are functions of their arguments; `Storm` carries a schedule out.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil

from parsl_balsam.db.server import Server
from tests.faults.conftest import Campaign, until

#: Names the seed of a storm, so that one that failed can be had again.
SEED_VARIABLE = "BALSAM_CHAOS_SEED"

#: Exit code of the commands that fail whenever they run.
ALWAYS_FAILS = 3

#: How long a strike waits for something to strike, seconds: others have just killed it.
_VICTIM_S = 5.0

STAMPS = Path(__file__).with_name("stamps.py")


class Target(str, Enum):
    """What is struck."""

    SCRIPT = "script"
    LAUNCHER = "launcher"
    AGENT = "agent"
    GUARD = "guard"  # the agent's
    WORKER = "worker"
    SERVER = "server"  # all processes of PostgreSQL


class Act(str, Enum):
    """What happens to it."""

    KILL = "kill"  # SIGKILL; script and server are started again
    FREEZE = "freeze"  # SIGSTOP, and SIGCONT after a time


@dataclass(frozen=True, slots=True)
class Strike:
    """One step of a storm."""

    at: float  #: seconds from its begin
    target: Target
    act: Act
    choice: float  #: which of several, from 0 to 1
    for_s: float  #: how long it is frozen, seconds


def seed_of(environ: Mapping[str, str], usual: int) -> int:
    """Return the seed that is asked for, or the usual one."""
    return int(environ.get(SEED_VARIABLE, usual))


def schedule(
    seed: int, seconds: float, strikes: Sequence[tuple[Target, Act]], lease_s: float, pause_s: tuple[float, float]
) -> list[Strike]:
    """Return a storm that lasts for a time.

    Parameters
    ----------
    strikes
        What may happen; one that is named twice happens twice as often.
    pause_s
        The shortest and the longest time between two.
    """
    chance = random.Random(seed)
    storm: list[Strike] = []
    at = chance.uniform(*pause_s)
    while at < seconds:
        target, act = chance.choice(strikes)
        storm.append(Strike(at, target, act, chance.random(), chance.uniform(0.3, 2.0) * lease_s))
        at += chance.uniform(*pause_s)
    return storm


@dataclass(frozen=True, slots=True)
class Job:
    """A task of the campaign."""

    number: int
    kind: str  #: "function", "fails first", "command", "session", "exits", "ranks" or "everywhere"
    seconds: float
    resources: dict[str, Any]

    @property
    def result(self) -> Any:
        """What the script must get: a value, or how the command ended."""
        value = self.number * 7
        return {
            "function": value,
            "fails first": value,
            "exits": f"exit {ALWAYS_FAILS}",
            "everywhere": [value, value],
        }.get(self.kind, 0)


def make_jobs(seed: int, count: int, wide: bool) -> list[Job]:
    """Return tasks of all kinds. Those of two nodes are among them if `wide`."""
    chance = random.Random(seed)
    kinds = ["function", "function", "fails first", "command", "command", "session", "exits"]
    kinds += ["ranks", "ranks", "everywhere"] if wide else []
    jobs = []
    for number in range(count):
        kind = chance.choice(kinds)
        # The ranks of a command are started by bash itself, and those of a function one by one.
        resources = {"num_nodes": 2, "ranks_per_node": 1} if kind in ("ranks", "everywhere") else {}
        if kind == "everywhere":
            resources["launch"] = "ranks"
        jobs.append(Job(number, kind, round(chance.uniform(0.1, 1.5), 2), resources))
    return jobs


#: The campaign's script; `{load}` is what starts Parsl.
SCRIPT = """
    import os
    from parsl.app.errors import BashExitFailure
    from parsl.providers import LocalProvider

    STAMPS, LEFT = {stamps!r}, DIRECTORY + "/stamps"
    OPTIONS = dict(workflow="storm", lease_s={lease_s}, max_retries=1, max_crashes=1000, block_pause_s=0.001)

    class Quick(LocalProvider):
        status_polling_interval = 0.1

    @python_app
    def function(number, seconds, fails_first, stamps, left, parsl_resource_specification={{}}):
        import runpy
        return runpy.run_path(stamps)["work"](left, number, seconds, fails_first)

    @bash_app
    def command(number, seconds, code, words, parsl_resource_specification={{}}):
        return words + " " + str(number) + " " + str(seconds) + " " + str(code)

    def call(number, kind, seconds, resources):
        if kind in ("function", "fails first", "everywhere"):
            return function(number, seconds, kind == "fails first", STAMPS, LEFT,
                            parsl_resource_specification=resources)
        words = sys.executable + " -S -E " + STAMPS + " " + LEFT
        if kind == "session":
            words = "true; setsid --wait " + words
        code = {always_fails} if kind == "exits" else 0
        return command(number, seconds, code, words, parsl_resource_specification=resources)

    def outcome(future):
        try:
            return future.result()
        except BashExitFailure as failure:
            return "exit " + str(failure.exitcode)

    if __name__ == "__main__":
        jobs = json.loads((Path(DIRECTORY) / "jobs").read_text())
        with {load}:
            futures = [call(**job) for job in jobs]
            (Path(DIRECTORY) / ("waits" + str(os.getpid()))).touch()
            values = [outcome(future) for future in futures]
            report([values, [future.task_record["exec_fu"].task_id for future in futures]])
"""


def write_script(campaign: Campaign, jobs: Sequence[Job], load: str, lease_s: float) -> Path:
    """Write the campaign's script and what it calls."""
    (campaign.directory / "stamps").mkdir()
    (campaign.directory / "jobs").write_text(json.dumps([asdict(job) for job in jobs]))
    body = SCRIPT.format(load=load, lease_s=lease_s, stamps=str(STAMPS), always_fails=ALWAYS_FAILS)
    return campaign.write(body)


class Storm:
    """Strikes a campaign as a schedule says.

    Parameters
    ----------
    server
        The campaign's own PostgreSQL; None where it has none.
    """

    def __init__(self, campaign: Campaign, script: Path, server: Server | None) -> None:
        self._campaign = campaign
        self._path = script
        self._server = server
        self._frozen: list[tuple[float, psutil.Process]] = []
        self.told: list[str] = []  #: what was done, for people
        self._began = time.monotonic()
        self.script = campaign.start(script)

    def rage(self, strikes: Iterable[Strike]) -> subprocess.Popen[str]:
        """Carry out a schedule; return the script that runs in the end, when everything that was frozen goes on."""
        until(lambda: any((self._campaign.directory / "stamps").iterdir()))
        self._began = time.monotonic()
        late = 0.0
        try:
            for strike in strikes:
                self._wait(strike.at + late)
                waited = time.monotonic()
                self._carry_out(strike)
                late += time.monotonic() - waited
        finally:
            self._thaw(None)
        if self._fails_to_start():
            self._restart()
        return self.script

    def _fails_to_start(self) -> bool:
        """Tell whether the script ends since the server was away as it started: the user starts it again."""
        until(lambda: self.script.poll() is not None or self._at_work())
        return self.script.poll() is not None

    def _at_work(self) -> bool:
        """Tell whether the script waits for its tasks."""
        return (self._campaign.directory / f"waits{self.script.pid}").exists()

    def _carry_out(self, strike: Strike) -> None:
        if self.script.poll() is not None:
            self._restart()
        give_up = time.monotonic() + _VICTIM_S
        while not (victims := self._victims(strike)) and time.monotonic() < give_up:
            self._wait_until(time.monotonic() + 0.1)
        self._tell(f"{strike.act.value} {strike.target.value} {[victim.pid for victim in victims]}")
        for victim in victims:
            self._send(victim, signal.SIGKILL if strike.act is Act.KILL else signal.SIGSTOP)
            if strike.act is Act.FREEZE:
                self._frozen.append((time.monotonic() + strike.for_s, victim))
        if strike.act is Act.KILL and strike.target is Target.SCRIPT:
            self._restart()
        elif strike.act is Act.KILL and strike.target is Target.SERVER and self._server is not None:
            while left := self._server._processes():  # some were forked meanwhile
                for process in left:
                    self._send(process, signal.SIGKILL)
            self._server.start()
            self._tell("server is back")

    def _victims(self, strike: Strike) -> list[psutil.Process]:
        if strike.target is Target.SERVER:
            assert self._server is not None
            return self._server._processes()
        if strike.target is Target.SCRIPT:
            return [psutil.Process(self.script.pid)]
        found = by_part(self._campaign.processes())[strike.target]
        return [found[int(strike.choice * len(found))]] if found else []

    def _restart(self) -> None:
        self._campaign.kill(self.script)
        if (code := self.script.returncode) > 0:
            assert self.script.stdout is not None
            said = self.script.stdout.read()
            self._tell(f"the script had ended: {said.splitlines()[-1]}")
            # Only as it starts may it give up, and only for want of the database.
            assert not self._at_work(), said
            assert "DatabaseUnavailable" in said or "DatabaseDown" in said, said
        elif code == 0:
            self._tell("the script had come to its end")
        self.script = self._campaign.start(self._path)

    def _wait(self, at: float) -> None:
        self._wait_until(self._began + at)

    def _wait_until(self, then: float) -> None:
        while (left := then - time.monotonic()) > 0:
            self._thaw(time.monotonic())
            time.sleep(min(left, 0.05))

    def _thaw(self, now: float | None) -> None:
        """Let those go on whose time has come, or all."""
        for entry in list(self._frozen):
            until, process = entry
            if now is None or now >= until:
                self._frozen.remove(entry)
                self._tell(f"thaw {process.pid}")
                self._send(process, signal.SIGCONT)

    @staticmethod
    def _send(process: psutil.Process, number: signal.Signals) -> None:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        self.told.append(f"{now - self._began:6.2f} ({now:.2f}) {what}")


def by_part(processes: Iterable[psutil.Process]) -> dict[Target, list[psutil.Process]]:
    """Return the processes of launchers and agents by what each is."""
    found: dict[Target, list[psutil.Process]] = defaultdict(list)
    agents: dict[int, psutil.Process] = {}
    for process in processes:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "parsl_balsam.launcher" in words and "-m" in words and "srun" not in words[0]:
            found[Target.LAUNCHER].append(process)
        elif "parsl_balsam.launcher.agent" in words and "srun" not in words[0]:
            agents[process.pid] = process
    parents: dict[int, int] = {}
    for pid, process in agents.items():
        try:
            parents[pid] = process.ppid()
        except psutil.Error:
            pass
    for pid, parent in parents.items():
        depth = 0 if parent not in agents else 1 if parents.get(parent) not in agents else 2
        found[(Target.GUARD, Target.AGENT, Target.WORKER)[depth]].append(agents[pid])
    return found


@dataclass(frozen=True, slots=True)
class Copy:
    """One time that a task ran, on all its nodes."""

    number: int  #: of the job
    attempt: int
    name: str  #: tells copies apart
    began: float  #: first stamp, seconds
    last: float  #: last stamp
    raised: bool
    ended: bool  #: by itself


def read_copies(files: Mapping[str, str]) -> list[Copy]:
    """Read what copies have left: the text of each file by its name."""
    copies: dict[str, Copy] = {}
    for file, content in sorted(files.items()):
        number, name = file.split(".", 1)[0], file.rsplit(".", 1)[0]
        lines = content.splitlines()
        if not lines:  # killed before its first stamp
            continue
        attempt = int(lines[0].split()[1])
        stamps = [float(lines[0].split()[-1]), *(float(line) for line in lines[1:] if line not in ("raises", "ends"))]
        raised, ended = "raises" in lines, "ends" in lines
        if (other := copies.get(name)) is not None:
            stamps += [other.began, other.last]
            raised, ended = raised or other.raised, ended and other.ended
        copies[name] = Copy(int(number), attempt, name, min(stamps), max(stamps), raised, ended)
    return list(copies.values())


def overlapping(copies: Iterable[Copy]) -> list[tuple[Copy, Copy]]:
    """Return the pairs of copies of one task that were alive at the same time."""
    by_job: defaultdict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        by_job[copy.number].append(copy)
    return [
        (one, other)
        for found in by_job.values()
        for one, other in combinations(sorted(found, key=lambda copy: copy.began), 2)
        if other.began <= one.last
    ]


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt, as it is recorded."""

    number: int
    outcome: str | None
    exit_code: int | None


def complaints(
    jobs: Sequence[Job],
    values: Sequence[Any],
    states: Mapping[int, str],
    attempts: Mapping[int, Sequence[Tried]],
    copies: Sequence[Copy],
) -> list[str]:
    """Return what is wrong after a storm.

    Parameters
    ----------
    values
        What the script got, in the order of jobs.
    states, attempts
        What is recorded of each job, by number.
    """
    wrong = [f"task {a.number} ran twice at a time: {a} {b}" for a, b in overlapping(copies)]
    ran: defaultdict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        ran[copy.number].append(copy)
    for job, value in zip(jobs, values, strict=True):
        n = job.number
        if value != job.result:
            wrong.append(f"task {n} ({job.kind}) gave {value!r} and not {job.result!r}")
        outcomes = Counter(attempt.outcome for attempt in attempts[n])
        fails = job.kind == "exits"
        if states[n] != ("failed" if fails else "done"):
            wrong.append(f"task {n} ({job.kind}) is {states[n]}")
        if outcomes["done"] != (0 if fails else 1):
            wrong.append(f"task {n} ({job.kind}) was done {outcomes['done']} times: {attempts[n]}")
        if not any(copy.ended for copy in ran[n]):
            wrong.append(f"task {n} ({job.kind}) never came to its end: {ran[n]}")
        # A failure is one where the task says so, and nothing else is.
        raised = {copy.attempt for copy in ran[n] if copy.raised}
        for attempt in attempts[n]:
            if attempt.outcome == "error" and attempt.number not in raised:
                wrong.append(f"task {n} ({job.kind}) did not fail in attempt {attempt.number}")
            if attempt.outcome == "exit" and (not fails or attempt.exit_code != ALWAYS_FAILS):
                wrong.append(f"task {n} ({job.kind}) did not exit so in attempt {attempt}")
            if attempt.outcome not in ("done", "error", "exit", "crash", "ended"):
                wrong.append(f"task {n} ({job.kind}) has attempt {attempt}")
        # Each start of the script gives it one more try than `max_retries`, if it has failed before.
        if fails and (outcomes["exit"] < 2 or attempts[n][-1].outcome != "exit"):
            wrong.append(f"task {n} ({job.kind}) was not tried again: {attempts[n]}")
    return wrong


def read_stamps(directory: Path) -> dict[str, str]:
    """Return what copies have left in a directory."""
    left = directory / "stamps"
    return {path.name: path.read_text() for path in left.iterdir() if not path.name.startswith("failed.")}
