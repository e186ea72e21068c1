"""What the Slurm provider writes, and what it makes of what Slurm's commands say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import typeguard
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import JobState
from parsl.launchers import SimpleLauncher, SingleNodeLauncher

from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.providers.commands import Finished
from parsl_balsam.providers.scheduler import Accepted, Answer, JobReport, Refused, SubmittedJob, Unclear
from parsl_balsam.providers.slurm import SlurmProvider
from parsl_balsam.providers.slurm_scheduler import SlurmOptions, SlurmScheduler
from parsl_balsam.providers.slurm_text import read_scancel, read_scontrol

ID_PATTERN = re.compile(r"Submitted batch job (?P<id>\S*)")

SHOWN = (
    "JobId=12 JobName=block.1 UserId=me(1000) GroupId=me(1000) MCS_label=N/A Priority=1 Nice=0 Account=(null) "
    "QOS=(null) JobState={state} Reason={reason} Dependency=(null) Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 "
    "ExitCode={exit_code} RunTime=00:00:02 TimeLimit=00:10:00 TimeMin=N/A Partition=nodes ReqNodeList=n9 "
    "ExcNodeList=(null) NodeList={nodes} BatchHost={first} NumNodes=2 WorkDir=/a b JobState=/trap "
    "Comment=JobState=RUNNING Power= \n"
)

FORGOTTEN = Finished(("scontrol",), 1, "", "slurm_load_jobs error: Invalid job id specified\n")
NO_ACCOUNTING = Finished(("sacct",), 1, "", "Slurm accounting storage is disabled\n")
AWAY = Finished(("squeue",), 1, "", "slurm_load_jobs error: Socket timed out on send/recv operation\n")
SILENT = Finished(("squeue",), None, trouble="squeue did not answer within 10 s")

Reply = Finished | str


def shown(state: str, reason: str = "None", exit_code: str = "0:0", nodes: str = "n[1-2]", first: str = "n1") -> str:
    return SHOWN.format(state=state, reason=reason, exit_code=exit_code, nodes=nodes, first=first)


class FakeSlurm:
    """Says what it is told to, by program, and remembers what it was asked."""

    def __init__(self, **replies: Reply) -> None:
        self.replies = {"sacct": NO_ACCOUNTING, **replies}
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> Finished:
        self.asked.append(list(argv))
        reply = self.replies.get(argv[0], FORGOTTEN)
        return Finished(tuple(argv), 0, reply) if isinstance(reply, str) else reply

    @property
    def programs(self) -> list[str]:
        return [argv[0] for argv in self.asked]


def scheduler(**options: Any) -> SlurmScheduler:
    return SlurmScheduler(SlurmOptions(**options), ID_PATTERN, batch_size=2)


def job(job_id: str | None, name: str = "block.1") -> SubmittedJob:
    return SubmittedJob(name, job_id, None)


def look(slurm: FakeSlurm, *ids: str) -> Answer:
    return scheduler().look(slurm, [job(each, f"block.{each}") for each in ids])


def report(squeue: str, **replies: Reply) -> JobReport:
    """Return how job 12 is by what Slurm's commands say."""
    return scheduler().look(FakeSlurm(squeue=squeue, **replies), [job("12")]).reports["12"]


# Scripts


def provider(**options: Any) -> SlurmProvider:
    made = SlurmProvider(**options)
    made.script_dir = "/scripts"
    return made


