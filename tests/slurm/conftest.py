"""A Slurm of four nodes for all tests of this directory, and MPI programs for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.executor.parsl_runs import ParslRun, parsl_run
from tests.requirements import require
from tests.slurm.cluster import PACKAGES, PATH, PROGRAMS, Cluster
from tests.slurm.ensembles import provider

#: MPI libraries that programs are compiled for: how their commands end.
MPI_LIBRARIES = ("mpich", "openmpi")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster that all tests share; without Slurm the test is skipped, or fails under CI=true."""
    require(PROGRAMS, PACKAGES, PATH)
    with Cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def clean_queue(cluster: Cluster) -> Iterator[None]:
    """Leave the cluster as it was: no jobs, and all nodes there."""
    yield
    for name in cluster.dead_nodes:
        cluster.restart_node(name)
    cluster.cancel_all()
    cluster.wait_for("idle")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Paths of the MPI programs in ``programs``, by library and by name: ``programs["mpich"]["where"]``."""
    needed = [f"{command}.{library}" for library in MPI_LIBRARIES for command in ("mpicc", "mpiexec")]
    require(needed, "mpich openmpi-bin libopenmpi-dev")
    compiled: dict[str, dict[str, Path]] = {}
    for library in MPI_LIBRARIES:
        directory = tmp_path_factory.mktemp(library)
        compiled[library] = {}
        for source in sorted((Path(__file__).parent / "programs").glob("*.c")):
            compiled[library][source.stem] = directory / source.stem
            subprocess.run([f"mpicc.{library}", "-O1", "-o", directory / source.stem, source], check=True)
    return compiled


@pytest.fixture
def slurm_run(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., ParslRun]]:
    """Loads Parsl for one test, with blocks from the cluster and a database on PostgreSQL."""
    with slurm_runs(cluster, postgres_url, tmp_path) as load:
        yield load


@contextmanager
def slurm_runs(cluster: Cluster, url: str, directory: Path) -> Iterator[Callable[..., ParslRun]]:
    """Give what loads Parsl with blocks from the cluster, with the arguments of a BalsamExecutor."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in cluster.environ.items():
            patch.setenv(name, value)

        def load(strategy: str = "simple", **options: Any) -> ParslRun:
            defaults = {"database": url, "address": "127.0.0.1", "provider": provider()}
            config = {"strategy_period": 0.5, "strategy": strategy}
            return stack.enter_context(parsl_run(directory, config, alone=False, **{**defaults, **options}))

        yield load
