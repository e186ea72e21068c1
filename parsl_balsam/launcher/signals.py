"""Signals that tell a launcher to end."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable

#: Batch systems warn of a job's end by a signal, Slurm up to a minute earlier than it is asked to, seconds.
_WARNED_S = 80.0


def watch(selector: selectors.BaseSelector, act: Callable[[int], None]) -> tuple[socket.socket, socket.socket]:
    """Act on SIGTERM and SIGINT, and let them end a selector's wait as long as the sockets that are returned live."""
    waker, sleeper = socket.socketpair()
    waker.setblocking(False)
    sleeper.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: act(received))
    selector.register(sleeper, selectors.EVENT_READ, lambda: sleeper.recv(4096))
    return waker, sleeper


def why(received: int, ends_at: float | None) -> str:
    """Say why a block ends that got a signal.

    Parameters
    ----------
    ends_at
        End of the batch job, on the monotonic clock; None if it has none that is known.
    """
    reason = f"received {signal.Signals(received).name}"
    warned = ends_at is not None and ends_at - time.monotonic() <= _WARNED_S
    return f"its batch job is about to end: {reason}" if warned else reason
