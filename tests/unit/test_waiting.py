"""What a ready task waits for, in words."""

from __future__ import annotations

import pytest

from parsl_balsam.model.waiting import OpenRoom, why_it_waits

WHOLE = OpenRoom(1, "17", 4, 3600.0, None)
SHRUNK = OpenRoom(2, "18", 3, None, "n3: its agent died")
LATE = OpenRoom(3, "19", 4, 600.0, None)
AWAITED = OpenRoom(4, "20", None, None, None, started=False)
SMALL = OpenRoom(5, "21", 2, 600.0, None, started=False)


@pytest.mark.parametrize(
    ("nodes", "walltime_min", "due_in_s", "rooms", "expected"),
    [
        (1, None, 12.4, [WHOLE], "for its next try, in 12 s"),
        (1, None, -1.0, [WHOLE], "for room in a block"),
        (1, None, None, [], "for a block: none is requested"),
        (4, None, None, [SHRUNK, WHOLE], "for room in a block"),
        (
            4,
            None,
            None,
            [SHRUNK],
            "for another block: it needs 4 nodes, and block 2 has 3 (lost: n3: its agent died)",
        ),
        (2, 30.0, None, [LATE], "for another block: it needs 30 min, and block 3 has 10 min left"),
        (2, 10.0, None, [LATE], "for room in a block"),
        (2, None, None, [AWAITED], "for block 4 to start (requested, job 20)"),
        (
            4,
            None,
            None,
            [SHRUNK, AWAITED],
            "for block 4 to start (requested, job 20); it needs 4 nodes, and block 2 has 3 (lost: n3: its agent died)",
        ),
    ],
)
def test_reason(
    nodes: int, walltime_min: float | None, due_in_s: float | None, rooms: list[OpenRoom], expected: str
) -> None:
    assert why_it_waits(nodes, walltime_min, due_in_s, rooms) == expected
