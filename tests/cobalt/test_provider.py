"""The Cobalt provider at a stand-in that runs scripts for real: how jobs fare and why, and what faults do to them."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SimpleLauncher

from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import SchedulerUnavailable, SubmitRefused
from parsl_balsam.providers.cobalt import CobaltProvider
from tests.cobalt.cobalt import Cobalt, until

Make = Callable[..., CobaltProvider]

ONE_NODE = BlockRequest(nodes=1, walltime_min=10)
ALL_NODES = BlockRequest(nodes=4, walltime_min=10)

STAY = "exec sleep 1000"


@pytest.fixture
def make(cobalt: Cobalt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    for name, value in cobalt.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QSTAT_HEADER", "Location")  # how the user likes his own tables

    def make(**options: Any) -> CobaltProvider:
        provider = CobaltProvider(**{"cmd_timeout": 20, **options})
        provider.script_dir = str(tmp_path / "submit_scripts")
        return provider

    return make


def now(provider: CobaltProvider, handle: str) -> JobStatus:
    (status,) = provider.status([handle])
    return status


def reach(provider: CobaltProvider, handle: str, state: JobState, message: str | None = None) -> JobStatus:
    """Wait until a job is in a state, with some message if it is given; return its status."""

    def reached() -> bool:
        status = now(provider, handle)
        return status.state is state and message in (None, status.message)

    until(reached, lambda: f"job {handle} is {now(provider, handle)} and not {state}")
    return now(provider, handle)


def start(provider: CobaltProvider, command: str = STAY, request: BlockRequest = ONE_NODE) -> str:
    """Submit a job and wait until it runs."""
    handle = provider.submit_block(command, request, a_name())
    reach(provider, handle, JobState.RUNNING)
    return handle


def a_name() -> str:
    """Return a name for a job: all tests share a site."""
    return f"block.{uuid.uuid4().hex[:8]}"


# Ends


def test_jobs_end_with_their_reasons(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    commands = {
        "good": "echo said; echo complained >&2",
        "wrong": "exit 7",
        "killed": "kill -9 $$",
        "stopped": STAY,
    }
    handles = {name: provider.submit_block(command, ONE_NODE, a_name()) for name, command in commands.items()}
    reach(provider, handles["stopped"], JobState.RUNNING)
    cobalt.run("qdel", handles["stopped"])
    until(lambda: all(status.terminal for status in provider.status(list(handles.values()))))

    ends = {name: now(provider, handle) for name, handle in handles.items()}
    by = ends["stopped"].message
    assert by is not None
    assert by.startswith("cancelled by user ")
    assert {name: (end.state, end.exit_code, end.message) for name, end in ends.items()} == {
        "good": (JobState.COMPLETED, 0, None),
        "wrong": (JobState.FAILED, 7, "exit code 7"),
        "killed": (JobState.FAILED, 137, "exit code 137, as if killed by signal 9"),
        "stopped": (JobState.CANCELLED, None, by),
    }
    assert ends["good"].stdout == "said\n"
    assert ends["good"].stderr == "complained\n"
    # Ended jobs stay as they are while another one is asked for.
    start(provider)
    assert {name: now(provider, handle).state for name, handle in handles.items()} == {
        name: end.state for name, end in ends.items()
    }


def test_walltime_is_named(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    job = start(provider)
    cobalt.change(minute_s=0.01)
    assert reach(provider, job, JobState.TIMEOUT).message == "walltime reached"


def test_job_without_its_last_line_runs_on_until_it_comes(make: Make, cobalt: Cobalt) -> None:
    cobalt.change(log_lag_s=3.0)
    provider = make()
    job = provider.submit_block("true", ONE_NODE, a_name())
    reach(provider, job, JobState.RUNNING)
    cobalt.wait_for(job, "gone")
    seen = set()
    while "exit code of 0" not in cobalt.log(job):
        seen.add(now(provider, job).state)
    assert JobState.RUNNING in seen
    assert seen <= {JobState.RUNNING, JobState.COMPLETED}
    assert now(provider, job).state is JobState.COMPLETED


def test_job_whose_log_is_gone_is_missing(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    job = start(provider, "sleep 0.2")
    log = Path(provider.resources[job]["script"]).with_suffix(".cobaltlog")
    log.unlink()
    cobalt.wait_for(job, "gone")
    for _ in range(3):
        assert now(provider, job).state is JobState.RUNNING
    provider.forgotten_s = 0.0
    end = now(provider, job)
    assert (end.state, end.message) == (
        JobState.MISSING,
        "the scheduler no longer knows the job; how it ended is not recorded",
    )


def test_lost_process_is_no_code_of_the_job(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    job = start(provider)
    cobalt.lose_job(job)
    assert reach(provider, job, JobState.FAILED).message == "the scheduler lost the job's process"


# States on the way


def test_starting_is_not_running(make: Make, cobalt: Cobalt) -> None:
    cobalt.change(prologue_s=1000.0)
    provider = make()
    job = provider.submit_block("touch ran", ONE_NODE, a_name())
    reach(provider, job, JobState.PENDING, "starting: its nodes are being prepared")
    assert provider.cancel([job]) == [True]
    assert now(provider, job).state is JobState.PENDING  # until its nodes are given back
    cobalt.change(prologue_s=0.0)
    reach(provider, job, JobState.CANCELLED)
    assert not (Path(str(provider.script_dir)) / "ran").exists()


def test_stubborn_job_is_being_killed(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    job = start(provider, "trap '' TERM; touch ready; while :; do sleep 0.1; done")
    until((Path(str(provider.script_dir)) / "ready").exists)
    assert provider.cancel([job]) == [True]
    assert reach(provider, job, JobState.RUNNING, "killing: it is being ended").terminal is False
    cobalt.change(kill_delay_s=0.0)
    reach(provider, job, JobState.CANCELLED)


def test_waiting_job_says_what_it_waits_for(make: Make, cobalt: Cobalt) -> None:
    cobalt.set_queue("limited", max_running=1)
    provider = make()
    cobalt.stop_queue()
    waiting = provider.submit_block(STAY, ONE_NODE, a_name())
    assert (now(provider, waiting).state, now(provider, waiting).message) == (JobState.PENDING, "waits in the queue")
    cobalt.hold_job(waiting)
    assert (now(provider, waiting).state, now(provider, waiting).message) == (
        JobState.HELD,
        "held by an administrator",
    )
    held = make(scheduler_options="#COBALT -h")
    assert now(held, held.submit_block(STAY, ONE_NODE, a_name())).state is JobState.HELD
    start(provider, request=BlockRequest(1, 10, "limited"))
    second = provider.submit_block(STAY, BlockRequest(1, 10, "limited"), a_name())
    reach(provider, second, JobState.PENDING, "waits: as many jobs run as the queue allows one user")


# Requests


def test_block_is_what_was_requested(make: Make, cobalt: Cobalt) -> None:
    cobalt.set_queue("quick")
    provider = make(account="proj", attrs={"location": "cc003,cc004"}, scheduler_options="#COBALT -n 4 -t 99")
    name = a_name()
    job = provider.submit_block(STAY, BlockRequest(2, 33, "quick"), name)
    table = cobalt.run("qstat", "--header=JobName:Nodes:WallTime:Queue:Project", job)
    assert table.splitlines()[2].split() == [name, "2", "00:33:00", "quick", "proj"]
    reach(provider, job, JobState.RUNNING)
    assert cobalt.nodes_of(job) == ["cc003", "cc004"]


def test_environment_is_a_login_and_what_is_passed_on(
    make: Make, cobalt: Cobalt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOT_FOR_JOBS", "1")
    provider = make(
        env={"URL": "http://h:80/p", "PAIR": "a=b"},
        scheduler_options="#COBALT --env MORE=1",
        worker_init="export SET_UP='with blanks'",
        cores_per_node=8,
    )
    provider.submit_block("exec env", ONE_NODE, a_name())
    (job,) = provider.resources
    reach(provider, job, JobState.COMPLETED)
    found = dict(line.split("=", 1) for line in (now(provider, job).stdout or "").splitlines() if "=" in line)
    assert {name: found.get(name) for name in ("URL", "PAIR", "MORE", "SET_UP", "PARSL_CORES", "NOT_FOR_JOBS")} == {
        "URL": "http://h:80/p",
        "PAIR": "a=b",
        "MORE": "1",
        "SET_UP": "with blanks",
        "PARSL_CORES": "8",
        "NOT_FOR_JOBS": None,
    }


@pytest.mark.parametrize(
    ("options", "request_", "words"),
    [
        ({"queue": "nosuch"}, ONE_NODE, "trying to add job to non-existent queue 'nosuch'"),
        ({"queue": "closed"}, ONE_NODE, "The 'closed' queue is draining"),
        ({"queue": "short"}, ONE_NODE, "Walltime greater than the 'short' queue max walltime"),
        ({}, BlockRequest(1, 1), "Walltime less than minimum"),
        ({}, BlockRequest(99, 10), "node count out of realistic range"),
        ({"scheduler_options": "#COBALT --bogus"}, ONE_NODE, "no such option: --bogus"),
    ],
)
def test_refusal_has_the_words_of_qsub(
    make: Make, cobalt: Cobalt, options: dict[str, Any], request_: BlockRequest, words: str
) -> None:
    cobalt.set_queue("closed", state="draining")
    cobalt.set_queue("short", max_time=5)
    provider = make(**options)
    with pytest.raises(SubmitRefused) as refused:
        provider.submit_block("true", request_, a_name())
    assert words in str(refused.value)
    assert provider.resources == {}
    assert cobalt.jobs() == {}


def test_filter_has_its_say(make: Make, cobalt: Cobalt) -> None:
    cobalt.change(need_project=True, filter_notice='Job routed to queue "default".')
    with pytest.raises(SubmitRefused, match="project"):
        make().submit_block("true", ONE_NODE, a_name())
    provider = make(account="proj")
    job = provider.submit_block(STAY, ONE_NODE, a_name())
    assert list(cobalt.jobs()) == [job]


def test_no_cobalt_is_no_refusal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerUnavailable, match="qsub is not on the PATH"):
        make().submit_block("true", ONE_NODE, a_name())


# Lost answers


ACCEPTED_SILENTLY = {
    "hangs": 'real "$@" >/dev/null; exec sleep 1000',
    "loses the server": 'real "$@" >/dev/null; echo "component error: Failed to connect to queue-manager" >&2; exit 1',
    "babbles": 'real "$@" >/dev/null; echo "Have a nice day"',
    "is killed": 'real "$@" >/dev/null; kill -9 $$',
}


@pytest.mark.parametrize("manner", list(ACCEPTED_SILENTLY))
@pytest.mark.parametrize("log", ["with a log", "without"])
def test_job_is_found_by_its_name(make: Make, cobalt: Cobalt, manner: str, log: str) -> None:
    remove = "" if log == "with a log" else '; for last; do :; done; rm -f "${last%.sh}.cobaltlog"'
    cobalt.break_program("qsub", ACCEPTED_SILENTLY[manner].replace(">/dev/null", f">/dev/null{remove}"))
    provider = make(cmd_timeout=2)
    handle = provider.submit_block(STAY, ONE_NODE, a_name())
    (job,) = cobalt.jobs()
    assert provider.job_id(handle) == job
    reach(provider, handle, JobState.RUNNING)
    assert list(cobalt.jobs()) == [job]


def test_job_that_is_over_before_it_is_found_still_tells_how_it_ended(make: Make, cobalt: Cobalt) -> None:
    cobalt.break_program(
        "qsub",
        'real "$@" >/dev/null; for last; do :; done; until grep -q "exit code" '
        '"${last%.sh}.cobaltlog"; do sleep 0.02; done; exit 0',
    )
    provider = make()
    handle = provider.submit_block("exit 3", ONE_NODE, a_name())
    assert provider.job_id(handle) is not None
    assert reach(provider, handle, JobState.FAILED).message == "exit code 3"


def test_request_that_never_arrived_fails_with_the_reason(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    provider.lookup_pauses_s = (0.0,)
    with cobalt.stopped_server():
        handle = provider.submit_block("true", ONE_NODE, a_name())
        assert provider.job_id(handle) is None
        provider.lost_request_s = 0.0
        for _ in range(3):  # nobody answers
            assert now(provider, handle).state is JobState.PENDING
    provider.lost_request_s = 120.0
    for _ in range(3):
        assert now(provider, handle).state is JobState.PENDING
    provider.lost_request_s = 0.0
    end = now(provider, handle)
    assert end.state is JobState.FAILED
    assert (end.message or "").startswith("the scheduler never had it: component error: Failed to connect to system")


def test_wish_to_cancel_waits_for_the_job(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    provider.lookup_pauses_s = (0.0,)
    name = a_name()
    with cobalt.stopped_server():
        handle = provider.submit_block(STAY, ONE_NODE, name)
        assert provider.cancel([handle]) == [True]
    script = provider.resources[handle]["script"]
    cobalt.run("qsub", "-n", "1", "-t", "10", "-O", script.removesuffix(".sh"), "--jobname", name, script)
    reach(provider, handle, JobState.CANCELLED)
    assert cobalt.jobs() == {}


# Faults


def test_server_is_away(make: Make, cobalt: Cobalt, caplog: pytest.LogCaptureFixture) -> None:
    provider = make()
    provider.forgotten_s = 0.0
    running, ending = start(provider), start(provider, "until [ -e stop ]; do sleep 0.02; done")
    with cobalt.stopped_server(), caplog.at_level(logging.INFO):
        (Path(str(provider.script_dir)) / "stop").touch()
        for _ in range(3):
            assert [status.state for status in provider.status([running, ending])] == [JobState.RUNNING] * 2
        assert provider.cancel([running]) == [False]
        assert len([line for line in caplog.messages if "does not say" in line]) == 1
    provider.forgotten_s = 10.0
    reach(provider, ending, JobState.COMPLETED)
    assert now(provider, running).state is JobState.RUNNING


LIES = {
    "junk": "printf 'JobID  State\\n====\\njunk\\n'",
    "nothing": "exit 0",
    "rubbish": "printf '\\377\\0'; exit 3",
    "hangs": "exec sleep 1000",
    "half a table": "echo 'JobID  State'",
}


@pytest.mark.parametrize("lie", list(LIES))
def test_queue_that_lies_changes_nothing(make: Make, cobalt: Cobalt, lie: str) -> None:
    provider = make(cmd_timeout=2)
    provider.forgotten_s = 0.0
    job = start(provider)
    cobalt.break_program("qstat", LIES[lie])
    for _ in range(2 if lie == "hangs" else 4):
        assert now(provider, job).state is JobState.RUNNING
    cobalt.mend_program("qstat")
    assert provider.cancel([job]) == [True]
    provider.forgotten_s = 10.0
    reach(provider, job, JobState.CANCELLED)


def test_job_that_qstat_forgets_for_a_while_runs_on(make: Make, cobalt: Cobalt) -> None:
    provider = make()
    job, other = start(provider), start(provider)
    for forgotten in ([job], [job, other]):
        for each in forgotten:
            cobalt.forget(each)
        for _ in range(3):
            assert [status.state for status in provider.status([job, other])] == [JobState.RUNNING] * 2
        for each in forgotten:
            cobalt.forget(each, False)
        assert [status.state for status in provider.status([job, other])] == [JobState.RUNNING] * 2
    assert provider.cancel([job, other]) == [True, True]
    reach(provider, other, JobState.CANCELLED)


# Later runs


def test_later_run_takes_jobs_over(make: Make, cobalt: Cobalt) -> None:
    first = make()
    known = start(first)
    nameless = start(first)
    over = first.submit_block("exit 5", ONE_NODE, a_name())
    cobalt.wait_for(over, "gone")
    second = make()

    def script(handle: str) -> str:
        return str(first.resources[handle]["script"])

    assert second.adopt(known, Path(script(known)).stem, script(known)) == known
    handle = second.adopt(None, Path(script(nameless)).stem, script(nameless))
    assert second.job_id(handle) is None
    assert second.adopt(over, Path(script(over)).stem, script(over)) == over
    reach(second, handle, JobState.RUNNING)
    assert second.job_id(handle) == nameless
    assert second.adopt(nameless, Path(script(nameless)).stem, None) == handle  # it has it already
    assert reach(second, over, JobState.FAILED).exit_code == 5
    assert second.cancel([handle, known, over]) == [True, True, True]
    reach(second, known, JobState.CANCELLED)
    assert first.cancel([known]) == [True]
    reach(first, known, JobState.CANCELLED)


@parsl.python_app
def job_name() -> str | None:
    import os

    return os.environ.get("COBALT_JOBID")


def test_high_throughput_executor_works_with_it(make: Make, cobalt: Cobalt, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    paths = {"PATH": f"{programs}:$PATH", "PYTHONPATH": shlex.quote(str(Path(__file__).parents[2]))}
    provider = make(
        poll_interval_s=0.5,
        launcher=SimpleLauncher(),
        worker_init="\n".join(f"export {name}={value}" for name, value in paths.items()),
    )
    executor = HighThroughputExecutor(
        label="htex", provider=provider, max_workers_per_node=1, address="127.0.0.1", encrypted=False
    )
    config = Config(executors=[executor], run_dir=str(tmp_path / "runs"), strategy_period=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")  # where Parsl's own programs are
        with parsl.load(config):
            job = job_name().result()
            assert list(cobalt.jobs()) == [job]
    until(lambda: not cobalt.jobs())
    reach(provider, job, JobState.CANCELLED)
