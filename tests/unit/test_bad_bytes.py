"""Whatever comes from outside, damaged, huge or of another version, is read, or refused with a documented error."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from parsl.jobs.states import TERMINAL_STATES

from parsl_balsam.db.login import Login
from parsl_balsam.launcher.allocation import Allocation, detect, parse_slurm_end
from parsl_balsam.launcher.channel import LONGEST, Channel
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import Beat, Ended, Farewell, Kill, Start
from parsl_balsam.launcher.rank_files import RankResult, read_call, read_results, write_call, write_result
from parsl_balsam.launcher.reach import Reached
from parsl_balsam.model.errors import (
    AllocationError,
    BadMessage,
    BalsamError,
    ConfigurationError,
    InvalidResources,
    RankFailed,
    ServerError,
    UnreadablePayload,
    UnreadableRecord,
)
from parsl_balsam.model.launch import JobMode, LaunchOrder
from parsl_balsam.model.nodelists import MOST, UnreadableList, slurm_nodes
from parsl_balsam.model.payload import decode, encode
from parsl_balsam.model.resources import Launch, ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.shares import Share, read_shares, write_shares
from parsl_balsam.model.states import Outcome
from parsl_balsam.providers.cobalt_text import read_ending, read_states
from parsl_balsam.providers.commands import Finished
from parsl_balsam.providers.policy import NodeRange, Queue, QueuePolicy
from parsl_balsam.providers.rules import BlockRules
from parsl_balsam.providers.slurm_text import has_accounting, read_names, read_sacct, read_scontrol, read_squeue
from parsl_balsam.providers.walltime import minutes, seconds

#: Test functions share their directories among all examples; none of them is read twice.
quick = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

#: What a change puts in place of a part of a text: characters that mean something in one or the other.
ODD = st.text(st.sampled_from("0123456789-,[](){}x:|= \n\t\"'\0\xff²٣eEN"), max_size=4) | st.text("9", min_size=5000)


@st.composite
def changed(draw: st.DrawFn, sample: str, most: int = 3) -> str:
    """Return a text that was cut off, or parts of which are gone, doubled or other than they were."""
    text = sample
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 8)))
        how = draw(st.sampled_from(["cut", "drop", "double", "replace"]))
        if how == "cut":
            text = text[:start]
        elif how == "drop":
            text = text[:start] + text[end:]
        elif how == "double":
            text = text[:end] + text[start:]
        else:
            text = text[:start] + draw(ODD) + text[end:]
    return text


@st.composite
def changed_bytes(draw: st.DrawFn, sample: bytes) -> bytes:
    """Return bytes that were cut off, or some of which are gone, doubled or other than they were."""
    text = draw(changed(sample.decode("latin-1")))
    return text.encode("utf-8" if draw(st.booleans()) else "latin-1", "replace")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have little more memory than now: some pickles of a few bytes ask for all there is."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (256 << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def tried(read: Callable[[], Any], error: type[Exception]) -> tuple[Any, str]:
    """Return what is read, or how it is refused."""
    try:
        return read(), ""
    except error as refused:
        return None, str(refused)


# Messages over a socket

MESSAGES = [Kill(7, Outcome.CANCELLED, "not needed"), Beat(1.5), Farewell(), Ended(3, Outcome.DONE, bytes(5000))]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Channel]]:
    """A raw end of a socket pair, and a channel at the other."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    yield ours, channel
    ours.close()
    channel.close()


