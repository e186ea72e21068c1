"""Each ticket is taken by one side only, and a task that finds another's was called back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parsl_balsam.launcher.tickets import Tickets


@pytest.fixture
def tickets() -> Iterator[Tickets]:
    tickets = Tickets()
    yield tickets
    tickets.close()


def test_tickets_that_nobody_takes_back_are_all_taken(tickets: Tickets) -> None:
    numbers = [tickets.issue() for _ in range(5)]
    assert [tickets.take(number) for number in numbers] == [True] * 5
    assert tickets.take_back() == set()


def test_what_was_taken_is_not_taken_back(tickets: Tickets) -> None:
    first, second, third = (tickets.issue() for _ in range(3))
    assert tickets.take(first)
    assert tickets.take_back() == {second, third}
    assert not tickets.take(second)
    assert not tickets.take(third)


def test_tasks_that_were_taken_back_are_passed_over_for_the_next(tickets: Tickets) -> None:
    first, second = tickets.issue(), tickets.issue()
    assert tickets.take_back() == {first, second}
    again = tickets.issue()
    # The worker finds both, and then the one that was given to it again.
    assert [tickets.take(number) for number in (first, second, again)] == [False, False, True]
    assert tickets.take_back() == set()
