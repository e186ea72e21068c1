"""The TCP port that a server listens on."""

from __future__ import annotations

import errno
import socket

from parsl_balsam.model.errors import ServerError

#: What PostgreSQL takes for all addresses of a machine.
EVERYWHERE = ("*", "0.0.0.0", "::")


def free_port(listen: str, wanted: int | None) -> int:
    """Return `wanted` if nobody listens there, else a port of the system's choice.

    Raises
    ------
    ServerError
        If `listen` is no name or address of this machine.
    """
    name = None if listen in EVERYWHERE else listen
    try:
        address = socket.getaddrinfo(name, wanted or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(*address[:3]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address[4])
            return int(trial.getsockname()[1])
    except OSError as error:
        if wanted and error.errno == errno.EADDRINUSE:
            return free_port(listen, None)
        raise ServerError(
            f"Cannot listen on {listen}: {error}. Give --host a name or an address of {socket.gethostname()}"
        ) from error
