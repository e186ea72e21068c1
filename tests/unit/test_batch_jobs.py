"""Which news change what is known of a job, and how commands are ended that do not end by themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus

from parsl_balsam.providers.commands import run
from parsl_balsam.providers.job import Job, denied, found, reported
from parsl_balsam.providers.scheduler import JobFiles, JobReport

FILES = JobFiles("/s/b.sh", "/s/b.stdout", "/s/b.stderr")


def job(job_id: str | None = "12", state: JobState = JobState.PENDING, **more: bool) -> Job:
    handle = job_id or "?block"
    return Job(handle, "block", job_id, FILES, JobStatus(state), doubt="sbatch did not answer", **more)


def after_denials(one: Job, *times: float, ran: bool = False) -> Job:
    for now in times:
        one = denied(one, now, 60.0, ran)
    return one


def test_report_is_taken_over() -> None:
    known = reported(job(), JobReport(JobState.FAILED, "exit code 7", 7)).status
    assert (known.state, known.message, known.exit_code) == (JobState.FAILED, "exit code 7", 7)
    assert (known.stdout_path, known.stderr_path) == ("/s/b.stdout", "/s/b.stderr")


def test_job_is_forgotten_only_after_a_while_and_two_answers() -> None:
    assert after_denials(job(state=JobState.RUNNING), 1000.0).status.state is JobState.RUNNING
    assert after_denials(job(state=JobState.RUNNING), 0.0, 59.0).status.state is JobState.RUNNING
    assert after_denials(job(state=JobState.RUNNING), 0.0, 60.0).status.state is JobState.MISSING
    once = denied(job(state=JobState.RUNNING), 0.0, patience_s=0.0)
    assert once.status.state is JobState.RUNNING
    assert denied(once, 0.0, patience_s=0.0).status.state is JobState.MISSING


def test_report_in_between_begins_the_count_anew() -> None:
    one = reported(after_denials(job(), 0.0, 59.0), JobReport(JobState.RUNNING))
    assert after_denials(one, 60.0, 119.0).status.state is JobState.RUNNING
    assert after_denials(one, 60.0, 120.0).status.state is JobState.MISSING


def test_lost_request_ends_as_its_story_was() -> None:
    assert after_denials(job(None), 0.0, 59.0).status.state is JobState.PENDING
    lost = after_denials(job(None), 0.0, 60.0).status
    assert (lost.state, lost.message) == (JobState.FAILED, "the scheduler never had it: sbatch did not answer")
    assert after_denials(job(None, cancel_wanted=True), 0.0, 60.0).status.state is JobState.CANCELLED
    assert after_denials(job(None, adopted=True), 0.0, 60.0).status.state is JobState.MISSING
    assert after_denials(job(None), 0.0, 60.0, ran=True).status.state is JobState.MISSING


def test_found_job_keeps_its_handle() -> None:
    one = found(after_denials(job(None), 0.0, 59.0), "12")
    assert (one.handle, one.job_id) == ("?block", "12")
    assert after_denials(one, 61.0).status.state is JobState.PENDING


NEWS = st.one_of(
    st.builds(JobReport, st.sampled_from([state for state in JobState if state is not JobState.UNKNOWN])),
    st.floats(0, 1000),
    st.text("0123456789", min_size=1),
)


@given(st.booleans(), st.lists(NEWS, max_size=20))
def test_ended_job_stays_as_it_is(known: bool, news: list[JobReport | float | str]) -> None:
    one = job("12" if known else None)
    for each in news:
        before = one
        match each:
            case JobReport():
                one = reported(one, each)
            case float():
                one = denied(one, each, 60.0)
            case str():
                one = found(one, each)
        assert one.handle == before.handle
        assert before.job_id in (None, one.job_id)
        if before.status.state in TERMINAL_STATES:
            assert one is before


# Commands


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_command_says_and_ends() -> None:
    done = run(["bash", "-c", "echo said; printf 'caf\\351' >&2; exit 3"], 60, os.environ)
    assert (done.code, done.stdout, done.stderr) == (3, "said\n", "caf\ufffd")
    assert run(["bash", "-c", "kill -9 $$"], 60, os.environ).code == -9
    assert run(["bash", "-c", "read line; echo $?"], 60, os.environ).stdout == "1\n"  # nobody is there to type


def test_hanging_command_is_killed_with_all_that_it_started() -> None:
    done = run(["bash", "-c", "sleep 1000 & echo $!; sleep 1000"], 0.5, os.environ)
    assert (done.code, done.trouble) == (None, "bash did not answer within 0.5 s")
    child = int(done.stdout)
    until = time.monotonic() + 10
    try:
        while is_alive(child):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        if is_alive(child):
            os.kill(child, 9)


def test_pipe_held_by_a_daemon_holds_nobody_up() -> None:
    done = run(["setsid", "bash", "-c", "setsid sleep 1000 & echo $!"], 0.5, os.environ)
    try:
        assert done.code is None
        assert done.stdout.strip().isdigit()
    finally:
        os.kill(int(done.stdout), 9)


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd", "nul\0"])
def test_missing_program_is_told(program: str) -> None:
    done = run([program], 60, {"PATH": os.defpath})
    assert done.missing
    assert program in done.words
