"""The Slurm provider on a real Slurm: how jobs fare and why, and what becomes of them when Slurm's commands fail."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import parsl
import psutil
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SimpleLauncher

from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import SchedulerUnavailable, SubmitRefused
from parsl_balsam.providers.slurm import SlurmProvider
from tests.slurm.cluster import Cluster, until
from tests.wrappers import Wrappers

Make = Callable[..., SlurmProvider]

ONE_NODE = BlockRequest(nodes=1, walltime_min=10)
ALL_NODES = BlockRequest(nodes=4, walltime_min=10)

#: What a user may have set for his own commands. Filters and formats must not change what the provider is told.
USER_SETTINGS = {
    "SBATCH_JOB_NAME": "mine",
    "SBATCH_PARTITION": "nosuch",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_WAIT": "1",
    "SQUEUE_FORMAT": "%N",
    "SQUEUE_PARTITION": "nosuch",
    "SQUEUE_STATES": "PENDING",
    "SCANCEL_STATE": "PENDING",
}


@pytest.fixture
def wrappers(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrappers:
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    made = Wrappers(tmp_path / "wrappers", cluster.environ["PATH"])
    monkeypatch.setenv("PATH", made.path)
    return made


@pytest.fixture
def make(wrappers: Wrappers, tmp_path: Path) -> Make:
    def make(**options: Any) -> SlurmProvider:
        provider = SlurmProvider(**{"cmd_timeout": 20, "walltime": "00:10:00", **options})
        provider.script_dir = str(tmp_path / 'submit "scripts" 50%j')
        return provider

    return make


def now(provider: SlurmProvider, handle: str) -> JobStatus:
    (status,) = provider.status([handle])
    return status


def reach(provider: SlurmProvider, handle: str, state: JobState) -> JobStatus:
    """Wait until a job is in a state; return its status."""
    until(
        lambda: now(provider, handle).state is state,
        lambda: f"job {handle} is {now(provider, handle)} and not {state}",
    )
    return now(provider, handle)


def start(provider: SlurmProvider, command: str = "exec sleep 1000", name: str = "block") -> str:
    """Submit a job of one node and wait until it runs."""
    handle = provider.submit_block(command, ONE_NODE, name)
    reach(provider, handle, JobState.RUNNING)
    return handle


def a_name() -> str:
    """Return a name for a job: all tests share a queue."""
    return f"block.{uuid.uuid4().hex[:8]}"


def told(cluster: Cluster, job_id: str | None, columns: str) -> list[str]:
    """Return what squeue says of a job."""
    return cluster.run("squeue", "--noheader", f"--jobs={job_id}", f"--format={columns}").rstrip("\n").split("|")


def test_jobs_end_with_their_reasons(make: Make, cluster: Cluster) -> None:
    provider = make()
    commands = {
        "good": "echo said; echo complained >&2",
        "wrong": "exit 7",
        "killed": "kill -9 $$",
        "stopped": "exec sleep 1000",
    }
    handles = {name: provider.submit_block(command, ONE_NODE, name) for name, command in commands.items()}
    reach(provider, handles["stopped"], JobState.RUNNING)
    cluster.run("scancel", handles["stopped"])
    until(lambda: all(status.terminal for status in provider.status(list(handles.values()))))

    ends = {name: now(provider, handle) for name, handle in handles.items()}
    assert {name: (end.state, end.exit_code, end.message) for name, end in ends.items()} == {
        "good": (JobState.COMPLETED, 0, None),
        "wrong": (JobState.FAILED, 7, "exit code 7"),
        "killed": (JobState.FAILED, 137, "killed by signal 9"),
        "stopped": (JobState.CANCELLED, None, "cancelled by its user or an administrator"),
    }
    assert ends["good"].stdout == "said\n"
    assert ends["good"].stderr == "complained\n"
    # Ended jobs stay as they are while another one is asked for.
    start(provider, name="later")
    assert {name: now(provider, handle).state for name, handle in handles.items()} == {
        name: end.state for name, end in ends.items()
    }


def test_waiting_job_says_what_it_waits_for(make: Make, cluster: Cluster) -> None:
    provider = make()
    large = provider.submit_block("exec sleep 1000", ALL_NODES, "large")
    reach(provider, large, JobState.RUNNING)
    waiting = provider.submit_block("exec sleep 1000", ONE_NODE, "waiting")
    until(lambda: now(provider, waiting).message == "waits: Resources")
    assert now(provider, waiting).state is JobState.PENDING
    held = make(scheduler_options="#SBATCH --hold")
    handle = held.submit_block("true", ONE_NODE, "held")
    assert (now(held, handle).state, now(held, handle).message) == (JobState.HELD, "waits: JobHeldUser")
    assert provider.cancel([large, waiting]) == [True, True]
    reach(provider, large, JobState.CANCELLED)
    reach(provider, waiting, JobState.CANCELLED)


def test_walltime_is_named(make: Make, cluster: Cluster) -> None:
    provider = make()
    job = start(provider, "trap '' TERM; sleep 1000 & wait; wait")
    # Limits are whole minutes, and looked at twice a minute.
    cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now+1")
    end = reach(provider, job, JobState.TIMEOUT)
    assert end.message == "walltime of 00:01:00 reached"


@pytest.mark.parametrize("options", ["", "#SBATCH --no-kill=off"], ids=["no-kill", "kill"])
def test_failed_node_is_named(make: Make, cluster: Cluster, options: str) -> None:
    provider = make(scheduler_options=f"{options}\n#SBATCH --nodelist=n2")
    job = start(provider)
    cluster.kill_node("n2")
    end = reach(provider, job, JobState.FAILED)
    assert end.message == "node failure (n2)"


def test_job_outlives_a_node_that_is_not_its_first(make: Make, cluster: Cluster) -> None:
    provider = make()
    job = provider.submit_block("exec sleep 1000", ALL_NODES, "large")
    reach(provider, job, JobState.RUNNING)
    (first,) = told(cluster, job, "%B")
    cluster.kill_node(next(name for name in cluster.nodes if name != first))
    assert now(provider, job).state is JobState.RUNNING


def test_block_is_what_was_requested(make: Make, cluster: Cluster) -> None:
    provider = make(nodes_per_block=1, scheduler_options="#SBATCH --time=77\n#SBATCH --nodes=4\n#SBATCH --comment=own")
    plain = provider.submit_block("exec sleep 1000", BlockRequest(2, 33), "plain")
    quick = provider.submit_block("exec sleep 1000", BlockRequest(1, 3, "quick"), "quick")
    assert told(cluster, plain, "%j|%D|%l|%P|%k") == ["plain", "2", "33:00", "nodes", "own"]
    assert told(cluster, quick, "%j|%D|%l|%P") == ["quick", "1", "3:00", "quick"]
    about = cluster.run("scontrol", "show", "job", "--oneliner", plain)
    assert "Requeue=0" in about
    assert cluster.run(*(provider.check_command(provider.resources[plain]["script"]) or [])) == ""


def test_refusal_has_the_words_of_sbatch(make: Make, cluster: Cluster) -> None:
    provider = make(partition="nosuch")
    with pytest.raises(SubmitRefused, match="Invalid partition name specified"):
        provider.submit("true", 1)
    assert cluster.jobs() == {}
    assert provider.resources == {}


def test_no_slurm_is_no_refusal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerUnavailable, match="sbatch is not on the PATH"):
        make().submit_block("true", ONE_NODE, "block")


ACCEPTED_SILENTLY = {
    "hangs": 'real "$@" >/dev/null; exec sleep 1000',
    "loses the answer": 'real "$@" >/dev/null; echo "sbatch: error: Batch job submission failed: '
    'Socket timed out on send/recv operation" >&2; exit 1',
    "babbles": 'real "$@" >/dev/null; echo "Have a nice day"',
    "is killed": 'real "$@" >/dev/null; kill -9 $$',
}


@pytest.mark.parametrize("manner", list(ACCEPTED_SILENTLY))
def test_job_is_found_by_its_name(make: Make, cluster: Cluster, wrappers: Wrappers, manner: str) -> None:
    wrappers.put("sbatch", ACCEPTED_SILENTLY[manner])
    provider = make(cmd_timeout=2)
    handle = provider.submit_block("exec sleep 1000", ONE_NODE, a_name())
    (job,) = cluster.jobs()
    assert provider.job_id(handle) == job
    reach(provider, handle, JobState.RUNNING)
    assert list(cluster.jobs()) == [job]


def test_id_counts_although_sbatch_hangs(make: Make, cluster: Cluster, wrappers: Wrappers) -> None:
    wrappers.put("sbatch", 'real "$@"; exec sleep 1000')
    lookups = wrappers.count_calls("squeue")
    provider = make(cmd_timeout=2)
    handle = provider.submit_block("exec sleep 1000", ONE_NODE, a_name())
    assert list(cluster.jobs()) == [handle]
    assert lookups.read_text() == ""


def test_request_that_never_arrived_fails_with_the_reason(make: Make, cluster: Cluster, wrappers: Wrappers) -> None:
    mark = f"1000.{secrets.randbelow(10**6):06}"
    wrappers.put("sbatch", f"sleep {mark} & sleep {mark}")
    provider = make(cmd_timeout=1)
    provider.lookup_pauses_s = (0.0,)
    handle = provider.submit_block("true", ONE_NODE, a_name())
    assert provider.job_id(handle) is None
    for _ in range(3):
        assert now(provider, handle).state is JobState.PENDING
    provider.lost_request_s = 0.0
    end = now(provider, handle)
    assert end.state is JobState.FAILED
    assert end.message == "the scheduler never had it: sbatch did not answer within 1 s"
    assert not [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", mark]]


def test_controller_is_away(make: Make, cluster: Cluster, wrappers: Wrappers, caplog: pytest.LogCaptureFixture) -> None:
    provider = make(cmd_timeout=1)
    before = start(provider, name="before")
    with cluster.frozen_controller(), caplog.at_level(logging.WARNING):
        handle = provider.submit_block("exec sleep 1000", ONE_NODE, "meanwhile")
        provider.lost_request_s = provider.forgotten_s = 0.0
        caplog.clear()
        for _ in range(2):
            assert [status.state for status in provider.status([before, handle])] == [
                JobState.RUNNING,
                JobState.PENDING,
            ]
        assert len([line for line in caplog.messages if "does not say" in line]) == 1
    provider.lost_request_s = 120.0
    reach(provider, handle, JobState.RUNNING)
    assert sorted(cluster.jobs()) == sorted([before, str(provider.job_id(handle))])
    assert now(provider, before).state is JobState.RUNNING


@pytest.mark.parametrize("answer", ["printf 'junk|||\\n%s\\n' \"$RANDOM|RUNN\"", "exit 0", "printf '\\377\\0'; exit 3"])
def test_queue_that_lies_changes_nothing(make: Make, cluster: Cluster, wrappers: Wrappers, answer: str) -> None:
    provider = make()
    provider.forgotten_s = 0.0
    running, ending = start(provider, name="running"), start(provider, name="ending")
    wrappers.put("squeue", answer)
    for _ in range(3):
        assert [status.state for status in provider.status([running, ending])] == [JobState.RUNNING] * 2
    cluster.run("scancel", ending)
    if answer == "exit 0":  # the queue says that it has them no longer, and how they are is asked one by one
        reach(provider, ending, JobState.CANCELLED)
    wrappers.remove("squeue")
    reach(provider, ending, JobState.CANCELLED)
    assert now(provider, running).state is JobState.RUNNING


def test_accounting_knows_who_cancelled_what_slurm_has_forgotten(make: Make, wrappers: Wrappers) -> None:
    provider = make()
    jobs = [start(provider, name=name) for name in ("first", "second")]
    calls = wrappers.count_calls("sacct")
    wrappers.put("squeue", "exit 0")
    wrappers.put(
        "sacct",
        f'echo "$*" >> {calls}; echo "{jobs[0]}|CANCELLED by 1000|0:15|00:10:00|n1|first"; '
        f'echo "{jobs[1]}|FAILED|9:0|00:10:00|n1|somebody"',
    )
    (first, second) = provider.status(jobs)
    assert (first.state, first.message) == (JobState.CANCELLED, "cancelled by user 1000")
    assert second.state is JobState.RUNNING  # the other one is of an older job with its number
    assert len(calls.read_text().splitlines()) == 1


def test_job_that_slurm_has_forgotten_is_missing(make: Make) -> None:
    provider = make()
    handle = provider.adopt("99999", "long.gone", None)
    assert now(provider, handle).state is JobState.PENDING
    assert now(provider, handle).state is JobState.PENDING
    provider.forgotten_s = 0.0
    end = now(provider, handle)
    assert end.state is JobState.MISSING
    assert end.message == "the scheduler no longer knows the job; how it ended is not recorded"


def test_later_run_takes_jobs_over(make: Make, cluster: Cluster) -> None:
    first = make()
    known = start(first, "exit_later() { exit 3; }; trap exit_later TERM; sleep 1000 & wait", "known")
    nameless = start(first, name="nameless")
    second = make()
    assert second.adopt(known, "known", first.resources[known]["script"]) == known
    handle = second.adopt(None, "nameless", first.resources[nameless]["script"])
    assert second.job_id(handle) is None
    reach(second, handle, JobState.RUNNING)
    assert second.job_id(handle) == nameless
    assert now(second, known).stdout_path == first.resources[known]["job_stdout_path"]
    assert second.cancel([handle, known]) == [True, True]
    until(lambda: not cluster.jobs())


def test_wish_to_cancel_waits_for_the_job(make: Make, cluster: Cluster, wrappers: Wrappers) -> None:
    # It reaches the controller after it was given up and is unwanted.
    wrappers.put("sbatch", "exec sleep 1000")
    provider = make(cmd_timeout=1)
    provider.lookup_pauses_s = (0.0,)
    handle = provider.submit_block("exec sleep 1000", ONE_NODE, a_name())
    assert provider.cancel([handle]) == [True]
    assert now(provider, handle).state is JobState.PENDING
    cluster.run("sbatch", provider.resources[handle]["script"])
    reach(provider, handle, JobState.CANCELLED)
    assert cluster.jobs() == {}


def test_cancelling_what_is_over_is_no_failure(make: Make) -> None:
    provider = make()
    running = start(provider, name="running")
    over = provider.submit_block("true", ONE_NODE, "over")
    until(lambda: now(provider, over).terminal)
    gone = provider.adopt("99999", "long.gone", None)
    assert provider.cancel([over, gone, running, "nosuch"]) == [True, True, True, False]
    reach(provider, running, JobState.CANCELLED)
    assert now(provider, over).state is JobState.COMPLETED


def test_cancelling_that_fails_is_told(make: Make, wrappers: Wrappers) -> None:
    provider = make()
    job = start(provider)
    wrappers.put(
        "scancel", f'echo "scancel: error: Kill job error on job id {job}: Access/permission denied" >&2; exit 1'
    )
    assert provider.cancel([job]) == [False]
    assert now(provider, job).state is JobState.RUNNING


def test_settings_of_the_user_are_for_the_user(make: Make, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = make(partition="nodes", cmd_timeout=5)
    name = a_name()
    with monkeypatch.context() as patch:
        for variable, value in USER_SETTINGS.items():
            patch.setenv(variable, value)
        job = start(provider, name=name)
        patch.setenv("SBATCH_ACCOUNT", "his")  # of which the provider says nothing
        other = start(provider)
    assert told(cluster, job, "%j|%l|%P") == [name, "10:00", "nodes"]
    assert told(cluster, other, "%a") == ["his"]
    with monkeypatch.context() as patch:
        for variable, value in USER_SETTINGS.items():
            patch.setenv(variable, value)
        assert provider.cancel([job]) == [True]
        reach(provider, job, JobState.CANCELLED)


def test_threads_submit_look_and_cancel_at_once(make: Make, cluster: Cluster) -> None:
    provider = make()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            provider.status(list(provider.resources))

    def come_and_go(number: int) -> str:
        handle = provider.submit_block("exec sleep 1000", ONE_NODE, f"block.{number}")
        assert provider.cancel([handle]) == [True]
        return handle

    looker = threading.Thread(target=look)
    looker.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            handles = list(pool.map(come_and_go, range(8)))
        for handle in handles:
            reach(provider, handle, JobState.CANCELLED)
    finally:
        stop.set()
        looker.join()
    assert len(set(handles)) == 8
    assert cluster.jobs() == {}


@parsl.python_app
def node_name() -> str | None:
    import os

    return os.environ.get("SLURMD_NODENAME")


def test_high_throughput_executor_works_with_it(
    make: Make, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parsl's own programs are beside the interpreter, which need not be on the PATH.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    path = f"export PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))}"
    provider = make(poll_interval_s=0.5, launcher=SimpleLauncher(), worker_init=path)
    executor = HighThroughputExecutor(
        label="htex", provider=provider, max_workers_per_node=1, address="127.0.0.1", encrypted=False
    )
    config = Config(executors=[executor], run_dir=str(tmp_path / "runs"), strategy_period=0.5)
    with parsl.load(config):
        assert node_name().result() in cluster.nodes
        (job,) = cluster.jobs()
    until(lambda: not cluster.jobs())
    assert now(provider, job).state is JobState.CANCELLED