def framed(*messages: object) -> bytes:
    """Return messages as a channel sends them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        for message in messages:
            channel.post(message)
        assert channel.flush()
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: theirs.recv(1 << 16), b""))


def heard(data: bytes, cuts: list[int]) -> list[Any]:
    """Return what a channel makes of bytes that come in pieces and then end."""
    ours, theirs = socket.socketpair()
    found: list[Any] = []
    with ours, theirs:
        channel = Channel(theirs)
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end:
                ours.sendall(data[start:end])
                try:
                    found += channel.messages()
                except EOFError:  # it has lost track
                    assert type(found[-1]) is BadMessage
        ours.shutdown(socket.SHUT_WR)
        while came := tried(channel.messages, EOFError)[0]:
            found += came
    return found


CUTS = st.lists(st.integers(0, len(framed(*MESSAGES))), max_size=6).map(sorted)


@quick
@given(CUTS)
def test_messages_may_come_in_any_pieces(cuts: list[int]) -> None:
    assert heard(framed(*MESSAGES), cuts) == MESSAGES


@quick
@given(st.integers(0, len(framed(*MESSAGES))), CUTS)
def test_end_in_the_middle_of_a_message_is_an_end(length: int, cuts: list[int]) -> None:
    data = framed(*MESSAGES)[:length]
    found = heard(data, [min(cut, length) for cut in cuts])
    assert found == MESSAGES[: len(found)]
    assert (len(found) == len(MESSAGES)) == (length == len(framed(*MESSAGES)))


@quick
@given(st.binary(min_size=1, max_size=64), st.integers(0, 4), CUTS)
@example(struct.pack("<Q", 2**63), 0, [])
@example(b"\0" * 12, 2, [])
def test_garbage_between_messages_is_told_once_and_ends_all(garbage: bytes, after: int, cuts: list[int]) -> None:
    before = framed(*MESSAGES[:after])
    data = before + garbage + framed(*MESSAGES)
    if garbage.startswith((framed(Farewell())[:4], framed(MESSAGES[-1])[:4])):
        return
    found = heard(data, [min(cut, len(data)) for cut in cuts])
    assert found[:-1] == MESSAGES[:after]
    assert type(found[-1]) is BadMessage
    assert "no message starts with" in str(found[-1])


@pytest.mark.parametrize("length", [LONGEST + 1, 2**40, 2**63, 2**64 - 1])
def test_absurd_length_is_refused_before_anything_is_kept_for_it(
    pair: tuple[socket.socket, Channel], length: int
) -> None:
    raw, channel = pair
    raw.sendall(framed(Beat(1.0)) + framed(Farewell())[:4] + struct.pack("<Q", length))
    good, bad = channel.messages()
    assert good == Beat(1.0)
    assert f"a message of {length} bytes" in str(bad)
    with pytest.raises(EOFError):
        channel.messages()


@pytest.mark.parametrize("garbage", [b"hello, world", framed(Farewell())[:4] + struct.pack("<Q", 2**63)])
def test_waiting_reader_is_told_too(pair: tuple[socket.socket, Channel], garbage: bytes) -> None:
    raw, channel = pair
    raw.sendall(framed(Beat(1.0)))
    assert channel.receive() == Beat(1.0)
    raw.sendall(framed(Beat(2.0)) + garbage)
    assert channel.receive() == Beat(2.0)
    assert type(channel.receive()) is BadMessage
    raw.sendall(framed(Farewell()))  # whether it is a message, nobody knows any more
    with pytest.raises(EOFError):
        channel.receive()


def test_waiting_reader_hears_of_an_end_in_the_middle_of_a_message(pair: tuple[socket.socket, Channel]) -> None:
    raw, channel = pair
    raw.sendall(framed(*MESSAGES) + framed(Farewell())[:-1])
    raw.shutdown(socket.SHUT_WR)
    assert [channel.receive() for _ in MESSAGES] == MESSAGES
    with pytest.raises(EOFError):
        channel.receive()


def packed(data: bytes) -> bytes:
    """Return bytes as the content of a message."""
    return framed(Farewell())[:4] + struct.pack("<Q", len(data)) + data


@pytest.mark.usefixtures("little_memory")
@quick
@given(st.binary(max_size=200) | changed_bytes(pickle.dumps(MESSAGES[0], protocol=pickle.HIGHEST_PROTOCOL)))
def test_content_that_is_no_pickle_does_not_hide_what_follows(content: bytes) -> None:
    found = heard(packed(content) + framed(Beat(2.0)), [])
    assert found[1:] == [Beat(2.0)]


LADEN = framed(Ended(3, Outcome.DONE, b"result"))


def laden(content: bytes) -> bytes:
    """Return bytes as the content of a message that has a load."""
    return LADEN[:4] + struct.pack("<Q", len(content)) + content


@pytest.mark.usefixtures("little_memory")
@quick
@given(st.binary(max_size=200) | changed_bytes(LADEN[12:]))
@example(b"")
@example(b"\xff\xff\xff\xff")
def test_damaged_message_with_a_load_does_not_hide_what_follows(content: bytes) -> None:
    found = heard(laden(content) + framed(Beat(2.0)), [])
    assert found[1:] == [Beat(2.0)]
    assert type(found[0]) in (BadMessage, Start, Ended)


@pytest.mark.parametrize("said", [None, (), 7, "start", ("start",), ("ended", 3), ("other", 3), Farewell()])
def test_load_without_its_message_is_refused(said: object) -> None:
    data = pickle.dumps(said)
    bad, good = heard(laden(struct.pack("<I", len(data)) + data + b"load") + framed(Beat(2.0)), [])
    assert "is no message with a load" in str(bad)
    assert good == Beat(2.0)


class Bomb:
    """Raises something when it is unpickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _raise, (self.kind,)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


