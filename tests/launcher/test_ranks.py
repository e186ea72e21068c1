"""A function runs on every rank, by real MPI launchers."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from parsl.app.errors import wrap_error

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.messages import MARK
from parsl_balsam.launcher.parallel import MpiSite, ranks_of
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.processes import kill, marked
from parsl_balsam.launcher.rank_files import forbid, forget_forbidden
from parsl_balsam.launcher.ranks import OnEveryRank, enter
from parsl_balsam.model.errors import RankFailed, UnreadablePayload
from parsl_balsam.model.launch import MpiStyle
from parsl_balsam.model.payload import encode
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share
from parsl_balsam.model.tasks import ClaimedTask
from tests.executor.parsl_runs import wait_for
from tests.launcher.apps import FOREVER_S, DoesNotUnpickle, Plain, others_wait, rank, wait_for_result
from tests.requirements import require

PROGRAMS = {MpiStyle.HYDRA: "mpiexec.mpich", MpiStyle.OPENMPI: "mpiexec.openmpi", MpiStyle.NONE: None}
PACKAGES = "mpich openmpi-bin"

#: Longer than a call takes whose ranks are ended, seconds.
SOON_S = FOREVER_S / 2

NODE = Node("n1", "localhost", tuple(range(8)), gpus=("0", "1", "2", "3"), pin=False)


@dataclass(frozen=True)
class Job:
    """A directory in which parallel functions run, one after the other."""

    directory: Path
    style: MpiStyle
    program: str | None

    def call(
        self, function: Callable[..., Any], *args: Any, everything: bool = False, given_up: bool = False, **needs: Any
    ) -> Any:
        """Call a function as a worker does for a task with these needs: two ranks, if nothing else is said."""
        spec = ResourceSpec.parse({"ranks_per_node": 2, "launch": "ranks", **needs})
        task = ClaimedTask(1, 1, id(self), b"key", 0, "app", b"", b"", spec, None)
        share = Share("n1", NODE.cores, NODE.gpus[: spec.gpus_on_node])
        site = MpiSite(self.style, self.program, os.geteuid() == 0, str(self.directory), everything)
        ranks = ranks_of(site, task, [share], {"n1": NODE})
        assert ranks is not None
        enter(ranks, share.gpus, is_bash=False)
        if given_up:
            forbid(ranks)
        return OnEveryRank(ranks, encode(function))(*args)

    def failure(self, function: Callable[..., Any], *args: Any, **needs: Any) -> RankFailed:
        """Return the error of a call that fails, soon and with all its ranks ended."""
        began = time.monotonic()
        with pytest.raises(RankFailed) as raised:
            self.call(function, *args, **needs)
        wait_for(lambda: not self.processes(), "all ranks to end")
        assert time.monotonic() - began < SOON_S
        return raised.value

    def processes(self) -> list[int]:
        """Return all processes of the ranks."""
        return [pid for pid in marked(MARK, os.environ.get(MARK, "none")) if pid != os.getpid()]


def new_job(directory: Path, style: MpiStyle) -> Iterator[Job]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI_", "PMIX_", "SLURM_"))]:
        del os.environ[name]
    job = Job(directory, style, PROGRAMS[style])
    try:
        yield job
        assert list(directory.iterdir()) == []
    finally:
        for pid in job.processes():
            kill(pid)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(params=[MpiStyle.HYDRA, MpiStyle.OPENMPI], ids=lambda style: style.value)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Job]:
    program = PROGRAMS[request.param]
    require([program], PACKAGES)
    yield from new_job(tmp_path, request.param)


@pytest.fixture
def job_without_launcher(tmp_path: Path) -> Iterator[Job]:
    yield from new_job(tmp_path, MpiStyle.NONE)


def test_results_are_listed_by_rank(job: Job) -> None:
    def weigh(factor: float, unit: str) -> tuple[float, str, str]:
        return rank() * factor, unit, os.environ["PARSL_NUM_RANKS"]

    assert job.call(weigh, 1.5, "kg", ranks_per_node=3) == [(0.0, "kg", "3"), (1.5, "kg", "3"), (3.0, "kg", "3")]


def test_every_rank_is_given_its_own_gpus(job: Job) -> None:
    def visible() -> list[str]:
        return [os.environ[name] for name in gpus.VISIBLE]

    assert job.call(visible, gpus_per_rank=2) == [3 * ["0,1"], 3 * ["2,3"]]


def test_large_arguments_and_results(job: Job) -> None:
    def grow(data: bytes) -> bytes:
        return data + bytes([rank()])

    data = os.urandom(20_000_000)
    assert job.call(grow, data) == [data + b"\0", data + b"\1"]


def test_function_and_exception_of_a_script(job: Job) -> None:
    script: dict[str, Any] = {"__name__": "__main__", "others_wait": others_wait}
    exec(
        "class Diverged(Exception):\n"
        "    pass\n"
        "def step(size):\n"
        "    if size > 1:\n"
        "        others_wait()\n"
        "        raise Diverged(size)\n"
        "    return Diverged(size)\n",
        script,
    )
    assert [str(value) for value in job.call(script["step"], 1)] == ["1", "1"]
    cause = job.failure(script["step"], 2).__cause__
    assert (type(cause).__name__, str(cause)) == ("Diverged", "2")


def test_exception_of_one_rank_ends_the_others(job: Job) -> None:
    def diverge() -> None:
        others_wait()
        raise Plain("diverged", 12)

    error = job.failure(diverge, ranks_per_node=3)
    assert str(error).startswith(f"rank 1 of 3, on {socket.gethostname()}: Traceback")
    assert re.search(r"line \d+, in diverge\n", str(error))
    assert str(error).rstrip().endswith("Plain: ('diverged', 12)")
    assert isinstance(error.__cause__, Plain)
    assert error.__cause__.args == ("diverged", 12)


def test_first_of_several_exceptions_is_named(job: Job, tmp_path: Path) -> None:
    def fail_after_the_other() -> None:
        if rank() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # that the launcher sends when the other has failed
            wait_for_result(1, tmp_path)
        raise Plain(rank())

    cause = job.failure(fail_after_the_other).__cause__
    assert cause is not None
    assert cause.args == (1,)


@pytest.mark.parametrize("code", [0, "message"])
def test_rank_that_exits_has_failed(job: Job, code: int | str) -> None:
    def leave() -> None:
        others_wait()
        raise SystemExit(code)

    error = job.failure(leave)
    assert str(error).startswith("rank 1 of 2")
    assert isinstance(error.__cause__, SystemExit)
    assert error.__cause__.code == code


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "by parsl"])
def test_exception_that_cannot_be_returned_is_told(job: Job, wrapped: bool) -> None:
    def fail() -> None:
        others_wait()
        raise DoesNotUnpickle(3, "metres") if wrapped else Plain(n for n in range(3))

    error = job.failure(wrap_error(fail) if wrapped else fail)
    assert str(error).startswith("rank 1 of 2")
    assert ("DoesNotUnpickle: 3 metres" if wrapped else "Plain: <generator object") in str(error)
    assert error.__cause__ is None


def test_result_that_cannot_be_returned_is_told(job: Job) -> None:
    def generate() -> Any:
        others_wait()
        return (number for number in range(3))

    error = job.failure(generate)
    assert str(error).startswith("rank 1 of 2")
    assert "NotSerializable: builtins.generator object" in str(error)


class Unreadable:
    """Can be pickled, and not be read back."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no number",)


