"""Processes that were frozen past a lease find, when they go on, that others have their work: they write nothing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import psutil
import pytest
from sqlalchemy import make_url

from parsl_balsam.db.schema import attempts, blocks, runs
from tests.db.conftest import check_invariants, now, snapshot
from tests.executor.parsl_runs import rows
from tests.faults.chaos import STAMPS, Copy, Target, by_part, overlapping, read_copies, read_stamps
from tests.faults.conftest import PATIENCE_S, Campaign, until

LEASE_S = 1.5

SCRIPT = """
    from parsl.providers import LocalProvider

    class Quick(LocalProvider):
        status_polling_interval = 0.1

    @bash_app
    def work(stamps, directory):
        # The first attempt would go on for long, as a program in a session of its own.
        return (
            "if [ $BALSAM_ATTEMPT = 1 ]; then seconds=60; else seconds=0.3; fi; "
            + "setsid --wait " + sys.executable + " -S -E " + stamps + " " + directory + "/stamps 0 $seconds 0"
        )

    if __name__ == "__main__":
        (Path(DIRECTORY) / "stamps").mkdir(exist_ok=True)
        options = dict(lease_s=1.5, cores_per_node=1, block_pause_s=0.001, provider=Quick(init_blocks=2, max_blocks=2))
        with load(workflow="stale", **options) as kernel:
            executor = kernel.executors["balsam"]
            result = work({stamps!r}, DIRECTORY).result()
            while not (Path(DIRECTORY) / "gate").exists():
                if executor.bad_state_is_set:
                    raise executor.executor_exception
                time.sleep(0.02)
            report(result)
