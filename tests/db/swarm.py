"""Many launchers without nodes, each a process: they claim, start, give back and end tasks as fast as they can.

Run as ``python -m tests.db.swarm LAUNCHERS DIRECTORY < ORDER``. Each leaves a file in the directory: a line with task
and number for each attempt that it reported as done, or the exception that ended it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from parsl_balsam.db.blocks import close_block, open_block, record_block
from parsl_balsam.db.claims import ClaimStore
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.schema import tasks
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.launcher.processes import die_with_parent
from parsl_balsam.model.shares import Share
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, AttemptStart, ClaimedTask, Release, Wish

LEASE_S = 120.0

#: How often a launcher that found nothing asks whether there is anything left, seconds.
_LOOK_S = 2.0

_ROOM = {"most_cores": 4, "most_gpus": 0, "node_cores": 4}

#: What launchers have room for, in turn.
_WISHES = (
    (Wish(12, cores=12, most_nodes=1, **_ROOM),),
    (Wish(4, cores=64, most_nodes=4, **_ROOM),),
    (Wish(1, cores=16, most_nodes=4, least_cores=8, **_ROOM), Wish(10, cores=10, most_nodes=1, fallback=True, **_ROOM)),
    (
        Wish(10, cores=10, most_nodes=1, **{**_ROOM, "most_gpus": 1}),
        Wish(3, cores=4, most_nodes=1, parallel=False, **_ROOM),
    ),
)


def launch(order: dict[str, Any], number: int) -> list[str]:
    """Serve until no task is left; return what was done."""
    done: list[str] = []
    with closing(open_database(order["url"], create=False, connections=1)) as database, closing(Bell()) as bell:
        block_id = record_block(database, order["workflow"], order["run"], str(number), LEASE_S)
        open_block(database, block_id, f"node{number}", os.getpid())
        claims = ClaimStore(database, order["workflow"], block_id)
        with closing(listen(database, order["workflow"], Topic.WORK)) as wakeup:
            claimed: list[ClaimedTask] = []
            started: list[ClaimedTask] = []
            while True:
                ends = [_end(task) for task in started]
                releases = [Release(task.task_id, task.token, "no room") for task in claimed if _returns(task)]
                started = [task for task in claimed if not _returns(task)]
                exchange = claims.exchange(
                    [_start(task, number) for task in started], ends, _WISHES[number % len(_WISHES)], releases
                )
                done += [f"{end.task_id} {end.number}" for end in ends if end.outcome is Outcome.DONE]
                claimed = exchange.claimed
                if claimed or started:
                    continue
                if not _left(database, order["workflow"]):
                    break
                wakeup.wait(_LOOK_S, bell)
        close_block(database, block_id, "no work")
    return done


def _start(task: ClaimedTask, number: int) -> AttemptStart:
    return AttemptStart(task.task_id, task.number, task.token, (Share(f"node{number}", (0,)),), time.time())


def _end(task: ClaimedTask) -> AttemptEnd:
    fails = task.payload == b"fails once" and task.number == 1
    outcome = Outcome.ERROR if fails else Outcome.DONE
    return AttemptEnd(task.task_id, task.number, task.token, outcome, payload=b"result")


def _returns(task: ClaimedTask) -> bool:
    """Tell whether a claim is given back. That depends on the claim, so that a task is not given back for ever."""
    return task.payload == b"is given back" and task.token % 2 == 0


def _left(database: Database, workflow: int) -> int:
    with database.read() as connection:
        over = tasks.c.finish.is_not(None)
        return int(connection.execute(select(func.count()).where(tasks.c.workflow_id == workflow, ~over)).scalar_one())


def _begin(order: dict[str, Any], number: int, directory: Path, gate: tuple[int, int]) -> int:
    """Fork a launcher that begins when the parent has closed the gate; return its process."""
    if child := os.fork():
        return child
    die_with_parent(os.getppid())
    code = 1
    try:
        os.close(gate[1])
        os.read(gate[0], 1)
        lines = launch(order, number)
        code = 0
    except BaseException:
        lines = [traceback.format_exc()]
    try:
        (directory / str(number)).write_text("\n".join(lines))
    finally:
        os._exit(code)


def main() -> int:
    """Return how many launchers failed."""
    launchers, directory = int(sys.argv[1]), Path(sys.argv[2])
    order = json.load(sys.stdin)
    gate = os.pipe()
    children = [_begin(order, number, directory, gate) for number in range(launchers)]
    os.close(gate[1])
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(min(main(), 125))
