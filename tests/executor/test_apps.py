"""Every kind of Parsl callable, as it comes."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
import psutil
import pytest
from parsl import AUTO_LOGNAME, File, bash_app, join_app, python_app
from parsl.app.errors import AppTimeout, BashExitFailure, MissingOutputs
from parsl.data_provider.file_noop import NoOpFileStaging
from parsl.data_provider.http import HTTPInTaskStaging, HTTPSeparateTaskStaging
from parsl.data_provider.staging import Staging

from tests.executor.parsl_runs import ParslRun, is_alive, url, wait_for_text

FACTOR = 7


def times_factor(number: int) -> int:
    return number * FACTOR


class AlphabetStaging(Staging):
    """Makes files of ``letters:`` URLs within the task, and shouts what the task wrote."""

    def can_stage_in(self, file: File) -> bool:
        return str(file.scheme) == "letters"

    def can_stage_out(self, file: File) -> bool:
        return str(file.scheme) == "letters"

    def stage_in(self, dm: Any, executor: str, file: File, parent_fut: Future[Any] | None) -> None:
        file.local_path = os.path.join(dm.dfk.executors[executor].working_dir, "in", file.filename)

    def stage_out(self, dm: Any, executor: str, file: File, app_fu: Future[Any]) -> None:
        file.local_path = os.path.join(dm.dfk.executors[executor].working_dir, "out", file.filename)

    def replace_task(self, dm: Any, executor: str, file: File, func: Callable[..., Any]) -> Callable[..., Any]:
        return written_before(func, Path(file.local_path), file.filename)

    def replace_task_stage_out(
        self, dm: Any, executor: str, file: File, func: Callable[..., Any]
    ) -> Callable[..., Any]:
        return shouted_after(func, Path(file.local_path))


def written_before(func: Callable[..., Any], path: Path, text: str) -> Callable[..., Any]:
    def staged(*args: Any, **kwargs: Any) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return func(*args, **kwargs)

    return staged


def shouted_after(func: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def staged(*args: Any, **kwargs: Any) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        result = func(*args, **kwargs)
        path.write_text(path.read_text().upper())
        return result

    return staged


@pytest.fixture(scope="module")
def staging_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("staging")


@pytest.fixture(scope="module")
def executor_options(staging_directory: Path) -> dict[str, Any]:
    return {
        "working_dir": str(staging_directory),
        "storage_access": [NoOpFileStaging(), AlphabetStaging(), HTTPInTaskStaging()],
    }


@python_app
def describe(first: Any, second: Any = "two", *rest: Any, **named: Any) -> Any:
    return first, second, rest, named


@python_app
def add(*numbers: int, inputs: Sequence[int] = ()) -> int:
    return sum(numbers) + sum(inputs)


@python_app
def use_module_globals(number: int) -> int:
    return times_factor(number) + len(os.sep)


@python_app
def read(inputs: Sequence[File] = ()) -> str:
    return " ".join(Path(file.filepath).read_text() for file in inputs)


@python_app
def write(text: str, outputs: Sequence[File] = ()) -> int:
    return Path(outputs[0].filepath).write_text(text)


@python_app
def spin(walltime: float | None = None) -> None:
    while True:
        pass


@bash_app
def shell(
    command: str, stdout: Any = None, stderr: Any = None, outputs: Any = (), walltime: float | None = None
) -> str:
    return command


@bash_app
def shell_default(name: str = "nobody", stdout: Any = None) -> str:
    return f"echo {name}"


@join_app
def sum_of_squares(numbers: Sequence[int]) -> Any:
    return add(inputs=[square(number) for number in numbers])


@python_app
def square(number: int) -> int:
    return number * number


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def plus(self, number: int) -> int:
        return self.value + number

    def __call__(self, number: int) -> int:
        return self.value * number


def test_positional_keyword_and_default_arguments(run: ParslRun) -> None:
    assert describe(1).result() == (1, "two", (), {})
    assert describe(1, 2, 3, four=4).result() == (1, 2, (3,), {"four": 4})
    assert describe(second=2, first={"a": [1, None]}).result() == ({"a": [1, None]}, 2, (), {})


def test_futures_are_arguments(run: ParslRun) -> None:
    one, two = add(1), add(2)
    three = add(one, two)
    assert add(three, 10, inputs=[one, two, three]).result() == 3 + 10 + 6


def test_app_uses_globals_of_its_module(run: ParslRun) -> None:
    assert use_module_globals(6).result() == 43


def test_files_pass_from_app_to_app(run: ParslRun, tmp_path: Path) -> None:
    written = write("text", outputs=[File(str(tmp_path / "written"))])
    assert read(inputs=[written.outputs[0], written.outputs[0]]).result() == "text text"
    assert written.result() == 4


def test_bash_app_redirects_and_appends(run: ParslRun, tmp_path: Path) -> None:
    out, err = tmp_path / "new" / "out", tmp_path / "err"
    assert shell("echo said; echo wrong >&2", stdout=str(out), stderr=str(err)).result() == 0
    assert out.read_text() == "said\n"
    assert "wrong\n" in err.read_text()
    shell("echo again", stdout=(str(out), "a"), stderr=err).result()
    assert out.read_text() == "said\nagain\n"
    shell("echo anew", stdout=(str(out), "w")).result()
    assert out.read_text() == "anew\n"
    shell_default(stdout=str(out)).result()
    assert out.read_text() == "anew\nnobody\n"


def test_bash_app_with_automatic_log_names(run: ParslRun) -> None:
    call = shell("echo said; echo wrong >&2", stdout=AUTO_LOGNAME, stderr=AUTO_LOGNAME)
    call.result()
    assert Path(call.stdout).read_text() == "said\n"
    assert "wrong\n" in Path(call.stderr).read_text()
    assert Path(call.stdout).is_relative_to(run.kernel.run_dir)


def test_bash_app_makes_files(run: ParslRun, tmp_path: Path) -> None:
    made = shell(f"echo made > {tmp_path}/made", outputs=[File(str(tmp_path / "made"))])
    assert read(inputs=[made.outputs[0]]).result() == "made\n"
    missing = File(str(tmp_path / "missing"))
    with pytest.raises(MissingOutputs) as failure:
        shell("true", outputs=[missing]).result()
    assert [file.filepath for file in failure.value.outputs] == [missing.filepath]


def test_bash_app_that_fails_says_how(run: ParslRun) -> None:
    with pytest.raises(BashExitFailure) as failure:
        shell("exit 37").result()
    assert (failure.value.app_name, failure.value.exitcode) == ("shell", 37)


def test_join_app_starts_tasks(run: ParslRun) -> None:
    assert sum_of_squares([1, 2, 3]).result() == 14


def test_python_app_ends_at_its_walltime(run: ParslRun) -> None:
    call = spin(walltime=0.2)
    with pytest.raises(AppTimeout):
        call.result()
    assert run.attempt(call).outcome == "timeout"


def test_bash_app_and_its_children_end_at_its_walltime(run: ParslRun, tmp_path: Path) -> None:
    call = shell(f"sleep 600 & echo $$ $! > {tmp_path}/pids; wait", walltime=0.5)
    pids = [int(pid) for pid in wait_for_text(tmp_path / "pids").split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(AppTimeout):
        call.result()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert run.attempt(call).outcome == "timeout"


def test_staging_within_the_task(run: ParslRun, staging_directory: Path) -> None:
    assert read(inputs=[File("letters://host/abc"), File("letters://host/def")]).result() == "abc def"
    written = write("quiet", outputs=[File("letters://host/xyz")])
    written.outputs[0].result()
    assert (staging_directory / "out" / "xyz").read_text() == "QUIET"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of one file, `served`."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "served").write_text("from the web")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(directory))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_staging_within_the_task(run: ParslRun, web_address: str) -> None:
    assert read(inputs=[File(f"{web_address}/served")]).result() == "from the web"


def test_http_staging_in_a_task_of_its_own(run: ParslRun, web_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.executor, "storage_access", [HTTPSeparateTaskStaging()])
    assert read(inputs=[File(f"{web_address}/served")]).result() == "from the web"


def test_executor_takes_any_callable(run: ParslRun) -> None:
    def nested(number: int) -> int:
        return number + offset

    offset = 100
    counter = Counter(5)

    def submit(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return run.executor.submit(func, {}, *args, **kwargs).result()

    assert submit(times_factor, 3) == 21
    assert submit(len, "four") == 4
    assert submit(lambda number: number + offset, number=1) == 101
    assert submit(nested, 2) == 102
    assert submit(functools.partial(pow, 2), 10) == 1024
    assert submit(functools.partial(nested, number=3)) == 103
    assert submit(counter.plus, 1) == 6
    assert submit(counter, 2) == 10
    assert python_app(counter.plus)(2).result() == 7
    assert python_app(lambda number: -number)(2).result() == -2


def test_callable_is_taken_as_it_is_when_it_is_called(run: ParslRun) -> None:
    counter = Counter(1)
    numbers = [1]
    method = counter.plus
    calls: list[Callable[[], Any]] = [
        functools.partial(run.executor.submit, method, {}, 0),
        functools.partial(run.executor.submit, counter, {}, 1),
        functools.partial(run.executor.submit, functools.partial(sum, numbers), {}),
        functools.partial(run.executor.submit, lambda: counter.value, {}),
        functools.partial(python_app(method), 0),
    ]
    assert [call().result() for call in calls] == [1] * 5
    counter.value = 2
    numbers.append(1)
    assert [call().result() for call in calls] == [2] * 5


def test_closures_that_hold_themselves(run: ParslRun) -> None:
    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else 1

    assert run.executor.submit(factorial, {}, 5).result() == 120
    assert python_app(factorial)(4).result() == 24


SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path

import colorsys
import neighbour
import parsl
from parsl import Config, bash_app, python_app
from parsl_balsam import BalsamExecutor

FACTOR = 6

@dataclass
class Point:
    x: int

def helper(point):
    return Point(point.x * FACTOR)

@python_app
def scale(point):
    return helper(point)

@python_app
def ask_neighbour():
    return neighbour.NAME, neighbour.lives_at(), colorsys.NAME

@bash_app
def greet(stdout=None):
    return f"echo {neighbour.NAME} {helper(Point(1)).x}"

if __name__ == "__main__":
    config = Config(
        executors=[BalsamExecutor(database=sys.argv[1])], run_dir=sys.argv[2], initialize_logging=False
    )
    with parsl.load(config):
        print(scale(Point(7)).result())
        print(*ask_neighbour().result())
        greet(stdout="greeting").result()
        print(Path("greeting").read_text())
"""


