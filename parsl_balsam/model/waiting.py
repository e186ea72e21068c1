"""Why a ready task waits: the rule behind what ``status`` and ``show`` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """A block that is requested or runs, as far as it matters to tasks that wait."""

    block_id: int
    job_id: str | None
    nodes: int | None  #: that tasks may run on, or will; None = not known yet
    time_left_s: float | None  #: of one that waits, all its walltime; None = no end is known
    lost_nodes: str | None  #: with the reasons
    started: bool = True  #: whether its launcher has come


def why_it_waits(nodes: int, walltime_min: float | None, due_in_s: float | None, rooms: Sequence[OpenRoom]) -> str:
    """Say what a ready task waits for.

    Parameters
    ----------
    nodes, walltime_min
        What it needs.
    due_in_s
        Time until its next try, seconds; None if it may start at once.
    rooms
        The open blocks of its workflow.
    """
    if due_in_s is not None and due_in_s > 0:
        return f"for its next try, in {due_in_s:.0f} s"
    if not rooms:
        return "for a block: none is requested"
    reasons = {room.block_id: _unfit(nodes, walltime_min, room) for room in rooms}
    fit = [room for room in rooms if reasons[room.block_id] is None]
    if any(room.started for room in fit):
        return "for room in a block"
    needs = "; ".join(reason for reason in reasons.values() if reason is not None)
    if fit:
        first = fit[0]
        job = f", job {first.job_id}" if first.job_id else ""
        return f"for block {first.block_id} to start (requested{job})" + (f"; {needs}" if needs else "")
    return f"for another block: {needs}"


def _unfit(nodes: int, walltime_min: float | None, room: OpenRoom) -> str | None:
    if room.nodes is not None and nodes > room.nodes:
        lost = f" (lost: {room.lost_nodes})" if room.lost_nodes else ""
        return f"it needs {nodes} nodes, and block {room.block_id} has {room.nodes}{lost}"
    if walltime_min is not None and room.time_left_s is not None and walltime_min * 60 > room.time_left_s:
        left = max(0.0, room.time_left_s) / 60
        return f"it needs {walltime_min:g} min, and block {room.block_id} has {left:.0f} min left"
    return None