def _raise(kind: type[BaseException]) -> None:
    raise kind("bang")


BOMBS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, StopIteration]


@pytest.mark.parametrize("kind", [*BOMBS, Unprintable])
def test_nothing_that_a_pickle_raises_gets_through(kind: type[BaseException]) -> None:
    data = pickle.dumps(Bomb(kind))
    bad, good = heard(packed(data) + framed(Beat(2.0)), [])
    assert kind.__name__ in str(bad)
    assert good == Beat(2.0)
    with pytest.raises(UnreadablePayload, match=kind.__name__) as refused:
        decode(data)
    assert isinstance(refused.value.__cause__, kind)


# Payloads

PAYLOADS = [encode(((1, 2.5), {"a": [None, b"x"]})), encode(lambda x: x + 1), encode(ValueError("no"))]


@pytest.mark.usefixtures("little_memory")
@quick
@given(st.binary(max_size=300) | st.sampled_from(PAYLOADS).flatmap(changed_bytes))
@example(b"")
@example(PAYLOADS[1][:-1])
@example(b"\x80\x05\x8e" + struct.pack("<Q", 2**63) + b"x.")
@example(b"\x80\x05Kar\xff\xff\xff\x7f.")
def test_stored_bytes_are_an_object_or_unreadable(data: bytes) -> None:
    _, refused = tried(lambda: decode(data), UnreadablePayload)
    assert not refused or f"{len(data)} stored bytes cannot be read back" in refused


# Files

ORDER = LaunchOrder(
    database="postgresql+psycopg2://me:sesame@host/db",
    workflow_id=3,
    lease_s=30.0,
    idle_timeout_s=300.0,
    cores_per_node=None,
    python_path=("/home/me", "/usr/lib/pythön"),
    directory="/scratch/run",
    nodes=2,
    walltime_s=3600.0,
    job_mode=JobMode.SERIAL,
)
INVITATION = Invitation(
    ("n1", "n2"), 4, None, 30.0, ("/home",), (("n1", 40001),), "public", "client", "secret", "m", (), {"PATH": "/bin"}
)
LOGIN = Login("me", "sesame", "balsam", "0.0.0.0", "host", 40001, "host")


def read_order(file: Path) -> LaunchOrder:
    return LaunchOrder.loads(file.read_bytes(), str(file))


READERS: list[tuple[Callable[[Path], Any], Any, type[Exception]]] = [
    (read_order, ORDER, ConfigurationError),
    (Invitation.read, INVITATION, ConfigurationError),
    (Login.read, LOGIN, ServerError),
]
each_file = pytest.mark.parametrize(("read", "value", "error"), READERS, ids=["order", "invitation", "login"])


def private(directory: Path, content: str | bytes) -> Path:
    """Write a file that only its owner can read."""
    file = directory / "private.json"
    file.touch(mode=0o600)
    file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return file


def refusal(read: Callable[[Path], Any], file: Path, error: type[Exception]) -> str:
    """Return how a file is refused; its name is in it, and no secret."""
    with pytest.raises(error) as refused:
        read(file)
    told = str(refused.value)
    assert str(file) in told
    assert "sesame" not in told
    return told


@each_file
def test_file_is_read_as_it_was_written(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception]
) -> None:
    assert read(private(tmp_path, json.dumps(asdict(value)))) == value


@each_file
def test_file_that_is_cut_off_is_refused_by_name(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception]
) -> None:
    text = json.dumps(asdict(value))
    for length in range(0, len(text), 7):
        assert "written anew" in refusal(read, private(tmp_path, text[:length]), error)


@each_file
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\0", b"\x80\x05K\x01.", b"null", b"[]", b'"text"', b"7", b"[" * 100_000, b"9" * 10_000, b"\0" * 4096],
)
def test_file_of_something_else_is_refused_by_name(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception], content: bytes
) -> None:
    assert "is damaged" in refusal(read, private(tmp_path, content), error)


