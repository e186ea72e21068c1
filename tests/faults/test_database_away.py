"""The database server is away for longer than a lease: work waits, and nothing is lost or done twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_balsam.db.server import Server
from tests.conftest import new_database
from tests.faults.conftest import Campaign, until

LEASE_S = 2.0

TASKS = """
    @python_app
    def line(number, directory):
        import time
        time.sleep(0.2)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    if __name__ == "__main__":
        with load(workflow="away", lease_s=2.0):
            report([future.result() for future in [line(n, DIRECTORY) for n in range(100)]])
"""


@pytest.fixture
def url(own_server: Server) -> Iterator[str]:
    with new_database(own_server) as url:
        yield url


def test_database_is_away_for_longer_than_a_lease(campaign: Campaign, own_server: Server, tmp_path: Path) -> None:
    script = campaign.start(campaign.write(TASKS))
    until(lambda: len(campaign.lines) >= 10)
    own_server.stop()
    back_at = time.monotonic() + 2 * LEASE_S
    until(lambda: time.monotonic() > back_at)
    own_server.start()
    assert campaign.finish(script) == list(range(100))
    assert Counter(campaign.lines) == Counter(str(n) for n in range(100))
    assert {(state, number, outcome) for _, state, number, outcome in campaign.attempts()} == {("done", 1, "done")}
    campaign.check_invariants()
    until(lambda: not campaign.processes())
