"""The checks after a storm see what is wrong."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.faults.chaos import (
    ALWAYS_FAILS,
    Act,
    Copy,
    Job,
    Target,
    Tried,
    complaints,
    make_jobs,
    overlapping,
    read_copies,
    schedule,
    seed_of,
)

FUNCTION = Job(0, "function", 1.0, {})
FLAKY = Job(1, "fails first", 1.0, {})
EXITS = Job(2, "exits", 1.0, {})
JOBS = [FUNCTION, FLAKY, EXITS]

#: How it should be.
VALUES = [0, 7, f"exit {ALWAYS_FAILS}"]
STATES = {0: "done", 1: "done", 2: "failed"}
ATTEMPTS = {
    0: [Tried(1, "crash", None), Tried(2, "done", None)],
    1: [Tried(1, "error", None), Tried(2, "done", None)],
    2: [Tried(1, "exit", ALWAYS_FAILS), Tried(2, "exit", ALWAYS_FAILS)],
}


def copy(number: int, attempt: int, began: float, last: float, raised: bool = False, ended: bool = True) -> Copy:
    return Copy(number, attempt, f"{number}.{attempt}.{began}", began, last, raised, ended)


COPIES = [
    copy(0, 1, 0.0, 0.5, ended=False),
    copy(0, 2, 0.6, 1.6),
    copy(1, 1, 0.0, 1.0, raised=True, ended=False),
    copy(1, 2, 1.1, 2.1),
    copy(2, 1, 0.0, 1.0),
    copy(2, 2, 1.0 + 1e-9, 2.0),
]


def test_good_end_is_not_complained_of() -> None:
    assert complaints(JOBS, VALUES, STATES, ATTEMPTS, COPIES) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": [1, *VALUES[1:]]}, "task 0 (function) gave 1 and not 0"),
        ({"values": [*VALUES[:2], "exit 1"]}, "gave 'exit 1'"),
        ({"states": {**STATES, 0: "failed"}}, "task 0 (function) is failed"),
        ({"attempts": {**ATTEMPTS, 0: [Tried(1, "done", None), Tried(2, "done", None)]}}, "was done 2 times"),
        ({"attempts": {**ATTEMPTS, 0: [Tried(1, "error", None), Tried(2, "done", None)]}}, "did not fail in attempt 1"),
        ({"attempts": {**ATTEMPTS, 1: [Tried(1, "exit", 1), Tried(2, "done", None)]}}, "did not exit so"),
        ({"attempts": {**ATTEMPTS, 0: [Tried(1, None, None), Tried(2, "done", None)]}}, "has attempt"),
        ({"attempts": {**ATTEMPTS, 2: [Tried(1, "exit", ALWAYS_FAILS)]}}, "was not tried again"),
        ({"copies": [*COPIES, copy(0, 1, 0.3, 0.6)]}, "task 0 ran twice at a time"),
        ({"copies": COPIES[:1] + COPIES[2:]}, "task 0 (function) never came to its end"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], said: str) -> None:
    arguments = {"jobs": JOBS, "values": VALUES, "states": STATES, "attempts": ATTEMPTS, "copies": COPIES, **change}
    assert any(said in line for line in complaints(**arguments))  # type: ignore[arg-type]


def test_copies_overlap_only_with_others_of_their_task() -> None:
    one, two, three = copy(0, 1, 0.0, 1.0), copy(0, 2, 1.1, 2.0), copy(0, 3, 1.9, 3.0)
    assert overlapping([three, one, two, copy(1, 1, 0.0, 9.0)]) == [(two, three)]
    inside = copy(0, 4, 0.2, 0.3)
    assert overlapping([one, two, inside]) == [(one, inside)]


def test_ranks_are_one_copy_and_what_left_no_stamp_is_none() -> None:
    files = {
        "4.mark.7-1.aa": "4 1 100 n1 10.0\n10.5\n11.0\nends\n",
        "4.mark.7-1.bb": "4 1 101 n2 9.5\n9.9\n",
        "4.other.cc": "4 2 102 n1 12.0\nraises\n",
        "5.none.dd": "",
    }
    assert read_copies(files) == [
        Copy(4, 1, "4.mark.7-1", 9.5, 11.0, False, False),
        Copy(4, 2, "4.other", 12.0, 12.0, True, False),
    ]


def test_storm_and_jobs_are_those_of_their_seed() -> None:
    strikes = [(target, act) for target in Target for act in Act]
    storm = schedule(1, 30.0, strikes, 2.0, (0.5, 2.0))
    assert storm == schedule(1, 30.0, strikes, 2.0, (0.5, 2.0)) != schedule(2, 30.0, strikes, 2.0, (0.5, 2.0))
    assert all(0.5 <= after.at - before.at <= 2.0 for before, after in pairwise(storm))
    assert make_jobs(1, 20, wide=True) == make_jobs(1, 20, wide=True) != make_jobs(2, 20, wide=True)
    assert (seed_of({}, 5), seed_of({"BALSAM_CHAOS_SEED": "6"}, 5)) == (5, 6)
