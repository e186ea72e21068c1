"""The cluster of the tests is one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.executor.parsl_runs import is_alive
from tests.slurm.cluster import Cluster, until


def test_four_nodes_are_idle(cluster: Cluster) -> None:
    assert cluster.states() == {"n1": "idle", "n2": "idle", "n3": "idle", "n4": "idle"}


def test_job_runs_on_all_nodes(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    script = "srun printenv SLURMD_NODENAME"
    cluster.run("sbatch", "--wait", "--exclusive", "--nodes=4", f"--output={output}", "--wrap", script)
    assert sorted(output.read_text().split()) == ["n1", "n2", "n3", "n4"]


def test_killed_node_is_down_until_it_is_started_again(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("sbatch", "--nodelist=n3", f"--output={tmp_path}/output", "--wrap", "sleep 1000 & wait")
    until(lambda: "sleep" in cluster.names("n3"))
    running = cluster.processes("n3")
    cluster.kill_node("n3")
    assert not any(process.is_running() for process in running)
    assert Counter(cluster.states().values()) == {"idle": 3, "down": 1}
    cluster.restart_node("n3")
    assert cluster.run("srun", "--nodelist=n3", "printenv", "SLURMD_NODENAME") == "n3\n"


@pytest.mark.parametrize(
    ("library", "launch"),
    [
        ("mpich", ["srun", "--mpi=pmi2"]),
        ("mpich", ["mpiexec.mpich"]),
        ("openmpi", ["mpiexec.openmpi", "--allow-run-as-root"]),
    ],
    ids=["srun", "hydra", "openmpi"],
)
def test_programs_know_where_they_run(
    cluster: Cluster, programs: dict[str, dict[str, Path]], library: str, launch: list[str]
) -> None:
    where = str(programs[library]["where"])
    said = cluster.run("salloc", "--nodes=2", "--ntasks-per-node=1", "--exclusive", *launch, "-n", "2", where)
    ranks = sorted(line.split() for line in said.splitlines())
    assert ranks == [["0", "2", "n1"], ["1", "2", "n2"]]


def test_nothing_is_left_of_a_stopped_cluster() -> None:
    with Cluster(nodes=1) as small:
        home = small.home
        assert home is not None
        small.run("sbatch", "--output=/dev/null", "--wrap", "setsid sleep 1000 & srun sleep 1000")
        until(lambda: small.names("n1").count("sleep") == 2)
        running = small.processes()
    assert not home.exists()
    assert not any(map(is_alive, [process.pid for process in running]))
