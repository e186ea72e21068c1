"""What qsub of the stand-in takes and says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cobalt.cobalt import Cobalt
from tests.cobalt.conftest import NOISE, Done, Write, column, said


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
def test_walltime_is_in_whole_minutes(cobalt: Cobalt, submit: Callable[..., str], text: str, walltime: str) -> None:
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
def test_walltime_that_is_none(qsub: Callable[..., Done], write: Write, text: str, words: str) -> None:
    write("true")
    assert said(qsub(f"-n 1 -t {text} job.sh")) == (1, "", f"invalid time specification: {words}\n")


def test_longest_walltime_is_known_when_the_job_starts(cobalt: Cobalt, write: Write, tmp_path: Path) -> None:
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
def test_client_refuses(qsub: Callable[..., Done], write: Write, tmp_path: Path, words: str, complaint: str) -> None:
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
def test_wrong_options(qsub: Callable[..., Done], words: str, complaint: str) -> None:
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
def test_usage_is_on_stdout(qsub: Callable[..., Done], write: Write, words: str, complaint: str) -> None:
    write("true")
    done = qsub(words)
    assert (done.returncode, done.stderr) == (1, f"{complaint}\n")
    assert done.stdout.startswith("Usage: qsub.py")


def test_script_with_a_blank_in_its_path(qsub: Callable[..., Done], write: Write, tmp_path: Path) -> None:
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
    cobalt: Cobalt, qsub: Callable[..., Done], submit: Callable[..., str]
) -> None:
    fault = "component error: XMLRPC failure <Fault 1004: 'Walltime less than minimum'> in system.validate_job\n\n"
    assert said(qsub("-n 1 -t 4 job.sh")) == (1, "", NOISE + fault)
    cobalt.change(cray=True)
    submit("-n 1 -t 1")


def test_filter_refuses_and_talks(cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
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


def test_dependencies_that_are_not_there(qsub: Callable[..., Done], write: Write) -> None:
    write("true")
    done = qsub("-n 1 -t 10 --dependencies 9999 job.sh")
    assert done.returncode == 0
    assert done.stderr == "WARNING: dependencies 9999 do not match jobs currently in the queue\n"


def test_log_that_cannot_be_begun(qsub: Callable[..., Done], write: Write, tmp_path: Path) -> None:
    write("true")
    (tmp_path / "taken").mkdir()
    done = qsub("-n 1 -t 10 --debuglog taken job.sh")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first == f"WARNING: failed to create cobalt log file at: {tmp_path}/taken"
    assert second.startswith("WARNING: ")


def test_environment_and_attributes(cobalt: Cobalt, qsub: Callable[..., Done], write: Write) -> None:
    write("true")
    variables = r"FOO=bar:BAZ=a\=b:URL=http://h:80/p?q=1:TWO=x\:Y=1"
    done = qsub("-n 1 -t 10 --env", variables, "--env", "MORE=$jobid", "--attrs", "a=1:b:no_c", "job.sh")
    job = done.stdout.strip()
    shown = column(cobalt, job, "Envs").split()
    assert shown == ["FOO=bar", "BAZ=a=b", "URL=http://h:80/p?q=1", "TWO=x:Y=1", f"MORE={job}"]
    assert column(cobalt, job, "attrs") == "{'a': '1', 'b': 'true', 'c': 'false'}"


def test_job_is_named_after_its_output(cobalt: Cobalt, submit: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert column(cobalt, submit(), "JobName") == "N/A"
    assert column(cobalt, submit("-n 1 -t 10 -O there/block"), "JobName") == "block"
    assert column(cobalt, submit("-n 1 -t 10 -O there/block --jobname mine"), "JobName") == "mine"
    assert column(cobalt, submit("-n 1 -t 10 -o there/x.txt"), "JobName") == "x.txt"
    numbered = submit("-n 1 -t 10 -O there/$jobid-$COBALT_JOBID")
    assert (tmp_path / "there" / f"{numbered}-{numbered}.cobaltlog").read_text() == cobalt.log(numbered)


def test_log_begins_with_the_command(cobalt: Cobalt, submit: Callable[..., str], tmp_path: Path) -> None:
    job = submit("-n 1 -t 10 -O out_$jobid")
    number, command, submitted = cobalt.log(job).splitlines()
    assert number == f"Jobid: {job}"
    assert command == "qsub -n 1 -t 10 -O out_$jobid ./job.sh"
    assert submitted.endswith(f") submitted with cwd set to: {tmp_path}")


def test_many_at_once_are_all_taken(cobalt: Cobalt, submit: Callable[..., str]) -> None:
    jobs: list[str] = []
    threads = [threading.Thread(target=lambda: jobs.append(submit())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(jobs)) == 12
    assert cobalt.jobs().keys() == set(jobs)


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
def test_most_lines_end_the_directives(qsub: Callable[..., Done], write: Write, lines: list[str]) -> None:
    write("true", *lines)
    assert qsub("-n 1 job.sh").stderr == "'time' not provided\n"


def test_file_without_interpreter_has_no_directives(qsub: Callable[..., Done], write: Write) -> None:
    script = write("true", "#COBALT -n 1 -t 10")
    script.write_text(script.read_text().replace("#!", "#", 1))
    assert qsub("job.sh").stderr == "No required options provided\n"


def test_command_line_wins_over_directives(
    cobalt: Cobalt, qsub: Callable[..., Done], write: Write, submit: Callable[..., str]
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


def test_mode_of_directives_is_script(qsub: Callable[..., Done], write: Write) -> None:
    write("true", "#COBALT -n 2 -t 20 --mode co")
    complaint = "Mode already set to 'script' and trying to set it again to 'co'\n"
    assert said(qsub("job.sh")) == (1, "", complaint)
