"""What qstat and qdel of the stand-in say, and all its commands when something is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cobalt.cobalt import Cobalt, until
from tests.cobalt.columns import location
from tests.cobalt.conftest import NOISE, Done, Write, column, said
from tests.cobalt.questions import user_name

ME = user_name()


def test_qstat_shows_jobs_in_columns(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    head, rule = cobalt.run("qstat").splitlines()
    assert head == "JobID  User  WallTime  Nodes  State  Location  "
    assert rule == "=" * len(head)
    first, second = submit("-n 1 -t 10 -h"), submit("-n 2 -t 60")
    user, width = len(ME), max(5, len(second))
    lines = cobalt.run("qstat").splitlines()
    assert lines[0] == f"{'JobID':{width}}  {'User':{user}}  WallTime  Nodes  State      Location  "
    assert lines[1] == "=" * len(lines[0])
    assert lines[2] == f"{first.rjust(len(second)):{width}}  {ME:4}  00:10:00  1      user_hold  None      "
    assert lines[3] == f"{second:{width}}  {ME:4}  01:00:00  2      queued     None      "
    chosen = cobalt.run("qstat", "--header=jobid:short_state:nosuch:Queue", second).splitlines()
    assert [line.split() for line in chosen if "=" not in line] == [
        ["jobid", "S", "nosuch", "Queue"],
        [second, "Q", "-", "default"],
    ]


def test_ids_of_unlike_length_end_in_one_column() -> None:
    with Cobalt(nodes=1) as fresh:
        fresh.stop_queue()
        assert fresh.home is not None
        script = fresh.home / "job.sh"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        for _ in range(10):
            fresh.run("qsub", "-n", "1", "-t", "10", str(script))
        rows = fresh.run("qstat", "--header=JobID", "9", "10").splitlines()[2:]
        assert rows == [" 9     ", "10     "]
        deleted = fresh.run("qdel", "10", "9").splitlines()
        assert deleted[0] == "      Deleted Jobs"
        assert deleted[1] == f"JobID  {'User':{len(ME)}}  "
        assert sorted(deleted[3:]) == [f"10     {ME:4}  ", f"9      {ME:4}  "]


def test_qstat_shows_what_is_asked_for(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    cobalt.set_queue("other", state="stopped")
    here, there = submit(), submit("-n 1 -t 10 -q other")

    def shown(*words: str) -> list[str]:
        return [line.strip() for line in cobalt.run("qstat", "--header=JobID", *words).splitlines()[2:]]

    assert shown() == shown("default", there) == [here, there]
    assert shown("other") == shown(there) == shown(there, "99999") == [there]
    assert shown("-u", ME) == [here, there]
    assert shown("-u", "nobody-here") == []
    for words in (["99999"], ["-f", "99999"], ["-l", "99999"], ["-u", "nobody-here", here], ["-Q", "nosuch"]):
        assert said(cobalt.call("qstat", *words)) == (1, "", "")
    assert said(cobalt.call("qstat", "abc")) == (1, "", "abc is not a valid jobid or queue name\n")


def test_columns_of_qstat_are_not_safe_from_users_and_sites(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    job = submit()

    def heads(*words: str, **environ: str) -> list[str]:
        return cobalt.call("qstat", *words, job, environ=environ).stdout.splitlines()[0].split()

    cobalt.change(qstat_header="JobID:User")
    assert heads() == ["JobID", "User"]
    assert heads(QSTAT_HEADER="User") == ["User"]
    assert heads(QSTAT_HEADER="User", CQSTAT_HEADER="Nodes") == ["Nodes"]
    assert heads("--header=JobID", CQSTAT_HEADER="Nodes") == ["JobID"]
    assert heads("--header", "State", CQSTAT_HEADER="Nodes") == ["State"]
    assert heads("-f", "--header=JobID")[:3] == ["JobID", "JobName", "User"]
    assert heads("-f", "--header=JobID", QSTAT_HEADER_FULL="Mode") == ["Mode"]


def test_qstat_shows_jobs_in_blocks(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    job = submit()
    assert cobalt.run("qstat", "-l", job) == (
        f"JobID: {job}\n    User     : {ME}\n    WallTime : 00:10:00\n    Nodes    : 1\n"
        "    State    : queued\n    Location : None\n\n"
    )
    everything = cobalt.run("qstat", "-lf", job).splitlines()
    assert len(everything) == 42
    assert everything[1] == "    JobName           : N/A"
    assert everything[19].startswith("    Path              : ")


def test_qstat_shows_a_job_that_runs(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
    write("sleep 1000")
    job = cobalt.run("qsub", "-n", "3", "-t", "10", "job.sh", cwd=tmp_path).strip()
    cobalt.wait_for(job, "running")
    assert column(cobalt, job, "Location") == "cc[001-003]"
    assert column(cobalt, job, "OutputPath") == f"{tmp_path}/{job}.output"
    assert column(cobalt, job, "TimeRemaining").startswith("00:09:5")
    cobalt.forget(job)
    assert said(cobalt.call("qstat", job)) == (1, "", "")
    assert cobalt.jobs() == {job: "running"}
    cobalt.forget(job, False)
    assert column(cobalt, job, "State") == "running"


def test_qstat_shows_queues(cobalt: Cobalt) -> None:
    cobalt.set_queue("debug", min_time=5, max_time=60, max_running=1, users=("me", "you"))
    head, _, default, debug = (line.split() for line in cobalt.run("qstat", "-Q").splitlines())
    assert head[:4] == ["Name", "Users", "Groups", "MinTime"]
    assert (default[0], default[-1]) == ("default", "running")
    assert debug[:6] == ["debug", "me:you", "None", "00:05:00", "01:00:00", "1"]


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ("cc001", "cc001"),
        ("cc003 cc001 cc002 cc007", "cc[001-003],cc007"),
        ("node1 node2 node10 node11", "[node1-2],[node10-11]"),
        ("vm localhost", "localhost,vm"),
        ("gpu-0 gpu-1 other-3", "gpu-[0-1],other-3"),
        ("12 13 14 15 20", "12-15,20"),
        ("9 10", "9-10"),
    ],
)
def test_locations_in_short(nodes: str, text: str) -> None:
    assert location(nodes.split()) == text


def test_qdel_says_what_it_has_deleted(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    job = submit()
    wrong = cobalt.call("qdel", job, "abc")
    assert said(wrong) == (1, "", "jobid must be an integer: abc\n")
    assert cobalt.jobs() == {job: "queued"}
    assert cobalt.run("qdel", "99999", job).splitlines()[3:] == [f"{job:5}  {ME:4}  "]
    assert cobalt.jobs() == {}
    assert said(cobalt.call("qdel", job, "99999")) == (0, "", "")
    nothing = cobalt.call("qdel")
    assert (nothing.returncode, nothing.stderr) == (1, "No Jobid(s) given\n")
    assert nothing.stdout.startswith("Usage: qdel.py")


def test_commands_say_that_nobody_answers(
    cobalt: Cobalt, submit: Callable[..., str], qsub: Callable[..., Done]
) -> None:
    job = submit()
    with cobalt.stopped_server():
        no_system = "component error: Failed to connect to system: Proxy.py     :L#422:cn:system\n\n"
        assert said(qsub("-n 1 -t 10 job.sh")) == (1, "", NOISE + no_system)
        failed = f"{NOISE}component error: Following exception occurred while trying to execute queue-manager"
        for command, method in ((["qstat"], "get_queues"), (["qdel", job], "del_jobs")):
            done = cobalt.call(*command)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"{failed}.{method}: ")
    assert cobalt.jobs() == {job: "queued"}


def test_commands_wait_for_a_server_that_comes_back(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    job = submit()
    cobalt.change(retry_s=1000)
    cobalt.stop_server()
    asking = subprocess.Popen(["qstat", job], env=cobalt.environ, stdout=subprocess.PIPE, text=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(0.5)
        cobalt.start_server()
        output, _ = asking.communicate(timeout=60)
    finally:
        asking.kill()
    assert job in output


def test_programs_can_be_broken(cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
    write("true")
    cobalt.break_program("qsub", 'real "$@" >/dev/null; exec sleep 1000')
    submitting = subprocess.Popen(
        ["qsub", "-n", "1", "-t", "10", "job.sh"], env=cobalt.environ, cwd=write("true").parent, text=True
    )
    try:
        until(cobalt.jobs)
    finally:
        submitting.kill()
        submitting.wait()
    cobalt.break_program("qstat", 'echo junk; exit "$(( $# + 3 ))"')
    assert said(cobalt.call("qstat", "1")) == (4, "junk\n", "")
    cobalt.mend_program("qstat")
    calls = cobalt.count_calls("qdel")
    (job,) = cobalt.jobs()
    assert job in cobalt.run("qdel", job)
    assert calls.read_text() == f"{job}\n"
    assert cobalt.run("qstat").count("\n") == 2


def test_jobs_have_the_programs_too(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
    write('qstat --header=JobID:State "$COBALT_JOBID"')
    job = cobalt.run("qsub", "-n", "1", "-t", "10", "job.sh", cwd=tmp_path).strip()
    cobalt.wait_for(job, "gone")
    assert (tmp_path / f"{job}.output").read_text().splitlines()[2].split() == [job, "running"]


def test_commands_do_not_mind_the_variables_of_users(cobalt: Cobalt) -> None:
    strange = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "LC_ALL": "C"}
    done = cobalt.call("qstat", environ=strange)
    assert (done.returncode, done.stderr) == (0, "")