"""

#: Who is frozen. A task whose launcher, agent and guard are all frozen has nobody to end it.
VICTIMS = {
    "launcher": [Target.LAUNCHER],
    "launcher and agent": [Target.LAUNCHER, Target.AGENT],
    "launcher and guard": [Target.LAUNCHER, Target.GUARD],
    "agent": [Target.AGENT],
    "guard": [Target.GUARD],
}


def copies(campaign: Campaign) -> list[Copy]:
    """Return the copies of the task that have come to leave a stamp."""
    return read_copies(read_stamps(campaign.directory)) if (campaign.directory / "stamps").exists() else []


def holder(campaign: Campaign) -> dict[Target, psutil.Process]:
    """Return the processes of the block that has the task."""
    (attempt,) = rows(campaign.url, attempts, attempts.c.outcome.is_(None))
    (block,) = rows(campaign.url, blocks, blocks.c.id == attempt.block_id)
    launcher = psutil.Process(block.pid)
    parts = by_part([launcher, *launcher.children(recursive=True)])
    return {part: found[0] for part, found in parts.items()}


def of_tasks(campaign: Campaign) -> dict[str, Any]:
    """Return what the database has of tasks."""
    database = campaign.open()
    content = snapshot(database)
    database.close()
    return {name: content[name] for name in ("tasks", "attempts", "results", "events")}


def signal_all(processes: Iterable[psutil.Process], what: str) -> None:
    """Freeze, thaw or kill processes that may be gone already."""
    for process in processes:
        try:
            getattr(process, what)()
        except psutil.NoSuchProcess:
            pass


def freeze(campaign: Campaign, processes: Sequence[psutil.Process]) -> None:
    """Freeze processes, but none that holds the lock of an SQLite file, for which all would wait."""
    signal_all(processes, "suspend")
    while is_locked(campaign):
        signal_all(processes, "resume")
        time.sleep(0.05)
        signal_all(processes, "suspend")


def is_locked(campaign: Campaign) -> bool:
    """Tell whether somebody is for long in a transaction that writes to an SQLite file."""
    path = make_url(campaign.url)
    if path.get_backend_name() != "sqlite":
        return False
    with closing(sqlite3.connect(str(path.database), timeout=1.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
    return False


def check_once(campaign: Campaign) -> None:
    """Check that one result stands, that copies never ran at a time, and that nothing is left."""
    campaign.check_invariants()
    database = campaign.open()
    check_invariants(database)
    database.close()
    assert overlapping(copies(campaign)) == []
    until(lambda: not campaign.processes())


@pytest.mark.parametrize("frozen", VICTIMS)
def test_frozen_past_a_lease(campaign: Campaign, frozen: str) -> None:
    script = campaign.start(campaign.write(SCRIPT.format(stamps=str(STAMPS))))
    until(lambda: copies(campaign))
    parts = holder(campaign)
    victims = [parts[part] for part in VICTIMS[frozen]]
    freeze(campaign, victims)
    if frozen != "guard":
        until(lambda: len(copies(campaign)) == 2)  # the task was taken to be dead, and runs elsewhere
        until(lambda: [row.outcome for row in rows(campaign.url, attempts)][-1] == "done")
        before = of_tasks(campaign)
        signal_all(victims, "resume")
        if "launcher" in frozen:
            until(lambda: not parts[Target.LAUNCHER].is_running())
        assert of_tasks(campaign) == before
        assert {row.outcome for row in rows(campaign.url, attempts, attempts.c.number == 1)} == {"crash"}
    else:  # it only watches
        lost = psutil.Process(parts[Target.WORKER].pid)
        parts[Target.AGENT].kill()
        until(lambda: not lost.is_running())
        until(lambda: len(copies(campaign)) == 2)
        signal_all(victims, "resume")
    (campaign.directory / "gate").touch()
    assert campaign.finish(script) == 0
    check_once(campaign)


def test_script_frozen_past_its_lease_is_succeeded(campaign: Campaign) -> None:
    script = campaign.write(SCRIPT.format(stamps=str(STAMPS)).replace("seconds=60", "seconds=4"))
    first = campaign.start(script)
    until(lambda: copies(campaign))
    freeze(campaign, [psutil.Process(first.pid)])
    until(lambda: run_is_overdue(campaign))
    second = campaign.start(script)
    until(lambda: len(rows(campaign.url, runs)) == 2)  # before that the first would renew its lease, and go on
    until(lambda: [row.outcome for row in rows(campaign.url, attempts)] == ["done"])
    before, opened = of_tasks(campaign), [how_it_goes(block) for block in rows(campaign.url, blocks)]

    psutil.Process(first.pid).resume()
    said, _ = first.communicate(timeout=PATIENCE_S)
    assert "another run took this workflow over" in said
    assert first.returncode != 0
    assert of_tasks(campaign) == before
    # The blocks work for the other run now.
    assert [how_it_goes(block) for block in rows(campaign.url, blocks)] == opened
    assert {run_id for run_id, *_ in opened} == {2}
    (campaign.directory / "gate").touch()
    assert campaign.finish(second) == 0
    check_once(campaign)
    assert len(copies(campaign)) == 1


def run_is_overdue(campaign: Campaign) -> bool:
    """Tell whether the first run has not been heard of for its lease."""
    database = campaign.open()
    at = now(database)
    database.close()
    return bool(rows(campaign.url, runs)[0].lease_until < at)


def how_it_goes(block: Any) -> tuple[Any, ...]:
    """Return what is recorded of a block, but for its lease."""
    return block.run_id, block.state, block.job_state, block.ended_at, psutil.pid_exists(block.pid)


def test_script_that_is_frozen_within_its_lease_is_not_succeeded_before_it_is_killed(campaign: Campaign) -> None:
    body = SCRIPT.format(stamps=str(STAMPS)).replace("seconds=60", "seconds=4").replace("lease_s=1.5", "lease_s=600")
    script = campaign.write(body)
    first = campaign.start(script)
    until(lambda: copies(campaign))
    freeze(campaign, [psutil.Process(first.pid)])
    output, _ = campaign.start(script).communicate(timeout=PATIENCE_S)
    assert f"is driven by process {first.pid}" in output
    campaign.kill(first)
    (campaign.directory / "gate").touch()
    assert campaign.run(script) == 0
    check_once(campaign)
    assert len(copies(campaign)) == 1
