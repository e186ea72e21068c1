"""Processes that send what is no message: whoever hears it does without them, and goes on with the others."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from pathlib import Path

import psutil
import pytest

from parsl_balsam.launcher import agents as agents_module
from parsl_balsam.launcher import curve as curve_module
from parsl_balsam.launcher.capture import Capture
from parsl_balsam.launcher.channel import LONGEST, Channel
from parsl_balsam.launcher.messages import PROTOCOL, Beat
from parsl_balsam.launcher.tickets import SharedLease, Tickets
from parsl_balsam.model.errors import BadMessage
from parsl_balsam.model.states import Outcome
from tests.executor.parsl_runs import is_alive, wait_for
from tests.launcher.test_agents import LIMIT_S, SHORT_S, block, both, in_own_process, restart
from tests.launcher.test_curve import Lines, breaks, lines, received

__all__ = ["lines"]


def write_to_all_sockets(data: bytes) -> int:
    """Write to whatever socket this process has, and return how many there are; then go on as if nothing was."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "anon_inode:[event")):
                os.write(int(name), data)
                count += 1
        except OSError:
            pass
    return count


def write_later(data: bytes) -> None:
    """Let a thread that outlives this task write to its worker's socket."""
    import threading
    import time

    def write() -> None:
        time.sleep(0.2)
        write_to_all_sockets(data)

    threading.Thread(target=write, daemon=True).start()


GARBAGE = {
    "text": b"just some words that were meant for somebody else\n",
    "zeros": bytes(64),
    "few bytes": b"oops",
    "much": os.urandom(1_000_000).replace(b"\xb5msg", b""),
    "absurd length": b"\xb5msg" + struct.pack("<Q", 2**63),
    "no pickle": b"\xb5msg" + struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "no message": b"\xb5msg" + struct.pack("<Q", 4) + b"\x80\x05N.",
}


# Workers


@in_own_process
def test_task_that_writes_to_its_workers_socket_crashes_alone(tmp_path: Path) -> None:
    with block(tmp_path, "local", ("n1",)) as made:
        other, pids = made.hold("n1")
        for kind, garbage in GARBAGE.items():
            ended = made.end_of(made.start("n1", write_to_all_sockets, garbage))
            assert (ended.outcome, ended.exit_code, ended.signal) == (Outcome.CRASH, None, None), kind
            assert "the worker was killed, because it sent what its agent cannot read: " in (ended.error or "")
            assert made.call("n1", divmod, 17, 5) == (3, 2)
        assert other not in made.ends
        assert all(map(is_alive, pids))


@in_own_process
def test_worker_of_a_remote_agent_has_no_socket_but_its_own(tmp_path: Path) -> None:
    with block(tmp_path, "remote", ("n1",)) as made:
        agent = made.agent_on("n1")
        ended = made.end_of(made.start("n1", write_to_all_sockets, GARBAGE["much"]))
        assert "cannot read" in (ended.error or "")
        # One that hears nothing bad tells how many it has.
        assert made.call("n1", write_to_all_sockets, b"") == 1
        assert made.agent_on("n1") == agent


@in_own_process
def test_idle_worker_that_talks_is_replaced(tmp_path: Path) -> None:
    with block(tmp_path, "local", ("n1",)) as made:
        before = made.call("n1", os.getpid)
        assert made.call("n1", write_later, GARBAGE["text"]) is None
        made.until(lambda: not is_alive(before), "the worker to be killed")
        for _ in range(5):
            assert made.call("n1", divmod, 17, 5) == (3, 2)


@pytest.mark.parametrize("data", [GARBAGE["text"], GARBAGE["no pickle"], GARBAGE["no message"]])
def test_worker_that_hears_garbage_ends(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            from parsl_balsam.launcher import worker

            worker.serve(Channel(theirs), Capture(), Tickets(), SharedLease())
        except BadMessage:
            os._exit(7)
        finally:
            os._exit(1)
    with ours, theirs:
        try:
            ours.sendall(data)
            ended = wait_for(lambda: os.waitpid(pid, os.WNOHANG)[1], "the worker to end", LIMIT_S)
            assert os.waitstatus_to_exitcode(ended) == 7
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise


# Agents

#: An agent of a remote block that is right until it says its second word, and lives on.
IMPOSTOR = """
import os, pickle, sys, time, zmq
from pathlib import Path
from parsl_balsam.launcher.curve import connect
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import *
from parsl_balsam.launcher.node import this_node

invitation = Invitation.read(Path(sys.argv[-1]))
line = connect(invitation, b"n1")
hello = Hello(this_node("n1", "n1", 2, 0))
{says}
while True:
    line.post(Beat(time.monotonic()))
    time.sleep(0.1)
"""
SAYS = {
    "no pickle": "line.post(hello); line._socket.send(b'\\xff' * 99)",
    "message of the launcher": "line.post(hello); line.post(Farewell())",
    "two parts": "line.post(hello); line._socket.send_multipart([pickle.dumps(hello), b'more'])",
}


def starts(says: str) -> tuple[str, ...]:
    """Return what starts two agents, of which the one on n1 is none."""
    os.environ["CODE"] = IMPOSTOR.format(says=says)
    return ("sh", "-c", 'SLURMD_NODENAME=n2 "$@" & "$0" -c "$CODE" "$@"; wait', sys.executable)


@pytest.mark.parametrize("says", SAYS)
@in_own_process
def test_remote_agent_that_cannot_be_read_is_given_up_when_its_lease_is_over(tmp_path: Path, says: str) -> None:
    agents_module.END_S = 1.0  # type: ignore[attr-defined]
    with block(tmp_path, "remote", command=starts(SAYS[says]), lease_s=SHORT_S, gather=False) as made:
        made.until(lambda: "n2" in made.nodes, "the other agent to report")
        node, why = made.loss()
        assert node == "n1"
        assert why.startswith("its agent sent what cannot be read: ")
        assert made.call("n2", divmod, 17, 5) == (3, 2)
        end_impostor()


@pytest.mark.parametrize(
    ("says", "theirs"),
    [
        (f"line.post(Hello(hello.node, {PROTOCOL + 1}))", str(PROTOCOL + 1)),
        # As agents said it that told no version.
        ("object.__delattr__(hello, 'protocol'); Hello.__getstate__ = lambda self: [self.node]; line.post(hello)", "0"),
    ],
)
@in_own_process
def test_remote_agent_of_another_version_is_refused(tmp_path: Path, says: str, theirs: str) -> None:
    with block(tmp_path, "remote", command=starts(says), gather=False) as made:
        made.until(lambda: "n2" in made.nodes, "the other agent to report")
        node, why = made.loss()
        assert (node, "n1" in made.nodes) == ("n1", False)
        assert f"it speaks protocol {theirs}, the launcher {PROTOCOL}): install one version" in why
        assert made.call("n2", divmod, 17, 5) == (3, 2)
        end_impostor()


def end_impostor() -> None:
    """Kill what has no idea of leases and farewells."""
    for process in psutil.Process().children(recursive=True):
        if os.environ["CODE"] in process.cmdline():
            process.kill()


LOCAL_IMPOSTOR = """
import socket, sys, time
from parsl_balsam.launcher.channel import Channel
from parsl_balsam.launcher.messages import Hello
from parsl_balsam.launcher.node import this_node

sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--descriptor") + 1]))
channel = Channel(sock)
channel.send(Hello(this_node("n1", "n1", 2, 0)))
sock.sendall(bytes.fromhex("{data}"))
time.sleep(60)
"""


@pytest.mark.parametrize("garbage", ["absurd length", "no message"])
@in_own_process
def test_local_agent_that_cannot_be_read_is_replaced(tmp_path: Path, garbage: str) -> None:
    usual = agents_module.agent_command
    code = LOCAL_IMPOSTOR.format(data=GARBAGE[garbage].hex())
    agents_module.agent_command = lambda *words: [sys.executable, "-c", code, *words]
    with block(tmp_path, "local", ("n1",), gather=False) as made:
        node, why = made.loss()
        assert node == "n1"
        assert why.startswith("its agent sent what cannot be read: ")
        agents_module.agent_command = usual
        restart(made, "n1")
        assert made.call("n1", divmod, 17, 5) == (3, 2)


@both
@in_own_process
def test_agent_whose_launcher_cannot_be_understood_ends_its_tasks(tmp_path: Path, kind: str) -> None:
    gave_up = tmp_path / "gave up"
    with block(tmp_path, kind, give_up=("touch", str(gave_up))) as made:
        _, pids = made.hold("n2")
        made.agents.post("n2", {"start": "something"})
        node, why = made.loss()
        assert (node, why) == ("n2", "its agent died" if kind == "local" else "its agent ended with exit code 1")
        assert not any(map(is_alive, pids))
        assert made.call("n1", divmod, 17, 5) == (3, 2)
    assert not gave_up.exists()


# The port that agents connect to


def test_what_an_agent_sends_is_told_apart(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    for data in (b"", b"\xff" * 1000, b"cos\nsystem\n"):
        agent._socket.send(data)
        ((name, message),) = lines.heard()
        assert (name, type(message)) == (b"n1", BadMessage)
    agent._socket.send_multipart([b"a", b"b", b"c"])
    ((name, message),) = lines.heard()
    assert (name, str(message)) == (b"n1", "a message has 3 parts")
    lines.hub._socket.send_multipart([b"n1", b"\xff\xff"])
    assert lines.hub.post(b"n1", Beat(1.0))
    bad, good = received(agent, 2)
    assert (type(bad), good) == (BadMessage, Beat(1.0))


#: What ZeroMQ says first: a signature, version 3.1, a mechanism, and whether it is a server.
def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


STRANGERS = {
    "silence": b"",
    "random bytes": os.urandom(4096),
    "zeros": bytes(4096),
    "HTTP": b"GET / HTTP/1.1\r\nHost: launcher\r\n\r\n",
    "half a greeting": greeting(b"CURVE")[:20],
    "no encryption": greeting(b"NULL") + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER" + b"\0\x05hello",
    "password": greeting(b"PLAIN") + b"\x04\x09\x05HELLO\x01a\x01b",
    "wrong handshake": greeting(b"CURVE") + b"\x04\xc8\x05HELLO" + os.urandom(194),
    "message before the handshake": greeting(b"CURVE") + b"\0\x05hello",
    "long frame": greeting(b"CURVE") + b"\x02" + struct.pack(">Q", LONGEST + 1),
    "larger than memory": greeting(b"CURVE") + b"\x06" + struct.pack(">Q", 2**62),
}


@pytest.mark.parametrize("says", STRANGERS)
def test_stranger_gets_nothing_through_and_stops_nobody(lines: Lines, says: str) -> None:
    agent = lines.agent(b"n1")
    (endpoint,) = lines.hub.endpoints
    with socket.create_connection(endpoint, timeout=LIMIT_S) as stranger:
        stranger.sendall(STRANGERS[says])
        # While the stranger is there, others come and go.
        other = lines.agent(b"n2")
        for each in (agent, other):
            each.post(says)
        assert sorted(lines.heard(2)) == [(b"n1", says), (b"n2", says)]
        assert lines.hub.post(b"n1", "for you")
        assert received(agent) == ["for you"]
    assert lines.hub.messages() == []


def test_message_that_is_too_long_breaks_its_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_module, "LONGEST", 1 << 20)
    lines = Lines()
    try:
        agent, other = lines.agent(b"n1"), lines.agent(b"n2")
        agent.post(bytes(1 << 19))
        assert lines.heard() == [(b"n1", bytes(1 << 19))]
        agent.post(bytes(1 << 21))
        wait_for(lambda: lines.hub.pending() or breaks(agent), "the line to break")
        assert lines.hub.messages() == []
        other.post("here")
        assert lines.heard() == [(b"n2", "here")]
    finally:
        lines.close()


def test_many_strangers_at_once(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    (endpoint,) = lines.hub.endpoints
    strangers = [socket.create_connection(endpoint, timeout=LIMIT_S) for _ in range(100)]
    try:
        for number, stranger in enumerate(strangers):
            stranger.sendall(os.urandom(number))
        agent.post("here")
        assert lines.heard() == [(b"n1", "here")]
    finally:
        for stranger in strangers:
            stranger.close()
