"""``claims.py URL WORKFLOW RUN SECONDS``: a launcher without a node, whose tasks are over as soon as claimed.

It begins when there is a file ``go`` in its directory, and says by a file ``ready.*`` that it waits for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from parsl_balsam.db.blocks import open_block, record_block
from parsl_balsam.db.claims import ClaimStore
from parsl_balsam.db.connect import open_database
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, ClaimedTask, Wish

#: As many as a launcher on one node claims ahead when its tasks take a millisecond.
LOT = 100


def wish(tasks: int = LOT) -> Wish:
    """What a launcher asks for that has room for so many tasks of a core."""
    return Wish(tasks, cores=tasks, most_nodes=1, most_cores=1, most_gpus=0, node_cores=1)


def ended(task: ClaimedTask) -> AttemptEnd:
    """What it reports of a short task: start and end in one."""
    now = time.time()
    shares = (Share("node1", (0,)),)
    return AttemptEnd(
        task.task_id, task.number, task.token, Outcome.DONE, "node1", shares, now, now, b"result of no length" * 3
    )


def main() -> None:
    url, workflow_id, run_id, seconds = sys.argv[1:]
    database = open_database(url, create=False)
    block_id = record_block(database, int(workflow_id), int(run_id), "benchmark", 600.0)
    open_block(database, block_id, "node1", os.getpid())
    claims = ClaimStore(database, int(workflow_id), block_id)
    claims.exchange()
    Path(f"ready.{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.002)
    start = time.perf_counter()
    done = exchanges = 0
    claimed: list[ClaimedTask] = []
    while time.perf_counter() < start + float(seconds):
        ends = [ended(task) for task in claimed]
        claimed = claims.exchange(ends=ends, wishes=[wish()]).claimed
        done += len(ends)
        exchanges += 1
    took = time.perf_counter() - start
    print(json.dumps({"rate": done / took, "exchanges": exchanges, "dry": not claimed}), flush=True)


if __name__ == "__main__":
    main()
