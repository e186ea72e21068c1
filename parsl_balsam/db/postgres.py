"""Connections to a PostgreSQL server."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg2
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

#: A client that stops in mid-transaction, frozen or cut off, loses its locks after this time, seconds.
POSTGRES_IDLE_IN_TRANSACTION_S = 20

#: Options of every connection to PostgreSQL. The last four notice within half a minute that the server's node is gone.
POSTGRES_OPTIONS = {
    "connect_timeout": 10,
    "application_name": "parsl-balsam",
    "options": f"-c idle_in_transaction_session_timeout={POSTGRES_IDLE_IN_TRANSACTION_S * 1000}",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

#: So many connections stay open between transactions.
_KEPT_CONNECTIONS = 2

#: A connection that was not used for this time is asked whether it still works, seconds.
_ASK_AFTER_S = 2.0

#: In a connection's `info`: when it was used last, on the monotonic clock.
_USED_AT = "balsam_used_at"


def postgres_engine(url: URL, connections: int) -> Engine:
    """Return what makes connections to a server, at most so many at a time."""
    kept = min(connections, _KEPT_CONNECTIONS)
    engine = create_engine(
        url,
        pool_size=kept,
        max_overflow=connections - kept,
        executemany_mode="values_plus_batch",
        connect_args=POSTGRES_OPTIONS,
    )

    @event.listens_for(engine, "checkin")
    def note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_USED_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def look(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        if _USED_AT not in record.info:
            return
        try:
            # A server that ends a connection says so, unless it is gone: then somebody has to ask.
            line = select.poll()
            line.register(connection.fileno(), select.POLLIN)
            if line.poll(0) or time.monotonic() - record.info[_USED_AT] > _ASK_AFTER_S:
                engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            raise InvalidatePoolError from error

    return engine
