"""Messages arrive as they were sent, however many are queued and however they are cut on their way."""

from __future__ import annotations

import os
import pickle
import socket
from dataclasses import MISSING, fields
from typing import Any

import pytest

from parsl_balsam.launcher.channel import Channel
from parsl_balsam.launcher.messages import (
    Beat,
    Clean,
    Cleaned,
    Died,
    Ended,
    Farewell,
    Hello,
    Kill,
    Lease,
    Ranks,
    Recall,
    Returned,
    Start,
    put_together,
    taken_apart,
)
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.resources import Launch
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

RANKS = Ranks(4, Launch.RANKS, True, "srun", {"PARSL_NUM_RANKS": "4"}, 2, "block-7", "/shared")

#: One of each kind, in which no field has its default.
MESSAGES: list[Any] = [
    Start(7, 2, (0, 1), True, b"digest", b"body", b"payload", 1.5, "err.txt", ("n1", "n2"), ("gpu0",), RANKS, True, 3),
    Kill(7, Outcome.CANCELLED, "not needed"),
    Recall(7),
    Returned(7),
    Clean(7, "block-7"),
    Cleaned(7),
    Hello(Node("n1", "host1", (0, 1), 8.0, ("gpu0",), False, 3), protocol=-1),
    Died("n1", "killed"),
    Beat(1.5),
    Lease(1.5, 30.0),
    Farewell(),
    Ended(7, Outcome.EXIT, b"payload", 3, 9, Usage(1 << 40, 0.25), "error", "output", "last words"),
]


def defaults(message: Any) -> dict[str, Any]:
    """Return the default of each field of a message; None where it has none."""
    if isinstance(message, tuple):
        return {**dict.fromkeys(message._fields), **message._field_defaults}  # type: ignore[attr-defined]
    return {each.name: None if each.default is MISSING else each.default for each in fields(message)}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_arrives(message: Any) -> None:
    for name, default in defaults(message).items():
        assert getattr(message, name) != default, f"this test would not notice that {name} is lost"
    said, load = taken_apart(message)
    arrived = pickle.loads(pickle.dumps(said, protocol=pickle.HIGHEST_PROTOCOL))
    if load is not None:
        assert type(said) is tuple
        assert load not in said
        arrived = put_together(arrived, load)
    assert (type(arrived), arrived) == (type(message), message)


@pytest.mark.parametrize("outcome", Outcome)
def test_outcomes_are_the_members_themselves(outcome: Outcome) -> None:
    assert put_together(taken_apart(Ended(7, outcome))[0], b"") == Ended(7, outcome)
    assert put_together(taken_apart(Ended(7, outcome))[0], b"").outcome is outcome


def test_what_is_queued_is_sent_together() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # it keeps apart what is sent apart
    with ours, theirs:
        channel = Channel(ours)
        for message in MESSAGES:
            channel.post(message)
        assert channel.flush()
        assert Channel(theirs).messages() == MESSAGES
        with pytest.raises(BlockingIOError):
            theirs.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(("length", "count"), [(0, 1500), (10, 1500), (5_000, 1500), (200_000, 20)])
def test_what_does_not_fit_is_sent_later(length: int, count: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        sender, reader = Channel(ours), Channel(theirs)
        messages = [Ended(number, Outcome.DONE, os.urandom(length)) for number in range(count)]
        found: list[Any] = []
        waits = 0
        for message in messages:
            sender.post(message)
        while not sender.flush():
            waits += 1
            found += reader.messages()
        found += reader.messages()
        assert found == messages
        assert waits > 0


@pytest.mark.parametrize("length", [0, 100, 20_000, 1 << 20])
def test_load_is_passed_on_as_it_is(length: int) -> None:
    load = b"no pickle: " + os.urandom(length)
    message: Any = Start(7, 2, (0,), True, b"digest", None, load, None, None)
    for _ in range(3):  # from one process to the next
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sender, reader = Channel(ours), Channel(theirs)
            sender.post(Beat(1.0))
            sender.post(message)
            sender.post(Beat(2.0))
            found: list[Any] = []
            while len(found) < 3:
                sender.flush()
                found += reader.messages()
        assert found == [Beat(1.0), Start(7, 2, (0,), True, b"digest", None, load, None, None), Beat(2.0)]
        message = found[1]
    # Of a large one nobody makes a copy.
    assert type(message.payload) is (memoryview if length > 1 << 14 else bytes)


@pytest.mark.parametrize("load", [None, b"", b"result"])
def test_no_load_is_told_from_an_empty_one(load: bytes | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(ours).send(Ended(7, Outcome.DONE, load))
        assert Channel(theirs).receive() == Ended(7, Outcome.DONE, load)
