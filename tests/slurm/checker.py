"""Reads the recorded placements of a run and checks that nothing was given twice."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import create_engine, select

from parsl_balsam.db.schema import attempts, tasks
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share, read_shares


@dataclass(frozen=True)
class Placed:
    """An attempt that had a place."""

    task_id: int
    block_id: int
    shares: tuple[Share, ...]
    spec: ResourceSpec
    started_at: float
    ended_at: float


def placements(url: str) -> list[Placed]:
    """Return all attempts that had a place and are over."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                select(attempts, tasks.c.spec)
                .join(tasks, tasks.c.id == attempts.c.task_id)
                .where(attempts.c.placement.is_not(None), attempts.c.ended_at.is_not(None))
            ).all()
    finally:
        engine.dispose()
    return [
        Placed(
            row.task_id,
            row.block_id,
            read_shares(row.placement),
            ResourceSpec.parse(json.loads(row.spec)) if row.spec else ResourceSpec(),
            row.started_at,
            row.ended_at,
        )
        for row in rows
    ]


def check_placements(url: str, cores_per_node: int, *, whole_nodes: bool = False) -> list[Placed]:
    """Check that every attempt had what it asked for, or whole nodes, and had it alone; return them."""
    found = placements(url)
    spans: defaultdict[tuple[int, str, object], list[tuple[float, float, int]]] = defaultdict(list)
    for placed in found:
        nodes = [share.node for share in placed.shares]
        assert len(nodes) == len(set(nodes)) == placed.spec.num_nodes, placed
        for share in placed.shares:
            cores = cores_per_node if whole_nodes else placed.spec.cores_on(cores_per_node)
            assert len(share.cores) == cores, placed
            assert len(share.gpus) == placed.spec.gpus_on_node, placed
            for item in (*share.cores, *share.gpus):
                spans[placed.block_id, share.node, item].append((placed.started_at, placed.ended_at, placed.task_id))
    for place, used in spans.items():
        for before, after in pairwise(sorted(used)):
            assert before[1] <= after[0], f"{place} was given twice: {before}, {after}"
    return found
