"""Clocks of hosts are off by an hour: leases, waits and recorded times go by the database's clock."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from parsl_balsam.db.connect import now, open_database
from parsl_balsam.db.schema import attempts, blocks, events, runs, tasks
from tests.clocks import HOUR_S, WrongClock
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

TASKS = 24
LEASE_S = 2.0
BACKOFF_S = 1.5

#: Every time that is recorded, but for the ends of leases, which are ahead.
TIMES = (
    tasks.c.submitted_at,
    tasks.c.finished_at,
    attempts.c.claimed_at,
    attempts.c.started_at,
    attempts.c.ended_at,
    events.c.at,
    blocks.c.requested_at,
    blocks.c.started_at,
    blocks.c.ended_at,
    runs.c.started_at,
    runs.c.ended_at,
)

SCRIPT = """
    from parsl.providers import LocalProvider

    @python_app
    def clock(number, directory):
        import os, time
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        if number == 0 and open(directory + "/lines").read().split().count("0") == 1:
            raise RuntimeError("not yet")
        time.sleep(0.5)
        while number < 4 and not os.path.exists(directory + "/gate"):
            time.sleep(0.05)
        return time.time()

    if __name__ == "__main__":
        worker_init, lease_s, backoff_s = json.loads((Path(DIRECTORY) / "options").read_text())
        provider = LocalProvider(init_blocks=2, max_blocks=2, worker_init=worker_init)
        policy = RetryPolicy(max_retries=1, backoff_s=backoff_s)
        began = time.time()
        with load(workflow="clocks", lease_s=lease_s, cores_per_node=2, retry=policy, provider=provider):
            report([began, *(future.result() for future in [clock(n, DIRECTORY) for n in range(TASKS)])])
""".replace("TASKS", str(TASKS))


@pytest.fixture
def url(postgres_url: str) -> str:
    """A server has a clock of its own; SQLite goes by that of the one host it serves."""
    return postgres_url


@pytest.fixture(scope="module")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> WrongClock:
    return WrongClock.compiled(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def story(campaign: Campaign, wrong_clock: WrongClock) -> Iterator[Path]:
    """A script with two blocks: the launcher of one has a clock an hour ahead, that of the other an hour behind.

    All it records is recorded while the test runs, on the database's clock.
    """
    directory = shlex.quote(str(campaign.directory))
    worker_init = (
        f"if mkdir {directory}/first 2>/dev/null; then {wrong_clock.exports(1)}; else {wrong_clock.exports(-1)}; fi"
    )
    (campaign.directory / "options").write_text(json.dumps([worker_init, LEASE_S, BACKOFF_S]))
    began = database_clock(campaign)
    yield campaign.write(SCRIPT)
    until(lambda: not campaign.processes())
    ended = database_clock(campaign)
    with closing(campaign.open()) as database, database.read() as connection:
        for column in TIMES:
            times = connection.execute(select(column).where(column.is_not(None))).scalars().all()
            assert times, column
            assert [time for time in times if not began <= time <= ended] == [], column
    campaign.check_invariants()


def start(campaign: Campaign, script: Path, clock: WrongClock, hours: int) -> subprocess.Popen[str]:
    """Start the script on a host whose clock is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environ(hours).items():
            patch.setenv(name, value)
        return campaign.start(script)


def finish(campaign: Campaign, script: subprocess.Popen[str]) -> list[int]:
    """Return by how many hours the script's clock was off, and then that of each task."""
    seen = campaign.finish(script)
    return [round((at - time.time()) / HOUR_S) for at in seen]


def database_clock(campaign: Campaign) -> float:
    with closing(open_database(campaign.url)) as database, database.read() as connection:
        return now(connection)


def wait_for_both(campaign: Campaign) -> None:
    """Return when both launchers have tasks."""
    until(lambda: len({row.block_id for row in rows(campaign.url, tasks, tasks.c.state == "running")}) == 2)


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_launchers_ahead_and_behind_share_a_workflow(
    campaign: Campaign, story: Path, wrong_clock: WrongClock, hours: int
) -> None:
    script = start(campaign, story, wrong_clock, hours)
    wait_for_both(campaign)
    (campaign.directory / "gate").touch()
    own, *of_tasks = finish(campaign, script)
    assert own == hours
    assert set(of_tasks) == {1, -1}
    assert Counter(campaign.lines) == Counter(["0", *map(str, range(TASKS))])
    assert {row.state for row in rows(campaign.url, blocks)} == {"ended"}
    tried = rows(campaign.url, attempts)
    assert Counter(row.outcome for row in tried) == {"done": TASKS, "error": 1}
    (failed,) = [row for row in tried if row.outcome == "error"]
    (again,) = [row for row in tried if (row.task_id, row.number) == (failed.task_id, 2)]
    assert again.claimed_at - failed.ended_at >= BACKOFF_S
    # More than one lease went by.
    assert max(row.ended_at for row in tried) - min(row.claimed_at for row in tried) > LEASE_S


@pytest.mark.parametrize("dead", [1, -1], ids=["ahead", "behind"])
def test_tasks_of_a_dead_launcher_are_taken_over(
    campaign: Campaign, story: Path, wrong_clock: WrongClock, dead: int
) -> None:
    script = start(campaign, story, wrong_clock, -dead)
    wait_for_both(campaign)
    pids = {row.pid: row.id for row in rows(campaign.url, blocks)}
    by_clock = {int(psutil.Process(pid).environ()["WRONG_CLOCK"]) // HOUR_S: pid for pid in pids}
    os.kill(by_clock[dead], signal.SIGKILL)
    lost = pids[by_clock[dead]]
    until(lambda: rows(campaign.url, blocks, blocks.c.id == lost, blocks.c.state == "lost"))
    (campaign.directory / "gate").touch()
    _, *of_tasks = finish(campaign, script)
    assert of_tasks.count(-dead) > 0
    crashed = rows(campaign.url, attempts, attempts.c.outcome == "crash")
    assert crashed
    assert {row.block_id for row in crashed} == {lost}
    done = rows(campaign.url, attempts, attempts.c.outcome == "done")
    assert sorted(row.task_id for row in done) == [row.id for row in rows(campaign.url, tasks)]
    assert [row.id for row in rows(campaign.url, blocks, blocks.c.state == "lost")] == [lost]


def test_script_is_started_again_on_a_host_with_another_clock(
    campaign: Campaign, story: Path, wrong_clock: WrongClock
) -> None:
    (campaign.directory / "gate").touch()
    script = start(campaign, story, wrong_clock, 1)
    until(lambda: len(campaign.lines) > TASKS // 3)
    campaign.kill(script)
    finish(campaign, start(campaign, story, wrong_clock, -1))
    assert Counter(campaign.lines) == Counter(["0", *map(str, range(TASKS))])
    assert {row.state for row in rows(campaign.url, blocks)} == {"ended"}
    assert Counter(row.outcome for row in rows(campaign.url, attempts)) == {"done": TASKS, "error": 1}
