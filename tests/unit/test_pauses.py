"""Pauses grow with failures in a row, and only blocks that say something about the next one begin one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.model.pauses import GOOD_AFTER_S, LONGEST_S, Pause, died_at_once, lengthened

NOW = 1_000_000.0


def pauses(base_s: float, failures: int) -> list[Pause]:
    """Return the pauses that so many failures in a row make, one a day."""
    made: list[Pause] = []
    for day in range(failures):
        count = made[-1].count if made else 0
        made.append(lengthened(count, "the queue is full", base_s, NOW + 86_400.0 * day))
    return made


def test_each_pause_is_twice_as_long_up_to_an_hour() -> None:
    made = pauses(60.0, 9)
    assert [pause.left_s for pause in made] == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [pause.count for pause in made] == list(range(1, 10))
    assert [pause.until - pause.left_s for pause in made] == [NOW + 86_400.0 * day for day in range(9)]
    assert {pause.why for pause in made} == {"the queue is full"}


@given(base_s=st.floats(1e-3, 1e6), count=st.integers(0, 10**6))
def test_no_pause_is_longer_than_an_hour_and_none_is_over_at_once(base_s: float, count: int) -> None:
    pause = lengthened(count, "", base_s, NOW)
    assert 0 < pause.left_s <= LONGEST_S
    assert pause.until > NOW


@given(base_s=st.floats(1e-3, LONGEST_S))
def test_pauses_never_get_shorter(base_s: float) -> None:
    assert all(before.left_s <= after.left_s for before, after in pairwise(pauses(base_s, 40)))


@pytest.mark.parametrize(
    ("started", "lived_s", "in_good_order", "wished", "expected"),
    [
        pytest.param(False, 0.0, False, False, True, id="its launcher never came"),
        pytest.param(True, 1.0, False, False, True, id="its launcher was lost at once"),
        pytest.param(True, GOOD_AFTER_S - 0.1, False, False, True, id="its launcher was lost soon"),
        pytest.param(True, GOOD_AFTER_S, False, False, False, id="its launcher was lost after it had served"),
        pytest.param(True, 0.1, True, False, False, id="its launcher had nothing to do"),
        pytest.param(False, 0.0, False, True, False, id="somebody cancelled it while it was queued"),
        pytest.param(True, 1.0, False, True, False, id="somebody killed it"),
    ],
)
def test_which_ends_say_that_others_would_fare_no_better(
    started: bool, lived_s: float, in_good_order: bool, wished: bool, expected: bool
) -> None:
    assert died_at_once(started, lived_s, in_good_order, wished) is expected
