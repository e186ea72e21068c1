"""What calls and executors may ask for, and what they are told if it makes no sense."""

from __future__ import annotations

import inspect
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl import python_app
from parsl.providers import LocalProvider, SlurmProvider
from typeguard import TypeCheckError

from parsl_balsam import BalsamExecutor, RetryPolicy
from parsl_balsam.model.errors import ConfigurationError, DatabaseUnavailable, ImpossibleTask, InvalidResources
from parsl_balsam.model.shares import read_shares
from tests.executor.parsl_runs import ParslRun, url, wait_for_text

CORES = 4


@pytest.fixture(scope="module")
def executor_options() -> dict[str, Any]:
    return {"cores_per_node": CORES, "task_defaults": {"tags": {"from": "defaults"}}}


@python_app
def touch(path: str, parsl_resource_specification: dict[str, Any] | None = None) -> None:
    Path(path).touch()


@python_app
def append(path: str, text: str, parsl_resource_specification: dict[str, Any] | None = None) -> None:
    with open(path, "a") as file:
        file.write(f"{text}\n")


@python_app
def wait_for_gate(gate: str, started: str, parsl_resource_specification: dict[str, Any] | None = None) -> None:
    append.func(started, "started")
    while not os.path.exists(gate):
        time.sleep(0.01)


@python_app
def occupy(seconds: float, parsl_resource_specification: dict[str, Any] | None = None) -> tuple[float, float, str]:
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic(), os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ({"cores": 2}, "did you mean cores_per_rank"),
        ({"core_per_rank": 2}, "did you mean cores_per_rank"),
        ({"memory": 4}, "did you mean memory_gb? It is in GB"),
        ({"walltime": 4}, "did you mean walltime_min? It is in minutes"),
        ({"timeout": 4}, "did you mean timeout_s? It is in seconds"),
        ({"something": 4}, "the keys are cores_per_rank"),
        ({"cores_per_rank": 0}, "cores_per_rank=0"),
        ({"cores_per_rank": "2"}, "cores_per_rank='2'"),
        ({"priority": 1.5}, "priority=1.5"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"num_ranks": 3, "num_nodes": 2}, "num_ranks=3 is not a multiple of num_nodes=2"),
        ([("cores_per_rank", 1)], "is a dictionary"),
    ],
)
def test_wrong_specification_is_refused_with_advice(run: ParslRun, tmp_path: Path, spec: Any, advice: str) -> None:
    call = touch(str(tmp_path / "ran"), parsl_resource_specification=spec)
    with pytest.raises(InvalidResources) as refusal:
        call.result()
    assert advice in str(refusal.value)
    with pytest.raises(InvalidResources):
        run.executor.submit(len, spec, "abc")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"cores_per_rank": CORES + 1}, f"cores_per_rank=5 needs 5 cores on a node, .* more than the {CORES} cores"),
        ({"num_nodes": 2}, "num_nodes=2 is more than the 1 nodes of a block"),
        ({"ranks_per_node": CORES + 1}, "ranks_per_node=5 needs 5 cores"),
        ({"gpus_per_rank": 1}, "it needs 1 GPUs on a node, and this block has 0"),
        ({"memory_gb": 10**6}, "it needs 1e\\+06 GB on a node"),
    ],
)
def test_task_that_no_block_could_run_is_refused(run: ParslRun, tmp_path: Path, spec: Any, reason: str) -> None:
    with pytest.raises(ImpossibleTask, match=reason):
        touch(str(tmp_path / "ran"), parsl_resource_specification=spec).result()
    assert not (tmp_path / "ran").exists()


def test_no_specification_at_all(run: ParslRun, tmp_path: Path) -> None:
    for number, spec in enumerate(({}, None)):
        touch(str(tmp_path / str(number)), parsl_resource_specification=spec).result()
        assert (tmp_path / str(number)).exists()
    assert run.executor.submit(len, {}, "abc").result() == 3


