"""Launchers that cannot write to SQLite, since it is locked or full, and say beside it that they live."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from parsl_balsam.db.blocks import close_block, open_block, reap
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.lifeline import Lifeline

from .conftest import Campaign, Launcher, at_once, check_invariants, outcomes, state, wait_until

LEASE_S = 0.2


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with closing(open_database(f"sqlite:///{tmp_path}/balsam.db")) as database:
        yield database


class Held(Launcher):
    """A launcher with one task, whose lease in the database is over."""

    def __init__(self, database: Database, directory: Path) -> None:
        campaign = Campaign(database)
        self.task = campaign.task()
        super().__init__(campaign, LEASE_S)
        open_block(database, self.block_id, "node1", 1, str(directory))
        self.line = Lifeline(str(directory), self.block_id)
        self.line.make()
        self.begin()
        self.outlive_lease()


def test_who_says_beside_the_database_that_he_lives_is_not_reaped(sqlite: Database, tmp_path: Path) -> None:
    launcher = Held(sqlite, tmp_path)
    launcher.line.renew(time.time() + 3600.0)
    assert reap(sqlite) == []
    assert state(sqlite, launcher.task) == "running"
    launcher.exchange()
    launcher.outlive_lease()
    launcher.line.renew(time.time())
    wait_until(lambda: reap(sqlite) == [launcher.block_id])
    assert outcomes(sqlite, launcher.task) == ["crash"]
    assert [name for name in os.listdir(tmp_path) if "alive" in name] == []
    check_invariants(sqlite)


def test_file_says_nothing_before_it_was_renewed(sqlite: Database, tmp_path: Path) -> None:
    launcher = Held(sqlite, tmp_path)
    launcher.line.make()
    assert reap(sqlite) == [launcher.block_id]


def test_who_was_given_up_cannot_renew(sqlite: Database, tmp_path: Path) -> None:
    launcher = Held(sqlite, tmp_path)
    assert reap(sqlite) == [launcher.block_id]
    with pytest.raises(FileNotFoundError):
        launcher.line.renew(time.time())
    check_invariants(sqlite)


def test_a_renewal_in_the_same_moment_counts_or_fails(tmp_path: Path) -> None:
    line = Lifeline(str(tmp_path), 1)
    for _ in range(200):
        line.make()

        def renew() -> bool:
            try:
                line.renew(time.time())
            except FileNotFoundError:
                return False
            return True

        renewed, given_up = at_once(renew, lambda: line.cut(60.0, time.time()))
        assert renewed + given_up <= 1
        line.remove()


def test_a_reaper_that_died_between_does_not_take_a_renewal_away(tmp_path: Path) -> None:
    line = Lifeline(str(tmp_path), 1)
    line.make()
    line.renew(time.time())
    (tmp_path / "alive-1").rename(tmp_path / "alive-1.over")
    assert not line.cut(60.0, time.time())
    assert line.cut(60.0, time.time() + 61.0)


def test_closed_block_leaves_no_file(sqlite: Database, tmp_path: Path) -> None:
    launcher = Held(sqlite, tmp_path)
    close_block(sqlite, launcher.block_id, "no work")
    assert [name for name in os.listdir(tmp_path) if "alive" in name] == []
    check_invariants(sqlite)


def test_reaper_that_cannot_see_the_directory_reaps(sqlite: Database, tmp_path: Path) -> None:
    launcher = Held(sqlite, tmp_path / "elsewhere")
    launcher.line.renew(time.time())
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    assert reap(sqlite) == [launcher.block_id]
