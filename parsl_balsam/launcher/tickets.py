"""What decides whether a worker begins a task that it has already: its ticket, which one side takes, and the lease."""

from __future__ import annotations

import mmap
import os
import struct
import time

_NUMBER = struct.Struct("<Q")

#: So many bytes of tickets are taken back with one system call; there are never so many.
_ALL = 1 << 12

#: How often a worker looks whether the lease goes on, seconds.
_LOOK_S = 0.05


class SharedLease:
    """Until when workers may begin tasks by themselves: their agent says it, and they know it though that is frozen."""

    def __init__(self) -> None:
        self._until = memoryview(mmap.mmap(-1, struct.calcsize("d"))).cast("d")

    def extend(self, until: float) -> None:
        """Agent: set a time, on the monotonic clock."""
        self._until[0] = until

    def wait(self) -> None:
        """Worker: return at once while it lasts; when it is over, when it goes on."""
        while time.monotonic() >= self._until[0]:
            time.sleep(_LOOK_S)


class Tickets:
    """A pipe of numbers, which an agent writes, and which it and its worker read: each number has one reader.

    Numbers ascend, and tasks reach the worker in their order. So one that finds a larger number than its own, or none,
    was called back.
    """

    def __init__(self) -> None:
        reader, writer = os.pipe()
        # Both ends in one descriptor: an agent has many workers.
        self._pipe = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_NONBLOCK)
        os.close(reader)
        os.close(writer)
        self._issued = 0
        self._held = 0  # the last that was taken here

    def issue(self) -> int:
        """Agent: return the number of a new ticket. The task is sent to the worker after that."""
        self._issued += 1
        os.write(self._pipe, _NUMBER.pack(self._issued))
        return self._issued

    def take_back(self) -> set[int]:
        """Agent: return the tickets that the worker has not taken, and now cannot take any more."""
        try:
            data = os.read(self._pipe, _ALL)
        except BlockingIOError:
            return set()
        return {number for (number,) in _NUMBER.iter_unpack(data)}

    def take(self, number: int) -> bool:
        """Worker: tell whether the task with this ticket is to begin."""
        while self._held < number:
            try:
                data = os.read(self._pipe, _NUMBER.size)
            except BlockingIOError:
                return False
            (self._held,) = _NUMBER.unpack(data)
        return self._held == number

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._pipe)
