"""What users name reaches shells and schedulers as one word, and secrets reach neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from parsl_balsam.db.schema import attempts, blocks
from parsl_balsam.db.server import Server
from parsl_balsam.launcher.invitation import Invitation
from tests.campaigns import SiteCampaign, site_campaign
from tests.conftest import new_database
from tests.executor.parsl_runs import ParslRun, open_gate, wait_for, waiting
from tests.exposure import files_with, seen_in_processes
from tests.faults.conftest import until
from tests.slurm.cluster import Cluster
from tests.slurm.ensembles import command, provider

NAME = """it's "odd" $(touch HACKED)`touch HACKED`; touch HACKED & * %j \\ é#"""

SCRIPT = """
@bash_app
def step(number, stdout=parsl.AUTO_LOGNAME, parsl_resource_specification=None):
    return f"echo {{number}} >> lines; echo said {{number}}"

@python_app
def where(parsl_resource_specification=None):
    import os
    return os.getcwd()

if __name__ == "__main__":
    names = dict(label={name!r}, workflow={name!r}, task_defaults={{"launcher_options": "--cpu-bind=none"}})
    with load_blocks(names, nodes_per_block=2, worker_init="cd " + __import__("shlex").quote(DIRECTORY)):
        wide = {{"num_nodes": 2, "ranks_per_node": 1}}
        steps = [step(number) for number in range(3)] + [step(3, parsl_resource_specification=wide)]
        function = where(parsl_resource_specification={{**wide, "launch": "ranks"}})
        ended = [future.result() for future in steps]
        said = [Path(future.stdout).read_text().split() for future in steps]
        report([ended, said, function.result(), where().result()])
"""


@pytest.fixture
def campaign(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[SiteCampaign]:
    directory = tmp_path / NAME
    directory.mkdir()
    with site_campaign("SlurmProvider", cluster.environ, postgres_url, directory, cluster.cancel_all) as made:
        yield made


def test_any_name_will_do(campaign: SiteCampaign, cluster: Cluster, tmp_path: Path) -> None:
    ended, said, functions, function = campaign.run(campaign.write(SCRIPT.format(name=NAME)))
    assert ended == [0] * 4
    assert said == [["said", "0"], ["said", "1"], ["said", "2"], ["said", "3"] * 2]
    assert [*functions, function] == [str(campaign.directory)] * 3
    assert sorted(campaign.lines) == ["0", "1", "2", "3", "3"]
    assert {row.outcome for row in campaign.rows(attempts)} == {"done"}
    (block,) = campaign.rows(blocks)
    assert block.tag.startswith("parsl.it_s_odd_touch_HACKED_touch_HACKED_touch_HACKED_j_.block-0.")
    assert (campaign.directory / "runinfo" / "000" / NAME / "launch.json").exists()
    campaign.check_invariants()
    assert cluster.home is not None
    for directory in (tmp_path, cluster.home):
        assert [path for path in directory.rglob("*") if path.name == "HACKED"] == []
    for directory in (Path.cwd(), Path.home(), Path("/")):
        assert not (directory / "HACKED").exists()
    until(lambda: not cluster.jobs())


@pytest.fixture
def own_url(own_server: Server) -> Iterator[str]:
    """A database whose password no other test has given to a command of Slurm, which remembers all words of jobs."""
    with new_database(own_server) as url:
        yield url


def test_keys_of_agents_are_in_private_files_only(
    slurm_run: Callable[..., ParslRun], cluster: Cluster, own_url: str, tmp_path: Path
) -> None:
    run = slurm_run(provider=provider(2), label="agents", database=own_url)
    gate = tmp_path / "gate"
    holding = [command(waiting(gate)) for _ in range(3)]
    started = attempts.c.started_at.is_not(None)
    wait_for(lambda: len(run.rows(attempts, started)) == len(holding), "tasks on both nodes")
    (file,) = tmp_path.rglob("agents-*.json")
    secret = Invitation.read(file).client_secret
    password = str(make_url(own_url).password)
    assert (len(secret), len(password)) == (40, 43)
    # Agents wait for work, srun holds its step, workers run what it is for.
    assert seen_in_processes([secret, password]) == []
    assert len(seen_in_processes(["parsl_balsam.launcher.agent"])) >= 2
    wide = command("true", parsl_resource_specification={"num_nodes": 2})
    open_gate(gate)
    assert [call.result() for call in [*holding, wide]] == [0] * 4
    assert list(files_with(secret, tmp_path)) == [file]
    assert [path.name for path in files_with(password, tmp_path)] == ["launch.json"]
    assert cluster.home is not None
    assert [*files_with(secret, cluster.home), *files_with(password, cluster.home)] == []
