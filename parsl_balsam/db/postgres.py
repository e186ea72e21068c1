"""Connections to a PostgreSQL server."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from parsl_balsam.db.copying import enable_copying
from parsl_balsam.db.mode import Mode, take_mode
from parsl_balsam.db.statement import execute, forget_unsent, put_off_first, send, unsent

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
        isolation_level="AUTOCOMMIT",  # transactions are begun and ended below, which saves ways to the server
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if take_mode(connection) is Mode.READ:
            # Each statement sees what is committed when it begins, be it in a transaction or not.
            forget_unsent(connection)
        else:
            put_off_first(connection, "BEGIN")

    @event.listens_for(engine, "before_cursor_execute")
    def catch_up(connection: Connection, _cursor: Any, _sql: str, _values: Any, context: object, _many: bool) -> None:
        if context is not None:  # it is not one of `parsl_balsam.db.statement`, which does so by itself
            send(connection)

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        if _in_transaction(connection.connection.dbapi_connection) or unsent(connection) > 1:
            execute(connection, "COMMIT")
        else:  # at most it has begun
            forget_unsent(connection)

    @event.listens_for(engine, "rollback")
    def roll_back(connection: Connection) -> None:
        if not connection.invalidated:
            forget_unsent(connection)
            if _in_transaction(connection.connection.dbapi_connection):
                execute(connection, "ROLLBACK")

    @event.listens_for(engine, "reset")
    def reset(connection: Any, _record: ConnectionPoolEntry, _state: object) -> None:
        if _in_transaction(connection):
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")

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

    enable_copying(engine)
    return engine


def _in_transaction(connection: Any) -> bool:
    return connection.get_transaction_status() in (
        extensions.TRANSACTION_STATUS_ACTIVE,
        extensions.TRANSACTION_STATUS_INTRANS,
        extensions.TRANSACTION_STATUS_INERROR,
    )
