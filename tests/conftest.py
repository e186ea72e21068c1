"""Fixtures for all tests: a real PostgreSQL, and databases in it."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from parsl_balsam.db.binaries import find_binaries
from parsl_balsam.db.keyfile import KEY_VARIABLE
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import ServerError
from tests.requirements import unavailable


def pytest_configure() -> None:
    """Let the programs that tests start be interrupted, also where these tests run in the background of a script.

    Shells have such jobs ignore SIGINT, and ``nohup`` SIGHUP. Both would be inherited.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sign with a key of these tests, and leave the user's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(tmp_path_factory.mktemp("key") / "key"))
        yield


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """Directory of PostgreSQL's programs; without any, the test is skipped, or fails under CI=true."""
    try:
        return find_binaries().directory
    except ServerError as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def postgres_server(postgres_binaries: Path) -> Iterator[Server]:
    """A running server that all tests share."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def own_server(postgres_binaries: Path) -> Iterator[Server]:
    """A server that tests may stop; they leave it running."""
    with running_server() as server:
        yield server


@contextmanager
def running_server() -> Iterator[Server]:
    # Not tmp_path: that is closed to the account that runs PostgreSQL when the tests run as root.
    home = Path(tempfile.mkdtemp(dir="/tmp", prefix="balsam-test-"))
    home.chmod(0o711)
    server = Server(home / "server")
    try:
        server.init()
        server.start()
        yield server
    finally:
        try:
            server.stop()
        finally:
            shutil.rmtree(home)


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """URL of a new, empty database that is dropped after the test."""
    with new_database(postgres_server) as url:
        yield url


@contextmanager
def new_database(server: Server) -> Iterator[str]:
    """Make a database for as long as it is used."""
    url = make_url(server.url())
    name = f"test_{secrets.token_hex(8)}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: Server, statement: str) -> None:
    dsn = server.url().replace("+psycopg2", "", 1)
    with closing(psycopg2.connect(dsn)) as session, session.cursor() as cursor:
        session.autocommit = True
        cursor.execute(statement)
