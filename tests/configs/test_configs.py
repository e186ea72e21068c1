"""Configurations for machines: what they ask the batch systems for."""

from __future__ import annotations

import getpass
import importlib
import inspect
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import parsl
import pytest
from parsl import Config, python_app

from parsl_balsam import BalsamExecutor, CobaltProvider, QueuePolicy, SlurmProvider
from parsl_balsam.db.server import Server
from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.providers.batch import BatchProvider

CONFIGS = Path(__file__).parents[2] / "configs"
SITES = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))

#: Nobody connects to it here.
DATABASE = "postgresql://user:password@db.example/balsam"

COMMAND = "exec python -m parsl_balsam.launcher order.json 1"

#: A stand-in for sbatch and qsub: it keeps what it was given, and says what the real one would.
PROGRAM = """#!/bin/bash
printf '%s\\n' "$@" > "{kept}/words"
cat "${{@: -1}}" > "{kept}/script"
echo '{answer}'
"""


@dataclass(frozen=True)
class Submission:
    """What was handed to a batch system."""

    words: list[str]  #: of the command line
    script: str

    def directives(self, mark: str) -> list[str]:
        """Return the options in the script, without the mark they begin with."""
        return [line.removeprefix(mark).strip() for line in self.script.splitlines() if line.startswith(mark + " ")]

    def option(self, name: str) -> str:
        """Return the value after an option of the command line."""
        return self.words[self.words.index(name) + 1]


Submit = Callable[..., Submission]


@dataclass(frozen=True)
class Row:
    """A line of the table in a module's docstring."""

    queue: str
    nodes: tuple[int, int]
    minutes: tuple[int, int]
    queued: int | None = None
    running: int | None = None


def module(site: str) -> ModuleType:
    return importlib.import_module(f"configs.{site}")


def table(site: str) -> list[Row]:
    rows = []
    for line in (module(site).__doc__ or "").splitlines():
        if found := re.fullmatch(r"(\S+) +(\d+)-(\d+) +(\d+)-(\d+)(?: +(\d+|any) +(\d+|any))?", line):
            fewest, most, shortest, longest = map(int, found.groups()[1:5])
            counts = [None if count in (None, "any") else int(count) for count in found.groups()[5:]]
            rows.append(Row(found[1], (fewest, most), (shortest, longest), *counts))
    return rows


def admitted(policy: QueuePolicy, name: str | None = None) -> list[Row]:
    """Return a policy as lines of a table.

    Parameters
    ----------
    name
        What the table calls its queue; by default what the policy does.
    """
    return [
        Row(
            name or str(queue.name),
            (nodes.min_nodes, nodes.max_nodes),
            (int(nodes.min_walltime_min), int(nodes.max_walltime_min)),
            queue.max_queued,
            queue.max_running,
        )
        for queue in policy.queues
        for nodes in queue.ranges
    ]


def executor_of(config: Config) -> BalsamExecutor:
    (executor,) = config.executors
    assert isinstance(executor, BalsamExecutor)
    return executor