@each_file
def test_file_of_another_version_is_refused_by_name(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception]
) -> None:
    described = asdict(value)
    newer = refusal(read, private(tmp_path, json.dumps({**described, "colour": "red"})), error)
    assert "another version of parsl-balsam: this one does not know 'colour'" in newer
    first = next(iter(described))
    del described[first]
    older = refusal(read, private(tmp_path, json.dumps(described)), error)
    assert f"another version of parsl-balsam: this one misses {first!r}" in older


@each_file
@quick
@given(data=st.data())
def test_value_of_a_wrong_type_is_refused_by_its_name(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception], data: st.DataObject
) -> None:
    described = asdict(value)
    name = data.draw(st.sampled_from(sorted(described)))
    described[name] = data.draw(JSON)
    file = private(tmp_path, json.dumps(described))
    found, refused = tried(lambda: read(file), error)
    if refused:
        assert f"{name} has a wrong value" in refused
        assert str(file) in refused
    else:
        kind = type(getattr(value, name))
        assert getattr(found, name) is None or kind is type(None) or type(getattr(found, name)) is kind


@each_file
@quick
@given(data=st.data())
def test_damaged_file_is_read_or_refused(
    tmp_path: Path, read: Callable[[Path], Any], value: Any, error: type[Exception], data: st.DataObject
) -> None:
    file = private(tmp_path, data.draw(changed_bytes(json.dumps(asdict(value)).encode())))
    found, refused = tried(lambda: read(file), error)
    assert str(file) in refused if refused else type(found) is type(value)


@quick
@given(changed(Reached("n1", 0.5, "refused").dumps()) | JSON.map(json.dumps))
def test_answer_from_a_batch_job_is_read_or_refused(text: str) -> None:
    found, refused = tried(lambda: Reached.loads(text), ConfigurationError)
    assert "the answer from the batch job" in refused if refused else type(found) is Reached


def test_call_of_ranks_that_is_damaged_is_named(tmp_path: Path) -> None:
    write_call(tmp_path, b"body", (1,), {"a": 2})
    file = tmp_path / "call"
    whole = file.read_bytes()
    assert read_call(tmp_path)[1:] == (b"body", encode(((1,), {"a": 2})))
    for content in (whole[:-1], b"", b"\0" * 99, pickle.dumps(None), pickle.dumps((1, 2, 3)), pickle.dumps(([], b""))):
        file.write_bytes(content)
        with pytest.raises(RankFailed, match=f"{file} cannot be read"):
            read_call(tmp_path)


def test_result_of_a_rank_that_is_damaged_is_named(tmp_path: Path) -> None:
    result = RankResult(1, "n2", 5.0, b"payload", None)
    write_result(tmp_path, result)
    file = tmp_path / "result-1"
    whole = file.read_bytes()
    assert read_results(tmp_path, 3) == {1: result}
    for content in (whole[:-1], b"", b"\0" * 99):
        file.write_bytes(content)
        with pytest.raises(RankFailed, match=f"{file} cannot be read: {len(content)} bytes cannot be unpickled"):
            read_results(tmp_path, 3)
    for other in (None, {"number": 1}):
        file.write_bytes(pickle.dumps(other))
        with pytest.raises(RankFailed, match=f"{file} cannot be read: it has {type(other)}"):
            read_results(tmp_path, 3)


# What Slurm and Cobalt say

SQUEUE = "11|PENDING|Priority\n12|RUNNING|None\n13|COMPLETING|None\n"
SCONTROL = (
    "JobId=12 JobName=block.1 UserId=me(1000) GroupId=me(1000) MCS_label=N/A Priority=1 Nice=0 Account=(null) "
    "QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 RunTime=00:00:02 TimeLimit=00:10:00 TimeMin=N/A Partition=nodes ReqNodeList=n9 "
    "ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 WorkDir=/a Power= \n"
)
SACCT = "12|RUNNING|0:0|00:10:00|n[1-2]|block.1\n12.batch|RUNNING|0:0||n1|batch\n"
QSTAT = "JobID  State      \n==================\n 4     running    \n 5     queued     \n10     starting   \n"
COBALTLOG = "Jobid: 12\nqsub -n 2 -t 10 ./block.1.sh\nSun Nov 22 19:34:44 2026 +0000 (UTC) Info: stdin received\n"


