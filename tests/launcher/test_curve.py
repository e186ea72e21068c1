"""Messages between a launcher and its agents, over real sockets."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from parsl_balsam.launcher.curve import Hub, Line, reachable
from tests.executor.parsl_runs import wait_for

#: Longer than a connection to this host takes, and what is sent over it, seconds.
AMPLE_S = 0.3


class Lines:
    """The lines of a test, and the hub they lead to."""

    def __init__(self) -> None:
        self.hub = Hub("127.0.0.1")
        self._lines: list[Line] = []
        self._closed = False

    def line(self, name: bytes | None, server_key: bytes = b"", client_keys: tuple[bytes, bytes] | None = None) -> Line:
        """Return a new line with the hub's keys, or others."""
        (endpoint,) = self.hub.endpoints
        keys = client_keys or (self.hub.client_key, self.hub.client_secret)
        line = Line(endpoint, name, server_key or self.hub.server_key, *keys)
        self._lines.append(line)
        return line

    def agent(self, name: bytes) -> Line:
        """Return a new line on which the hub has heard its agent."""
        line = self.line(name)
        line.post("here")
        assert self.heard() == [(name, "here")]
        return line

    def heard(self, count: int = 1) -> list[tuple[bytes, Any]]:
        """Return so many messages from agents."""
        found: list[tuple[bytes, Any]] = []

        def enough() -> bool:
            found.extend(self.hub.messages())
            return len(found) >= count

        wait_for(enough, f"{count} messages at the hub")
        return found

    def close_hub(self) -> None:
        """Close the hub, once."""
        if not self._closed:
            self._closed = True
            self.hub.close()

    def close(self) -> None:
        """Close everything, in a time that is bounded."""
        for line in self._lines:
            closing = threading.Thread(target=line.close, daemon=True)
            closing.start()
            closing.join(10)
            assert not closing.is_alive(), "a line does not close"
        self.close_hub()


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    try:
        yield lines
    finally:
        lines.close()


def received(line: Line, count: int = 1) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        found.extend(line.messages())
        return len(found) >= count

    wait_for(enough, f"{count} messages on a line")
    return found


def breaks(line: Line) -> bool:
    """Tell whether a line is broken; it must not bring anything."""
    try:
        assert line.messages() == []
    except EOFError:
        return True
    return False


def test_messages_go_both_ways_by_name(lines: Lines) -> None:
    one, two = lines.agent(b"n1"), lines.agent(b"n2")
    assert lines.hub.post(b"n1", ("for", 1))
    assert lines.hub.post(b"n2", ("for", 2))
    assert (received(one), received(two)) == ([("for", 1)], [("for", 2)])
    two.post({"from": 2})
    assert lines.heard() == [(b"n2", {"from": 2})]
    one.post({"from": 1})
    assert lines.heard() == [(b"n1", {"from": 1})]


def test_line_without_a_name_only_speaks(lines: Lines) -> None:
    lines.line(None).post("obituary")
    ((_, message),) = lines.heard()
    assert message == "obituary"


def test_large_messages(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    data = os.urandom(20_000_000)
    agent.post(data)
    assert lines.heard() == [(b"n1", data)]
    assert lines.hub.post(b"n1", data)
    assert received(agent) == [data]


def test_order_is_kept(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    sent = [bytes(10_000 if number % 100 == 0 else 0) + bytes([number % 256]) for number in range(2_000)]
    for message in sent:
        agent.post(message)
        assert lines.hub.post(b"n1", message)
    assert [message for _, message in lines.heard(len(sent))] == sent
    assert received(agent, len(sent)) == sent


def test_nothing_is_sent_to_an_unknown_agent(lines: Lines) -> None:
    lines.agent(b"n1")
    assert not lines.hub.post(b"n2", "lost")


def test_nothing_is_sent_to_an_agent_that_left(lines: Lines) -> None:
    lines.agent(b"n1")
    lines._lines.pop().close()
    wait_for(lambda: not lines.hub.post(b"n1", "lost"), "the hub to see the line close")


@pytest.mark.parametrize("named", [True, False], ids=["with a name", "without"])
def test_wrong_client_key_keeps_everything_out(lines: Lines, named: bool) -> None:
    intruder = lines.line(b"n1" if named else None, client_keys=zmq.curve_keypair())
    intruder.post("let me in")
    wait_for(lambda: breaks(intruder), "the line to be refused")
    lines.agent(b"n2")  # whatever was to come of the other had come by now
    assert not lines.hub.post(b"n1", "secret")


def test_right_public_key_alone_keeps_everything_out(lines: Lines) -> None:
    _, other_secret = zmq.curve_keypair()
    intruder = lines.line(b"n1", client_keys=(lines.hub.client_key, other_secret))
    intruder.post("let me in")
    wait_for(lambda: breaks(intruder), "the line to be refused")
    lines.agent(b"n2")
    assert not lines.hub.post(b"n1", "secret")


def test_wrong_server_key_lets_nothing_out(lines: Lines) -> None:
    other_key, _ = zmq.curve_keypair()
    agent = lines.line(b"n1", server_key=other_key)
    agent.post("secret")
    wait_for(lambda: breaks(agent), "the line to be refused")
    lines.agent(b"n2")
    assert not lines.hub.post(b"n1", "forged")


def test_plain_connection_gets_nothing_through(lines: Lines) -> None:
    (host, port), *_ = lines.hub.endpoints
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(f"tcp://{host}:{port}")
        stranger.send(b"let me in")
        lines.agent(b"n1")
        assert not stranger.poll(int(AMPLE_S * 1000))
    assert lines.hub.messages() == []


def test_closing_the_hub_ends_the_lines(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    assert lines.hub.post(b"n1", "last")
    lines.close_hub()
    assert received(agent) == ["last"]
    wait_for(lambda: breaks(agent), "the line to break")


def test_selector_wakes_up_for_messages(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    for number in range(100):
        with selectors.DefaultSelector() as selector:
            selector.register(lines.hub, selectors.EVENT_READ)
            agent.post(number)
            assert lines.hub.pending() or selector.select(10)
            assert lines.heard() == [(b"n1", number)]
            assert not lines.hub.pending()
            selector.unregister(lines.hub)
            selector.register(agent, selectors.EVENT_READ)
            assert lines.hub.post(b"n1", number)
            assert agent.pending() or selector.select(10)
            assert received(agent) == [number]
            assert not agent.pending()


def test_selector_wakes_up_for_a_broken_line(lines: Lines) -> None:
    agent = lines.agent(b"n1")
    with selectors.DefaultSelector() as selector:
        selector.register(agent.alarm(), selectors.EVENT_READ)
        assert not agent.pending()
        lines.close_hub()
        assert selector.select(10)
        wait_for(agent.pending, "the line to tell of its end")
    assert breaks(agent)


def test_first_address_that_answers_is_chosen(lines: Lines) -> None:
    (endpoint,) = lines.hub.endpoints
    lines.hub.endpoints.insert(0, ("127.0.0.1", 1))
    assert reachable(lines.hub.endpoints) == endpoint
    assert reachable([("127.0.0.1", 1)]) is None
    lines.hub.endpoints.pop(0)


def test_hub_on_all_addresses_names_its_own_host_last() -> None:
    hub = Hub(None)
    try:
        hosts = [host for host, _ in hub.endpoints]
        assert hosts[-1].startswith("127.")
        assert reachable(hub.endpoints) is not None
    finally:
        hub.close()
