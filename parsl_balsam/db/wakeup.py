"""How a process learns that something changed in the database, without asking it all the time."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING

from sqlalchemy import Connection, bindparam, func, select
from sqlalchemy.dialects import sqlite

from parsl_balsam.db.connect import Database
from parsl_balsam.db.descriptors import readable
from parsl_balsam.db.refusals import unavailable
from parsl_balsam.db.schema import notices
from parsl_balsam.db.sqlite import NOTICE
from parsl_balsam.db.statement import Statement
from parsl_balsam.db.watch import watch
from parsl_balsam.model.errors import DatabaseDenied, DatabaseUnavailable

if TYPE_CHECKING:
    import psycopg2

logger = logging.getLogger(__name__)

#: SQLite has no notifications. Who commits a notice sets the times of the file, and where that cannot be heard, the
#: change counter is read this often, seconds. The first figure holds right after a change, the second after a long
#: quiet time; between them the interval is a twentieth of the quiet time.
_SHORTEST_POLL_S = 0.001
_LONGEST_POLL_S = 0.02

#: The same where it can be heard: somebody may have been killed between the two.
_HEARING_POLL_S = 0.1

#: Between two attempts to reach a server that is away, seconds.
_RECONNECT_S = 0.5

#: A notification that does not come so soon never will, seconds; and how often is looked then.
_PROBE_S = 2.0
_DEAF_POLL_S = 0.25


class Topic(str, Enum):
    """What a waiting process wants to hear of."""

    WORK = "work"  # tasks became ready, or are to be cancelled
    FINISHED = "finished"  # tasks ended


def notify(connection: Connection, workflow_id: int, topic: Topic) -> None:
    """Wake those who wait for a topic of a workflow, when this transaction commits."""
    if connection.dialect.name == "postgresql":
        _NOTIFY.run(connection, channel=_channel(workflow_id, topic))
    else:
        _COUNT_UP.run(connection, workflow_id=workflow_id, topic=topic.value, count=1)
        connection.info[NOTICE] = True


_NOTIFY = Statement(select(func.pg_notify(bindparam("channel"), "")))

_COUNT_UP = Statement(
    sqlite.insert(notices).on_conflict_do_update(
        index_elements=["workflow_id", "topic"], set_={"count": notices.c.count + 1}
    ),
    "workflow_id",
    "topic",
    "count",
)


class Bell:
    """Interrupts a `Wakeup.wait` of another thread of this process."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()
        self._rung = False

    def fileno(self) -> int:
        """Become readable when rung."""
        return self._reader

    def ring(self) -> None:
        """End the present wait, or the next one if nobody waits."""
        with self._lock:
            if not self._rung:
                self._rung = True
                os.write(self._writer, b"!")

    def silence(self) -> None:
        """Be ready to be rung again."""
        with self._lock:
            if self._rung:
                self._rung = False
                os.read(self._reader, 1)

    def close(self) -> None:
        """Give the file descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


class Wakeup(ABC):
    """Waits until something may have changed. One thread owns it."""

    @abstractmethod
    def wait(self, timeout: float, bell: Bell) -> bool:
        """Return when the database changed, the bell rang or the time, in seconds, is over; whichever is first.

        Returns
        -------
        bool
            Whether there was a notice. It is also True after a lost connection came back: one may have been missed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the connection back."""


def listen(database: Database, workflow_id: int, topic: Topic) -> Wakeup:
    """Start to listen. Changes committed after this returns end the next `Wakeup.wait`.

    A server that is away, or has no connection to give, is asked again by each wait. The first that gets one ends at
    once.

    Raises
    ------
    DatabaseDenied
        If no waiting would cure that.
    """
    if database.is_sqlite:
        return _SqliteWakeup(str(database.url.database), workflow_id, topic)
    return _PostgresWakeup(database, _channel(workflow_id, topic))


def _channel(workflow_id: int, topic: Topic) -> str:
    return f"balsam_{topic.value}_{workflow_id}"


class _SqliteWakeup(Wakeup):
    def __init__(self, path: str, workflow_id: int, topic: Topic) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._watch = watch(path)
        self._where = (workflow_id, topic.value)
        self._version = 0
        self._count = 0
        self._noticed()
        self._heard_at = time.monotonic()

    def _noticed(self) -> bool:
        """Tell whether there was a notice since the last time."""
        try:
            # Any commit changes the version, and reading it is cheap; only a notice changes the count.
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return False
            row = self._connection.execute(
                "SELECT count FROM notices WHERE workflow_id = ? AND topic = ?", self._where
            ).fetchone()
        except sqlite3.OperationalError:  # locked by someone's recovery: look again later
            return False
        self._version = version
        count = row[0] if row else 0
        noticed = count != self._count
        self._count = count
        return bool(noticed)

    def wait(self, timeout: float, bell: Bell) -> bool:
        until = time.monotonic() + timeout
        while True:
            noticed = self._noticed()
            now = time.monotonic()
            if noticed:
                self._heard_at = now
                return True
            if now >= until:
                return False
            if self._listen(bell, min(self._interval(now), until - now)):
                bell.silence()
                self._heard_at = now
                return False

    def _interval(self, now: float) -> float:
        if self._watch is not None:
            return _HEARING_POLL_S
        return min(max((now - self._heard_at) / 20, _SHORTEST_POLL_S), _LONGEST_POLL_S)

    def _listen(self, bell: Bell, seconds: float) -> bool:
        """Wait until there may be something new, for a time at most; return whether the bell rang."""
        if self._watch is None:
            return bool(readable([bell], seconds))
        heard = readable([self._watch, bell], seconds)
        if self._watch in heard:
            self._watch.clear()  # before looking: what comes later is heard again
        return bell in heard

    def close(self) -> None:
        self._connection.close()
        if self._watch is not None:
            self._watch.close()


class _PostgresWakeup(Wakeup):
    # Who works with SQLite does not pay for importing psycopg2.

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._channel = channel
        self._connection: psycopg2.extensions.connection | None = None
        self._deaf = False
        try:
            self._connect()
        except DatabaseDenied:
            raise
        except DatabaseUnavailable:  # `wait` tries again, and then says that something may have changed
            pass

    def _connect(self) -> None:
        import psycopg2

        from parsl_balsam.db.postgres import POSTGRES_OPTIONS

        url = self._database.url
        arguments, options = self._database.engine.dialect.create_connect_args(url)
        options.update(POSTGRES_OPTIONS, application_name="parsl-balsam wakeup")
        try:
            connection = psycopg2.connect(*arguments, **options)
            try:
                connection.autocommit = True
                self._deaf = not self._hears(connection)
                with connection.cursor() as cursor:
                    cursor.execute(f'LISTEN "{self._channel}"')
            except BaseException:
                connection.close()
                raise
        except psycopg2.Error as error:
            raise unavailable(url, str(error).strip()) from error
        if self._deaf:
            logger.warning(
                "notifications of %s do not come through, so it is looked at every %g s: is a pooler before the server "
                "that shares its connections? Give the URL of the server itself",
                url.render_as_string(),
                _DEAF_POLL_S,
            )
        self._connection = connection

    def _hears(self, connection: psycopg2.extensions.connection) -> bool:
        """Tell whether notifications come."""
        probe = f"balsam_probe_{secrets.token_hex(8)}"
        with connection.cursor() as cursor:
            cursor.execute(f'LISTEN "{probe}"')
            # Not on the same connection: the answer would bring it, whoever is between.
            with self._database.read() as other:  # nothing is written
                _NOTIFY.scalars(other, channel=probe)
            if not connection.notifies:
                readable([connection], _PROBE_S)
                connection.poll()
            cursor.execute(f'UNLISTEN "{probe}"')
        heard = any(notice.channel == probe for notice in connection.notifies)
        connection.notifies.clear()  # it listens to nothing else yet
        return heard

    def wait(self, timeout: float, bell: Bell) -> bool:
        import psycopg2

        try:
            if self._connection is None:
                self._connect()
                return True
            if not self._connection.notifies:
                if self._deaf:
                    timeout = min(timeout, _DEAF_POLL_S)
                if bell in (heard := readable([self._connection, bell], timeout)):
                    bell.silence()
                self._connection.poll()
                if self._deaf and not heard:
                    return True
            noticed = bool(self._connection.notifies)
            self._connection.notifies.clear()
            return noticed
        except (psycopg2.Error, DatabaseUnavailable):
            self.close()
            if readable([bell], min(timeout, _RECONNECT_S)):
                bell.silence()
            return False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
