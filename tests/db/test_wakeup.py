"""How processes learn that something changed."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import text

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.wakeup import Bell, Topic, listen, notify
from parsl_balsam.db.watch import touch, watch
from parsl_balsam.model.states import Outcome

from .conftest import LIMIT_S, Campaign, Launcher, Story, check_invariants, column, wait_until

#: A wait that ends with it was not woken. Longer than any test waits for a waiter.
NEVER_S = 10 * LIMIT_S


class Waiter(threading.Thread):
    """Waits for one topic again and again, and counts how often it was woken."""

    def __init__(self, database: Database, workflow_id: int, topic: Topic) -> None:
        super().__init__(daemon=True)
        self._wakeup = listen(database, workflow_id, topic)
        self.bell = Bell()
        self.count = 0
        self._closing = False
        self.start()

    def run(self) -> None:
        while not self._closing:
            self._wakeup.wait(NEVER_S, self.bell)
            self.count += 1

    def expect(self, count: int) -> None:
        """Return when it was woken for that time."""
        wait_until(lambda: self.count >= count)
        assert self.count == count

    def close(self) -> None:
        """End."""
        self._closing = True
        self.bell.ring()
        self.join(LIMIT_S)
        assert not self.is_alive()
        self._wakeup.close()
        self.bell.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what is entered into it, after the test."""
    with ExitStack() as stack:
        yield stack


def wait_for(stack: ExitStack, database: Database, workflow_id: int, topic: Topic) -> Waiter:
    return stack.enter_context(closing(Waiter(database, workflow_id, topic)))


def commit_notice(database: Database, workflow_id: int, topic: Topic) -> None:
    with database.begin() as connection:
        notify(connection, workflow_id, topic)


def test_notice_wakes_for_its_topic_and_workflow_only(database: Database, stack: ExitStack) -> None:
    finished = wait_for(stack, database, 1, Topic.FINISHED)
    work = wait_for(stack, database, 1, Topic.WORK)
    elsewhere = wait_for(stack, database, 2, Topic.FINISHED)
    for count in (1, 2, 3):
        commit_notice(database, 1, Topic.FINISHED)
        finished.expect(count)
    assert (work.count, elsewhere.count) == (0, 0)
    commit_notice(database, 1, Topic.WORK)
    work.expect(1)
    commit_notice(database, 2, Topic.FINISHED)
    elsewhere.expect(1)
    assert finished.count == 3
    check_invariants(database)


def test_other_commits_wake_nobody(database: Database, campaign: Campaign, stack: ExitStack) -> None:
    work = wait_for(stack, database, campaign.run.workflow_id, Topic.WORK)
    finished = wait_for(stack, database, campaign.run.workflow_id, Topic.FINISHED)
    launcher = Launcher(campaign)
    for _ in range(3):
        launcher.exchange(want=1)
    assert (work.count, finished.count) == (0, 0)
    campaign.task()
    work.expect(1)
    launcher.run(Outcome.DONE)
    finished.expect(1)
    assert work.count == 1
    check_invariants(database)


def test_transaction_that_is_rolled_back_wakes_nobody(database: Database, stack: ExitStack) -> None:
    waiter = wait_for(stack, database, 1, Topic.WORK)

    def notify_and_fail() -> None:
        with database.begin() as connection:
            notify(connection, 1, Topic.WORK)
            raise KeyError

    with pytest.raises(KeyError):
        notify_and_fail()
    assert waiter.count == 0
    commit_notice(database, 1, Topic.WORK)
    waiter.expect(1)
    check_invariants(database)


def test_change_before_the_wait_ends_it(database: Database, stack: ExitStack) -> None:
    wakeup = stack.enter_context(closing(listen(database, 1, Topic.WORK)))
    bell = stack.enter_context(closing(Bell()))
    commit_notice(database, 1, Topic.WORK)
    Story(lambda: wakeup.wait(NEVER_S, bell)).result()
    check_invariants(database)


def test_wait_ends_when_its_time_is_over(database: Database) -> None:
    with closing(listen(database, 1, Topic.WORK)) as wakeup, closing(Bell()) as bell:
        wakeup.wait(0.01, bell)
        wakeup.wait(0.0, bell)
    check_invariants(database)


def test_bell_ends_a_wait(database: Database, stack: ExitStack) -> None:
    waiter = wait_for(stack, database, 1, Topic.WORK)
    for count in (1, 2, 3):
        waiter.bell.ring()
        waiter.expect(count)
    check_invariants(database)


@pytest.fixture
def many_files(stack: ExitStack) -> None:
    """Have so many files open that those which are opened from now on have numbers that `select` does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 1500
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            pytest.skip(f"no more than {hard} files may be open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    latest = -1
    while latest < 1024:
        latest = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, latest)


def test_script_may_have_many_files_open(database: Database, stack: ExitStack, many_files: None) -> None:
    waiter = wait_for(stack, database, 1, Topic.WORK)
    assert waiter.bell.fileno() >= 1024
    commit_notice(database, 1, Topic.WORK)
    waiter.expect(1)
    waiter.bell.ring()
    waiter.expect(2)
    check_invariants(database)


def test_file_is_watched_though_many_are_open(tmp_path: Path, stack: ExitStack, many_files: None) -> None:
    path = tmp_path / "file"
    path.touch()
    heard = watch(str(path))
    assert heard is not None
    stack.enter_context(closing(heard))
    assert heard.fileno() >= 1024


def test_bell_rung_early_and_often_ends_one_wait(database: Database, stack: ExitStack) -> None:
    wakeup = stack.enter_context(closing(listen(database, 1, Topic.WORK)))
    bell = stack.enter_context(closing(Bell()))
    for _ in range(100_000):  # more than fit into a pipe
        bell.ring()
    woken = threading.Semaphore(0)

    def wait_twice() -> None:
        for _ in range(2):
            wakeup.wait(NEVER_S, bell)
            woken.release()

    waiting = threading.Thread(target=wait_twice, daemon=True)
    waiting.start()
    assert woken.acquire(timeout=LIMIT_S)
    assert not woken.acquire(blocking=False)
    bell.ring()
    assert woken.acquire(timeout=LIMIT_S)
    waiting.join(LIMIT_S)
    check_invariants(database)


NOTIFY = """
import sys
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.wakeup import Topic, notify

