"""Processes are killed and frozen at random for a while: every task ends as it should, once."""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from parsl_balsam.db.schema import attempts, tasks
from parsl_balsam.db.server import Server
from tests.conftest import new_database
from tests.db.conftest import check_invariants
from tests.executor.parsl_runs import rows
from tests.faults.chaos import (
    Act,
    Job,
    Storm,
    Target,
    Tried,
    complaints,
    make_jobs,
    read_copies,
    read_stamps,
    schedule,
    seed_of,
    write_script,
)
from tests.faults.conftest import Campaign, until

LEASE_S = 2.0
STORM_S = 25.0
PAUSE_S = (0.5, 2.0)
JOBS = 120

LOAD = "load(provider=Quick(init_blocks=2, max_blocks=2), **{**OPTIONS, 'cores_per_node': 2})"

#: What may happen on one host. Not that an agent and its guard are struck at a time, see "What is not guaranteed" in
#: docs/design.md: strikes are far enough apart for that.
STRIKES = [
    *((target, act) for target in Target for act in Act if target is not Target.SERVER),
    (Target.LAUNCHER, Act.KILL),
    (Target.SCRIPT, Act.KILL),
]
SERVER_STRIKES = [(Target.SERVER, Act.KILL), (Target.SERVER, Act.FREEZE)]


@pytest.fixture
def server(request: pytest.FixtureRequest, url: str) -> Server | None:
    return request.getfixturevalue("own_server") if url.startswith("postgresql") else None


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/balsam.db"
    else:
        with new_database(request.getfixturevalue("own_server")) as made:
            yield made


def test_storm(campaign: Campaign, server: Server | None) -> None:
    seed = seed_of(os.environ, 1)
    print(f"BALSAM_CHAOS_SEED={seed}")
    jobs = make_jobs(seed, JOBS, wide=False)
    strikes = STRIKES + (SERVER_STRIKES if server else [])
    storm = Storm(campaign, write_script(campaign, jobs, LOAD, LEASE_S), server)
    try:
        script = storm.rage(schedule(seed, STORM_S, strikes, LEASE_S, PAUSE_S))
        check_aftermath(campaign, jobs, script)
    finally:
        print("\n".join(storm.told))


def check_aftermath(campaign: Campaign, jobs: Sequence[Job], script: subprocess.Popen[str]) -> None:
    """Let the script come to its end, and check what came of everything."""
    values, task_ids = campaign.finish(script)
    numbers = {task_id: job.number for job, task_id in zip(jobs, task_ids, strict=True)}
    states = {numbers[row.id]: row.state for row in rows(campaign.url, tasks)}
    tried: dict[int, list[Tried]] = defaultdict(list)
    for row in rows(campaign.url, attempts):
        tried[numbers[row.task_id]].append(Tried(row.number, row.outcome, row.exit_code))
    copies = read_copies(read_stamps(campaign.directory))
    wrong = complaints(jobs, values, states, tried, copies)
    assert not wrong, "\n".join(wrong)
    campaign.check_invariants()
    database = campaign.open()
    check_invariants(database)
    database.close()
    until(lambda: not campaign.processes())
