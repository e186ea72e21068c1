"""Messages between the launcher, its agent and the workers: pickles over a pair of connected sockets."""

from __future__ import annotations

import pickle
import socket
import struct
from collections import OrderedDict, deque
from typing import Any

_LENGTH = struct.Struct("<Q")
_RECEIVE_BYTES = 1 << 18


class Channel:
    """One end of a socket pair. Both ends belong to one user on one host, so what comes is trusted."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._unsent: deque[memoryview] = deque()

    def fileno(self) -> int:
        """Let selectors wait for it."""
        return self._socket.fileno()

    def post(self, message: object) -> None:
        """Queue a message; `flush` sends it."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._unsent.append(memoryview(_LENGTH.pack(len(data)) + data))

    def flush(self) -> bool:
        """Send what can be sent without waiting; return whether all is sent.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        while self._unsent:
            first = self._unsent[0]
            try:
                sent = self._socket.send(first, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                raise EOFError from error
            if sent == len(first):
                self._unsent.popleft()
            else:
                self._unsent[0] = first[sent:]
        return True

    def pending(self) -> bool:
        """Return False: selectors tell of all that there is to read."""
        return False

    def messages(self) -> list[Any]:
        """Return the messages that have arrived, without waiting.

        Raises
        ------
        EOFError
            If the other end is gone and all its messages were returned.
        """
        ended = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                ended = True
                break
            self._received += data
            if len(data) < _RECEIVE_BYTES:
                break
        found = self._complete()
        if ended and not found:
            raise EOFError
        return found

    def _complete(self) -> list[Any]:
        found: list[Any] = []
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            end = start + _LENGTH.size + length
            if len(self._received) < end:
                break
            with memoryview(self._received) as view:
                found.append(pickle.loads(view[start + _LENGTH.size : end]))
            start = end
        if start:
            del self._received[:start]
        return found

    def send(self, message: object) -> None:
        """Send a message and wait until it is on its way."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if len(data) < 1 << 16:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        else:
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)

    def receive(self) -> Any:
        """Wait for a message and return it.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class RecentlyUsed:
    """The keys used last, on the two ends of a channel.

    Both ends note each use in the same order, so the sender knows what the receiver still has, without asking.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._values: OrderedDict[bytes, Any] = OrderedDict()

    def use(self, key: bytes) -> bool:
        """Note a use; return whether the value is known already."""
        known = key in self._values
        if known:
            self._values.move_to_end(key)
        else:
            self._values[key] = None
            if len(self._values) > self._capacity:
                self._values.popitem(last=False)
        return known

    def __getitem__(self, key: bytes) -> Any:
        return self._values[key]

    def __setitem__(self, key: bytes, value: object) -> None:
        self._values[key] = value