def test_script_uses_its_globals_and_the_modules_beside_it(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (home / "script.py").write_text(SCRIPT)
    (home / "neighbour.py").write_text("NAME = 'Ann'\ndef lives_at():\n    return __file__\n")
    (home / "colorsys.py").write_text("NAME = 'not the standard library'\n")
    answer = subprocess.run(
        [sys.executable, str(home / "script.py"), url(work), str(work / "runinfo")],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout.splitlines()[:3] == [
        "Point(x=42)",
        f"Ann {home}/neighbour.py not the standard library",
        "Ann 6",
    ], answer.stderr


def test_apps_of_a_kernel_that_is_not_the_default(run: ParslRun) -> None:
    kernel, parsl.dataflow.dflow.DataFlowKernelLoader._dfk = run.kernel, None
    try:
        assert python_app(times_factor, data_flow_kernel=kernel)(2).result() == 14
    finally:
        parsl.dataflow.dflow.DataFlowKernelLoader._dfk = kernel


def test_arguments_that_are_recorded_take_no_memory(run: ParslRun) -> None:
    data = os.urandom(10_000_000)
    tracemalloc.start()
    try:
        call = python_app(len)(data)
        run.task_id(call)
        assert call.result() == len(data)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > len(data), "they were not turned into bytes"
    assert kept < len(data)
