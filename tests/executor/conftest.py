"""Fixtures that load Parsl with a BalsamExecutor and real local blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.executor.parsl_runs import ParslRun, parsl_run

Load = Callable[..., ParslRun]


@pytest.fixture(scope="module")
def executor_options() -> dict[str, Any]:
    """Arguments of the executor that a module's tests share. Modules override it."""
    return {}


@pytest.fixture(scope="module")
def config_options() -> dict[str, Any]:
    """Arguments of Parsl's Config that a module's tests share. Modules override it."""
    return {}


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, executor_options: dict[str, Any], config_options: dict[str, Any]
) -> Iterator[ParslRun]:
    """One run for all tests of a module."""
    with parsl_run(tmp_path_factory.mktemp("run"), config_options, **executor_options) as loaded:
        yield loaded


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads Parsl for one test, with the arguments of `parsl_run`."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(parsl_run(tmp_path, *args, **options))