def test_script_of_a_block() -> None:
    made = provider(
        partition="big",
        account="proj",
        qos="normal",
        constraint="gpu&fast",
        reservation="res1",
        cores_per_node=64,
        mem_per_node=256,
        gpus_per_node=4,
        scheduler_options='#SBATCH --licenses=scratch\n\n  #SBATCH --comment="two words"  ',
        worker_init="module load python\nsource env/bin/activate",
    )
    assert made.render("A=1 exec launcher", BlockRequest(128, 90, None), "block.7f") == (
        "#!/bin/bash\n"
        "#SBATCH --partition=big\n"
        "#SBATCH --account=proj\n"
        "#SBATCH --qos=normal\n"
        '#SBATCH --constraint="gpu&fast"\n'
        "#SBATCH --reservation=res1\n"
        "#SBATCH --gpus-per-node=4\n"
        "#SBATCH --exclusive\n"
        "#SBATCH --mem=256G\n"
        "#SBATCH --cpus-per-task=64\n"
        "#SBATCH --no-kill\n"
        "#SBATCH --no-requeue\n"
        "#SBATCH --signal=B:TERM@15\n"
        "#SBATCH --licenses=scratch\n"
        '#SBATCH --comment="two words"\n'
        "#SBATCH --job-name=block.7f\n"
        "#SBATCH --output=/scripts/block.7f.stdout\n"
        "#SBATCH --error=/scripts/block.7f.stderr\n"
        "#SBATCH --nodes=128\n"
        "#SBATCH --ntasks-per-node=1\n"
        "#SBATCH --time=90\n"
        "\n"
        "module load python\n"
        "source env/bin/activate\n"
        "export PARSL_MEMORY_GB=256\n"
        "export PARSL_CORES=64\n"
        "A=1 exec launcher\n"
    )


def test_queue_of_a_request_wins() -> None:
    made = provider(partition="big")
    script = made.render("true", BlockRequest(1, 5, "debug"), "block")
    assert "#SBATCH --partition=debug\n" in script
    assert "big" not in script


def test_names_are_made_of_plain_characters() -> None:
    script = provider().render("true", BlockRequest(1, 5), "parsl.my label/ü.0")
    assert "#SBATCH --job-name=parsl.my_label_.0\n" in script


@pytest.mark.parametrize(
    ("directory", "written"),
    [
        ("/plain-1", "/plain-1/b.stdout"),
        ("/with blank", '"/with blank/b.stdout"'),
        ('/with "quotes" it\'s', '"/with \\"quotes\\" it\'s/b.stdout"'),
        ("/50%j", "/50%%j/b.stdout"),
        ("/back\\%j", '"/back\\\\\\\\%j/b.stdout"'),
    ],
)
def test_paths_are_written_so_that_slurm_reads_them_as_they_are(directory: str, written: str) -> None:
    made = SlurmProvider()
    made.script_dir = directory
    assert f"#SBATCH --output={written}\n" in made.render("true", BlockRequest(1, 5), "b")


def test_arguments_are_kept_as_they_were_given() -> None:
    made = SlurmProvider(
        partition="p", scheduler_options="#SBATCH -C x", worker_init="a", gpus_per_node=0, walltime="1-00:00:30"
    )
    names = {"SlurmProvider": SlurmProvider, "SingleNodeLauncher": SingleNodeLauncher}
    again = eval(repr(made), names)
    assert repr(again) == repr(made)
    assert (again.scheduler_options, again.worker_init, again.gpus_per_node) == ("#SBATCH -C x", "a", 0)
    assert made.status_polling_interval == 20
    assert SlurmProvider(poll_interval_s=5).status_polling_interval == 5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"walltime": "10"}, "walltime"),
        ({"walltime": "10:00"}, "walltime"),
        ({"walltime": "00:00:00"}, "walltime"),
        ({"walltime": "soon"}, "walltime"),
        ({"nodes_per_block": 0}, "nodes_per_block"),
        ({"min_blocks": 3, "max_blocks": 2}, "max_blocks"),
        ({"init_blocks": -1}, "init_blocks"),
        ({"cmd_timeout": 0}, "cmd_timeout"),
        ({"status_batch_size": 0}, "status_batch_size"),
        ({"partition": "a\nb"}, "partition"),
        ({"account": " "}, "account"),
        ({"scheduler_options": "#SBATCH -N 1\nmodule load x"}, "worker_init"),
        ({"regex_job_id": "("}, "regex_job_id"),
        ({"regex_job_id": r"job (\d+)"}, "regex_job_id"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        SlurmProvider(**options)


def test_arguments_of_wrong_types_are_refused() -> None:
    with pytest.raises(typeguard.TypeCheckError):
        SlurmProvider(nodes_per_block="2")  # type: ignore[arg-type]
    with pytest.raises(typeguard.TypeCheckError):
        SlurmProvider(launcher="srun")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("walltime", "minutes"), [("00:10:00", 10), ("00:10:01", 11), ("1-02:00:00", 1560), ("00:00:01", 1)]
)
def test_walltimes_are_rounded_up_to_minutes(tmp_path: Any, walltime: str, minutes: int) -> None:
    made = SlurmProvider(walltime=walltime, launcher=SimpleLauncher(), cmd_timeout=5)
    made.script_dir = str(tmp_path)
    # There is no such program here: the script is written all the same.
    made._scheduler.submit_command = lambda job: ["/nowhere/sbatch"]  # type: ignore[method-assign]
    with pytest.raises(Exception, match="sbatch"):
        made.submit("command", 2, "parsl.htex.block-0")
    (script,) = tmp_path.iterdir()
    assert re.fullmatch(r"parsl\.htex\.block-0\.[0-9a-f]{8}\.sh", script.name)
    assert script.stat().st_mode & 0o777 == 0o700
    text = script.read_text()
    assert f"#SBATCH --time={minutes}\n" in text
    assert "#SBATCH --ntasks-per-node=2\n" in text
    assert "--no-kill" not in text
    assert text.endswith(f'\nexport JOBNAME="{script.stem}"\ncommand\n')