@quick
@given(changed(SQUEUE), changed(SCONTROL), changed(SACCT), changed(QSTAT), changed(COBALTLOG))
def test_damaged_answers_end_no_job(squeue: str, scontrol: str, sacct: str, qstat: str, log: str) -> None:
    said = [Finished(("program",), 0, text) for text in (squeue, scontrol, sacct, qstat)]
    shown = read_squeue(said[0])
    assert shown is not None
    reports = [row.report for row in shown.values()]
    reports += [read_scontrol(said[1], "12"), *read_sacct(said[2], {"12": "block.1"}).values()]
    reports += [*(read_states(said[3]) or {}).values(), read_ending(log)]
    assert [report for report in reports if report is not None and report.state in TERMINAL_STATES] == []
    for each in said:
        read_names(each)
        has_accounting(each)


@quick
@given(changed("n[01-03,7],m1"))
@example("n[" + "9" * 4400 + "-" + "9" * 4400 + "]")
@example("n[0-99999999]")
@example("n[0-99999]," * 900)
@example("9" * 5000 + "]")
@example("[" * 5000)
def test_damaged_node_lists_have_few_names(text: str) -> None:
    found, _ = tried(lambda: slurm_nodes(text), UnreadableList)
    assert found is None or len(found) <= MOST


VARIABLES = {
    "slurm": {
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "r[1-2]c[0-1]",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_JOB_CPUS_PER_NODE": "72(x3),36",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_END_TIME": "1795376671",
    },
    "slurm with GPUs by number": {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_GPUS": "0-3"},
    "cobalt": {"COBALT_JOBID": "7", "COBALT_PARTNAME": "12-14,20", "COBALT_ENDTIME": "1795376000"},
    "cobalt cluster": {"COBALT_JOBID": "7", "COBALT_NODEFILE": "n1\nn2\n"},
    "pbs": {"PBS_JOBID": "5.head", "PBS_NODEFILE": "n1\nn1\nn2\n", "PBS_NUM_PPN": "32"},
    "lsf": {"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "hostA 4 hostB 2"},
    "lsf with a file": {"LSB_JOBID": "9", "LSB_DJOB_HOSTFILE": "n1\nn2\n"},
}


@pytest.mark.parametrize("job", VARIABLES)
@quick
@given(data=st.data())
def test_damaged_variables_are_understood_or_named(job: str, data: st.DataObject) -> None:
    environ = dict(VARIABLES[job])
    names = sorted(environ)[1:] if "JOBID" in sorted(environ)[0] else sorted(set(environ) - {"SLURM_JOB_ID"})
    name = data.draw(st.sampled_from(names or sorted(environ)))
    environ[name] = data.draw(changed(environ[name]))
    # A file is its own name here.
    found, refused = tried(lambda: detect(environ, lambda text: text, 0.0), AllocationError)
    if refused:
        assert name in refused or "SLURM_JOB_NODELIST" in refused
    else:
        assert type(found) is Allocation
        assert 0 < len(found.nodes) <= 1_000_000
        assert found.cores_per_node is None or found.cores_per_node <= 1_000_000


@pytest.mark.parametrize(
    ("job", "name", "value"),
    [
        ("slurm", "SLURM_JOB_NODELIST", "n[0-999999999]"),
        ("slurm", "SLURM_JOB_NODELIST", "n[0-9999][0-9999][0-9999]"),
        ("slurm", "SLURM_JOB_NODELIST", f"n[{'9' * 5000}]"),
        ("slurm", "SLURM_JOB_CPUS_PER_NODE", "72(x999999999)"),
        ("slurm", "SLURM_JOB_CPUS_PER_NODE", "999999999(x4)"),
        ("slurm", "SLURM_JOB_NUM_NODES", "4" * 5000),
        ("slurm", "SLURM_JOB_END_TIME", "1" * 5000),
        ("slurm with GPUs by number", "SLURM_JOB_GPUS", "0-999999999"),
        ("cobalt", "COBALT_PARTNAME", "1-999999999"),
        ("pbs", "PBS_NUM_PPN", "999999999"),
        ("lsf", "LSB_MCPU_HOSTS", f"hostA {'4' * 5000}"),
    ],
)
def test_more_than_there_can_be_is_refused_by_name(job: str, name: str, value: str) -> None:
    with pytest.raises(AllocationError) as refused:
        detect({**VARIABLES[job], name: value}, lambda text: text, 0.0)
    assert str(refused.value).startswith(f"{name}={value!r}")


@quick
@given(changed("1795376671\n") | ODD)
def test_end_of_a_job_is_a_time_or_refused(answer: str) -> None:
    left, refused = tried(lambda: parse_slurm_end(answer, 0.0), AllocationError)
    assert "SLURM_JOB_END_TIME" in refused if refused else left is None or left >= 0


@quick
@given(changed("1-12:00:00") | changed("01:30:00") | ODD)
@example("9" * 5000 + ":00:00")
@example("٣٣:٣٣:٣٣")
def test_walltime_is_understood_or_refused(text: str) -> None:
    told = seconds(text)
    assert told is None or text.isascii()
    found, refused = tried(lambda: minutes(text), ConfigurationError)
    assert bool(refused) == (not told)
    assert "walltime=" in refused if refused else found * 60 >= (told or 0)


# What the database has

SHARES = (Share("n1", (0, 1, 2, 8), ("0", "1")), Share("n2", (0, 1, 2, 8), ("0", "1")), Share("n3", (5,)))


@quick
@given(changed(write_shares(SHARES) or "") | JSON.map(json.dumps))
@example('[[["n1"], "0-999999999", []]]')
@example('[[["n1"], "0-2", "01"]]')
@example('[["n1", "0-2", []]]')
@example('[[["n1"], 5, []]]')
@example("[" * 100_000)
@example('[[["n1"], "' + "9" * 5000 + '", []]]')
def test_placements_are_read_or_refused(text: str) -> None:
    found, refused = tried(lambda: read_shares(text), UnreadableRecord)
    if refused:
        assert "cannot be read" in refused
    else:
        assert all(type(share) is Share and isinstance(share.node, str) for share in found)
        assert read_shares(write_shares(found)) == found


def test_placement_is_read_as_it_was_written() -> None:
    assert read_shares(write_shares(SHARES)) == SHARES


SPEC = ResourceSpec(2, 2, 3, 1, None, 4.0, 5.0, 6.0, 7, "key", 8, Launch.RANKS, "-x", (("a", "b"),))
POLICY = RetryPolicy(2, 1.0, 3.0, 50.0, frozenset({Outcome.EXIT}), frozenset({3}), 2)
RULES = BlockRules(
    QueuePolicy((Queue((NodeRange(1, 8, 60),), "debug"), Queue((NodeRange(8, 64, 600, 10),), "prod"))), True, 4, 8
)


@st.composite
def replaced(draw: st.DrawFn, described: Any) -> Any:
    """Return a description one value of which, at any depth, is something else, or one of which is new or gone."""
    if isinstance(described, dict) and described and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(described)))
        what = draw(st.sampled_from(["change", "drop", "add"]))
        rest = {key: value for key, value in described.items() if key != name}
        if what == "drop":
            return rest
        return {**rest, name: draw(replaced(described[name]))} if what == "change" else {**described, "colour": 1}
    if isinstance(described, list) and described and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(described) - 1))
        return [*described[:index], draw(replaced(described[index])), *described[index + 1 :]]
    return draw(JSON)


