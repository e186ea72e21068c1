"""What a launcher that sleeps leaves with its line to the database is asked for as soon as there is something new."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import pytest

from parsl_balsam.db.connect import Database
from parsl_balsam.db.wakeup import Bell
from parsl_balsam.launcher.ledger import Answer, Ledger, Request
from parsl_balsam.model.signing import Signer

from .conftest import LIMIT_S, Campaign, Launcher, check_invariants, state, wish


class Line:
    """A launcher's end of its line to the database."""

    def __init__(self, database: Database, campaign: Campaign, launcher: Launcher) -> None:
        self._bell = Bell()
        workflow_id = campaign.run.workflow_id
        self.ledger = Ledger(database, workflow_id, launcher.block_id, 60.0, self._bell, Signer(bytes(32)))
        self.ledger.start()

    def ask(self, request: Request) -> Answer:
        """Ask at once; return the answer."""
        self.ledger.ask(request)
        return self.hear(self.ledger.answer)

    def hear(self, news: Callable[[], Answer | bool | None]) -> Answer:
        """Wait for news as a launcher does."""
        while not (found := news()):
            assert select.select([self._bell], [], [], LIMIT_S)[0]
            self._bell.silence()
        return found  # type: ignore[return-value]


@pytest.fixture
def line(database: Database, campaign: Campaign, launcher: Launcher) -> Iterator[Line]:
    line = Line(database, campaign, launcher)
    yield line
    line.ledger.close()
    assert not line.ledger.is_alive()


def test_what_stands_is_asked_for_when_a_task_comes(database: Database, campaign: Campaign, line: Line) -> None:
    line.ledger.stand_by(Request(wishes=[wish(1)]))
    task_id = campaign.task()
    answer = line.hear(line.ledger.answer)
    assert [task.task_id for task in answer.exchange.claimed] == [task_id]
    assert not line.ledger.take_back()
    assert not line.ledger.changed  # nothing that the answer does not tell
    check_invariants(database)


def test_what_was_taken_back_is_not_asked_for(database: Database, campaign: Campaign, line: Line) -> None:
    line.ledger.stand_by(Request(wishes=[wish(1)]))
    assert line.ledger.take_back()
    task_id = campaign.task()
    line.hear(lambda: line.ledger.changed)
    assert line.ledger.answer() is None
    assert state(database, task_id) == "ready"
    assert len(line.ask(Request(wishes=[wish(1)])).exchange.claimed) == 1
    check_invariants(database)


def test_it_is_asked_for_once(database: Database, campaign: Campaign, line: Line) -> None:
    line.ledger.stand_by(Request(wishes=[wish(1)]))
    campaign.task("first")
    line.hear(line.ledger.answer)
    second = campaign.task("second")
    line.hear(lambda: line.ledger.changed)
    assert line.ledger.answer() is None
    assert state(database, second) == "ready"


def test_the_block_has_less_time_left_than_when_it_was_wished_for(campaign: Campaign, line: Line) -> None:
    line.ledger.stand_by(Request(wishes=[wish(2, time_left_min=60.0)]))
    shorter, _ = campaign.submit(campaign.call("59 min", walltime_min=59), campaign.call("60 min", walltime_min=60))
    answer = line.hear(line.ledger.answer)
    assert [task.task_id for task in answer.exchange.claimed] == [shorter.task_id]