def test_larger_priority_starts_first(run: ParslRun, tmp_path: Path) -> None:
    whole = {"cores_per_rank": CORES}
    gate, started, log = (str(tmp_path / name) for name in ("gate", "started", "log"))
    blocker = wait_for_gate(gate, started, parsl_resource_specification=whole)
    wait_for_text(Path(started))
    calls = [
        append(log, str(priority), parsl_resource_specification={**whole, "priority": priority})
        for priority in (0, 5, -3, 10, 1)
    ]
    for call in calls:
        run.task_id(call)
    Path(gate).touch()
    for call in [blocker, *calls]:
        call.result()
    assert Path(log).read_text().split() == ["10", "5", "1", "0", "-3"]


def test_cores_are_shared_but_never_twice(run: ParslRun) -> None:
    sizes = [1, 3, 2, 4, 1, 1, 2, 3, 1, 4, 2, 1, 1, 1]
    calls = [occupy(0.05, parsl_resource_specification={"cores_per_rank": size}) for size in sizes]
    used = []
    for size, call in zip(sizes, calls, strict=True):
        start, end, threads = call.result()
        (share,) = read_shares(run.attempt(call).placement)
        cores = share.cores
        assert len(set(cores)) == size
        assert threads == str(size)
        used.append((start, end, set(cores)))
    most = 0
    for moment, _, _ in used:
        now = [cores for start, end, cores in used if start <= moment < end]
        assert len(set().union(*now)) == sum(map(len, now)) <= CORES
        most = max(most, len(now))
    assert most > 1


def test_memory_is_shared(run: ParslRun) -> None:
    half = {"memory_gb": psutil.virtual_memory().total / 1e9 * 0.6}
    spans = [occupy(0.1, parsl_resource_specification=half) for _ in range(3)]
    ordered = sorted(call.result()[:2] for call in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(ordered))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": 3}, TypeCheckError, "label"),
        ({"max_retries": "2"}, TypeCheckError, "max_retries"),
        ({"provider": "slurm"}, TypeCheckError, "provider"),
        ({"retry": {"max_retries": 1}}, TypeCheckError, "retry"),
        ({"max_retries": -1}, ConfigurationError, "max_retries=-1"),
        ({"max_crashes": 0}, ConfigurationError, "max_crashes=0"),
        ({"cores_per_node": 0}, ConfigurationError, "cores_per_node=0"),
        ({"lease_s": 0.0}, ConfigurationError, "lease_s=0.0"),
        ({"idle_timeout_s": -1.0}, ConfigurationError, "idle_timeout_s=-1.0"),
        ({"workflow": ""}, ConfigurationError, "workflow is empty"),
        ({"database": "balsam.db"}, ConfigurationError, "not a database"),
        ({"database": "mysql://host/name"}, ConfigurationError, "sqlite:/// or postgresql://"),
        ({"database": "sqlite:///"}, ConfigurationError, "must be a file"),
        ({"provider": SlurmProvider()}, ConfigurationError, "parsl-balsam db init"),
        ({"retry": RetryPolicy(), "max_retries": 1}, ConfigurationError, "either retry or"),
        ({"retry": RetryPolicy(), "max_crashes": 1}, ConfigurationError, "either retry or"),
        ({"task_defaults": {"cores": 2}}, InvalidResources, "did you mean cores_per_rank"),
    ],
)
def test_wrong_argument_of_the_executor(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refusal:
        BalsamExecutor(**options)
    assert message in str(refusal.value)


def test_database_that_cannot_be_opened(tmp_path: Path) -> None:
    executor = BalsamExecutor(database=url(tmp_path / "missing"))
    with pytest.raises(DatabaseUnavailable, match="missing"):
        executor.start()


def test_text_of_an_executor_is_complete_and_keeps_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BalsamExecutor, "_validate_repr", True)
    executor = BalsamExecutor(
        label="mine",
        workflow="scan",
        database="postgresql://user:secret@host:5432/name",
        provider=LocalProvider(max_blocks=3),
        task_defaults={"cores_per_rank": 2},
        retry=RetryPolicy(max_retries=4),
    )
    text = repr(executor)
    for name in inspect.signature(BalsamExecutor).parameters:
        assert f"{name}=" in text
    for value in (
        "'mine'",
        "'scan'",
        "user:***@host:5432/name",
        "max_blocks=3",
        "'cores_per_rank': 2",
        "max_retries=4",
    ):
        assert value in text
    assert "secret" not in text
