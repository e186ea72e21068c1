"""What qsub, qstat and qdel of the stand-in take and say."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cobalt.cobalt import Cobalt, until
from tests.cobalt.columns import location
from tests.cobalt.questions import user_name

Write = Callable[..., Path]
Done = subprocess.CompletedProcess[str]

NOISE = 'No handlers could be found for logger "Proxy"\n'
ME = user_name()


@pytest.fixture
def qsub(cobalt: Cobalt, tmp_path: Path) -> Callable[..., Done]:
    """Calls qsub in a directory of its own where nothing starts; the words are split at blanks."""
    cobalt.stop_queue()

    def qsub(words: str, *more: str, **environ: str) -> Done:
        return cobalt.call("qsub", *words.split(), *more, cwd=tmp_path, environ=environ)

    return qsub


@pytest.fixture
def submit(qsub: Callable[..., Done], write: Write) -> Callable[..., str]:
    """Submits a script, and returns the job's id."""
    write("true")

    def submit(words: str = "-n 1 -t 10", script: str = "./job.sh") -> str:
        done = qsub(f"{words} {script}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.removesuffix("\n").isdecimal()
        return done.stdout.removesuffix("\n")

    return submit


def said(done: Done) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def column(cobalt: Cobalt, job: str, name: str) -> str:
    """Return what qstat shows in a column."""
    return cobalt.run("qstat", f"--header={name}", job).splitlines()[2].rstrip(" ")


class TestSubmission:
    @pytest.mark.parametrize(
        ("text", "walltime"),
        [
            ("10", "00:10:00"),
            ("1:30", "01:30:00"),
            ("00:10:59", "00:10:00"),
            ("00:90:00", "01:30:00"),
            ("1:01:01:01", "25:01:00"),
            ("0", "00:00:00"),
        ],
    )
    def test_walltime(self, cobalt: Cobalt, submit: Callable[..., str], text: str, walltime: str) -> None:
        assert column(cobalt, submit(f"-n 1 -t {text}"), "WallTime") == walltime

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("abc", "illegal value 'abc' for minutes"),
            ("7.5", "illegal value '7.5' for minutes"),
            ("00:10:75", "seconds value '75' outside range [0, 59]"),
            ("-5", "minutes value must not be negative"),
            ("1:1:1:1:1", "time may be specified as minutes, HH:MM, HH:MM:SS, or DD:HH:MM:SS"),
        ],
    )
    def test_no_walltime(self, qsub: Callable[..., Done], write: Write, text: str, words: str) -> None:
        write("true")
        assert said(qsub(f"-n 1 -t {text} job.sh")) == (1, "", f"invalid time specification: {words}\n")

    def test_longest_walltime_is_known_when_the_job_starts(self, cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
        cobalt.set_queue("debug", max_time=60)
        write("echo $((COBALT_ENDTIME - COBALT_STARTTIME))")
        job = cobalt.run("qsub", "-n", "1", "-t", "0", "-q", "debug", "job.sh", cwd=tmp_path).strip()
        cobalt.wait_for(job, "gone")
        assert (tmp_path / f"{job}.output").read_text() == "3600\n"

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ("-n 1 job.sh", "'time' not provided"),
            ("-t 10 job.sh", "'nodecount' not provided"),
            ("-n 0 -t 10 job.sh", "node count out of realistic range"),
            ("-n 5 -t 10 job.sh", "node count out of realistic range"),
            ("-n 1 -t 10 ./nothere.sh", "command {here}/./nothere.sh not found, or is not a file"),
            ("-n 1 -t 10 .", "command {here}/. not found, or is not a file"),
            ("-n 1 -t 10 ./noexec.sh", "command {here}/./noexec.sh is not executable"),
            ("-n 1 -t 10 -o /no/dir/x job.sh", "directory /no/dir/x does not exist"),
            (
                "-n 1 -t 10 --mode smp job.sh",
                "Specifed mode 'smp' not valid, valid modes are\nco\nvn\nscript\ninteractive",
            ),
            ("-n 1 -t 10 --env FOO job.sh", "Improperly formatted argument to env : ['FOO']"),
            ("-n 1 -t 10 --attrs a=b=c job.sh", "Improperly formatted argument to attrs : a=b=c"),
        ],
    )
    def test_client_refuses(
        self, qsub: Callable[..., Done], write: Write, tmp_path: Path, words: str, complaint: str
    ) -> None:
        write("true")
        write("true", name="noexec.sh").chmod(0o644)
        assert said(qsub(words)) == (1, "", complaint.format(here=tmp_path) + "\n")

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ("-n x -t 10 job.sh", "error: option -n: invalid integer value: 'x'"),
            ("--bogus job.sh", "error: no such option: --bogus"),
        ],
    )
    def test_options_are_wrong(self, qsub: Callable[..., Done], words: str, complaint: str) -> None:
        done = qsub(words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: qsub.py")
        assert done.stderr.endswith(f"qsub.py: {complaint}\n")

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ("", "No required options provided"),
            ("job.sh -n 1 -t 10", "No required options provided"),  # options come before the script
            ("-n 1 -t 10", "No executable or script specified"),
        ],
    )
    def test_usage_is_on_stdout(self, qsub: Callable[..., Done], write: Write, words: str, complaint: str) -> None:
        write("true")
        done = qsub(words)
        assert (done.returncode, done.stderr) == (1, f"{complaint}\n")
        assert done.stdout.startswith("Usage: qsub.py")

    def test_script_with_a_blank_in_its_path(self, qsub: Callable[..., Done], write: Write, tmp_path: Path) -> None:
        script = write("true", name="my job.sh")
        done = qsub("-n 1 -t 10", str(script))
        assert said(done) == (1, "", f"command {tmp_path}/myjob.sh not found, or is not a file\n")

    @pytest.mark.parametrize(
        ("queue", "text", "walltime"),
        [
            ("nosuch", "trying to add job to non-existent queue 'nosuch'", 10),
            ("drainq", "The 'drainq' queue is draining", 10),
            ("deadq", "The 'deadq' queue is dead", 10),
            ("userq", r"You are not allowed to submit to the 'userq' queue\n", 10),
            ("limq", r"Walltime greater than the 'limq' queue max walltime of 01:00:00\n", 61),
            ("limq", r"Walltime less than the 'limq' queue min walltime of 00:10:00\n", 9),
            ("limq", r"The limit of 2 jobs per user in the 'limq' queue has been reached\n", 10),
        ],
    )
    def test_queue_refuses(
        self,
        cobalt: Cobalt,
        qsub: Callable[..., Done],
        submit: Callable[..., str],
        queue: str,
        text: str,
        walltime: int,
    ) -> None:
        cobalt.set_queue("drainq", state="draining")
        cobalt.set_queue("deadq", state="dead")
        cobalt.set_queue("userq", users=("somebody",))
        cobalt.set_queue("limq", min_time=10, max_time=60, max_queued=2, state="stopped")
        submit("-n 1 -t 10 -q limq")
        submit("-n 1 -t 60 -q limq")
        done = qsub(f"-n 1 -t {walltime} -q {queue} job.sh")
        assert said(done) == (1, "", f'{NOISE}<Fault 1001: "{text}">\n')

    def test_clusters_refuse_short_jobs_and_crays_do_not(
        self, cobalt: Cobalt, qsub: Callable[..., Done], submit: Callable[..., str]
    ) -> None:
        fault = "component error: XMLRPC failure <Fault 1004: 'Walltime less than minimum'> in system.validate_job\n\n"
        assert said(qsub("-n 1 -t 4 job.sh")) == (1, "", NOISE + fault)
        cobalt.change(cray=True)
        submit("-n 1 -t 1")

    def test_filter_refuses_and_talks(self, cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
        write("true")
        cobalt.set_queue("small", max_nodes=2)
        cobalt.change(need_project=True, filter_notice='Job routed to queue "default".')
        for words in ("-n 1 -t 10", "-A mine -n 3 -t 10 -q small"):
            done = qsub(f"{words} job.sh")
            assert (done.returncode, done.stdout) == (1, "")
            reason, failed = done.stderr.splitlines()
            assert reason
            assert failed == f"Filter {cobalt.home}/filter failed"
        done = qsub("-A mine -n 1 -t 10 job.sh")
        assert done.stderr == 'Job routed to queue "default".\n'
        assert done.stdout.strip().isdecimal()

    def test_dependencies_that_are_not_there(self, qsub: Callable[..., Done], write: Write) -> None:
        write("true")
        done = qsub("-n 1 -t 10 --dependencies 9999 job.sh")
        assert done.returncode == 0
        assert done.stderr == "WARNING: dependencies 9999 do not match jobs currently in the queue\n"

    def test_log_that_cannot_be_begun(self, qsub: Callable[..., Done], write: Write, tmp_path: Path) -> None:
        write("true")
        (tmp_path / "taken").mkdir()
        done = qsub("-n 1 -t 10 --debuglog taken job.sh")
        assert done.returncode == 0
        first, second = done.stderr.splitlines()
        assert first == f"WARNING: failed to create cobalt log file at: {tmp_path}/taken"
        assert second.startswith("WARNING: ")

    def test_environment_and_attributes(self, cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
        write("true")
        variables = r"FOO=bar:BAZ=a\=b:URL=http://h:80/p?q=1:TWO=x\:Y=1"
        done = qsub("-n 1 -t 10 --env", variables, "--env", "MORE=$jobid", "--attrs", "a=1:b:no_c", "job.sh")
        job = done.stdout.strip()
        shown = column(cobalt, job, "Envs").split()
        assert shown == ["FOO=bar", "BAZ=a=b", "URL=http://h:80/p?q=1", "TWO=x:Y=1", f"MORE={job}"]
        assert column(cobalt, job, "attrs") == "{'a': '1', 'b': 'true', 'c': 'false'}"

    def test_job_is_named_after_its_output(self, cobalt: Cobalt, submit: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        assert column(cobalt, submit(), "JobName") == "N/A"
        assert column(cobalt, submit("-n 1 -t 10 -O there/block"), "JobName") == "block"
        assert column(cobalt, submit("-n 1 -t 10 -O there/block --jobname mine"), "JobName") == "mine"
        assert column(cobalt, submit("-n 1 -t 10 -o there/x.txt"), "JobName") == "x.txt"
        numbered = submit("-n 1 -t 10 -O there/$jobid-$COBALT_JOBID")
        assert (tmp_path / "there" / f"{numbered}-{numbered}.cobaltlog").read_text() == cobalt.log(numbered)

    def test_log_begins_with_the_command(self, cobalt: Cobalt, submit: Callable[..., str], tmp_path: Path) -> None:
        job = submit("-n 1 -t 10 -O out_$jobid")
        number, command, submitted = cobalt.log(job).splitlines()
        assert number == f"Jobid: {job}"
        assert command == "qsub -n 1 -t 10 -O out_$jobid ./job.sh"
        assert submitted.endswith(f") submitted with cwd set to: {tmp_path}")

    def test_many_at_once_are_all_taken(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
        jobs: list[str] = []
        threads = [threading.Thread(target=lambda: jobs.append(submit())) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(jobs)) == 12
        assert cobalt.jobs().keys() == set(jobs)


class TestDirectives:
    @pytest.mark.parametrize(
        "lines",
        [
            ["# a comment", "#COBALT -n 1 -t 10"],
            ["", "#COBALT -n 1 -t 10"],
            ["#COBALT\t-n 1 -t 10"],
            ["#cobalt -n 1 -t 10"],
            [" #COBALT -n 1 -t 10"],
            ["#COBALT -n 1", "#COBALT ", "#COBALT -t 10"],
        ],
        ids=["comment", "blank line", "tab", "small letters", "indented", "short"],
    )
    def test_most_lines_end_them(self, qsub: Callable[..., Done], write: Write, lines: list[str]) -> None:
        write("true", *lines)
        assert qsub("-n 1 job.sh").stderr == "'time' not provided\n"

    def test_without_any_option_there_is_the_usage(self, qsub: Callable[..., Done], write: Write) -> None:
        script = write("true", "#COBALT -n 1 -t 10")
        script.write_text(script.read_text().replace("#!", "#", 1))
        assert qsub("job.sh").stderr == "No required options provided\n"

    def test_command_line_wins(
        self, cobalt: Cobalt, qsub: Callable[..., Done], write: Write, submit: Callable[..., str]
    ) -> None:
        write("true", "#COBALT -n 2 -t 20", "#COBALT --env A=1:B=1 --attrs x=1", "# no more", "#COBALT -n 4")
        job = submit("-t 30 --env B=2:C=2", "job.sh")
        assert column(cobalt, job, "Nodes") == "2"
        assert column(cobalt, job, "WallTime") == "00:30:00"
        assert column(cobalt, job, "Envs") == "A=1 B=2 C=2"
        assert "qsub --mode script -n 2 -t 20 --env A=1:B=1 --attrs x=1 -t 30 --env B=2:C=2 job.sh" in cobalt.log(job)
        refused = qsub("--attrs y=1 job.sh")
        assert refused.returncode == 1
        assert refused.stderr.startswith("Multiple --attrs options not supported.  Specify multiple ")

    def test_mode_is_script(self, qsub: Callable[..., Done], write: Write) -> None:
        write("true", "#COBALT -n 2 -t 20 --mode co")
        complaint = "Mode already set to 'script' and trying to set it again to 'co'\n"
        assert said(qsub("job.sh")) == (1, "", complaint)


class TestTables:
    def test_jobs_in_columns(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
        assert cobalt.run("qstat").splitlines()[0].split() == [
            "JobID",
            "User",
            "WallTime",
            "Nodes",
            "State",
            "Location",
        ]
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

    def test_ids_of_unlike_length_end_in_one_column(self) -> None:
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

    def test_what_is_asked_for(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
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

    def test_columns_are_not_safe_from_users_and_sites(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
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

    def test_jobs_in_blocks(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
        job = submit()
        assert cobalt.run("qstat", "-l", job) == (
            f"JobID: {job}\n    User     : {ME}\n    WallTime : 00:10:00\n    Nodes    : 1\n"
            "    State    : queued\n    Location : None\n\n"
        )
        everything = cobalt.run("qstat", "-lf", job).splitlines()
        assert len(everything) == 42
        assert everything[1] == "    JobName           : N/A"
        assert everything[19].startswith("    Path              : ")

    def test_job_that_runs(self, cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
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

    def test_queues(self, cobalt: Cobalt) -> None:
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
    def test_locations(self, nodes: str, text: str) -> None:
        assert location(nodes.split()) == text


class TestDeletion:
    def test_what_it_says(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
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


class TestFaults:
    def test_nobody_answers(self, cobalt: Cobalt, submit: Callable[..., str], qsub: Callable[..., Done]) -> None:
        job = submit()
        with cobalt.stopped_server():
            no_system = "component error: Failed to connect to system: Proxy.py     :L#422:cn:system\n\n"
            assert said(qsub("-n 1 -t 10 job.sh")) == (1, "", NOISE + no_system)
            for command, method in (
                (["qstat"], "get_queues"),
                (["qstat", job], "get_queues"),
                (["qdel", job], "del_jobs"),
            ):
                done = cobalt.call(*command)
                failed = (
                    f"component error: Following exception occurred while trying to execute queue-manager.{method}: "
                )
                assert (done.returncode, done.stdout) == (1, "")
                assert done.stderr.startswith(NOISE + failed)
        assert cobalt.jobs() == {job: "queued"}

    def test_commands_wait_for_a_server_that_comes_back(self, cobalt: Cobalt, submit: Callable[..., str]) -> None:
        job = submit()
        cobalt.change(retry_s=1000)
        cobalt.stop_server()
        asking = subprocess.Popen(["qstat", job], env=cobalt.environ, stdout=subprocess.PIPE, text=True)
        try:
            cobalt.start_server()
            output, _ = asking.communicate(timeout=60)
        finally:
            asking.kill()
        assert job in output

    def test_broken_program(self, cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
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

    def test_jobs_have_the_programs_too(self, cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
        write('qstat --header=JobID:State "$COBALT_JOBID"')
        job = cobalt.run("qsub", "-n", "1", "-t", "10", "job.sh", cwd=tmp_path).strip()
        cobalt.wait_for(job, "gone")
        assert (tmp_path / f"{job}.output").read_text().splitlines()[2].split() == [job, "running"]

    def test_commands_do_not_mind_the_variables_of_users(self, cobalt: Cobalt) -> None:
        strange: dict[str, Any] = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "USER": "another"}
        done = cobalt.call("qstat", environ=strange)
        assert (done.returncode, done.stderr) == (0, "")
        assert sys.executable