def test_variables_of_the_user_do_not_shape_answers() -> None:
    environ = {
        "HOME": "/home/me",
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_PARTITION": "mine",
        "SBATCH_WAIT": "1",
        "SCANCEL_STATE": "PENDING",
        "SLURM_CONF": "/etc/slurm.conf",
        "SQUEUE_FORMAT": "%N",
    }
    assert scheduler(partition="big").environment(environ) == {
        "HOME": "/home/me",
        "SBATCH_ACCOUNT": "mine",
        "SLURM_CONF": "/etc/slurm.conf",
    }


# Submissions


def submitted(stdout: str = "", stderr: str = "", code: int | None = 0, **options: Any) -> Accepted | Refused | Unclear:
    trouble = "sbatch did not answer within 10 s" if code is None else None
    return scheduler(**options).read_submission(Finished(("sbatch",), code, stdout, stderr, trouble))


def test_id_is_read_from_its_line() -> None:
    assert submitted("Welcome!\nSubmitted batch job 12\n", "sbatch: warning: beware\n") == Accepted("12")
    assert submitted("Submitted batch job 12\n", code=None) == Accepted("12")
    assert submitted("Submitted batch job 12 on cluster east\n") == Accepted("12;east")
    assert submitted("Submitted batch job 12 on cluster east\n", clusters="east") == Accepted("12")
    assert submitted("Submitted batch job 12 on cluster east\n", clusters="east,west") == Accepted("12;east")


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", 1),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received\n", 1),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n", 1),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", None),
        ("", None),
        ("", 0),
        ("", 1),
        ("sbatch: warning: beware\n", 0),
        ("", -9),
    ],
)
def test_lost_answer_is_no_refusal(stderr: str, code: int | None) -> None:
    assert isinstance(submitted("", stderr, code), Unclear)
    # Half a line may be half a number.
    assert isinstance(submitted("Submitted batch job 1" if code is None else "junk", stderr, code), Unclear)


