"""What is asked again and again is found by an index, however many tasks there are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from parsl_balsam.db.blocks import reap
from parsl_balsam.db.connect import Database
from parsl_balsam.model.states import Outcome

from .conftest import Campaign, Launcher, check_invariants, ended, started, statements_of, wish


@pytest.fixture
def work(database: Database) -> list[tuple[str, Any]]:
    """The statements of a task's whole life, in a database where others are over and wait."""
    campaign = Campaign(database)
    launcher = Launcher(campaign)
    campaign.submit(*(campaign.call(str(number)) for number in range(200)))
    claimed = launcher.claim(100)
    launcher.claims.exchange([], [ended(task, Outcome.DONE) for task in claimed])
    with database.begin() as connection:
        connection.execute(text("ANALYZE"))
    with statements_of(database) as seen:
        campaign.submit(campaign.call("new"), campaign.call("3"))
        (task,) = launcher.claim(1)
        launcher.claims.exchange([started(task)], [])
        launcher.claims.exchange([], [ended(task, Outcome.ERROR)], [wish(500)])
        _, over, _ = campaign.store.fetch_since(1, list, 0)
        campaign.store.fetch(over)
        reap(database)
    check_invariants(database)
    return [
        (statement, values[0] if many else values)
        for statement, values, many in seen
        if statement.startswith(("SELECT", "UPDATE", "WITH", "DELETE"))
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_statement_reads_all_tasks(database: Database, work: list[tuple[str, Any]]) -> None:
    tables = ("tasks", "attempts", "results", "arguments", "events")
    plans: dict[str, list[str]] = {}
    with database.engine.connect() as connection:
        for statement, values in work:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            plans[statement] = [row.detail for row in rows]
    assert len(plans) > 15
    scans = {
        statement: plan
        for statement, plan in plans.items()
        if any(step.startswith(f"SCAN {table}") for step in plan for table in tables)
    }
    assert not scans