def test_function_that_cannot_be_read_fails_on_its_ranks(job: Job) -> None:
    def needs_what_cannot_be_read() -> Any:
        return None

    needs_what_cannot_be_read.__kwdefaults__ = {"other": Unreadable()}
    error = job.failure(needs_what_cannot_be_read)
    assert isinstance(error.__cause__, UnreadablePayload)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_rank_that_is_killed_ends_the_others_and_is_named(job: Job, number: signal.Signals) -> None:
    def die() -> None:
        others_wait()
        os.kill(os.getpid(), number)

    error = job.failure(die)
    told = re.fullmatch(r"rank (.*) of 2 ended without a result; (\S+) ended with exit code (\d+)", str(error))
    assert told is not None
    assert "1" in told[1].split(", ")
    assert told[2] == job.program
    assert told[3] != "0"


@pytest.mark.parametrize("code", [0, 3])
def test_only_the_rank_without_a_result_is_named(job: Job, tmp_path: Path, code: int) -> None:
    def vanish() -> None:
        if rank() == 1:
            wait_for_result(0, tmp_path)
            os._exit(code)

    assert str(job.failure(vanish)).startswith("rank 1 of 2 ended without a result")


def test_ranks_of_a_task_that_was_given_up_do_not_begin(job: Job, tmp_path: Path) -> None:
    assert "ended without a result" in str(job.failure(lambda: (tmp_path / "began").touch(), given_up=True))
    forget_forbidden(tmp_path, "1-")
    assert list(tmp_path.iterdir()) == []


def test_ranks_have_nothing_to_read(job: Job) -> None:
    def read() -> bytes:
        return os.read(0, 10)

    assert job.call(read) == [b"", b""]


def test_launcher_that_is_not_there(job: Job) -> None:
    missing = Job(job.directory, job.style, "no-such-launcher")
    with pytest.raises(FileNotFoundError, match="no-such-launcher"):
        missing.call(rank)


def test_task_of_one_process_has_its_result_alone(job: Job) -> None:
    def double(number: int) -> int:
        return 2 * number

    assert job.call(double, 21, everything=True, ranks_per_node=1, launch=None) == 42


def test_single_rank_without_a_launcher(job_without_launcher: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "7")  # of the program that this one was started by
    assert job_without_launcher.call(str, "alone", ranks_per_node=1) == ["alone"]


def test_death_of_a_single_rank_without_a_launcher(job_without_launcher: Job) -> None:
    error = job_without_launcher.failure(os._exit, 3, ranks_per_node=1)
    assert str(error) == "rank 0 of 1 ended without a result; it ended with exit code 3"
