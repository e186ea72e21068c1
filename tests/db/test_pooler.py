"""A PgBouncer before the server: what does not work behind it is said, and nothing is lost."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import make_url

from parsl_balsam.db.connect import open_database
from parsl_balsam.db.ports import free_port
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.model.errors import DatabaseDenied, DatabaseUnavailable
from parsl_balsam.model.states import Outcome
from tests.requirements import require

from .conftest import LIMIT_S, Campaign, Launcher, Story, check_invariants, ended, state, wait_until

T = TypeVar("T")

_TAKES_ALL = "ignore_startup_parameters = options"

_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
auth_type = any
unix_socket_dir =
pool_mode = {mode}
{more}
"""


@contextmanager
def pooler(url: str, mode: str, more: str = "") -> Iterator[str]:
    """Run a PgBouncer before a database; give the URL that leads through it."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    require(["pgbouncer"], "pgbouncer", path)
    program = str(shutil.which("pgbouncer", path=path))
    server = make_url(url)
    home = Path(tempfile.mkdtemp(dir="/tmp", prefix="balsam-test-"))
    try:
        own_port = free_port("127.0.0.1", None)
        file = home / "pgbouncer.ini"
        file.write_text(
            _CONFIGURATION.format(
                host=server.host,
                port=server.port,
                user=server.username,
                password=server.password,
                own_port=own_port,
                mode=mode,
                more=more,
            )
        )
        user = None
        if os.geteuid() == 0:  # as which it does not run
            user = pwd.getpwnam("nobody").pw_uid
            for owned in (home, file):
                os.chown(owned, user, -1)
        through = server.set(host="127.0.0.1", port=own_port)
        with subprocess.Popen([program, str(file)], user=user, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: _answers(own_port))
                yield through.render_as_string(hide_password=False)
            finally:
                process.kill()
    finally:
        shutil.rmtree(home)


def _answers(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port))):
            return True
    except OSError:
        return False


def insist(step: Callable[..., T], *arguments: Any) -> T:
    """Do what scripts and launchers do when the database does not answer: once more."""
    for _ in range(5):
        try:
            return step(*arguments)
        except DatabaseUnavailable:  # the plans are not where they were made
            pass
    raise AssertionError("it never answers")


def live(url: str) -> None:
    """Let tasks pass through all their states, and learn of each step by waiting for it."""
    with closing(open_database(url)) as database, closing(Bell()) as bell:
        campaign = insist(Campaign, database)
        launcher = insist(Launcher, campaign)
        workflow_id = campaign.run.workflow_id
        with (
            closing(listen(database, workflow_id, Topic.WORK)) as work,
            closing(listen(database, workflow_id, Topic.FINISHED)) as finished,
        ):
            for number in range(3):
                waiting = Story(lambda: work.wait(10 * LIMIT_S, bell))
                task_id = insist(campaign.task, str(number))
                assert waiting.result()
                (task,) = insist(launcher.claim, 1)
                waiting = Story(lambda: finished.wait(10 * LIMIT_S, bell))
                insist(launcher.claims.exchange, [], [ended(task, Outcome.DONE)])
                assert waiting.result()
                assert insist(state, database, task_id) == "done"
        check_invariants(database)


def test_pooler_that_takes_no_settings_is_refused_with_what_to_do(empty_postgres_url: str) -> None:
    with (
        pooler(empty_postgres_url, "session") as url,
        pytest.raises(DatabaseDenied, match="Give the URL of the server itself"),
    ):
        open_database(url)


def test_session_pooler_is_as_good_as_the_server(empty_postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pooler(empty_postgres_url, "session", _TAKES_ALL) as url:
        live(url)
    assert not [text for text in caplog.messages if "notifications" in text]


def test_behind_a_transaction_pooler_who_waits_looks_by_the_clock(
    empty_postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pooler(empty_postgres_url, "transaction", _TAKES_ALL) as url:
        live(url)
    (first, *_) = [text for text in caplog.messages if "notifications" in text]
    assert "Give the URL of the server itself" in first
    assert "***" in first
