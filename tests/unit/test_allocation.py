"""What a batch job was given is read from what its batch system tells it, or refused by the name of the variable."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.launcher.allocation import (
    Allocation,
    detect,
    parse_slurm_clock,
    parse_slurm_end,
    slurm_clock_command,
    slurm_end_command,
)
from parsl_balsam.model.errors import AllocationError

NOW = 1_795_376_071.0

SLURM = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-4]"}
COBALT = {"COBALT_JOBID": "7"}
PBS = {"PBS_JOBID": "5.head", "PBS_NODEFILE": "/var/spool/pbs/aux/5.head"}
LSF = {"LSB_JOBID": "9"}


def found(environ: Mapping[str, str], files: Mapping[str, str] | None = None) -> Allocation:
    """Detect a job whose only files are these."""

    def read(path: str) -> str:
        if path not in (files or {}):
            raise FileNotFoundError(2, "No such file or directory", path)
        return (files or {})[path]

    return detect(environ, read, NOW)


@pytest.mark.parametrize(
    "text", ["", ",", "n[1-2],", "n,,m", "n[", "n[]", "n]", "n[3-1]", "n[a]", "n[1-]", "n[1 -2]", "n m"]
)
def test_unreadable_slurm_nodes(text: str) -> None:
    with pytest.raises(AllocationError) as refused:
        found({**SLURM, "SLURM_JOB_NODELIST": text})
    assert f"SLURM_JOB_NODELIST={text!r}" in str(refused.value)


@pytest.mark.parametrize(
    ("job", "variable"),
    [
        (SLURM, "SLURM_JOB_NODELIST"),
        (SLURM, "SLURM_JOB_CPUS_PER_NODE"),
        (SLURM, "SLURM_JOB_GPUS"),
        (COBALT, "COBALT_PARTNAME"),
        (LSF, "LSB_MCPU_HOSTS"),
    ],
)
@given(st.text("n1-9[],(x) ", max_size=12))
def test_any_text_is_read_or_refused_by_name(job: Mapping[str, str], variable: str, text: str) -> None:
    try:
        read = found({**job, variable: text})
    except AllocationError as error:
        refusal = str(error)
    else:
        assert len(read.nodes) > 0
        return
    assert refusal.startswith(f"{variable}={text!r} ")


def test_slurm_job() -> None:
    environ = {
        **SLURM,
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_JOB_CPUS_PER_NODE": "72(x3),36",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_GPUS": "0,1,2",
        "SLURM_JOB_END_TIME": "1795376671",
    }
    assert found(environ) == Allocation("slurm", "12", ("n1", "n2", "n3", "n4"), 600.0, 36, 2)


def test_slurm_job_that_tells_little() -> None:
    assert found(SLURM) == Allocation("slurm", "12", ("n1", "n2", "n3", "n4"), None, None, 0)


@pytest.mark.parametrize(("ids", "gpus"), [("0", 1), ("0,1,3", 3), ("0-3", 4)])
def test_gpus_of_a_slurm_job(ids: str, gpus: int) -> None:
    assert found({**SLURM, "SLURM_JOB_GPUS": ids}).gpus_per_node == gpus


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLURM_JOB_NUM_NODES", "3"),
        ("SLURM_JOB_NUM_NODES", "four"),
        ("SLURM_JOB_CPUS_PER_NODE", "72(x3)"),
        ("SLURM_JOB_CPUS_PER_NODE", "72(3)"),
        ("SLURM_GPUS_ON_NODE", "two"),
        ("SLURM_JOB_GPUS", "0,a"),
        ("SLURM_JOB_END_TIME", "2026-11-22T23:22:21"),
    ],
)
def test_unreadable_slurm_variable(variable: str, value: str) -> None:
    with pytest.raises(AllocationError) as refused:
        found({**SLURM, variable: value})
    assert f"{variable}={value!r}" in str(refused.value)


def test_slurm_is_asked_for_the_end_of_a_job() -> None:
    command = slurm_end_command("12")
    assert command[:2] == ["env", "SLURM_TIME_FORMAT=%s"]
    assert command[2:] == ["squeue", "--noheader", "--states=RUNNING", "--jobs=12", "--format=%e"]
    assert parse_slurm_end("1795376671\n", NOW) == 600.0
    assert parse_slurm_end("N/A\n", NOW) is None


@pytest.mark.parametrize("answer", ["", "2026-11-22T23:22:21\n", "1795376671\n1795376672\n", "²"])
def test_unreadable_answer_about_the_end_of_a_job(answer: str) -> None:
    with pytest.raises(AllocationError, match="SLURM_JOB_END_TIME"):
        parse_slurm_end(answer, NOW)


def test_slurm_is_asked_for_its_clock() -> None:
    assert slurm_clock_command() == ["env", "SLURM_TIME_FORMAT=%s", "scontrol", "show", "config"]
    answer = "Configuration data as of 1795376071\nAccountingStorageBackupHost = (null)\nBOOT_TIME = 1795370000\n"
    assert parse_slurm_clock(answer) == 1795376071.0


@pytest.mark.parametrize("answer", ["", "Configuration data as of 2026-11-22T23:12:21\n", "BOOT_TIME = 1795370000\n"])
def test_unreadable_answer_about_slurms_clock(answer: str) -> None:
    with pytest.raises(AllocationError, match="scontrol"):
        parse_slurm_clock(answer)


def test_cobalt_job_on_a_cluster() -> None:
    environ = {
        **COBALT,
        "COBALT_NODEFILE": "/var/tmp/cobalt.7",
        "COBALT_PARTNAME": "cc003",
        "COBALT_ENDTIME": "1795376671",
    }
    files = {"/var/tmp/cobalt.7": "cc003\ncc001\n"}
    assert found(environ, files) == Allocation("cobalt", "7", ("cc003", "cc001"), 600.0, None, 0)


def test_cobalt_job_on_a_cray() -> None:
    environ = {**COBALT, "COBALT_PARTNAME": "12-14,20", "COBALT_ENDTIME": "1795376000"}
    nodes = ("nid00012", "nid00013", "nid00014", "nid00020")
    assert found(environ) == Allocation("cobalt", "7", nodes, -71.0, None, 0)


@pytest.mark.parametrize(
    ("behind_s", "left_s"),
    [(0, 540.0), (30, 570.0), (3600, 600.0)],
)
def test_cobalt_job_has_no_more_time_than_it_was_given_where_the_clock_is_behind(behind_s: int, left_s: float) -> None:
    started = int(NOW) + behind_s - 60
    times = {"COBALT_STARTTIME": str(started), "COBALT_ENDTIME": str(started + 600)}
    assert found({**COBALT, "COBALT_PARTNAME": "12", **times}).end_s == left_s


def test_cobalt_job_started_over_ssh_is_not_told_its_end() -> None:
    environ = {**COBALT, "COBALT_NODEFILE": "/var/tmp/cobalt.7"}
    assert found(environ, {"/var/tmp/cobalt.7": "cc001"}) == Allocation("cobalt", "7", ("cc001",), None, None, 0)


def test_pbs_job() -> None:
    files = {PBS["PBS_NODEFILE"]: "x1.site\nx1.site\nx2.site\nx2.site\n"}
    assert found(PBS, files) == Allocation("pbs", "5.head", ("x1.site", "x2.site"), None, None, 0)
    assert found({**PBS, "PBS_NUM_PPN": "32"}, files).cores_per_node == 32


def test_lsf_job() -> None:
    expected = Allocation("lsf", "9", ("hostA", "hostB"), None, 2, 0)
    assert found({**LSF, "LSB_MCPU_HOSTS": "hostA 4 hostB 2"}) == expected
    assert found({**LSF, "LSB_MCPU_HOSTS": "hostA 2 hostB 2 hostA 2"}) == expected
    files = {"/home/.lsbatch/9.hosts": "hostA\nhostA\nhostB\nhostB\nhostA\nhostA\n"}
    assert found({**LSF, "LSB_DJOB_HOSTFILE": "/home/.lsbatch/9.hosts"}, files) == expected


def test_launch_node_of_an_lsf_job_runs_no_ranks() -> None:
    job = found({**LSF, "LSB_MCPU_HOSTS": "batch5 1 a01n01 42 a01n02 42"})
    assert (job.nodes, job.cores_per_node) == (("a01n01", "a01n02"), 42)
    assert found({**LSF, "LSB_MCPU_HOSTS": "batch5 16"}).nodes == ("batch5",)


def test_first_node_of_an_lsf_job_may_be_small() -> None:
    assert found({**LSF, "LSB_MCPU_HOSTS": "hostA 1 hostB 4"}).nodes == ("hostA", "hostB")


def test_no_batch_system() -> None:
    assert found({"PATH": "/bin"}) == Allocation("local", None, ("localhost",), None, None, 0)
    assert detect({}, lambda path: path, NOW, pretend_nodes=3).nodes == ("localhost",) * 3


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SLURM_JOB_ID": "12"}, "SLURM_JOB_NODELIST"),
        (COBALT, "COBALT_PARTNAME"),
        (COBALT, "COBALT_NODEFILE"),
        ({**COBALT, "COBALT_PARTNAME": "cc003"}, "COBALT_PARTNAME='cc003'"),
        ({**COBALT, "COBALT_PARTNAME": "1", "COBALT_ENDTIME": "soon"}, "COBALT_ENDTIME='soon'"),
        (
            {**COBALT, "COBALT_PARTNAME": "1", "COBALT_STARTTIME": "then", "COBALT_ENDTIME": "1795376671"},
            "COBALT_STARTTIME='then'",
        ),
        ({**COBALT, "COBALT_NODEFILE": "/gone"}, "COBALT_NODEFILE='/gone'"),
        ({"PBS_JOBID": "5"}, "PBS_NODEFILE"),
        (PBS, "PBS_NODEFILE='/var/spool/pbs/aux/5.head'"),
        (LSF, "LSB_MCPU_HOSTS"),
        ({**LSF, "LSB_MCPU_HOSTS": "hostA"}, "LSB_MCPU_HOSTS='hostA'"),
        ({**LSF, "LSB_MCPU_HOSTS": "hostA four"}, "LSB_MCPU_HOSTS='hostA four'"),
        ({**LSF, "LSB_DJOB_HOSTFILE": "/gone"}, "LSB_DJOB_HOSTFILE='/gone'"),
    ],
)
def test_what_cannot_be_read_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(AllocationError) as refused:
        found(environ)
    assert named in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n", "cc001 slots=4\n", "cc001\n<html>\n"])
def test_unreadable_node_file(text: str) -> None:
    with pytest.raises(AllocationError, match="COBALT_NODEFILE='/nodes'"):
        found({**COBALT, "COBALT_NODEFILE": "/nodes"}, {"/nodes": text})
