"""connection.json: where a user's own PostgreSQL server is, and how to log in to it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from parsl_balsam.db.private import read_private, write_private
from parsl_balsam.model.errors import ConfigurationError, ServerError
from parsl_balsam.model.stored import read_value

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
    certificate: str | None = None  #: file by which clients know the server; None where connections are not encrypted

    @classmethod
    def read(cls, file: Path) -> Login:
        """Read `file`; raises ServerError if it is another user's, open to others, or unreadable."""
        try:
            text = read_private(file)
        except OSError as error:
            raise ServerError(f"Cannot read {file}: {error}") from error
        except ConfigurationError as error:
            raise ServerError(str(error)) from error
        try:
            return read_value(cls, text, "it")
        except ConfigurationError as error:
            raise ServerError(f"Cannot read {file}: {error} Or put a copy from before in its place") from error

    def write(self, file: Path) -> None:
        """Replace `file` in one step, mode 0600."""
        write_private(file, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def encrypted(self) -> bool:
        """Whether the server takes connections with TLS only."""
        return self.certificate is not None

    def url(self) -> str:
        """Return the SQLAlchemy URL, password included."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        encryption = "&".join(f"{name}={quote(value, safe='')}" for name, value in self._encryption().items())
        database = quote(self.database, safe="")
        return f"postgresql+psycopg2://{login}@{host}:{self.port}/{database}{encryption and '?'}{encryption}"

    def create_database(self) -> None:
        """Create the database unless it exists, and close it to other roles; raises ServerError.

        What its owner has granted to roles by name stays.
        """
        try:
            with closing(self._open()) as session, session.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.database,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{self.database}"')
                cursor.execute(f'REVOKE ALL ON DATABASE "{self.database}" FROM PUBLIC')
            with closing(self._open(self.database)) as session, session.cursor() as cursor:
                cursor.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # granted before PostgreSQL 15
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

    def _encryption(self) -> dict[str, str]:
        """Return what clients must say to encrypt, and to know the server."""
        # Not verify-full: the certificate has no host's name, but is the only one that is accepted.
        return {} if self.certificate is None else {"sslmode": "verify-ca", "sslrootcert": self.certificate}

    def _open(self, database: str = "postgres") -> Any:
        session = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=database,
            connect_timeout=_CONNECT_WAIT_S,
            **self._encryption(),
        )
        session.autocommit = True
        return session


@dataclass(frozen=True, slots=True)
class Answer:
    """What a running server says of itself."""

    version: str  #: of PostgreSQL, such as "15.4"
    connections: int  #: clients connected now, without the one that asks
