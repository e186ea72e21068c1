"""Messages between the launcher, its agent and the workers, over a pair of connected sockets.

Most are pickles. Of one with a load, only what it says is pickled: its load follows as it is.
"""

from __future__ import annotations

import pickle
import select
import selectors
import socket
import struct
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from parsl_balsam.launcher.messages import Load, put_together, taken_apart
from parsl_balsam.model.errors import BadMessage
from parsl_balsam.model.payload import text_of

if TYPE_CHECKING:
    from _typeshed import HasFileno

#: No message is longer, bytes: more than a function and its arguments, or a result, can be in any database.
LONGEST = 1 << 32

#: What every message starts with, so that what a task has written here by accident is not taken for a length.
_START = b"\xb5msg"
_HEAD = struct.Struct("<4sQ")

#: What one with a load starts with. Its head is followed by how much of the rest is the pickle.
_START_LADEN = b"\xb5ldn"
_SAID = struct.Struct("<I")
_HEAD_LADEN = struct.Struct("<4sQI")
_MARKS = frozenset({_START, _START_LADEN})

#: A load that is longer is neither copied when it is sent nor when it has come, bytes.
_LARGE = 1 << 14
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
        self._unsent: deque[Load] = deque()
        self._lost_track = False  # of where messages start
        self._waiting = select.poll()
        self._waiting.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """Let selectors wait for it."""
        return self._socket.fileno()

    def post(self, message: object) -> None:
        """Queue a message; `flush` sends it."""
        self._unsent += _parts(message)

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
            if mark not in _MARKS or length > LONGEST:
                found.append(_no_head(mark, length))
                self._lost_track = True
                self._received.clear()
                return found
            begin, end = start + _HEAD.size, start + _HEAD.size + length
            if len(self._received) < end:
                break
            if mark == _START_LADEN and length > _LARGE:
                found.append(_read(mark, self._cut_out(begin, end)))
                start = 0
            else:
                found.append(_read(mark, bytes(memoryview(self._received)[begin:end])))
                start = end
        if start:
            del self._received[:start]
        return found

    def _cut_out(self, begin: int, end: int) -> memoryview:
        """Return some of what was received, in its place, and go on with what follows: that is little, or nothing."""
        whole = self._received
        self._received = whole[end:]
        return memoryview(whole)[begin:end]

    def send(self, message: object) -> None:
        """Send a message and wait until it is on its way."""
        parts = _parts(message)
        while parts:
            sent = self._socket.sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = memoryview(parts[0])[sent:]

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


def _parts(message: object) -> list[Load]:
    """Return what is sent for a message."""
    said, load = taken_apart(message)
    data = pickle.dumps(said, protocol=pickle.HIGHEST_PROTOCOL)
    if load is None:
        return [_HEAD.pack(_START, len(data)) + data]
    head = _HEAD_LADEN.pack(_START_LADEN, _SAID.size + len(data) + len(load), len(data))
    return [head + data, load] if len(load) > _LARGE else [b"".join((head, data, load))]


def _only(data: bytes) -> Any:
    """Return the object of a message that comes alone and whole, as most do; None for anything else."""
    if len(data) < _HEAD.size:
        return None
    mark, length = _HEAD.unpack_from(data)
    if length != len(data) - _HEAD.size or mark not in _MARKS:
        return None
    return _read(mark, data[_HEAD.size :])


def _read(mark: bytes, content: Load) -> Any:
    """Return the object of a message; a `BadMessage` if it cannot be read."""
    if mark == _START:
        return unpickled(content)
    try:
        (length,) = _SAID.unpack_from(content)
    except struct.error as error:
        return BadMessage(f"{len(content)} bytes are too few: {error}")
    load = _SAID.size + length
    return together(content[_SAID.size : load], content[load:])


def together(said: Load, load: Load) -> Any:
    """Return the message that has a load; a `BadMessage` if it cannot be read."""
    found = unpickled(said)
    if isinstance(found, BadMessage):
        return found
    try:
        return put_together(found, load)
    except Exception as error:
        return BadMessage(f"an object of {type(found)} is no message with a load: {text_of(error)[:_SHOWN]}")


def wait_for_room(selector: selectors.BaseSelector, line: HasFileno, full: bool) -> None:
    """Let a selector tell when more can be sent on a line, if that is full."""
    key = selector.get_key(line)
    events = selectors.EVENT_READ | selectors.EVENT_WRITE if full else selectors.EVENT_READ
    if key.events != events:
        selector.modify(line, events, key.data)


def unpickled(data: Load) -> Any:
    """Return the object of a message; a `BadMessage` that tells why, if it cannot be read. It never raises."""
    try:
        return pickle.loads(data)
    except BaseException as error:  # a pickle can make anything be raised, SystemExit too
        return BadMessage(f"{len(data)} bytes cannot be unpickled: {type(error).__name__}: {text_of(error)[:_SHOWN]}")


def complaint(message: object) -> str:
    """Return what is wrong with a message that is none of those that are expected."""
    return str(message) if isinstance(message, BadMessage) else f"an object of {type(message)} is no message here"


def _no_head(mark: bytes, length: int) -> BadMessage:
    if mark not in _MARKS:
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

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def __getitem__(self, key: bytes) -> Any:
        return self._values[key]

    def __setitem__(self, key: bytes, value: object) -> None:
        self._values[key] = value