def test_refusal_keeps_its_words() -> None:
    said = (
        "sbatch: error: invalid partition specified: nosuch\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    words = "invalid partition specified: nosuch; Batch job submission failed: Invalid partition name specified"
    assert submitted("", said, 1) == Refused(words)


# The queue


@pytest.mark.parametrize(
    ("row", "state", "message"),
    [
        ("PENDING|Priority", JobState.PENDING, "waits: Priority"),
        ("PENDING|None", JobState.PENDING, "waits"),
        ("PENDING|Nodes are DOWN|DRAINED", JobState.PENDING, "waits: Nodes are DOWN|DRAINED"),
        ("PENDING|JobHeldUser", JobState.HELD, "waits: JobHeldUser"),
        ("PENDING|DependencyNeverSatisfied", JobState.HELD, "waits: DependencyNeverSatisfied"),
        ("CONFIGURING|None", JobState.PENDING, "its nodes are being prepared"),
        ("RUNNING|None", JobState.RUNNING, None),
        ("COMPLETING|None", JobState.RUNNING, "is ending"),
        ("SUSPENDED|None", JobState.HELD, "suspended by the scheduler"),
        ("REQUEUED|None", JobState.PENDING, "waits: it was put back into the queue"),
        ("REQUEUE_HOLD|None", JobState.HELD, "waits"),
    ],
)
def test_queue_tells_how_a_job_is(row: str, state: JobState, message: str | None) -> None:
    assert report(f"12|{row}\n") == JobReport(state, message)


@pytest.mark.parametrize(
    ("state", "details", "expected"),
    [
        ("COMPLETED", {}, JobReport(JobState.COMPLETED, None, 0)),
        ("FAILED", {"exit_code": "7:0", "reason": "NonZeroExitCode"}, JobReport(JobState.FAILED, "exit code 7", 7)),
        ("FAILED", {"exit_code": "0:9"}, JobReport(JobState.FAILED, "killed by signal 9", 137)),
        ("FAILED", {"reason": "BadConstraints"}, JobReport(JobState.FAILED, "failed: BadConstraints", 0)),
        (
            "FAILED",
            {"exit_code": "0:9", "reason": "JobLaunchFailure", "nodes": "n[2-3]"},
            JobReport(JobState.FAILED, "node failure (n1)", 137),
        ),
        (
            "FAILED",
            {"exit_code": "0:9", "reason": "JobLaunchFailure", "nodes": "(null)"},
            JobReport(JobState.FAILED, "node failure (n1)", 137),
        ),
        (
            "FAILED",
            {"exit_code": "0:9", "reason": "JobLaunchFailure", "nodes": "n[2-"},
            JobReport(JobState.FAILED, "killed by signal 9", 137),
        ),
        (
            "CANCELLED",
            {"exit_code": "0:15"},
            JobReport(JobState.CANCELLED, "cancelled by its user or an administrator"),
        ),
        ("TIMEOUT", {"exit_code": "0:15"}, JobReport(JobState.TIMEOUT, "walltime of 00:10:00 reached")),
        ("DEADLINE", {}, JobReport(JobState.TIMEOUT, "its deadline was reached")),
        ("PREEMPTED", {}, JobReport(JobState.CANCELLED, "preempted: its nodes were given to another job")),
        ("NODE_FAIL", {"exit_code": "0:15"}, JobReport(JobState.FAILED, "node failure (n[1-2])", 143)),
        ("BOOT_FAIL", {}, JobReport(JobState.FAILED, "node failure (n[1-2])", 0)),
        ("OUT_OF_MEMORY", {"exit_code": "0:125"}, JobReport(JobState.FAILED, "out of memory", 253)),
    ],
)
def test_ended_job_tells_why(state: str, details: dict[str, str], expected: JobReport) -> None:
    assert report(f"12|{state}|None\n", scontrol=shown(state, **details)) == expected
    assert report("", scontrol=shown(state, **details)) == expected  # the queue shows it no more
    assert report(f"12|{state}|None\n", scontrol=SILENT).state is expected.state
    # What was seen once is not denied, even if it is forgotten a moment later.
    assert look(FakeSlurm(squeue=f"12|{state}|None\n", scontrol=FORGOTTEN), "12").unknown == frozenset()


def test_reason_may_have_blanks() -> None:
    said = Finished((), 0, shown("PENDING", reason="launch failed requeued held"))
    assert read_scontrol(said, "12") == JobReport(JobState.PENDING, "waits: launch failed requeued held")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("CANCELLED by 1000|0:15|00:10:00|n1", JobReport(JobState.CANCELLED, "cancelled by user 1000")),
        ("FAILED|7:0|00:10:00|n1", JobReport(JobState.FAILED, "exit code 7", 7)),
        ("TIMEOUT|0:0|1-00:00:00|n1", JobReport(JobState.TIMEOUT, "walltime of 1-00:00:00 reached")),
        ("NODE_FAIL|0:0|00:10:00|None assigned", JobReport(JobState.FAILED, "node failure", 0)),
        ("OUT_OF_MEMORY|0:125|00:10:00|n1", JobReport(JobState.FAILED, "out of memory", 253)),
    ],
)
def test_accounting_tells_how_a_job_ended(row: str, expected: JobReport) -> None:
    assert report("", sacct=f"12|{row}|block.1\n", scontrol=FORGOTTEN) == expected


