"""Which file descriptors can be read."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Protocol


class HasDescriptor(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


def readable(sources: Sequence[HasDescriptor], seconds: float) -> list[HasDescriptor]:
    """Wait until some of these can be read, for a time at most, rounded up to milliseconds; return which."""
    by_descriptor = {source.fileno(): source for source in sources}
    # Not `select`: it refuses descriptors from 1024 on, and the user's script may have so many files open.
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)]
