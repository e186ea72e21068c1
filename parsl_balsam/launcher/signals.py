"""Signals that tell a launcher to end."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable

#: A batch system warns of a job's end no earlier than this before it, seconds: Slurm up to a minute earlier than it is
#: asked to (sbatch(1), --signal).
_WARNING_S = 80.0


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


def warned_end(number: int, ask_end: Callable[[], float | None] | None) -> float | None:
    """Return until when the batch job goes on, on the monotonic clock, if a signal only warns of its end.

    Parameters
    ----------
    ask_end
        Asks the batch system for that time; it answers None if the job is being ended.
    """
    ends_at = ask_end() if ask_end is not None and number == signal.SIGTERM else None
    return ends_at if ends_at is not None and ends_at - time.monotonic() <= _WARNING_S else None
