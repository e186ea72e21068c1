"""The same storm where blocks are jobs of Slurm and tasks have ranks on two nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_balsam.db.server import Server
from tests.campaigns import SiteCampaign, site_campaign
from tests.conftest import new_database
from tests.faults.chaos import Act, Storm, Target, make_jobs, schedule, seed_of, write_script
from tests.faults.conftest import until
from tests.faults.test_chaos import SERVER_STRIKES, check_aftermath
from tests.slurm.cluster import Cluster

LEASE_S = 3.0
STORM_S = 25.0
PAUSE_S = (1.0, 2.0)
JOBS = 60

LOAD = "load_blocks(OPTIONS, nodes_per_block=2, init_blocks=2, max_blocks=2)"

#: Not that a guard is killed or frozen: with it goes its agent, see "What is not guaranteed" in docs/design.md.
STRIKES = [
    *((target, act) for target in (Target.SCRIPT, Target.LAUNCHER, Target.AGENT, Target.WORKER) for act in Act),
    *SERVER_STRIKES,
    (Target.LAUNCHER, Act.KILL),
    (Target.SCRIPT, Act.KILL),
]


@pytest.fixture
def campaign(cluster: Cluster, own_server: Server, tmp_path: Path) -> Iterator[SiteCampaign]:
    with (
        new_database(own_server) as url,
        site_campaign("SlurmProvider", cluster.environ, url, tmp_path, cluster.cancel_all) as made,
    ):
        yield made


def test_storm(campaign: SiteCampaign, cluster: Cluster, own_server: Server) -> None:
    seed = seed_of(os.environ, 1)
    print(f"BALSAM_CHAOS_SEED={seed}")
    jobs = make_jobs(seed, JOBS, wide=True)
    storm = Storm(campaign, write_script(campaign, jobs, LOAD, LEASE_S), own_server)
    try:
        script = storm.rage(schedule(seed, STORM_S, STRIKES, LEASE_S, PAUSE_S))
        check_aftermath(campaign, jobs, script)
        until(lambda: not cluster.jobs())
    finally:
        print("\n".join(storm.told))
