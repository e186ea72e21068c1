"""Arguments and results of all sizes come back as they were, on both databases."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError

from parsl_balsam.db.connect import Database
from parsl_balsam.db.copying import _pieces, _Sink, insert_rows, select_rows
from parsl_balsam.db.schema import arguments, events
from parsl_balsam.db.statement import Statement
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.states import Outcome
from tests.db.conftest import Campaign, Launcher, check_invariants, column, snapshot

#: Around the size of the pieces that the driver is given, and one of many pieces.
SIZES = (0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3_000_017)

#: So many of what is short are too long for an ordinary statement.
LARGE = 10_000

#: All that a field of bytes may hold.
EVERY_BYTE = bytes(range(256))


@pytest.fixture
def payloads() -> dict[str, bytes]:
    return {f"task {size}": os.urandom(size) for size in SIZES} | {"bytes": EVERY_BYTE, "digits": b"\\x00'%(ids)s\n\\."}


def test_arguments_and_results_come_back_as_they_were(
    campaign: Campaign, launcher: Launcher, payloads: dict[str, bytes]
) -> None:
    bound = campaign.submit(*(campaign.call(key, payload) for key, payload in payloads.items()))
    sent = dict(zip([b.task_id for b in bound], payloads.values(), strict=True))
    claimed = launcher.claim(len(payloads))
    assert {task.task_id: task.payload for task in claimed} == sent
    for task in claimed:
        launcher.start(task)
        launcher.end(task, Outcome.DONE, payload=task.payload[::-1])
    finished = campaign.store.fetch(list(sent))
    assert {task.task_id: task.payload for task in finished} == {id: sent[id][::-1] for id in sent}
    again = campaign.submit(*(campaign.call(key, payload) for key, payload in payloads.items()))
    assert [b.payload for b in again] == [payload[::-1] for payload in payloads.values()]
    check_invariants(campaign.database)


def test_what_is_missing_is_none(campaign: Campaign, launcher: Launcher) -> None:
    task = campaign.task()
    launcher.run(Outcome.ERROR, hopeless=True, error="\N{SNOWMAN} killed")
    (finished,) = campaign.store.fetch([task])
    assert finished.payload is None
    assert "\N{SNOWMAN} killed" in str(finished.error)


def test_no_tasks_have_no_rows(campaign: Campaign) -> None:
    assert campaign.store.fetch([]) == []
    assert campaign.store.fetch([4711]) == []


def test_rows_of_a_transaction_that_fails_are_gone(database: Database, payloads: dict[str, bytes]) -> None:
    before = snapshot(database)
    rows = [{"task_id": number, "payload": data} for number, data in enumerate(payloads.values())]
    with database.engine.connect() as connection, connection.begin() as transaction:
        insert_rows(connection, arguments, rows)
        assert connection.execute(text("SELECT count(*) FROM arguments")).scalar() == len(rows)
        transaction.rollback()
    assert snapshot(database) == before


@pytest.mark.parametrize("times", [1, LARGE])
def test_a_row_that_is_there_already_is_an_error_as_with_other_statements(database: Database, times: int) -> None:
    row = {"task_id": 1, "payload": b"first" * times}
    with database.begin() as connection:
        insert_rows(connection, arguments, [row])
    with pytest.raises(IntegrityError), database.begin() as connection:
        insert_rows(connection, arguments, [{**row, "payload": b"second" * times}])
    assert column(database, "SELECT payload FROM arguments") == [b"first" * times]


@pytest.mark.parametrize("beginning", ["COPY arguments", "COPY (SELECT"])
def test_a_server_that_ends_a_connection_here_is_away_for_a_moment(postgres_database: Database, beginning: str) -> None:
    row = {"task_id": 1, "payload": EVERY_BYTE * LARGE}
    ended: list[str] = []

    @event.listens_for(postgres_database.engine, "before_cursor_execute")
    def end(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning) and not ended:
            ended.append(statement)
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
            column(postgres_database, "SELECT pg_terminate_backend(:pid, 10000)", pid=pid)

    def write_and_read() -> Any:
        with postgres_database.begin() as connection:
            insert_rows(connection, arguments, [row])
            return select_rows(connection, Statement(select(arguments)))

    with pytest.raises(DatabaseUnavailable):
        write_and_read()
    assert len(ended) == 1
    assert column(postgres_database, "SELECT task_id FROM arguments") == []
    (found,) = write_and_read()
    assert (found.task_id, found.payload) == (1, EVERY_BYTE * LARGE)


def test_rows_may_come_in_any_pieces() -> None:
    rows = [[1, b"", "first"], [-(2**40), EVERY_BYTE, None]]
    stream = b"".join(_pieces(iter(rows)))
    read = [lambda data: int.from_bytes(data, "big", signed=True), bytes, lambda data: str(data, "utf-8")]
    for size in range(1, len(stream) + 1):
        sink = _Sink(read)
        for start in range(0, len(stream), size):
            sink.write(stream[start : start + size])
        assert sink.rows == rows


def test_large_values_are_handed_over_in_pieces() -> None:
    row = [7, os.urandom(1 << 20)]
    pieces = list(_pieces(iter([row])))
    assert max(map(len, pieces)) <= 1 << 16
    sink = _Sink([lambda data: int.from_bytes(data, "big"), bytes])
    for piece in pieces:
        sink.write(piece)
    assert sink.rows == [row]


def test_numbers_and_texts_are_read(campaign: Campaign) -> None:
    task = campaign.task()
    query = Statement(select(events.c.task_id, events.c.state, events.c.who))
    with campaign.database.read() as connection:
        (found,) = select_rows(connection, query)
    assert (found.task_id, found.state, found.who) == (task, "ready", f"run {campaign.run.run_id}")
