"""How benchmarks are compared, judged and shown."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks.measure import Measure, at_least, at_most, in_turns, percentile, ratio, skipped
from benchmarks.table import as_json, line, markdown


def test_subjects_are_measured_in_turns() -> None:
    order: list[str] = []

    def measuring(name: str) -> Callable[[], int]:
        def act() -> int:
            order.append(name)
            return len(order)

        return act

    assert in_turns({"A": measuring("A"), "B": measuring("B")}, 3) == {"A": [1, 3, 5], "B": [2, 4, 6]}
    assert "".join(order) == "ABABAB"


def test_a_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    # The machine was ten times as slow in the second round, for both.
    measure = ratio("ours vs theirs", [300.0, 33.0, 280.0], [100.0, 10.0, 100.0], at_least(3.0))
    assert measure.values == (3.0, 3.3, 2.8)
    assert (measure.median, measure.spread, measure.met) == (3.0, (2.8, 3.3), True)


def test_a_ratio_needs_as_many_of_each() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio("ours vs theirs", [1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (at_least(0.8), 0.8, True),
        (at_least(0.8), 0.79, False),
        (at_most(1.2), 1.2, True),
        (at_most(1.2), 1.21, False),
        (None, 1.0, None),
    ],
)
def test_a_goal_is_judged_by_the_median(goal: object, value: float, met: bool | None) -> None:
    assert Measure("m", "x", (0.0, value, 100.0), goal).met is met  # type: ignore[arg-type]


@pytest.mark.parametrize(("percent", "value"), [(95, 95.0), (50, 50.0), (100, 100.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_occurred(percent: int, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == value
    assert percentile([7.0], percent) == 7.0


def test_the_page_shows_what_was_measured_missed_and_left_out() -> None:
    sections = {
        "Speed": [
            Measure("rate", "tasks/s", (1500.0, 1400.5, 1600.0), note="1000 tasks"),
            ratio("rate vs other", [2.0, 2.2], [1.0, 1.0], at_least(3.0)),
        ],
        "Others": [skipped("hyperqueue", "not installed")],
    }
    page = markdown({"cores": "2"}, sections, "2025-01-31 12:00 UTC", 600.0)
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in page.splitlines() if row.startswith("|")}
    assert rows["rate"] == "| rate | tasks/s |  | 1,500 | 1,400 .. 1,600 | 3 |  | 1000 tasks |"
    assert "2.10 | 2.00 .. 2.20 | 2 | **no**" in page
    assert page.count(">= 3") == 2  # among the goals, and in its section
    assert "skipped: not installed" in rows["hyperqueue"]
    assert "2025-01-31 12:00 UTC" in page
    assert "| cores | 2 |" in page
    assert {row.count("|") for row in rows.values()} == {3, 9}

    found = json.loads(as_json({"cores": "2"}, sections, "2025-01-31 12:00 UTC", 600.0))
    assert [entry["met"] for entry in found["measures"]] == [None, False, None]
    assert found["measures"][0]["values"] == [1500.0, 1400.5, 1600.0]
    assert found["measures"][1]["goal"] == ">= 3"
    assert found["machine"] == {"cores": "2"}


def test_a_line_tells_the_verdict() -> None:
    assert line(Measure("m", "x", (2.0,), at_most(1.5))) == "m: 2.00 x (goal <= 1.5: **no**)"
    assert line(skipped("m", "no server")) == "m: skipped: no server"
