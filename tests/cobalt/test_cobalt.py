"""How jobs fare at the stand-in for Cobalt: they start, see, end and are killed as those of the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.cobalt.cobalt import Cobalt, until
from tests.cobalt.conftest import Write
from tests.cobalt.script import ROOT
from tests.cobalt.stories import (
    KILLED,
    NORMAL_LIFE,
    OUT_OF_TIME,
    PATIENT,
    STUBBORN,
    alive,
    completed,
    finish,
    found,
    last_line,
    names,
    output,
    start,
    submit,
)


@pytest.mark.parametrize(("body", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill $$", 143)])
def test_exit_code_is_in_the_log_alone(cobalt: Cobalt, write: Write, body: str, code: int) -> None:
    job = submit(cobalt, write(body))
    assert finish(cobalt, job) == completed(code)
    assert cobalt.history(job) == NORMAL_LIFE
    asked = cobalt.call("qstat", "--header=JobID:exit_status", job)
    assert (asked.returncode, asked.stdout, asked.stderr) == (1, "", "")


def test_last_line_comes_when_the_job_is_long_gone(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(log_lag_s=1000)
    job = submit(cobalt, write("exit 3"))
    cobalt.wait_for(job, "gone")
    assert cobalt.call("qstat", job).returncode == 1
    assert "exit code" not in cobalt.log(job)
    cobalt.change(log_lag_s=0.1)
    assert last_line(cobalt, job) == completed(3)


def test_line_is_dropped_without_a_file_for_it(cobalt: Cobalt, write: Write) -> None:
    script = write(PATIENT)
    job = start(cobalt, script)
    log = script.parent / f"{job}.cobaltlog"
    log.unlink()
    cobalt.run("qdel", job)
    cobalt.wait_for(job, "gone")
    finish(cobalt, submit(cobalt, write("true", name="later.sh")))
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("echo no interpreter\n", 1, "[Errno 8] Exec format error"),
        ("#!/no/such/shell\n", 127, "[Errno 2] No such file or directory"),
        (None, 127, "[Errno 2] No such file or directory"),
        ("#!/etc\n", 126, "[Errno 13] Permission denied"),
    ],
    ids=["no interpreter", "bad interpreter", "deleted", "forbidden"],
)
def test_script_that_cannot_be_run(cobalt: Cobalt, write: Write, text: str | None, code: int, words: str) -> None:
    script = write("true")
    cobalt.stop_queue()
    job = submit(cobalt, script)
    # It is not copied: what counts is what is there when the job starts.
    if text is None:
        script.unlink()
    else:
        script.write_text(text)
    cobalt.start_queue()
    assert finish(cobalt, job) == completed(code)
    assert output(script, job, "error") == words + "\n"


def test_files_are_appended_to(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
    script = write("echo line; echo wrong >&2; exit $1")
    for code in (1, 2):
        job = submit(cobalt, script, "-O", "same", args=(str(code),))
        cobalt.wait_for(job, "gone")
        # The log has the end of the first one all the time.
        until(lambda: cobalt.log(job).count("exit code") == code)  # noqa: B023
    assert (tmp_path / "same.output").read_text() == "line\n" * 2
    assert (tmp_path / "same.error").read_text() == "wrong\n" * 2
    log = (tmp_path / "same.cobaltlog").read_text()
    assert [line.partition(") ")[2] for line in log.splitlines() if "exit code" in line] == [
        completed(1),
        completed(2),
    ]


def test_what_a_script_leaves_behind_is_killed(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(epilogue_s=1000)
    script = write("setsid sleep 1000 & sleep 1000 & echo begun")
    job = submit(cobalt, script)
    cobalt.wait_for(job, "exiting")
    until(lambda: names(cobalt.processes(job)) == ["sleep", "sleep"])
    left = cobalt.processes(job)
    cobalt.change(epilogue_s=0)
    cobalt.wait_for(job, "gone")
    assert alive(left) == []
    assert last_line(cobalt, job) == completed(0)


def test_crash_of_the_node_or_of_the_forker(cobalt: Cobalt, write: Write) -> None:
    script = write("trap '' TERM; setsid sleep 1000 & echo begun; wait")
    killed, lost, orphan = (start(cobalt, script) for _ in range(3))
    processes = cobalt.processes()
    cobalt.kill_job(killed)
    cobalt.lose_job(lost)
    script_pid = cobalt.script_pid(orphan)
    assert script_pid is not None
    psutil.Process(psutil.Process(script_pid).ppid()).kill()
    assert finish(cobalt, killed) == completed(137)
    assert finish(cobalt, lost) == completed(1234567)
    assert finish(cobalt, orphan) == completed(1234567)
    assert alive(processes) == []


def test_deleted_job_has_no_exit_code(cobalt: Cobalt, write: Write) -> None:
    script = write(PATIENT)
    job = start(cobalt, script)
    cobalt.run("qdel", job)
    assert finish(cobalt, job) == KILLED
    assert output(script, job) == "begun\ntold\n"
    assert cobalt.history(job) == ["queued", "starting", "running", "killing", "exiting", "gone"]
    assert "exit code" not in cobalt.log(job)


def test_whole_process_group_is_told(cobalt: Cobalt, write: Write) -> None:
    # A shell looks at its traps only when what it waits for has ended.
    script = write("trap 'echo told; exit' TERM; echo begun; sleep 1000")
    whole = start(cobalt, script)
    cobalt.run("qdel", whole)
    cobalt.wait_for(whole, "gone")
    assert output(script, whole) == "begun\ntold\n"

    cobalt.change(kill_delay_s=0.2)
    head = start(cobalt, script, "--attrs", "nopgkill")
    cobalt.run("qdel", head)
    cobalt.wait_for(head, "gone")
    assert output(script, head) == "begun\n"


def test_stubborn_job_is_killed_after_the_delay(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(kill_delay_s=1000)
    script = write(STUBBORN)
    job = start(cobalt, script)
    cobalt.run("qdel", job)
    until(lambda: "told" in output(script, job))
    # A second wish does not speed it up.
    assert job in cobalt.run("qdel", job)
    assert cobalt.state(job) == "killing"
    cobalt.change(kill_delay_s=0)
    cobalt.wait_for(job, "gone")
    assert output(script, job).count("told") == 1


def test_walltime_begins_with_the_script(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(minute_s=0.02, prologue_s=1.2)
    script = write(f"echo $COBALT_STARTTIME $COBALT_ENDTIME\n{textwrap.dedent(PATIENT)}")
    job = submit(cobalt, script, "-t", "50")
    assert finish(cobalt, job) == OUT_OF_TIME
    assert "killing" in cobalt.history(job)
    times, *said = output(script, job).splitlines()
    assert said == ["begun", "told"]
    began, ends = map(int, times.split())
    assert ends - began == 1


def test_race_of_end_and_wish_is_decided_by_the_log(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(epilogue_s=1000)
    job = submit(cobalt, write("exit 4"))
    cobalt.wait_for(job, "exiting")
    assert job in cobalt.run("qdel", job)
    cobalt.change(epilogue_s=0)
    cobalt.wait_for(job, "gone")
    ignored = "Info: job is in the process of exiting; user delete request ignored"
    until(lambda: ignored in cobalt.log(job))
    assert completed(4) in cobalt.log(job)


def test_starting_job_never_runs(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(prologue_s=1000)
    script = write("echo begun")
    job = submit(cobalt, script)
    cobalt.wait_for(job, "starting")
    assert job in cobalt.run("qdel", job)
    assert cobalt.state(job) == "starting"
    cobalt.change(prologue_s=0)
    cobalt.wait_for(job, "gone")
    assert cobalt.history(job) == ["queued", "starting", "exiting", "gone"]
    assert not list(script.parent.glob("*.output"))
    until(lambda: "resources released" in cobalt.log(job))
    assert f"{KILLED} now pending" in cobalt.log(job)


def test_waiting_job_is_gone_at_once(cobalt: Cobalt, write: Write) -> None:
    job = submit(cobalt, write("true"), "-h")
    cobalt.run("qdel", job)
    assert cobalt.jobs() == {}
    assert last_line(cobalt, job) == "Info: user delete requested; removing job from the queue"


def test_jobs_wait_for_nodes(cobalt: Cobalt, write: Write) -> None:
    script = write(PATIENT)
    large = start(cobalt, script, "-n", "3")
    waiting, small = submit(cobalt, script, "-n", "2"), start(cobalt, script)
    assert cobalt.jobs() == {large: "running", waiting: "queued", small: "running"}
    assert cobalt.nodes_of(small) == ["cc004"]
    cobalt.run("qdel", large)
    cobalt.wait_for(waiting, "running")
    assert cobalt.nodes_of(waiting) == ["cc001", "cc002"]


def test_one_job_starts_at_a_time(cobalt: Cobalt, write: Write) -> None:
    script = write("echo $COBALT_STARTTIME")
    cobalt.change(schedule_s=1.0)
    jobs = [submit(cobalt, script) for _ in range(2)]
    for job in jobs:
        cobalt.wait_for(job, "gone")
    first, second = (int(output(script, job)) for job in jobs)
    assert second > first


def test_nodes_can_be_chosen(cobalt: Cobalt, write: Write) -> None:
    script = write("cat $COBALT_NODEFILE")
    job = submit(cobalt, script, "-n", "2", "--attrs", "location=cc002,cc004")
    never = submit(cobalt, script, "--attrs", "location=cc099")
    finish(cobalt, job)
    assert output(script, job) == "cc002\ncc004\n"
    assert cobalt.state(never) == "queued"


def test_held_and_stopped(cobalt: Cobalt, write: Write) -> None:
    script = write("true")
    held = submit(cobalt, script, "-h")
    cobalt.stop_queue()
    stopped, frozen = submit(cobalt, script), submit(cobalt, script)
    cobalt.hold_job(frozen)
    assert cobalt.jobs() == {held: "user_hold", stopped: "queued", frozen: "admin_hold"}
    cobalt.start_queue()
    cobalt.wait_for(stopped, "gone")
    assert cobalt.jobs() == {held: "user_hold", frozen: "admin_hold"}
    cobalt.release_job(held)
    cobalt.wait_for(held, "gone")
    assert cobalt.history(held) == ["user_hold", *NORMAL_LIFE]


def test_only_so_many_jobs_of_a_user_run(cobalt: Cobalt, write: Write) -> None:
    cobalt.set_queue("narrow", max_running=1)
    script = write(PATIENT)
    first = start(cobalt, script, "-q", "narrow")
    second = submit(cobalt, script, "-q", "narrow")
    cobalt.wait_for(second, "maxrun_hold")
    cobalt.run("qdel", first)
    cobalt.wait_for(second, "running")


def test_dependencies(cobalt: Cobalt, write: Write) -> None:
    good, bad = write("true", name="good.sh"), write("exit 1", name="bad.sh")
    cobalt.stop_queue()
    first, failing = submit(cobalt, good), submit(cobalt, bad)
    after = submit(cobalt, good, "--dependencies", first)
    never = submit(cobalt, good, "--dependencies", f"{first}:{failing}")
    assert cobalt.jobs() == {first: "queued", failing: "queued", after: "dep_hold", never: "dep_hold"}
    cobalt.start_queue()
    cobalt.wait_for(after, "gone")
    cobalt.wait_for(never, "dep_fail")
    assert cobalt.jobs() == {never: "dep_fail"}
    cobalt.release_job(never)
    cobalt.wait_for(never, "gone")


def test_nothing_goes_on_without_the_server(cobalt: Cobalt, write: Write) -> None:
    script = write("echo begun; until [ -e gate ]; do sleep 0.02; done; echo done")
    running = start(cobalt, script)
    queued = submit(cobalt, script, "-h")
    with cobalt.stopped_server():
        cobalt.release_job(queued)
        (script.parent / "gate").touch()
        until(lambda: "done" in output(script, running))
        assert cobalt.jobs() == {running: "running", queued: "queued"}
        assert cobalt.call("qstat").returncode == 1
    for job in (running, queued):
        assert finish(cobalt, job) == completed(0)


def test_nothing_is_left_of_a_stopped_one(write: Write) -> None:
    with Cobalt(nodes=1) as small:
        home = small.home
        assert home is not None
        start(small, write("setsid sleep 1000 & trap '' TERM; echo begun; sleep 1000"))
        until(lambda: names(small.processes()).count("sleep") == 2)
        running = small.processes()
    assert not home.exists()
    assert alive(running) == []


def test_nothing_is_left_when_its_maker_is_killed(write: Write) -> None:
    script = write("setsid sleep 1000 & trap '' TERM; echo begun; sleep 1000")
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert maker.stdout is not None
        home, *pids = maker.stdout.readline().split()
    finally:
        maker.kill()
        maker.communicate()
    running = found(map(int, pids))
    assert len(pids) >= 3
    until(lambda: not alive(running))
    until(lambda: not os.path.exists(home))


def test_reset_site_is_as_at_the_start(cobalt: Cobalt, write: Write) -> None:
    cobalt.change(kill_delay_s=1000, prologue_s=0, need_project=True)
    script = write(STUBBORN)
    running = start(cobalt, script, "-A", "mine")
    cobalt.run("qdel", running)
    cobalt.set_queue("more")
    submit(cobalt, script, "-A", "mine", "-h")
    cobalt.break_program("qsub", "exit 3")
    cobalt.stop_server()
    cobalt.reset()
    assert cobalt.jobs() == {}
    job = submit(cobalt, write("exit 2"))
    assert finish(cobalt, job) == completed(2)
    assert cobalt.call("qstat", "-Q", "more").returncode == 1


_MAKER = """
import sys
from pathlib import Path
from tests.cobalt.cobalt import Cobalt
from tests.cobalt.stories import start
with Cobalt() as cobalt:
    start(cobalt, Path(sys.argv[1]))
    print(cobalt.home, cobalt._server.pid, *(process.pid for process in cobalt.processes()), flush=True)
    sys.stdin.read()
"""