@quick
@given(replaced(SPEC.to_dict()).map(json.dumps))
def test_specifications_are_read_or_refused(text: str) -> None:
    found, refused = tried(lambda: ResourceSpec.parse(json.loads(text)), InvalidResources)
    assert refused or type(found) is ResourceSpec


@quick
@given(replaced(POLICY.to_dict()).map(json.dumps))
def test_retry_policies_are_read_or_refused(text: str) -> None:
    found, refused = tried(lambda: RetryPolicy.from_dict(json.loads(text)), ConfigurationError)
    assert refused or type(found) is RetryPolicy


@quick
@given(replaced(json.loads(RULES.dumps())).map(json.dumps) | changed(RULES.dumps()))
def test_rules_are_read_or_refused(text: str) -> None:
    found, refused = tried(lambda: BlockRules.loads(text), ConfigurationError)
    assert refused or type(found) is BlockRules


def test_what_is_whole_is_read_as_it_was_written() -> None:
    assert ResourceSpec.parse(SPEC.to_dict()) == SPEC
    assert RetryPolicy.from_dict(json.loads(json.dumps(POLICY.to_dict()))) == POLICY
    assert BlockRules.loads(RULES.dumps()) == RULES
    assert LaunchOrder.loads(ORDER.dumps()) == ORDER
    assert issubclass(BadMessage, BalsamError)