def test_accounting_may_know_an_older_job_with_the_same_id() -> None:
    slurm = FakeSlurm(squeue="", sacct="12|FAILED|7:0|00:10:00|n1|somebodys.job\n", scontrol=shown("RUNNING"))
    assert look(slurm, "12").reports == {"12": JobReport(JobState.RUNNING)}


def test_accounting_lags_behind() -> None:
    slurm = FakeSlurm(squeue="", sacct="12|RUNNING|0:0|00:10:00|n1|block.12\n", scontrol=shown("RUNNING"))
    assert look(slurm, "12").reports == {"12": JobReport(JobState.RUNNING)}


def test_accounting_is_asked_once_where_there_is_none() -> None:
    slurm, one = FakeSlurm(squeue=""), scheduler()
    for _ in range(3):
        assert one.look(slurm, [job("12")]) == Answer({}, frozenset({"12"}))
    assert slurm.programs.count("sacct") == 1


def test_accounting_that_is_down_is_asked_again() -> None:
    down = Finished(("sacct",), 1, "", "sacct: error: Problem talking to the database: Connection refused\n")
    slurm, one = FakeSlurm(squeue="", sacct=down), scheduler()
    for _ in range(3):
        assert one.look(slurm, [job("12")]) == Answer({}, frozenset({"12"}))
    assert slurm.programs.count("sacct") == 3


def test_jobs_are_asked_for_in_batches() -> None:
    slurm = FakeSlurm(squeue="1|RUNNING|None\n2|RUNNING|None\n3|PENDING|Priority\n")
    assert look(slurm, "1", "2", "3").reports.keys() == {"1", "2", "3"}
    assert [next(word for word in argv if "jobs" in word) for argv in slurm.asked] == ["--jobs=1,2", "--jobs=3"]
    assert all("--states=all" in argv for argv in slurm.asked)


@pytest.mark.parametrize("reply", [AWAY, SILENT, Finished(("squeue",), 127), Finished(("squeue",), None, missing=True)])
def test_queue_that_does_not_answer_says_nothing(reply: Finished) -> None:
    slurm = FakeSlurm(squeue=reply, scontrol=FORGOTTEN)
    assert look(slurm, "12") == Answer()
    assert slurm.programs == ["squeue"]


def test_unknown_word_says_nothing() -> None:
    assert look(FakeSlurm(squeue="12|FROBNICATED|None\n"), "12") == Answer()


def test_nobody_is_asked_twice_who_does_not_answer() -> None:
    slurm = FakeSlurm(squeue="", scontrol=SILENT)
    assert look(slurm, "1", "2") == Answer()
    assert slurm.programs.count("scontrol") == 1


def test_unknown_job_is_told() -> None:
    assert look(FakeSlurm(squeue=FORGOTTEN), "12") == Answer({}, frozenset({"12"}))


def test_each_cluster_is_asked_for_its_own() -> None:
    slurm = FakeSlurm(squeue="CLUSTER: any\n12|RUNNING|None\n")
    answer = scheduler(clusters="east,west").look(slurm, [job("12;east"), job("12;west")])
    assert answer.reports.keys() == {"12;east", "12;west"}
    assert ["--clusters=east" in argv for argv in slurm.asked] == [True, False]
    assert ["--clusters=west" in argv for argv in slurm.asked] == [False, True]
    asked = FakeSlurm()
    assert scheduler(clusters="east").cancel(asked, []) == set()
    scheduler(clusters="east").cancel(asked, ["12"])
    assert asked.asked == [["scancel", "--clusters=east", "12"]]