def policy_of(site: str, **options: Any) -> QueuePolicy:
    policy = executor_of(module(site).make_config("melt", "p17", DATABASE, **options)).queue_policy
    assert policy is not None
    return policy


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Submits a block of a site, and checks that bash could run its script."""

    def submit_block(site: str, request: BlockRequest | None = None, **options: Any) -> Submission:
        options = {"worker_init": "module load melt", **options}
        provider = executor_of(module(site).make_config("melt", "p17", DATABASE, **options)).provider
        answer = "Submitted batch job 17" if isinstance(provider, SlurmProvider) else "17"
        for name in ("sbatch", "qsub"):
            program = tmp_path / name
            program.write_text(PROGRAM.format(kept=tmp_path, answer=answer))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        provider.script_dir = str(tmp_path / "scripts")
        Path(provider.script_dir).mkdir()
        if isinstance(provider, BatchProvider):
            assert request is not None
            assert provider.submit_block(COMMAND, request, "melt-1") == "17"
            text = provider.render(COMMAND, request, "melt-1")
        else:
            assert provider.submit(COMMAND, 1, "melt") == "17"
            text = (tmp_path / "script").read_text()
        submission = Submission((tmp_path / "words").read_text().splitlines(), (tmp_path / "script").read_text())
        assert submission.script == text
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")
        lines = [line for line in text.splitlines() if line.strip()]
        assert lines.index("module load melt") < lines.index(COMMAND) == len(lines) - 1
        return submission

    return submit_block


def test_every_machine_has_a_module() -> None:
    assert SITES == ["aurora", "cooley", "frontier", "local", "perlmutter", "polaris", "theta"]


@pytest.mark.parametrize("site", SITES)
def test_a_name_and_an_account_are_enough(
    site: str, tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "balsam").symlink_to(postgres_server.directory)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    executor = executor_of(module(site).make_config("melt", account="p17"))
    assert executor.workflow == "melt"
    assert executor.database == (f"sqlite:///{tmp_path}/balsam.db" if site == "local" else f"{tmp_path}/balsam")


@pytest.mark.parametrize("site", SITES)
def test_what_a_user_must_change_comes_first(site: str) -> None:
    names = list(inspect.signature(module(site).make_config).parameters)
    assert names[:4] == ["workflow", "account", "database", "worker_init"]


@pytest.mark.parametrize("site", SITES)
def test_facts_have_a_source(site: str) -> None:
    facts = module(site).__doc__ or ""
    assert re.search(r"\bsources?:", facts, re.IGNORECASE)
    assert site == "local" or re.search(r"https://\S+", facts)


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.py")], ids=lambda path: path.stem)
def test_nothing_of_anybody_is_left(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"(?<![\w/.])/(?:home|root|users|lus|projects|global|ccs)/\S+", text, re.IGNORECASE) == []
    assert re.findall(r"account\s*(?:=|:\s*str\s*=)\s*[\"']", text) == []
    assert getpass.getuser() == "root" or getpass.getuser() not in text


@pytest.mark.parametrize(
    ("site", "options", "name"),
    [
        ("theta", {}, None),
        ("cooley", {"queue": "default"}, None),
        ("cooley", {"queue": "debug"}, None),
        ("perlmutter", {"qos": "regular", "constraint": "cpu"}, "regular/cpu"),
        ("perlmutter", {"qos": "regular", "constraint": "gpu"}, "regular/gpu"),
        ("perlmutter", {"qos": "debug", "constraint": "cpu"}, "debug/cpu"),
        ("perlmutter", {"qos": "debug", "constraint": "gpu"}, "debug/gpu"),
        ("frontier", {"qos": "normal"}, "normal"),
        ("frontier", {"qos": "debug"}, "debug"),
    ],
)
def test_policy_is_that_of_the_table(site: str, options: dict[str, Any], name: str | None) -> None:
    rows = admitted(policy_of(site, **options), name)
    queues = {row.queue for row in rows}
    assert rows == [row for row in table(site) if row.queue in queues]


@pytest.mark.parametrize("site", ["theta", "cooley", "perlmutter", "frontier"])
def test_every_row_of_a_table_belongs_to_a_policy(site: str) -> None:
    choices = {"theta": [{}], "cooley": [{"queue": "default"}, {"queue": "debug"}]}
    qualities = {"perlmutter": ("regular", "debug"), "frontier": ("normal", "debug")}.get(site, ())
    policies = [policy_of(site, **options) for options in choices.get(site, [{"qos": name} for name in qualities])]
    kinds = 2 if site == "perlmutter" else 1
    assert len(table(site)) == kinds * sum(len(admitted(policy)) for policy in policies)


@pytest.mark.parametrize("site", ["theta", "cooley", "perlmutter", "frontier"])
def test_blocks_are_no_larger_than_the_user_wants(site: str) -> None:
    fewest = min(row.nodes[0] for row in table(site))
    assert policy_of(site, max_nodes=fewest + 1).most_nodes == fewest + 1


@pytest.mark.parametrize("site", ["theta", "cooley", "perlmutter", "frontier"])
def test_usual_block_is_one_that_the_queue_admits(site: str) -> None:
    provider = executor_of(module(site).make_config("melt", "p17", DATABASE)).provider
    assert fits(provider, table(site))


@pytest.mark.parametrize("site", ["polaris", "aurora"])
def test_first_block_is_one_that_the_queue_admits(site: str) -> None:
    provider = executor_of(module(site).make_config("melt", "p17", DATABASE)).provider
    assert fits(provider, [row for row in table(site) if row.queue == provider.queue])


def fits(provider: Any, rows: list[Row]) -> bool:
    hours, minutes, _ = map(int, provider.walltime.split(":"))
    return any(
        row.nodes[0] <= provider.nodes_per_block <= row.nodes[1]
        and row.minutes[0] <= hours * 60 + minutes <= row.minutes[1]
        for row in rows
    )


@pytest.mark.parametrize("qos", ["regular", "debug"])
def test_perlmutter_cpu_nodes(submit: Submit, qos: str) -> None:
    asked = submit("perlmutter", BlockRequest(8, 30), qos=qos).directives("#SBATCH")
    assert {"--nodes=8", "--time=30", "--account=p17", f"--qos={qos}", "--constraint=cpu"} <= set(asked)
    assert not [line for line in asked if "gpu" in line or "partition" in line]


def test_perlmutter_gpu_nodes(submit: Submit) -> None:
    asked = submit("perlmutter", BlockRequest(4, 1440), constraint="gpu").directives("#SBATCH")
    assert {"--nodes=4", "--time=1440", "--constraint=gpu", "--gpus-per-node=4", "--qos=regular"} <= set(asked)


@pytest.mark.parametrize("qos", ["normal", "debug"])
def test_frontier(submit: Submit, qos: str) -> None:
    (*_, largest) = policy_of("frontier", qos=qos).offers
    request = BlockRequest(largest.max_nodes, largest.max_walltime_min, largest.queue.name)
    asked = submit("frontier", request, qos=qos).directives("#SBATCH")
    time = {"normal": "720", "debug": "120"}[qos]
    assert {"--nodes=9472", f"--time={time}", "--account=p17", "--partition=batch", f"--qos={qos}"} <= set(asked)
    assert "--gpus-per-node=8" in asked


@pytest.mark.parametrize(("queue", "nodes", "minutes"), [("default", 802, 1440), ("debug-cache-quad", 16, 60)])
def test_theta(submit: Submit, queue: str, nodes: int, minutes: int) -> None:
    asked = submit("theta", BlockRequest(nodes, minutes, queue))
    assert (asked.option("-n"), asked.option("-t"), asked.option("-q")) == (str(nodes), str(minutes), queue)
    assert (asked.option("-A"), asked.option("--attrs")) == ("p17", "mcdram=cache:numa=quad:filesystems=home,theta-fs0")


@pytest.mark.parametrize("queue", ["default", "debug"])
def test_cooley(submit: Submit, queue: str) -> None:
    asked = submit("cooley", BlockRequest(16, 120, queue), queue=queue)
    assert (asked.option("-n"), asked.option("-t"), asked.option("-q")) == ("16", "120", queue)
    assert (asked.option("-A"), asked.option("--attrs")) == ("p17", "nox11:filesystems=home,theta-fs0")


def test_polaris(submit: Submit) -> None:
    asked = submit("polaris", queue="prod", nodes=10, walltime="03:00:00")
    lines = asked.directives("#PBS")
    assert {"-l walltime=03:00:00", "-l filesystems=home:eagle", "-l place=scatter"} <= set(lines)
    assert "-l select=10:ncpus=64:ngpus=4:system=polaris" in lines
    assert (asked.option("-q"), asked.option("-A")) == ("prod", "p17")


def test_aurora(submit: Submit) -> None:
    asked = submit("aurora", queue="prod", nodes=32, walltime="06:00:00", filesystems="flare:daos_user")
    lines = asked.directives("#PBS")
    assert {"-l walltime=06:00:00", "-l filesystems=flare:daos_user", "-l place=scatter"} <= set(lines)
    assert "-l select=32:ncpus=208" in lines
    assert (asked.option("-q"), asked.option("-A")) == ("prod", "p17")
    assert "export ZE_FLAT_DEVICE_HIERARCHY=FLAT" in asked.script.splitlines()


@pytest.mark.parametrize(
    ("site", "options", "mpi", "cores", "gpus"),
    [
        ("theta", {}, "aprun", 64, 0),
        ("cooley", {}, "hydra", 12, 2),
        ("perlmutter", {"constraint": "cpu"}, "srun", 128, 0),
        ("perlmutter", {"constraint": "gpu"}, "srun", 64, 4),
        ("frontier", {}, "srun", 56, 8),
        ("polaris", {}, "hydra", 32, 4),
        ("aurora", {}, "hydra", 102, 12),
    ],
)
def test_nodes_are_what_the_docstring_says(site: str, options: dict[str, Any], mpi: str, cores: int, gpus: int) -> None:
    executor = executor_of(module(site).make_config("melt", "p17", DATABASE, **options))
    assert (executor.mpi, executor.cores_per_node, executor.gpus_per_node) == (mpi, cores, gpus)
    assert re.search(rf"\b{cores} cores\b", module(site).__doc__ or "")


@pytest.mark.parametrize("job_mode", ["mpi", "serial"])
def test_theta_does_not_share_nodes(job_mode: str) -> None:
    executor = executor_of(module("theta").make_config("melt", "p17", DATABASE, job_mode=job_mode))
    assert executor.job_mode == job_mode
    assert isinstance(executor.provider, CobaltProvider)


def test_this_host_runs_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with parsl.load(module("local").make_config("melt", account="p17")):
        assert triple(14).result(timeout=60) == 42
    assert (tmp_path / "balsam.db").exists()


@pytest.mark.parametrize("site", SITES)
def test_page_lists_the_machine(site: str) -> None:
    page = (CONFIGS.parent / "docs" / "sites.md").read_text()
    assert f"configs/{site}.py" in page


@python_app
def triple(number: int) -> int:
    return number * 3
