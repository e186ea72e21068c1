"""How tasks fail, and what their scripts and the database are told of it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl import bash_app, python_app
from parsl.app.errors import BashExitFailure
from parsl.dataflow.errors import DependencyError

from parsl_balsam.launcher.capture import TAIL_BYTES
from parsl_balsam.model.errors import NotSerializable, TaskCrashed, TaskTimeout, UnreadablePayload
from parsl_balsam.model.shares import read_shares
from tests.executor.parsl_runs import ParslRun, is_alive, wait_for_text

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def executor_options() -> dict[str, Any]:
    return {"cores_per_node": 1, "max_crashes": 2}


class Plain(Exception):
    pass


class WithAttributes(Exception):
    def __init__(self, code: int, reason: str = "none") -> None:
        super().__init__(code, reason)
        self.code = code


class DoesNotUnpickle(Exception):
    def __init__(self, number: int, unit: str) -> None:
        super().__init__(f"{number} {unit}")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__(iter_of(3))


def iter_of(count: int) -> Iterator[int]:
    yield from range(count)


@python_app
def fail_with(kind: type[Exception], *args: Any) -> None:
    raise kind(*args)


@python_app
def fail_with_cause() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise Plain("second") from error


@python_app
def returns_generator() -> Any:
    return iter_of(3)


@python_app
def add(first: Any, second: Any) -> Any:
    return first + second


@python_app
def leave(code: Any) -> None:
    sys.exit(code)


@python_app
def raise_base(name: str) -> None:
    raise getattr(__import__("builtins"), name)("told to")


@python_app
def exit_at_once(code: int) -> None:
    os._exit(code)


@python_app
def segfault() -> None:
    ctypes.string_at(0)


@python_app
def write_to_every_socket() -> int:
    sockets = [name for name in os.listdir("/proc/self/fd") if _is_socket(f"/proc/self/fd/{name}")]
    return sum(os.write(int(name), os.urandom(1000)) for name in sockets)


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except FileNotFoundError:  # that of the listing itself
        return False


@python_app
def allocate(size: int) -> int:
    return len(bytearray(b"x") * size)


@python_app
def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@python_app
def start_family(directory: str, parsl_resource_specification: dict[str, Any] | None = None) -> None:
    script = f"setsid sleep 600 & sleep 600 & echo $$ $(jobs -p) > {directory}/pids; wait"
    subprocess.run(["bash", "-c", script], check=True)


@python_app
def print_much(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")
    print("the end", file=sys.stderr)


@bash_app
def shell(
    command: str,
    stdout: str | None = None,
    stderr: str | None = None,
    parsl_resource_specification: dict[str, Any] | None = None,
) -> str:
    return command


def test_exceptions_arrive_as_they_are(run: ParslRun) -> None:
    with pytest.raises(Plain, match="words"):
        fail_with(Plain, "words").result()
    call = fail_with(WithAttributes, 7, "seven")
    with pytest.raises(WithAttributes) as failure:
        call.result()
    assert failure.value.code == 7
    assert failure.traceback[-1].name == "fail_with"
    attempt = run.attempt(call)
    assert attempt.outcome == "error"
    assert "WithAttributes: (7, 'seven')" in attempt.error
    assert "in fail_with" in attempt.error
    with pytest.raises(Plain) as caused:
        fail_with_cause().result()
    assert isinstance(caused.value.__cause__, KeyError)
    with pytest.raises(DependencyError):
        add(fail_with(Plain), 1).result()


def test_exception_that_does_not_unpickle_is_described(run: ParslRun) -> None:
    with pytest.raises(UnreadablePayload, match="DoesNotUnpickle: 3 cm"):
        fail_with(DoesNotUnpickle, 3, "cm").result()
    with pytest.raises(UnreadablePayload, match="HoldsLock"):
        fail_with(HoldsLock).result()
    assert add(1, 2).result() == 3


def test_exception_without_text(run: ParslRun) -> None:
    call = fail_with(Unprintable)
    with pytest.raises(Unprintable):
        call.result()
    assert "Unprintable" in run.attempt(call).error
    assert add(1, 2).result() == 3


def test_argument_that_cannot_be_sent(run: ParslRun) -> None:
    call = add(iter_of(3), 1)
    with pytest.raises(NotSerializable, match="generator"):
        call.result()
    with pytest.raises(NotSerializable, match="generator"):
        run.executor.submit(functools.partial(next, iter_of(3)), {})
    assert add(1, 2).result() == 3


def test_result_that_cannot_be_returned(run: ParslRun) -> None:
    call = returns_generator()
    with pytest.raises(NotSerializable, match=r"result cannot be returned.*generator"):
        call.result()
    assert run.attempt(call).outcome == "error"
    assert add(1, 2).result() == 3


def test_objects_that_only_dill_can_send(run: ParslRun) -> None:
    assert type(add([threading.Lock()], []).result()[0]) is type(threading.Lock())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: leave(3), r"SystemExit\(3\)"),
        (lambda: leave("enough"), r"SystemExit\('enough'\)"),
        (lambda: raise_base("KeyboardInterrupt"), "KeyboardInterrupt"),
        (lambda: raise_base("GeneratorExit"), "GeneratorExit"),
    ],
)
def test_exit_by_exception(run: ParslRun, call: Any, said: str) -> None:
    with pytest.raises(TaskCrashed, match=said):
        call().result()
    assert add(1, 2).result() == 3


@pytest.mark.parametrize(("call", "exit_code", "signal"), [(lambda: exit_at_once(3), 3, None), (segfault, None, 11)])
def test_dead_worker_is_a_crash(run: ParslRun, call: Any, exit_code: int | None, signal: int | None) -> None:
    dead = call()
    with pytest.raises(TaskCrashed, match="exit code 3" if exit_code else "SIGSEGV"):
        dead.result()
    assert [
        (attempt.number, attempt.outcome, attempt.exit_code, attempt.signal, attempt.host)
        for attempt in run.attempts(dead)
    ] == [(number, "crash", exit_code, signal, platform.node()) for number in (1, 2)]
    assert add(1, 2).result() == 3


def test_task_that_writes_to_its_workers_socket_crashes_alone(run: ParslRun) -> None:
    launcher = run.attempt(first) if (first := add(1, 1)).result() else None
    call = write_to_every_socket()
    with pytest.raises(TaskCrashed, match="crashed 2 times"):
        call.result()
    for number, attempt in enumerate(run.attempts(call), 1):
        assert (attempt.number, attempt.outcome, attempt.exit_code, attempt.signal) == (number, "crash", None, None)
        assert "the worker was killed, because it sent what its agent cannot read: no message starts" in attempt.error
    last = add(1, 2)
    assert last.result() == 3
    assert launcher is not None
    assert run.attempt(last).block_id == launcher.block_id  # neither it nor its node was lost


def test_bash_app_killed_by_a_signal(run: ParslRun) -> None:
    call = shell("kill -9 $$")
    with pytest.raises(BashExitFailure):
        call.result()
    attempt = run.attempt(call)
    assert (attempt.outcome, attempt.exit_code, attempt.signal) == ("exit", -9, 9)


@pytest.mark.parametrize("app", [start_family, shell])
def test_time_limit_ends_the_task_and_all_it_started(run: ParslRun, tmp_path: Path, app: Any) -> None:
    limit = {"timeout_s": 0.7}
    if app is start_family:
        call = start_family(str(tmp_path), parsl_resource_specification=limit)
    else:
        script = f"setsid sleep 600 & sleep 600 & echo $$ $(jobs -p) > {tmp_path}/pids; wait"
        call = shell(script, parsl_resource_specification=limit)
    pids = [int(pid) for pid in wait_for_text(tmp_path / "pids").split()]
    assert len(pids) == 3
    assert all(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(TaskTimeout, match=r"timeout_s=0\.7"):
        call.result()
    assert [pid for pid in pids if is_alive(pid)] == []
    attempt = run.attempt(call)
    assert attempt.outcome == "timeout"
    assert attempt.ended_at - attempt.started_at >= 0.7
    assert add(1, 2).result() == 3


def test_last_of_the_output_is_recorded(run: ParslRun) -> None:
    call = print_much(100_000)
    call.result()
    output = run.attempt(call).output
    assert len(output) == TAIL_BYTES
    assert output.startswith("line 9") or "\nline 9" in output[:20]
    assert "line 99999\n" in output
    assert "the end\n" in output
    quiet, loud = add(1, 2), shell("echo said; echo wrong >&2; exit 1")
    quiet.result()
    assert loud.exception()
    assert run.attempt(quiet).output is None
    assert run.attempt(loud).output == "said\nwrong\n"


def test_last_of_the_users_stderr_file_is_recorded(run: ParslRun, tmp_path: Path) -> None:
    failing = shell("echo reason >&2; exit 4", stderr=str(tmp_path / "failing"))
    assert failing.exception()
    attempt = run.attempt(failing)
    assert (attempt.outcome, attempt.exit_code) == ("exit", 4)
    assert attempt.stderr_tail.endswith("reason\n")
    killed = shell(
        "echo waiting >&2; sleep 600",
        stderr=str(tmp_path / "killed"),
        parsl_resource_specification={"timeout_s": 0.5},
    )
    assert isinstance(killed.exception(), TaskTimeout)
    assert run.attempt(killed).stderr_tail.endswith("waiting\n")


def test_peak_memory_is_that_of_the_task_alone(run: ParslRun) -> None:
    program = f"{sys.executable} -c 'len(bytearray(b\"x\") * {200 * MEGABYTE})'"
    calls = [allocate(200 * MEGABYTE), allocate(1), shell(program), shell("true"), allocate(1)]
    for call in calls:
        call.result()
    large, small, large_program, small_program, last = (run.attempt(call).peak_memory for call in calls)
    assert large >= 200 * MEGABYTE
    assert large_program >= 200 * MEGABYTE
    for other in (small, small_program, last):
        assert 5 * MEGABYTE < other < 150 * MEGABYTE


def test_usage_place_and_times_are_recorded(run: ParslRun) -> None:
    before = time.time()
    burning = burn(0.3)
    burning.result()
    program = shell(f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.3: pass'")
    program.result()
    idle = shell("sleep 0.3")
    idle.result()
    for call in (burning, program, idle):
        attempt = run.attempt(call)
        assert attempt.host == platform.node()
        (share,) = read_shares(attempt.placement)
        assert (share.node, len(share.cores)) == (platform.node(), 1)
        assert before - 1 < attempt.claimed_at <= attempt.started_at + 0.1
        assert attempt.started_at + 0.29 < attempt.ended_at < time.time() + 1
        assert (attempt.exit_code, attempt.signal) == (None, None)
    assert run.attempt(burning).cpu_time >= 0.3
    assert run.attempt(program).cpu_time >= 0.3
    assert run.attempt(idle).cpu_time < 0.2
