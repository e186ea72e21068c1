"""What a full database does to a claim, and what a waiting task takes up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

from benchmarks.measure import Measure, at_most, in_turns, ratio
from benchmarks.programs.claims import LOT, ended, wish
from benchmarks.rows import WaitingTasks
from benchmarks.setting import Setting, directory
from benchmarks.throughput import TITLES
from parsl_balsam.db.blocks import open_block, record_block
from parsl_balsam.db.claims import ClaimStore
from parsl_balsam.db.connect import Database, open_database

#: Claims in a repetition. One lasts some ten milliseconds.
_CLAIMS = 20


@dataclass(frozen=True, slots=True)
class Took:
    """How long it took to claim 100 tasks and to record their ends, milliseconds."""

    claim: float
    ends: float


class Backlog:
    """A database where the number of ready tasks is always the same."""

    def __init__(self, database: Database, tasks: int) -> None:
        self._waiting = WaitingTasks(database)
        empty = self._waiting.bytes()
        self._waiting.add(tasks)
        self.bytes_each = (self._waiting.bytes() - empty) / tasks
        self._waiting.analyze()
        run = self._waiting.run
        block_id = record_block(database, run.workflow_id, run.run_id, "benchmark", 36_000.0)
        open_block(database, block_id, "node1", 1)
        self._claims = ClaimStore(database, run.workflow_id, block_id)

    def round(self) -> Took:
        """Claim 100 tasks, end them, and add others."""
        began = time.perf_counter()
        claimed = self._claims.exchange(wishes=[wish()]).claimed
        then = time.perf_counter()
        assert len(claimed) == LOT
        ends = [ended(task) for task in claimed]
        before = time.perf_counter()
        self._claims.exchange(ends=ends)
        after = time.perf_counter()
        self._waiting.add(LOT)
        return Took(1000 * (then - began), 1000 * (after - before))


def claims(setting: Setting) -> Iterator[Measure]:
    """A claim of 100 tasks where 1,000,000 are ready, and where 1,000 are."""
    many, few = setting.many(1_000_000, 20_000), 1_000
    for kind in setting.kinds:
        with ExitStack() as stack:
            backlogs = {}
            for tasks in (many, few):
                path = stack.enter_context(directory())
                url = stack.enter_context(setting.database(kind, path))
                backlogs[tasks] = Backlog(stack.enter_context(closing(open_database(url))), tasks)
            rounds = {tasks: backlog.round for tasks, backlog in backlogs.items()}
            in_turns(rounds, 3)
            took = in_turns(rounds, _CLAIMS * setting.rounds())
        title = TITLES[kind]
        for name, values in (
            ("claim of 100 tasks", {tasks: [one.claim for one in found] for tasks, found in took.items()}),
            ("ends of 100 tasks", {tasks: [one.ends for one in found] for tasks, found in took.items()}),
        ):
            for tasks in (few, many):
                yield Measure(f"{name}, {tasks:,} ready, {title}", "ms", tuple(values[tasks]))
            goal = at_most(1.5) if name.startswith("claim") else None
            yield ratio(f"{name}, {many:,} ready vs {few:,}, {title}", values[many], values[few], goal)
        size = (backlogs[many].bytes_each,)
        yield Measure(f"database for each waiting task, {title}", "bytes", size, note="no-op, with its history")


def memory(setting: Setting) -> Iterator[Measure]:
    """What a call that waits takes up in the script."""
    tasks = setting.many(20_000, 1_000)
    subjects = [*setting.kinds, "htex"]
    rounds = setting.compare(subjects, "waiting", setting.rounds(1), tasks=tasks)
    found = {subject: [one["bytes"] for one in rounds[subject]] for subject in subjects}
    for subject in subjects:
        name = f"memory of the script for each waiting call, {TITLES[subject]}"
        note = f"{tasks:,} calls, Parsl's own share included"
        if subject == "htex":
            note += "; its interchange keeps them too"
        yield Measure(name, "bytes", tuple(found[subject]), note=note)
    for kind in setting.kinds:
        yield ratio(f"memory for each waiting call, {TITLES[kind]} vs HTEX", found[kind], found["htex"])