# Names


def test_job_is_found_by_its_name() -> None:
    slurm = FakeSlurm(squeue="other|11\nblock.1|12\nblock.1|13\n")
    found = scheduler().find(slurm, [job(None, "block.1"), job(None, "block.2")])
    assert (found.ids, found.unknown) == ({"block.1": "12"}, {"block.2"})


def test_ended_job_is_found_in_the_accounts() -> None:
    found = scheduler().find(FakeSlurm(squeue="", sacct="block.1|12\n"), [job(None)])
    assert (found.ids, found.unknown) == ({"block.1": "12"}, frozenset())


def test_cluster_is_found_with_the_job() -> None:
    several = scheduler(clusters="east,west")
    found = several.find(FakeSlurm(squeue="CLUSTER: east\n\nCLUSTER: west\nblock.1|12\n"), [job(None)])
    assert found.ids == {"block.1": "12;west"}
    found = several.find(FakeSlurm(squeue="", sacct="block.1|12|east\n"), [job(None)])
    assert found.ids == {"block.1": "12;east"}


@pytest.mark.parametrize("reply", [AWAY, SILENT, Finished((), 0, "a word in between\n")])
def test_name_is_not_unknown_where_nobody_answers(reply: Finished) -> None:
    assert scheduler().find(FakeSlurm(squeue=reply), [job(None)]).unknown == frozenset()
    assert scheduler().find(FakeSlurm(squeue="", sacct=reply), [job(None)]).unknown == frozenset()


# Cancelling


@pytest.mark.parametrize(
    ("code", "stderr", "taken"),
    [
        (0, "", {"1", "2"}),
        (1, "scancel: error: Kill job error on job id 1: Invalid job id specified\n", {"1", "2"}),
        (1, "scancel: error: Kill job error on job id 1: Job/step already completing or completed\n", {"1", "2"}),
        (1, "scancel: error: Kill job error on job id 1: Access/permission denied\n", {"2"}),
        (1, "scancel: error: Unable to contact slurm controller (connect failure)\n", set()),
        (None, "", set()),
        (1, "", set()),
    ],
)
def test_scancel_tells_which_wishes_it_took(code: int | None, stderr: str, taken: set[str]) -> None:
    assert read_scancel(Finished(("scancel",), code, "", stderr), ["1", "2"]) == taken


# Junk

TEXT = st.text(alphabet=st.sampled_from("12|\n :;,=[]-\x00\xff\udc80abRUNIG_JobStaeId"), max_size=60) | st.text(
    max_size=40
)
JUNK = st.builds(
    Finished, st.just(("program",)), st.none() | st.integers(-15, 255), TEXT, TEXT, st.none() | st.just("it hangs")
)


@given(st.lists(JUNK, min_size=1, max_size=4))
def test_junk_is_never_taken_for_news(replies: list[Finished]) -> None:
    def ask(argv: Sequence[str]) -> Finished:
        return replies[len(argv[0]) % len(replies)]

    jobs = [job("7777"), job("8888;east")]
    told = scheduler(clusters="east").look(ask, jobs)
    assert told.reports == {}
    assert told.unknown <= (
        {"7777", "8888;east"} if any("Invalid job id" in each.stderr for each in replies) else set()
    )
    found = scheduler().find(ask, jobs)
    assert found.ids == {}
    assert not found.unknown or any(not each.stdout.strip() and each.code == 0 for each in replies)
    assert scheduler().cancel(ask, ["7777"]) <= {"7777"}
    for reply in replies:
        said = scheduler().read_submission(reply)
        assert isinstance(said, Refused | Unclear)


@given(TEXT, st.sampled_from(["RUNNING", "FAILED", "CANCELLED", "TIMEOUT"]))
def test_details_may_be_anything(text: str, state: str) -> None:
    said = Finished((), 0, shown(state, reason=text, exit_code=text, nodes=text, first=text))
    found = read_scontrol(said, "12")
    assert found is None or found.state in set(JobState)
