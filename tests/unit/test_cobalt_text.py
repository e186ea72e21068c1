"""What the Cobalt provider writes, and what it makes of what Cobalt's commands and logs say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import JobState
from parsl.launchers import SingleNodeLauncher

from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.cobalt import CobaltProvider
from parsl_balsam.providers.cobalt_scheduler import CobaltOptions, CobaltScheduler
from parsl_balsam.providers.cobalt_text import read_ending, read_id, read_names, read_states, read_submission
from parsl_balsam.providers.commands import Finished
from parsl_balsam.providers.scheduler import (
    Accepted,
    Answer,
    BatchJob,
    JobFiles,
    JobReport,
    Refused,
    SubmittedJob,
    Unclear,
)

NOISE = 'No handlers could be found for logger "Proxy"\n'
STAMP = "Sun Nov 22 19:34:44 2026 +0000 (UTC) "

TABLE = """\
JobID  State      
==================
 4     running    
 5     queued     
 7     user_hold  
10     starting   
"""

EMPTY = "JobID  State  \n==============\n"

AWAY = Finished(
    ("qstat",),
    1,
    "",
    NOISE + "component error: Following exception occurred while trying to execute queue-manager.get_queues: …\n",
)
NONE_OF_THEM = Finished(("qstat",), 1)


def said(stdout: str = "", stderr: str = "", code: int | None = 0) -> Finished:
    return Finished(("qsub",), code, stdout, stderr, "qsub did not answer within 10 s" if code is None else None)


class FakeCobalt:
    """Says the same to every question, and remembers what it was asked."""

    def __init__(self, reply: Finished) -> None:
        self.reply = reply
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> Finished:
        self.asked.append(list(argv))
        return self.reply


def scheduler() -> CobaltScheduler:
    return CobaltScheduler(CobaltOptions(), "me")


def job(job_id: str | None, log: Path | None = None, name: str = "block.1") -> SubmittedJob:
    return SubmittedJob(name, job_id, None if log is None else JobFiles("/s", "/o", "/e", str(log)))


# Scripts and commands


def provider(**options: Any) -> CobaltProvider:
    made = CobaltProvider(**options)
    made.script_dir = "/scripts"
    return made


def qsub(**options: Any) -> list[str]:
    """Return the command that submits a block of a provider."""
    made = provider(**options)
    files = JobFiles("/scripts/b.sh", "/scripts/b.output", "/scripts/b.error", "/scripts/b.cobaltlog")
    return made._scheduler.submit_command(BatchJob("b", files, 2, 90, None, "true"))


def test_script_of_a_block() -> None:
    made = provider(
        scheduler_options="#COBALT -M me@site\n\n  #COBALT --attrs pubnet:filesystems=home,eagle  ",
        worker_init="module load python",
        cores_per_node=64,
        mem_per_node=192,
    )
    assert made.render("A=1 exec launcher", BlockRequest(128, 90), "block.7f") == (
        "#!/bin/bash\n"
        "#COBALT -M me@site\n"
        "#COBALT --attrs pubnet:filesystems=home,eagle\n"
        "\n"
        "module load python\n"
        "export PARSL_MEMORY_GB=192\n"
        "export PARSL_CORES=64\n"
        "A=1 exec launcher\n"
    )
    assert made.check_command("/scripts/block.7f.sh") is None


def test_options_stand_before_the_script() -> None:
    assert qsub(
        queue="debug",
        account="proj",
        attrs={"mcdram": "flat", "location": "cc001,cc002", "nopgkill": True, "ssds": False},
        env={"URL": "http://h:80/p", "PLAIN": "1"},
    ) == [
        "qsub",
        *("-n", "2"),
        *("-t", "90"),
        *("-q", "debug"),
        *("-A", "proj"),
        *("-O", "/scripts/b"),
        *("--cwd", "/scripts"),
        *("--jobname", "b"),
        *("--attrs", "mcdram=flat:location=cc001,cc002:nopgkill:no_ssds"),
        *("--env", "URL=http\\://h\\:80/p:PLAIN=1"),
        "/scripts/b.sh",
    ]
    bare = qsub()
    assert not {"-q", "-A", "--attrs", "--env"} & set(bare)
    assert bare[-1] == "/scripts/b.sh"
    assert "mcdram=flat:numa=quad" in qsub(attrs="mcdram=flat:numa=quad")
    assert "A=b\\=c" in qsub(env={"A": "b=c"})


def test_arguments_are_kept_as_they_were_given() -> None:
    made = CobaltProvider(queue="q", attrs={"a": True}, env={"A": "1"}, scheduler_options="#COBALT -u 022")
    again = eval(repr(made), {"CobaltProvider": CobaltProvider, "SingleNodeLauncher": SingleNodeLauncher})
    assert repr(again) == repr(made)
    assert (again.attrs, again.env, again.scheduler_options) == ({"a": True}, {"A": "1"}, "#COBALT -u 022")
    assert (made.label, made.scheduler, made.status_polling_interval) == ("cobalt", "cobalt", 20)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"walltime": "1:30"}, "walltime"),
        ({"nodes_per_block": 0}, "nodes_per_block"),
        ({"queue": "two words"}, "queue"),
        ({"account": "-A"}, "account"),
        ({"scheduler_options": "module load x"}, "worker_init"),
        ({"scheduler_options": "# a comment\n#COBALT -n 1"}, "a comment"),
        ({"scheduler_options": "#COBALT\t-n 1"}, "one blank"),
        ({"scheduler_options": "#COBALT"}, "one blank"),
        ({"scheduler_options": "#COBALT -O mine"}, "-O"),
        ({"scheduler_options": "#COBALT --debuglog=/tmp/x"}, "--debuglog"),
        ({"scheduler_options": "#COBALT --attrs a=1", "attrs": "b=2"}, "only one"),
        ({"attrs": "a=b=c"}, "a=b=c"),
        ({"attrs": {"a": "two words"}}, "two words"),
        ({"attrs": {"a": "b:c"}}, "b:c"),
        ({"env": {"A": "two words"}}, "worker_init"),
        ({"env": {"A": "$HOME"}}, "worker_init"),
        ({"env": {"A": "it's"}}, "worker_init"),
        ({"env": {"A-B": "1"}}, "A-B"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        CobaltProvider(**options)


@pytest.mark.parametrize("directory", ["/with blank", "/tab\there", "/$jobid"])
def test_directory_that_cobalt_would_change_is_refused(directory: str) -> None:
    made = CobaltProvider()
    with pytest.raises(ConfigurationError, match="run_dir"):
        made.script_dir = directory


# Submissions


def test_id_is_the_last_line() -> None:
    assert read_submission(said("12\n")) == Accepted("12")
    assert read_submission(said("12\n", 'Job routed to queue "default".\n')) == Accepted("12")
    assert read_submission(said("12 your project is nearly used up\n")) == Accepted("12")
    assert read_submission(said("Welcome to Theta\n12\n\n")) == Accepted("12")
    assert read_submission(said("12\n", code=None)) == Accepted("12")
    assert read_submission(said("12\n", "WARNING: dependencies 9999 do not match jobs currently in the queue\n")) == (
        Accepted("12")
    )


REFUSALS = [
    (NOISE + "<Fault 1001: \"trying to add job to non-existent queue 'nosuch'\">", "non-existent queue 'nosuch'"),
    (NOISE + "<Fault 1001: \"The 'drainq' queue is draining\">", "The 'drainq' queue is draining"),
    (NOISE + "<Fault 1001: \"You are not allowed to submit to the 'userq' queue\\n\">", "not allowed to submit"),
    (
        NOISE + "<Fault 1001: \"Walltime greater than the 'debug' queue max walltime of 01:00:00\\n\">",
        "max walltime of 01:00:00",
    ),
    (
        NOISE + "<Fault 1001: \"The limit of 2 jobs per user in the 'limq' queue has been reached\\n\">",
        "has been reached",
    ),
    (
        NOISE + "component error: XMLRPC failure <Fault 1004: 'Walltime less than minimum'> in system.validate_job\n\n",
        "Walltime less than minimum",
    ),
    ("invalid time specification: seconds value '75' outside range [0, 59]", "outside range"),
    ("node count out of realistic range", "node count out of realistic range"),
    ("command /abs/./noexec.sh is not executable", "is not executable"),
    ("directory /no/dir/x does not exist", "does not exist"),
    ("Improperly formatted argument to attrs : a=b=c", "attrs : a=b=c"),
    ("No project\nFilter /path/filter failed", "No project; Filter /path/filter failed"),
]


@pytest.mark.parametrize(("stderr", "words"), REFUSALS)
def test_refusal_keeps_its_words(stderr: str, words: str) -> None:
    refused = read_submission(said("", stderr, 1))
    assert isinstance(refused, Refused)
    assert words in refused.words
    assert "No handlers" not in refused.words
    assert "Fault" not in refused.words


def test_usage_on_stdout_is_no_id() -> None:
    refused = read_submission(said("Usage: qsub.py [options]\n4 ways\n", "No required options provided\n", 1))
    assert refused == Refused("No required options provided")
    assert isinstance(read_submission(said("12\n", "qsub.py: error: no such option: --bogus\n", 2)), Refused)


@pytest.mark.parametrize(
    ("stdout", "stderr", "code"),
    [
        ("", "", None),
        ("1", "", None),  # half a line may be half a number
        ("", NOISE + "component error: Failed to connect to system: Proxy.py     :L#422:cn:system\n\n", 1),
        ("", "", 0),
        ("nonsense\n", "", 0),
        ("", "", 1),
        ("", "", -9),
    ],
)
def test_lost_answer_is_no_refusal(stdout: str, stderr: str, code: int | None) -> None:
    assert isinstance(read_submission(said(stdout, stderr, code)), Unclear)


# The queue


def test_table_is_read() -> None:
    states = read_states(said(TABLE))
    assert states is not None
    assert {job_id: report and report.state for job_id, report in states.items()} == {
        "4": JobState.RUNNING,
        "5": JobState.PENDING,
        "7": JobState.HELD,
        "10": JobState.PENDING,
    }


@pytest.mark.parametrize(
    ("word", "state", "message"),
    [
        ("queued", JobState.PENDING, "waits in the queue"),
        ("user_hold", JobState.HELD, "held by its user"),
        ("admin_hold", JobState.HELD, "held by an administrator"),
        ("dep_hold", JobState.HELD, "held: waits for other jobs"),
        ("dep_fail", JobState.HELD, "held for good: a job that it depends on has failed"),
        ("maxrun_hold", JobState.PENDING, "waits: as many jobs run as the queue allows one user"),
        ("starting", JobState.PENDING, "starting: its nodes are being prepared"),
        ("running", JobState.RUNNING, None),
        ("killing", JobState.RUNNING, "killing: it is being ended"),
        ("exiting", JobState.RUNNING, "exiting: its nodes are being cleaned up"),
        ("preempted", JobState.PENDING, "preempted: waits to be started again"),
    ],
)
def test_queue_tells_how_a_job_is(word: str, state: JobState, message: str | None) -> None:
    table = said(EMPTY + f"12     {word}  \n")
    assert scheduler().look(FakeCobalt(table), [job("12")]).reports == {"12": JobReport(state, message)}


def test_all_jobs_are_asked_for_at_once() -> None:
    cobalt = FakeCobalt(said(TABLE))
    answer = scheduler().look(cobalt, [job("4"), job("5"), job("99")])
    assert cobalt.asked == [["qstat", "--header=JobID:State", "4", "5", "99"]]
    assert answer.reports.keys() == {"4", "5"}
    assert answer.unknown == {"99"}


def test_silence_means_that_none_is_there() -> None:
    assert scheduler().look(FakeCobalt(NONE_OF_THEM), [job("4")]) == Answer({}, frozenset({"4"}))


@pytest.mark.parametrize(
    "reply",
    [
        AWAY,
        said("", "", None),
        said("", "", 0),
        said("", "abc is not a valid jobid or queue name\n", 1),
        said("Job 4\n", "", 0),
        said(TABLE, "", 1),
        said(TABLE + "connection lost\n"),
        said("JobID  State  \n"),
        said("JobID  State  Location  \n=====\n4      running  cc001  \n"),
        said("", "", 127),
    ],
)
def test_no_table_says_nothing(reply: Finished) -> None:
    assert scheduler().look(FakeCobalt(reply), [job("4"), job("99")]) == Answer()


def test_unknown_word_says_nothing() -> None:
    assert scheduler().look(FakeCobalt(said(EMPTY + "4  frobnicated\n")), [job("4")]) == Answer()


# Endings


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["Info: task completed normally with an exit code of 0; initiating job cleanup and removal"],
            JobReport(JobState.COMPLETED, None, 0),
        ),
        (
            ["Info: task completed normally with an exit code of 3; initiating job cleanup and removal"],
            JobReport(JobState.FAILED, "exit code 3", 3),
        ),
        (
            ["Info: task completed normally with an exit code of 137; initiating job cleanup and removal"],
            JobReport(JobState.FAILED, "exit code 137, as if killed by signal 9", 137),
        ),
        (
            ["Info: task completed normally with an exit code of 1234567; initiating job cleanup and removal"],
            JobReport(JobState.FAILED, "the scheduler lost the job's process", 1234567),
        ),
        (
            ["Info: maximum execution time exceeded; initiating job termination"],
            JobReport(JobState.TIMEOUT, "walltime reached"),
        ),
        (
            ["Info: user delete requested with signal SIGTERM by user me"],
            JobReport(JobState.CANCELLED, "cancelled by user me"),
        ),
        (
            ["Info: user delete requested; removing job from the queue"],
            JobReport(JobState.CANCELLED, "cancelled"),
        ),
        (
            [
                "Info: user delete requested with signal SIGTERM by user me now pending",
                "pending user delete; releasing resources",
                "resources released; removing job",
            ],
            JobReport(JobState.CANCELLED, "cancelled by user me"),
        ),
        (
            [
                "Info: task completed normally with an exit code of 7; initiating job cleanup and removal",
                "Info: job is in the process of exiting; user delete request ignored",
            ],
            JobReport(JobState.FAILED, "exit code 7", 7),
        ),
        (["Info: stdin received from /dev/null"], None),
    ],
)
def test_log_tells_how_a_job_ended(tmp_path: Path, lines: list[str], expected: JobReport | None) -> None:
    log = tmp_path / "block.1.cobaltlog"
    head = "Jobid: 12\nqsub -n 2 -t 10 ./block.1.sh\n"
    log.write_text(head + "".join(f"{STAMP}{line}\n" for line in lines))
    answer = scheduler().look(FakeCobalt(NONE_OF_THEM), [job("12", log)])
    assert answer.reports.get("12") == expected
    assert answer.unknown == (frozenset() if expected else {"12"})


def test_log_does_not_count_while_the_job_is_there(tmp_path: Path) -> None:
    log = tmp_path / "block.1.cobaltlog"
    log.write_text(STAMP + "Info: maximum execution time exceeded; initiating job termination\n")
    answer = scheduler().look(FakeCobalt(said(EMPTY + "12     killing  \n")), [job("12", log)])
    assert answer.reports["12"].state is JobState.RUNNING


# Names


def test_job_is_found_by_its_name() -> None:
    table = "JobID  JobName    \n==================\n 7     my job 12  \n12     block.1    \n"
    cobalt = FakeCobalt(said(table))
    found = scheduler().find(cobalt, [job(None), job(None, name="block.2")])
    assert (found.ids, found.unknown) == ({"block.1": "12"}, {"block.2"})
    assert cobalt.asked == [["qstat", "--header=JobID:JobName", "-u", "me"]]


def test_log_knows_the_id_of_a_job_that_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "block.1.cobaltlog"
    log.write_text("Jobid: 12\nqsub -n 2\n")
    cobalt = FakeCobalt(AWAY)
    assert scheduler().find(cobalt, [job(None, log)]).ids == {"block.1": "12"}
    assert cobalt.asked == []


@pytest.mark.parametrize("reply", [AWAY, said("", "", None), said("", "", 0)])
def test_name_is_not_unknown_where_nobody_answers(reply: Finished) -> None:
    assert scheduler().find(FakeCobalt(reply), [job(None)]).unknown == frozenset()


def test_qdel_tells_only_whether_it_was_heard() -> None:
    assert scheduler().cancel(FakeCobalt(said("")), ["1", "2"]) == {"1", "2"}
    assert scheduler().cancel(FakeCobalt(AWAY), ["1", "2"]) == set()
    assert scheduler().cancel(FakeCobalt(said(code=None)), ["1"]) == set()


# Junk

TEXT = st.text(
    alphabet=st.sampled_from("12\n\t =:;<>'\"-\x00\xff\udc80JobIDStateName running Fault Info component error"),
    max_size=80,
)
JUNK = st.builds(Finished, st.just(("qstat",)), st.none() | st.integers(-15, 255), TEXT, TEXT)


@given(JUNK)
def test_junk_is_never_taken_for_news(reply: Finished) -> None:
    told = scheduler().look(FakeCobalt(reply), [job("7777")])
    assert told.reports == {}
    silent = reply.code == 1 and not reply.stdout.strip() and not reply.stderr.strip()
    assert not told.unknown or silent or "=" in reply.stdout
    assert scheduler().find(FakeCobalt(reply), [job("7777")]).ids == {}
    assert isinstance(read_submission(reply), Accepted | Refused | Unclear)
    read_names(reply)


@given(TEXT | st.text())
def test_any_log_can_be_read(text: str) -> None:
    assert read_ending(text) is None or "Info: " in text
    assert read_id(text) is None or "Jobid: " in text
