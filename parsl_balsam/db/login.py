"""connection.json: where a user's own PostgreSQL server is, and how to log in to it."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from parsl_balsam.db.binaries import Account
from parsl_balsam.model.errors import ServerError

_CONNECT_WAIT_S = 10


@dataclass(frozen=True, slots=True)
class Login:
    """The content of connection.json, and what is done with it."""

    user: str
    password: str = field(repr=False)
    database: str
    listen: str  #: PostgreSQL's listen_addresses
    host: str  #: a name or address of it that clients connect to
    port: int | None = None  #: None before the first start
    node: str | None = None  #: host name of the machine the server was started on last

    @classmethod
    def read(cls, file: Path) -> Login:
        """Read `file`; raises ServerError if it is another user's, open to others, or unreadable."""
        try:
            found = file.stat()
            if found.st_uid != os.geteuid():
                raise ServerError(f"{file} belongs to another user: run this command as that user")
            if found.st_mode & 0o077:
                raise ServerError(
                    f"{file} has the password and is open to other users: run `chmod 600 {shlex.quote(str(file))}`"
                )
            return cls(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ServerError(f"Cannot read {file}: {error}") from error

    def write(self, file: Path) -> None:
        """Replace `file` in one step, mode 0600."""
        new = file.with_name(f"{file.name}.new")
        write_private(new, json.dumps(asdict(self), indent=2) + "\n")
        new.replace(file)

    def url(self) -> str:
        """Return the SQLAlchemy URL, password included."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"postgresql+psycopg2://{login}@{host}:{self.port}/{quote(self.database, safe='')}"

    def create_database(self) -> None:
        """Create the database unless it exists; raises ServerError."""
        try:
            with closing(self._open()) as session, session.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.database,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{self.database}"')
        except psycopg2.Error as error:
            raise ServerError(f"The server runs, but cannot be used: {str(error).strip()}") from error

    def ask(self) -> Answer | None:
        """Return what the server says of itself, or None if it does not answer."""
        try:
            with closing(self._open()) as session, session.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                major, minor = divmod(session.server_version, 10000)
                return Answer(f"{major}.{minor}", int(cursor.fetchone()[0]))
        except psycopg2.Error:
            return None

    def _open(self) -> Any:
        session = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname="postgres",
            connect_timeout=_CONNECT_WAIT_S,
        )
        session.autocommit = True
        return session


@dataclass(frozen=True, slots=True)
class Answer:
    """What a running server says of itself."""

    version: str  #: of PostgreSQL, such as "15.4"
    connections: int  #: clients connected now, without the one that asks


def write_private(path: Path, text: str, owner: Account | None = None) -> None:
    """Write a file of mode 0600 anew, and give it to `owner` if there is one."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if owner:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
