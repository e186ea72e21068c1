"""The command line and a real Slurm: configurations are tried before they are used, and blocks in its queue ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from parsl_balsam import SlurmProvider
from parsl_balsam.db.blocks import Requested, record_block, record_job
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.schema import blocks
from parsl_balsam.model.blocks import BlockRequest
from tests.db.conftest import Campaign
from tests.slurm.cluster import Cluster, until

BALSAM = Path(sys.executable).with_name("parsl-balsam")

CONFIG = """
from parsl import Config
from parsl_balsam import BalsamExecutor, NodeRange, Queue, QueuePolicy, SlurmProvider

def make_config(workflow):
    executor = BalsamExecutor(
        workflow=workflow, database={url!r}, provider=SlurmProvider({options}), queue_policy={policy}
    )
    return Config(executors=[executor], run_dir="runinfo")
"""

#: It lets jobs wait until somebody releases them.
HOLD = "scheduler_options='#SBATCH --hold'"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Starts ``parsl-balsam`` on the cluster. It is killed after the test, if it is still there."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: object, path: str | None = None) -> subprocess.Popen[str]:
        environment = cluster.environ | {"BALSAM_DATABASE": "", "PYTHONUNBUFFERED": "1"}
        if path is not None:
            environment["PATH"] = path
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [BALSAM, *map(str, words)]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def check(start: Start, tmp_path: Path, postgres_url: str) -> Callable[..., subprocess.Popen[str]]:
    """Starts a check of a configuration with some arguments of the provider, and perhaps a queue policy."""

    def run(options: str = "", *words: str, policy: str = "None", url: str = postgres_url) -> subprocess.Popen[str]:
        (tmp_path / "site.py").write_text(CONFIG.format(url=url, options=options, policy=policy))
        return start("check", "site.py", *words)

    return run


def output(process: subprocess.Popen[str], code: int) -> str:
    """Return what a command said, after it has ended with some code."""
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    return said


# check


def test_script_is_shown_and_slurm_asked(check: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    options = "partition='nodes', nodes_per_block=3, walltime='01:30:00', worker_init='module load chemistry'"
    said = output(check(options), 1)  # 127.0.0.1 is no address for other hosts
    script = [line.removeprefix("  | ") for line in said.splitlines() if line.startswith("  | ")]
    for line in ("#SBATCH --partition=nodes", "#SBATCH --nodes=3", "#SBATCH --time=90", "module load chemistry"):
        assert line in script
    assert script[-1].endswith(f" -m parsl_balsam.launcher {tmp_path}/runinfo/000/balsam/launch.json 1")
    assert f"It is submitted by: sbatch {tmp_path}/runinfo/000/submit_scripts/parsl.balsam.block-0.sh\n" in said
    (answer,) = (line for line in said.splitlines() if "slurm: " in line)
    assert answer.startswith("ok ")
    assert " to start at " in answer  # Slurm's own words
    assert "partition nodes" in answer
    (problem,) = (line for line in said.splitlines() if line.startswith("problem"))
    assert "127.0.0.1 is each host's own address for itself" in problem
    assert "parsl-balsam db start DIR --host NAME" in problem
    assert "1 problem." in said


def test_slurm_says_what_it_would_refuse(check: Callable[..., subprocess.Popen[str]]) -> None:
    said = output(check("partition='no_such'"), 1)
    (problem, _) = (line for line in said.splitlines() if line.startswith("problem"))
    assert "slurm: " in problem
    assert "nvalid partition" in problem


def test_smallest_block_of_each_queue_is_tried(check: Callable[..., subprocess.Popen[str]]) -> None:
    policy = (
        "QueuePolicy([Queue([NodeRange(2, 4, 60, 10), NodeRange(5, 9, 90)], 'nodes'),"
        "Queue([NodeRange(1, 4, 60)], 'no_such')])"
    )
    said = output(check(policy=policy), 1)
    assert "The script of the smallest block of queue 'nodes' (2 nodes for 10 min):" in said
    assert "The script of the smallest block of queue 'no_such' (1 node for 1 min):" in said
    marks = [line.split()[0] for line in said.splitlines() if "  slurm: " in line]
    assert marks == ["ok", "problem"]


def test_database_is_reached_from_a_node(
    check: Callable[..., subprocess.Popen[str]], cluster: Cluster, tmp_path: Path
) -> None:
    said = output(check("partition='nodes'", "--submit", "--workflow", "scan"), 0)
    assert "ok       The database was reached from " in said
    assert "note     Blocks on other hosts will not reach the database" in said  # but the job has
    assert ": completed\n" in said
    assert said.endswith("All is well.\n")
    assert cluster.jobs() == {}
    assert list((tmp_path / "runinfo").iterdir()) == []  # above all no file with a password


def test_database_that_a_node_does_not_reach(
    check: Callable[..., subprocess.Popen[str]], postgres_url: str, tmp_path: Path
) -> None:
    said = output(check("worker_init='export PGSSLMODE=require'", "--submit"), 1)
    (problem,) = (line for line in said.splitlines() if line.startswith("problem"))
    assert "The database was not reached from " in problem
    assert "SSL" in problem
    (left,) = (tmp_path / "runinfo").iterdir()
    assert f"The job's files are in {left}" in said
    password = postgres_url.partition("://")[2].partition("@")[0].partition(":")[2]
    assert password
    assert password not in said
    assert not [file for file in left.iterdir() if password in file.read_text()]


def test_job_that_comes_to_nothing(check: Callable[..., subprocess.Popen[str]]) -> None:
    said = output(check("worker_init='echo no such module >&2; exit 3'", "--submit"), 1)
    (problem,) = (line for line in said.splitlines() if line.startswith("problem"))
    assert "The job has not tried to reach the database: failed (exit code 3)" in problem
    assert "no such module" in said


def test_nothing_is_submitted_where_the_database_cannot_be_opened(
    check: Callable[..., subprocess.Popen[str]], cluster: Cluster
) -> None:
    said = output(check("", "--submit", url="postgresql://nobody:secret@127.0.0.1:1/none"), 1)
    assert "The database cannot be opened here" in said
    assert "Nothing is submitted" in said
    assert "secret" not in said
    assert cluster.jobs() == {}


def test_ctrl_c_cancels_the_job(check: Callable[..., subprocess.Popen[str]], cluster: Cluster, tmp_path: Path) -> None:
    process = check(HOLD, "--submit")
    assert process.stdout is not None
    while "JobHeldUser" not in (line := process.stdout.readline()):
        assert line, "the check has ended"
    (job,) = cluster.jobs()
    process.send_signal(signal.SIGINT)
    said = output(process, 1)
    assert f"Job {job} was cancelled." in said
    assert "Traceback" not in said
    until(lambda: not cluster.jobs())
    assert not list(tmp_path.glob("runinfo/*/launch.json"))


# blocks cancel


class Queued:
    """A block whose job waits in Slurm's queue, as a run leaves it that was killed."""

    def __init__(self, cluster: Cluster, url: str, directory: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environ.items():
                patch.setenv(name, value)
            provider = SlurmProvider(scheduler_options="#SBATCH --hold")
            provider.script_dir = str(directory)
            self.tag = f"parsl.balsam.block-0.{uuid.uuid4().hex[:16]}"
            self.job = provider.submit_block("exec sleep 1000", BlockRequest(1, 5), self.tag)
        self.database: Database = open_database(url)
        run = Campaign(self.database).run
        requested = Requested(self.tag, "slurm", 1, 5)
        self.block_id = record_block(self.database, run.workflow_id, run.run_id, "0", 60.0, requested)

    def row(self) -> object:
        with self.database.read() as connection:
            row = connection.execute(blocks.select().where(blocks.c.id == self.block_id)).one()
            return row.state, row.job_state


@pytest.fixture
def queued(cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[Queued]:
    block = Queued(cluster, postgres_url, tmp_path)
    with closing(block.database):
        yield block


@pytest.mark.parametrize("known", [True, False], ids=["job id known", "job id not known"])
def test_job_of_a_block_is_cancelled(cluster: Cluster, start: Start, queued: Queued, known: bool) -> None:
    if known:
        record_job(queued.database, queued.block_id, queued.job)
    command = start("blocks", "cancel", queued.block_id, "--database", queued.database.address)
    said = output(command, 0)
    assert f"Block {queued.block_id} is over: its job {queued.job} was cancelled before its launcher came.\n" in said
    assert queued.row() == ("ended", "cancelled")
    until(lambda: not cluster.jobs())


def test_job_of_another_name_is_left_alone(cluster: Cluster, start: Start, queued: Queued) -> None:
    other = cluster.run("sbatch", "--parsable", "--hold", "--wrap", "sleep 1000").strip()
    with queued.database.begin() as connection:
        connection.execute(blocks.update().values(tag="parsl.balsam.block-0.other", job_id=other))
    said = output(start("blocks", "cancel", queued.block_id, "--database", queued.database.address), 0)
    assert "slurm has no job of the name parsl.balsam.block-0.other here" in said
    assert queued.row() == ("ended", None)
    assert set(cluster.jobs()) == {queued.job, other}


def test_job_is_left_in_the_queue_where_there_is_no_slurm(
    cluster: Cluster, start: Start, queued: Queued, tmp_path: Path
) -> None:
    record_job(queued.database, queued.block_id, queued.job)
    command = start("blocks", "cancel", queued.block_id, "--database", queued.database.address, path=str(tmp_path))
    said = output(command, 0)
    left = f"Block {queued.block_id} will not be opened, but its job {queued.job} was not cancelled"
    assert f"{left}: squeue is not on the PATH. It ends at once when it starts." in said
    assert queued.row() == ("requested", None)
    assert set(cluster.jobs()) == {queued.job}
