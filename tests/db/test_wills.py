"""What launchers leave on disk while the database is away, and how it comes into the database."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parsl_balsam.db.blocks import close_block, open_block, reap, record_block
from parsl_balsam.db.connect import Database
from parsl_balsam.db.wills import Will, add_to_will, read_will, remove_will, will_file
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, Usage

from .conftest import Campaign, Launcher, check_invariants, column, ended, history, outcomes, rows, state, wait_until

LEASE_S = 0.2

FULL = AttemptEnd(
    7,
    2,
    2**62 - 1,
    Outcome.EXIT,
    host="node2",
    shares=(Share("node1", (0, 1), ("0",)), Share("node2", (4,))),
    started_at=1.25,
    ended_at=2.5,
    payload=bytes(range(256)),
    exit_code=3,
    signal=9,
    usage=Usage(123, 4.5),
    error="was\nbroken \udcff",
    output="\0",
    stderr_tail="tail",
    hopeless=True,
)


class Leaver(Launcher):
    """A launcher that leaves what it knows in a directory, and is not heard of any more."""

    def __init__(self, campaign: Campaign, directory: Path) -> None:
        super().__init__(campaign, LEASE_S)
        self.directory = str(directory)
        open_block(self.database, self.block_id, "node1", 1, self.directory)

    def leave(self, *ends: AttemptEnd, reason: str | None = None) -> None:
        add_to_will(self.directory, self.block_id, ends, reason)

    def be_reaped(self) -> None:
        wait_until(lambda: reap(self.database) == [self.block_id])


@pytest.fixture
def leaver(campaign: Campaign, tmp_path: Path) -> Leaver:
    return Leaver(campaign, tmp_path)


def block(database: Database) -> tuple[str, str]:
    (found,) = rows(database, "SELECT state, reason FROM blocks")
    return found["state"], found["reason"]


def test_all_of_it_is_read_back(tmp_path: Path) -> None:
    small = AttemptEnd(8, 1, 5, Outcome.DONE)
    directory = tmp_path / "run"
    add_to_will(str(directory), 3, [FULL])
    add_to_will(str(directory), 3, [small], "walltime")
    assert read_will(str(directory), 3) == Will((FULL, small), "walltime")
    assert os.stat(will_file(str(directory), 3)).st_mode & 0o777 == 0o600
    assert read_will(str(directory), 4) == Will()
    remove_will(str(directory), 3)
    assert read_will(str(directory), 3) == Will()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "tail",
    [
        b'{"task_id": 8, "numb',
        b"\xff\xfe\0garbage",
        b"[]",
        b"17",
        b'{"task_id": 8}',
        b'{"reason": "ended", "x": ',
        b"[" * 100_000,
    ],
)
def test_what_is_broken_is_left_out(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    add_to_will(str(tmp_path), 3, [FULL])
    with will_file(str(tmp_path), 3).open("ab") as file:
        file.write(tail)
    assert read_will(str(tmp_path), 3) == Will((FULL,))
    assert "is broken and is left out" in caplog.text
    later = replace(FULL, task_id=8)
    add_to_will(str(tmp_path), 3, [later])  # once there is room on the disk again
    assert read_will(str(tmp_path), 3) == Will((FULL, later))


def test_links_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    add_to_will(str(tmp_path), 3, [FULL])
    will_file(str(tmp_path), 4).symlink_to(will_file(str(tmp_path), 3))
    assert read_will(str(tmp_path), 4) == Will()
    if os.geteuid() == 0:
        os.chown(will_file(str(tmp_path), 3), 65534, -1)
        assert read_will(str(tmp_path), 3) == Will()


def test_results_left_by_a_launcher_that_ended_are_recorded(campaign: Campaign, leaver: Leaver) -> None:
    database = campaign.database
    done, stopped, running, assigned, unseen = (campaign.task(name) for name in "abcde")
    tasks = [leaver.begin() for _ in range(3)]
    leaver.claim()
    (short,) = leaver.claim()  # it was over before its start was recorded
    leaver.leave(ended(tasks[0], Outcome.DONE, payload=b"value"), ended(tasks[1], Outcome.ENDED))
    leaver.leave(ended(short, Outcome.DONE), reason="received SIGTERM")
    leaver.be_reaped()
    assert [state(database, task) for task in (done, stopped, running, assigned, unseen)] == [
        *("done", "ready", "ready", "ready", "done"),
    ]
    assert column(database, "SELECT payload FROM results ORDER BY task_id") == [b"value", b"result"]
    assert [outcomes(database, task) for task in (done, stopped, running, assigned, unseen)] == [
        *(["done"], ["ended"], ["ended"], [], ["done"]),  # no crash: it was a known ending
    ]
    assert history(database, unseen) == ["ready", "assigned", "running", "done"]
    assert campaign.store.fetch_since(0, list, 0)[1] == [done, unseen]
    assert block(database) == ("ended", "received SIGTERM")
    assert os.listdir(leaver.directory) == [name for name in os.listdir(leaver.directory) if "will" not in name]
    check_invariants(database)


def test_results_left_by_a_launcher_that_died_are_recorded(campaign: Campaign, leaver: Leaver) -> None:
    done, running = campaign.task("a"), campaign.task("b")
    task, _ = leaver.begin(), leaver.begin()
    leaver.leave(ended(task, Outcome.DONE))
    leaver.be_reaped()
    assert [outcomes(campaign.database, task) for task in (done, running)] == [["done"], ["crash"]]
    assert block(campaign.database)[0] == "lost"
    check_invariants(campaign.database)


def test_close_records_what_was_left(campaign: Campaign, leaver: Leaver) -> None:
    done = campaign.task()
    leaver.leave(ended(leaver.begin(), Outcome.DONE))
    close_block(campaign.database, leaver.block_id, "walltime")
    assert outcomes(campaign.database, done) == ["done"]
    assert not will_file(leaver.directory, leaver.block_id).exists()
    check_invariants(campaign.database)


def test_what_is_recorded_already_is_not_recorded_again(campaign: Campaign, leaver: Leaver) -> None:
    once, again = campaign.task("a"), campaign.task("b")
    first, second = leaver.begin(), leaver.begin()
    leaver.leave(ended(first, Outcome.ERROR), ended(second, Outcome.DONE, payload=b"stale"))
    leaver.end(first, Outcome.DONE)
    leaver.end(second, Outcome.ENDED)
    (newer,) = leaver.claim()
    leaver.start(newer)
    leaver.leave(reason="no work")
    leaver.be_reaped()
    assert outcomes(campaign.database, once) == ["done"]
    assert outcomes(campaign.database, again) == ["ended", "ended"]
    check_invariants(campaign.database)


@pytest.mark.parametrize("bad", [{"usage": Usage(peak_memory=2**70)}, {"exit_code": 2**40}])
def test_what_cannot_be_stored_keeps_nobody_from_reaping(
    campaign: Campaign, leaver: Leaver, bad: dict[str, Any]
) -> None:
    task = campaign.task()
    leaver.leave(replace(ended(leaver.begin(), Outcome.DONE), **bad))
    leaver.be_reaped()
    assert outcomes(campaign.database, task) in (["crash"], ["done"])
    check_invariants(campaign.database)


def test_what_cannot_be_seen_does_not_matter(campaign: Campaign, leaver: Leaver, tmp_path: Path) -> None:
    task = campaign.task()
    leaver.begin()
    will_file(leaver.directory, leaver.block_id).mkdir()
    leaver.be_reaped()
    assert outcomes(campaign.database, task) == ["crash"]
    check_invariants(campaign.database)


def test_launcher_that_does_not_know_whether_it_was_opened_asks_again(campaign: Campaign) -> None:
    run = campaign.run
    block_id = record_block(campaign.database, run.workflow_id, run.run_id, "1", 60.0)
    for _ in range(2):
        open_block(campaign.database, block_id, "node1", 17, "/here")
    assert rows(campaign.database, "SELECT state, pid, directory FROM blocks") == [
        {"state": "running", "pid": 17, "directory": "/here"}
    ]
