"""Encrypted messages between a launcher and the agents on other nodes: pickles over ZeroMQ with CurveZMQ.

A process that does not have the keys of the block's invitation cannot connect, so what comes may be unpickled. From an
agent of another version it may be no message all the same.
"""

from __future__ import annotations

import hmac
import pickle
import socket
import time
from collections.abc import Sequence
from typing import Any

import psutil
import zmq
import zmq.auth.thread
from zmq.utils.monitor import recv_monitor_message

from parsl_balsam.launcher.channel import LONGEST, together, unpickled
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import Load, taken_apart
from parsl_balsam.model.errors import AllocationError, BadMessage

#: Longest wait for a TCP connection to one address, seconds.
_CONNECT_S = 2.0

#: Agents that cannot be reached any more keep their last messages for so long when the launcher closes, milliseconds.
_LINGER_MS = 1000

#: How long an agent tries to reach its launcher, seconds.
_REACH_S = 120.0


class Hub:
    """The launcher's end of all lines.

    Parameters
    ----------
    address
        The only address to listen on. None for all of this host's.
    """

    def __init__(self, address: str | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._authenticator.start()
        self.server_key, secret = zmq.curve_keypair()
        self.client_key, self.client_secret = zmq.curve_keypair()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=_OnlyKey(self.client_key))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_secretkey = secret
        self._socket.curve_publickey = self.server_key
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        # Nothing is dropped, neither for want of room nor because an agent is gone: that is an error here.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Also for what strangers send before they are refused: room for it is made as soon as its length is told.
        self._socket.setsockopt(zmq.MAXMSGSIZE, LONGEST)
        self._socket.bind(f"tcp://{'*' if address is None else socket.gethostbyname(address)}:*")
        port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        #: Addresses at which agents may try to find it.
        self.endpoints = [(host, port) for host in ([address] if address else _own_addresses())]

    def fileno(self) -> int:
        """Let selectors wait for it. It tells of changes only, so look at `pending` before each wait."""
        return int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Tell whether there are messages."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def post(self, agent: bytes, message: object) -> bool:
        """Send a message; return False if there is no connection to that agent."""
        try:
            self._socket.send_multipart([agent, *_parts(message)])
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def messages(self) -> list[tuple[bytes, Any]]:
        """Return the messages that have arrived, each with its agent, without waiting.

        A `BadMessage` stands for each that cannot be read.
        """
        found: list[tuple[bytes, Any]] = []
        while True:
            try:
                agent, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append((agent, _read(parts)))

    def close(self) -> None:
        """Close all lines."""
        self._socket.close()
        self._authenticator.stop()
        self._context.term()


class Line:
    """An agent's end of its line to the launcher.

    Parameters
    ----------
    name
        By which the launcher's end knows the line. None for one that only speaks.
    """

    def __init__(
        self, endpoint: tuple[str, int], name: bytes | None, server_key: bytes, client_key: bytes, client_secret: bytes
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if name is not None:
            self._socket.setsockopt(zmq.ROUTING_ID, name)
        self._socket.curve_serverkey = server_key
        self._socket.curve_publickey = client_key
        self._socket.curve_secretkey = client_secret
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LONGEST)
        # A broken connection is not repaired: messages may have been lost with it.
        self._breaks = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._socket.connect(f"tcp://{endpoint[0]}:{endpoint[1]}")

    def fileno(self) -> int:
        """Let selectors wait for it. It tells of changes only, so look at `pending` before each wait."""
        return int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Tell whether there are messages, or the connection is broken."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN) or bool(self._breaks.poll(0))

    def alarm(self) -> int:
        """Return a descriptor for selectors that tells of a broken connection, as `fileno` tells of messages."""
        return int(self._breaks.getsockopt(zmq.FD))

    def post(self, message: object) -> None:
        """Send a message."""
        self._socket.send_multipart(_parts(message))

    def flush(self) -> bool:
        """Do nothing: messages are on their way already."""
        return True

    def messages(self) -> list[Any]:
        """Return the messages that have arrived, without waiting; a `BadMessage` for each that cannot be read.

        Raises
        ------
        EOFError
            If the connection is broken and all messages were returned.
        """
        found: list[Any] = []
        while True:
            try:
                found.append(_read(self._socket.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                break
        if not found and self._breaks.poll(0):
            recv_monitor_message(self._breaks)
            raise EOFError
        return found

    def close(self) -> None:
        """Close this end, when what was posted is sent."""
        self._socket.disable_monitor()
        self._breaks.close()  # the context waits for it, too
        self._socket.close()
        self._context.term()


def connect(invitation: Invitation, name: bytes | None) -> Line:
    """Return a line to the launcher of a block, as soon as it can be reached.

    Parameters
    ----------
    name
        As of `Line`.

    Raises
    ------
    AllocationError
        If it cannot be reached for long.
    """
    until = time.monotonic() + _REACH_S
    while (endpoint := reachable(invitation.endpoints)) is None:
        if time.monotonic() >= until:
            tried = ", ".join(f"{host}:{port}" for host, port in invitation.endpoints)
            raise AllocationError(
                f"the launcher cannot be reached from {socket.gethostname()} at {tried}. "
                "Set the executor's 'address' to a name of the block's first node that the others can reach."
            )
        time.sleep(1.0)
    keys = (invitation.server_key, invitation.client_key, invitation.client_secret)
    return Line(endpoint, name, *(key.encode() for key in keys))


def _parts(message: object) -> list[Load]:
    """Return what is sent for a message."""
    said, load = taken_apart(message)
    data = pickle.dumps(said, protocol=pickle.HIGHEST_PROTOCOL)
    return [data] if load is None else [data, load]


def _read(parts: Sequence[bytes]) -> Any:
    """Return the object of a message; a `BadMessage` if it cannot be read."""
    if len(parts) == 1:
        return unpickled(parts[0])
    return together(*parts) if len(parts) == 2 else BadMessage(f"a message has {len(parts)} parts")


def reachable(endpoints: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """Return the first of some addresses that accepts connections from here."""
    for host, port in endpoints:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError:
            continue
        return host, port
    return None


def _own_addresses() -> list[str]:
    """Return names and addresses of this host, those first that other hosts are likely to reach."""
    found = [socket.gethostname(), socket.getfqdn()]
    for addresses in psutil.net_if_addrs().values():
        found += [address.address for address in addresses if address.family is socket.AF_INET]
    return sorted(dict.fromkeys(found), key=lambda address: address.startswith("127."))


class _OnlyKey:
    """Lets one key in."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell whether the owner of a key may connect."""
        return hmac.compare_digest(key, self._key)
