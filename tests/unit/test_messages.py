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
)
from parsl_balsam.launcher.pool import Node
from parsl_balsam.model.resources import Launch
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage

RANKS = Ranks(4, Launch.RANKS, True, "srun", {"PARSL_NUM_RANKS": "4"}, 2, "block-7", "/shared")

#: One of each kind, in which no field has its default.
MESSAGES: list[Any] = [
    Start(7, 2, (0, 1), True, b"digest", b"body", b"payload", 1.5, "err.txt", ("n1", "n2"), ("gpu0",), RANKS, True),
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


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_arrives(message: Any) -> None:
    for each in fields(message):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        assert getattr(message, each.name) != default, f"this test would not notice that {each.name} is lost"
    arrived = pickle.loads(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
    assert (type(arrived), arrived) == (type(message), message)


@pytest.mark.parametrize("outcome", Outcome)
def test_outcomes_are_the_members_themselves(outcome: Outcome) -> None:
    assert pickle.loads(pickle.dumps(Ended(7, outcome))).outcome is outcome


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