with open_database(sys.stdin.readline().strip()).begin() as connection:
    notify(connection, 1, Topic.FINISHED)
"""


def test_another_process_wakes(database: Database, database_url: str, stack: ExitStack) -> None:
    waiter = wait_for(stack, database, 1, Topic.FINISHED)
    subprocess.run([sys.executable, "-c", NOTIFY], input=database_url, text=True, check=True, timeout=LIMIT_S)
    waiter.expect(1)
    check_invariants(database)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """A database without tasks in a file, for what concerns files only."""
    with closing(open_database(f"sqlite:///{tmp_path / 'balsam.db'}")) as database:
        yield database


def test_notice_is_heard_and_not_looked_for(
    sqlite_database: Database, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parsl_balsam.db.wakeup._HEARING_POLL_S", NEVER_S)
    waiter = wait_for(stack, sqlite_database, 1, Topic.FINISHED)
    url = str(sqlite_database.url)
    for count in (1, 2, 3):
        subprocess.run([sys.executable, "-c", NOTIFY], input=url, text=True, check=True, timeout=LIMIT_S)
        waiter.expect(count)
    check_invariants(sqlite_database)


def test_notice_wakes_where_files_cannot_be_watched(
    sqlite_database: Database, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parsl_balsam.db.wakeup.watch", lambda _: None)
    waiter = wait_for(stack, sqlite_database, 1, Topic.FINISHED)
    for count in (1, 2, 3):
        commit_notice(sqlite_database, 1, Topic.FINISHED)
        waiter.expect(count)
    check_invariants(sqlite_database)


def test_notice_wakes_though_its_writer_was_killed_before_it_told(
    sqlite_database: Database, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parsl_balsam.db.connect.tell", lambda _: None)
    waiter = wait_for(stack, sqlite_database, 1, Topic.FINISHED)
    commit_notice(sqlite_database, 1, Topic.FINISHED)
    waiter.expect(1)
    check_invariants(sqlite_database)


def test_file_that_cannot_be_watched_costs_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    assert watch(str(tmp_path / "missing")) is None
    assert os.listdir("/proc/self/fd") == before


def test_watch_hears_only_what_comes_after_it_was_cleared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    heard = watch(str(path))
    assert heard is not None
    with closing(heard):
        assert not select.select([heard], [], [], 0.0)[0]
        for _ in range(3):
            touch(str(path))
        assert select.select([heard], [], [], LIMIT_S)[0]
        heard.clear()
        assert not select.select([heard], [], [], 0.0)[0]
        touch(str(path))
        assert select.select([heard], [], [], LIMIT_S)[0]


LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'parsl-balsam wakeup'"


def test_listener_comes_back_after_its_connection_was_lost(postgres_database: Database, stack: ExitStack) -> None:
    wakeup = stack.enter_context(closing(listen(postgres_database, 1, Topic.WORK)))
    bell = stack.enter_context(closing(Bell()))
    (lost,) = column(postgres_database, f"SELECT pid {LISTENERS}")
    assert column(postgres_database, "SELECT pg_terminate_backend(:pid, 10000)", pid=lost) == [True]

    def wait_until_back() -> None:
        while column(postgres_database, f"SELECT query {LISTENERS}") != ['LISTEN "balsam_work_1"']:
            wakeup.wait(NEVER_S, bell)  # ends for the loss, and again when it is back

    Story(wait_until_back).result()
    waiting = Story(lambda: wakeup.wait(NEVER_S, bell))
    commit_notice(postgres_database, 1, Topic.WORK)
    waiting.result()
    check_invariants(postgres_database)


def test_url_may_have_connection_options(empty_postgres_url: str, stack: ExitStack) -> None:
    url = f"{empty_postgres_url}?connect_timeout=7&application_name=mine&sslmode=prefer"
    database = stack.enter_context(closing(open_database(url)))
    waiter = wait_for(stack, database, 1, Topic.WORK)
    commit_notice(database, 1, Topic.WORK)
    waiter.expect(1)
    check_invariants(database)


def test_listener_comes_as_soon_as_there_is_a_connection_for_it(
    postgres_database: Database, postgres_url: str, stack: ExitStack
) -> None:
    closed = stack.enter_context(closing(open_database(postgres_url)))
    bell = stack.enter_context(closing(Bell()))
    allow = f"ALTER DATABASE {closed.url.database} ALLOW_CONNECTIONS"
    with postgres_database.begin() as connection:
        connection.execute(text(f"{allow} false"))
    wakeup = stack.enter_context(closing(listen(closed, 1, Topic.WORK)))
    assert not wakeup.wait(0.01, bell)
    with postgres_database.begin() as connection:
        connection.execute(text(f"{allow} true"))
    assert wakeup.wait(NEVER_S, bell)  # there may have been a notice meanwhile
    waiting = Story(lambda: wakeup.wait(NEVER_S, bell))
    commit_notice(closed, 1, Topic.WORK)
    assert waiting.result()
    check_invariants(closed)
