"""The server has no connection to give: what runs goes on when it has, and each program makes do with its share."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from parsl_balsam.db.connect import USUAL_CONNECTIONS
from parsl_balsam.db.schema import blocks
from parsl_balsam.db.server import Server
from tests.conftest import new_database
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

#: Each has one more, on which it listens.
OF_SCRIPT = USUAL_CONNECTIONS + 1
OF_LAUNCHER = 1 + 1

SCRIPT = """
    from parsl.providers import LocalProvider

    @python_app
    def line(number, directory):
        import time
        time.sleep(0.2)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number

    if __name__ == "__main__":
        provider = LocalProvider(init_blocks=1, max_blocks=1, worker_init=(Path(DIRECTORY) / "init").read_text())
        with load(workflow="lines", lease_s=20.0, provider=provider):
            report([future.result() for future in [line(n, DIRECTORY) for n in range(40)]])
"""


@dataclass(frozen=True)
class Account:
    """A user of the server who may have only so many connections. One who owns the server is not limited."""

    server: Server
    name: str
    log_start: int

    def allow(self, connections: int) -> None:
        """Limit new connections; those that there are stay. -1 is for no limit."""
        _execute(self.server, f"ALTER ROLE {self.name} CONNECTION LIMIT {connections}")

    def disconnect(self) -> None:
        """End all connections of this user."""
        _execute(self.server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.name}'")

    def refusals(self) -> int:
        """Return how many connections were refused."""
        with (self.server.directory / "log").open() as log:
            log.seek(self.log_start)
            return log.read().count(f'too many connections for role "{self.name}"')


@pytest.fixture
def account(postgres_server: Server) -> Iterator[Account]:
    name = f"limited_{secrets.token_hex(4)}"
    _execute(postgres_server, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    try:
        yield Account(postgres_server, name, (postgres_server.directory / "log").stat().st_size)
    finally:
        _execute(postgres_server, f"DROP ROLE {name}")


@pytest.fixture
def url(account: Account) -> Iterator[str]:
    with new_database(account.server) as owners:
        url = make_url(owners)
        _execute(account.server, f"ALTER DATABASE {url.database} OWNER TO {account.name}")
        yield url.set(username=account.name, password=account.name).render_as_string(hide_password=False)


def _execute(server: Server, statement: str) -> None:
    with closing(psycopg2.connect(server.url().replace("+psycopg2", "", 1))) as session, session.cursor() as cursor:
        session.autocommit = True
        cursor.execute(statement)


def check_all_ran_once(campaign: Campaign) -> None:
    assert Counter(campaign.lines) == Counter(str(n) for n in range(40))
    assert Counter(campaign.attempts()) == {("line", "done", 1, "done"): 40}
    assert [row.state for row in rows(campaign.url, blocks)] == ["ended"]
    campaign.check_invariants()


def test_script_and_launcher_make_do_with_their_shares(campaign: Campaign, account: Account) -> None:
    (campaign.directory / "init").write_text("")
    account.allow(OF_SCRIPT + OF_LAUNCHER)
    assert campaign.run(campaign.write(SCRIPT)) == list(range(40))
    until(lambda: not campaign.processes())
    assert account.refusals() == 0
    check_all_ran_once(campaign)


def test_no_connection_is_left_for_a_while(campaign: Campaign, account: Account) -> None:
    (campaign.directory / "init").write_text("")
    script = campaign.start(campaign.write(SCRIPT))
    until(lambda: len(campaign.lines) >= 5)
    account.allow(0)
    account.disconnect()
    until(lambda: account.refusals() >= 10)
    account.allow(-1)
    assert campaign.finish(script) == list(range(40))
    until(lambda: not campaign.processes())
    check_all_ran_once(campaign)


def test_launcher_waits_for_a_connection(campaign: Campaign, account: Account) -> None:
    gate = campaign.directory / "gate"
    (campaign.directory / "init").write_text(f"until [ -e '{gate}' ]; do sleep 0.02; done")
    script = campaign.start(campaign.write(SCRIPT))
    until(lambda: campaign.processes("sleep 0.02"))
    account.allow(0)
    gate.touch()
    until(lambda: any("does not answer" in log.read_text() for log in campaign.directory.rglob("*.sh.err")))
    account.allow(-1)
    assert campaign.finish(script) == list(range(40))
    until(lambda: not campaign.processes())
    check_all_ran_once(campaign)
