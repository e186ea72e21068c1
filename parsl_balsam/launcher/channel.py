"""Messages between the launcher, its agent and the workers: pickles over a pair of connected sockets."""

from __future__ import annotations

import pickle
import select
import selectors
import socket
import struct
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from parsl_balsam.model.errors import BadMessage
from parsl_balsam.model.payload import text_of

if TYPE_CHECKING:
    from _typeshed import HasFileno

#: No message is longer, bytes: more than a function and its arguments, or a result, can be in any database.
LONGEST = 1 << 32

#: What every message starts with, so that what a task has written here by accident is not taken for a length.
_START = b"\xb5msg"
_HEAD = struct.Struct("<4sQ")
_RECEIVE_BYTES = 1 << 16  # from twice as many on, malloc may ask the kernel for them, each time

# As plain numbers: as members of an enum they are slow to combine.
_DO_NOT_WAIT = int(socket.MSG_DONTWAIT)
_FLUSH = _DO_NOT_WAIT | int(socket.MSG_NOSIGNAL)

#: So many messages are sent with one system call at most: Linux takes 1024 pieces.
_SENT_AT_ONCE = 512

#: So much of what an error says is told, characters.
_SHOWN = 500


class Channel:
    """One end of a socket pair.

    Both ends belong to one user on one host, so what comes may be unpickled. It need not be a message: a task can write
    to all descriptors of its worker.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._unheard: deque[Any] = deque()  # what has come with a message that `receive` has returned
        self._unsent: deque[bytes | memoryview] = deque()
        self._lost_track = False  # of where messages start
        self._waiting = select.poll()
        self._waiting.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """Let selectors wait for it."""
        return self._socket.fileno()

    def post(self, message: object) -> None:
        """Queue a message; `flush` sends it."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._unsent.append(_HEAD.pack(_START, len(data)) + data)

    def flush(self) -> bool:
        """Send what can be sent without waiting; return whether all is sent.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        while self._unsent:
            try:
                sent = self._socket.sendmsg(list(islice(self._unsent, _SENT_AT_ONCE)), (), _FLUSH)
            except BlockingIOError:
                return False
            except OSError as error:
                raise EOFError from error
            while sent:
                first = self._unsent.popleft()
                if sent < len(first):
                    self._unsent.appendleft(memoryview(first)[sent:])
                    break
                sent -= len(first)
        return True

    def pending(self) -> bool:
        """Return False: selectors tell of all that there is to read."""
        return False

    def messages(self) -> list[Any]:
        """Return the messages that have arrived, without waiting.

        The last of them is a `BadMessage` if what followed could not be read; no more will come then.

        Raises
        ------
        EOFError
            If the other end is gone and all its messages were returned, though it may have been in the middle of one;
            or if no more can come.
        """
        ended = self._lost_track
        while not ended:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, _DO_NOT_WAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                ended = True
                break
            if not self._received and (message := _only(data)) is not None:
                return [message]
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
        while len(self._received) - start >= _HEAD.size:
            mark, length = _HEAD.unpack_from(self._received, start)
            if mark != _START or length > LONGEST:
                found.append(_no_head(mark, length))
                self._lost_track = True
                self._received.clear()
                return found
            end = start + _HEAD.size + length
            if len(self._received) < end:
                break
            with memoryview(self._received) as view, view[start + _HEAD.size : end] as data:
                found.append(unpickled(data))
            start = end
        if start:
            del self._received[:start]
        return found

    def send(self, message: object) -> None:
        """Send a message and wait until it is on its way."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if len(data) < 1 << 16:
            self._socket.sendall(_HEAD.pack(_START, len(data)) + data)
        else:
            self._socket.sendall(_HEAD.pack(_START, len(data)))
            self._socket.sendall(data)

    def receive(self) -> Any:
        """Wait for a message and return it; a `BadMessage` if it cannot be read.

        Raises
        ------
        EOFError
            As `messages`, which must not be used on the same end.
        """
        while not self._unheard:
            # Not in `recv`: that is woken up, for nothing, also when the other end reads what was sent to it.
            self._waiting.poll()
            self._unheard.extend(self.messages())
        return self._unheard.popleft()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _only(data: bytes) -> Any:
    """Return the object of a message that comes alone and whole, as most do; None for anything else."""
    if len(data) < _HEAD.size:
        return None
    mark, length = _HEAD.unpack_from(data)
    return unpickled(data[_HEAD.size :]) if mark == _START and length == len(data) - _HEAD.size else None


def wait_for_room(selector: selectors.BaseSelector, line: HasFileno, full: bool) -> None:
    """Let a selector tell when more can be sent on a line, if that is full."""
    key = selector.get_key(line)
    events = selectors.EVENT_READ | selectors.EVENT_WRITE if full else selectors.EVENT_READ
    if key.events != events:
        selector.modify(line, events, key.data)


def unpickled(data: bytes | bytearray | memoryview) -> Any:
    """Return the object of a message; a `BadMessage` that tells why, if it cannot be read. It never raises."""
    try:
        return pickle.loads(data)
    except BaseException as error:  # a pickle can make anything be raised, SystemExit too
        return BadMessage(f"{len(data)} bytes cannot be unpickled: {type(error).__name__}: {text_of(error)[:_SHOWN]}")


def complaint(message: object) -> str:
    """Return what is wrong with a message that is none of those that are expected."""
    return str(message) if isinstance(message, BadMessage) else f"an object of {type(message)} is no message here"


def _no_head(mark: bytes, length: int) -> BadMessage:
    if mark != _START:
        return BadMessage(f"no message starts with {mark!r}")
    return BadMessage(f"a message of {length} bytes is longer than any: the limit is {LONGEST}")


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
