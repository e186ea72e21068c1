"""A hundred launchers share one PostgreSQL: nothing runs twice, nobody waits in a circle, connections are bounded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.server import Server
from parsl_balsam.model.retry import RetryPolicy
from tests.db.conftest import Campaign, check_invariants, column

LAUNCHERS = 100
TASKS = 2000

#: Of each launcher: one for transactions, and one to be woken.
CONNECTIONS = 2

CLIENTS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)

#: How often they are counted, seconds: to look at two hundred of them takes the server a while.
LOOK_S = 0.2

#: Specifications of tasks, in turn: launchers that have room for one have none for another.
KINDS = (
    {},
    {"num_nodes": 4},
    {"cores_per_rank": 3},
    {"gpus_per_rank": 1},
    {"num_nodes": 2, "ranks_per_node": 2},
    {"priority": 1},
    {"ranks_per_node": 2},
)


def test_hundred_launchers_at_once(
    postgres_server: Server, postgres_database: Database, empty_postgres_url: str, tmp_path: Path
) -> None:
    campaign = Campaign(postgres_database, RetryPolicy(max_retries=1))
    calls = [campaign.call(str(n), _payload(n), **KINDS[n % len(KINDS)]) for n in range(TASKS)]
    ids = [bound.task_id for bound in campaign.submit(*calls)]
    # Its connections are not to be counted.
    postgres_database.close()
    log = postgres_server.directory / "log"
    said = log.stat().st_size

    order = {"url": empty_postgres_url, "workflow": campaign.run.workflow_id, "run": campaign.run.run_id}
    most = 0
    with (
        subprocess.Popen(
            [sys.executable, "-m", "tests.db.swarm", str(LAUNCHERS), str(tmp_path)], stdin=subprocess.PIPE, text=True
        ) as swarm,
        closing(open_database(empty_postgres_url, connections=1)) as watcher,
    ):
        try:
            assert swarm.stdin is not None
            swarm.stdin.write(json.dumps(order))
            swarm.stdin.close()
            while swarm.poll() is None:
                most = max(most, *column(watcher, CLIENTS))
                time.sleep(LOOK_S)
        finally:
            swarm.kill()  # its launchers die with it

    told = [(tmp_path / str(number)).read_text() for number in range(LAUNCHERS)]
    assert [text for text in told if "Traceback" in text] == []
    assert swarm.returncode == 0
    ended = [tuple(map(int, line.split())) for text in told for line in text.splitlines()]
    # Each was told so once, and by one launcher only.
    assert Counter(task_id for task_id, _ in ended) == Counter(ids)
    failing = {task_id for n, task_id in enumerate(ids) if _payload(n) == b"fails once"}
    assert {task_id for task_id, number in ended if number == 2} == failing
    assert {number for _, number in ended} == {1, 2}
    assert column(postgres_database, "SELECT count(*) FROM tasks WHERE state = 'done'") == [TASKS]
    assert column(postgres_database, "SELECT count(*) FROM attempts") == [TASKS + len(failing)]
    assert column(postgres_database, "SELECT count(*) FROM events WHERE state = 'running'") == [TASKS + len(failing)]
    assert column(postgres_database, "SELECT count(*) FROM blocks WHERE state = 'ended'") == [LAUNCHERS]
    served = column(postgres_database, "SELECT count(DISTINCT block_id) FROM attempts")
    assert served > [LAUNCHERS / 2], "too few launchers were at it at the same time"
    given_back = column(postgres_database, "SELECT count(*) FROM events WHERE why = 'no room'")
    assert given_back > [0]
    assert LAUNCHERS < most <= LAUNCHERS * CONNECTIONS
    with log.open() as file:
        file.seek(said)
        assert [line for line in file if "deadlock" in line or "too many" in line] == []
    check_invariants(postgres_database)


def _payload(number: int) -> bytes:
    if number % 10 == 3:
        return b"fails once"
    return b"is given back" if number % 10 == 6 else b"arguments"
