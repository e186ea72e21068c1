"""What an agent does with its workers, where the moment matters: without an agent, and without a launcher."""

from __future__ import annotations

import selectors
import time
from pathlib import Path

from parsl_balsam.launcher.messages import Ended, Start
from parsl_balsam.launcher.tickets import Tickets
from parsl_balsam.launcher.workers import Workers
from parsl_balsam.model.payload import decode, digest, encode
from tests.executor.parsl_runs import open_gate, wait_for
from tests.launcher.test_agents import LIMIT_S, in_own_process, wait_at


def start(task_id: int, number: int) -> tuple[Start, bytes]:
    """Return a task that returns the absolute value of a number, and its function."""
    body = encode(abs)
    return Start(task_id, 1, (0,), False, digest(body), body, encode(((), (number,), {})), None, None), body


@in_own_process
def test_task_that_was_to_begin_as_others_were_taken_back_begins(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    take = Tickets.take

    def late(self: Tickets, number: int) -> bool:
        wait_at(str(gate))
        return take(self, number)

    Tickets.take = late  # type: ignore[method-assign]
    selector = selectors.DefaultSelector()
    ends: list[Ended] = []
    following = {0: 1, 3: 2}

    def report(ended: Ended) -> None:
        ends.append(ended)
        if ended.task_id in following:
            workers.start(*tasks[following[ended.task_id]])

    workers = Workers(selector, report, [selector.close])
    workers.lease.extend(time.monotonic() + LIMIT_S)

    def end_of(task_id: int) -> int:
        def ended() -> list[int]:
            for key, _ in selector.select(0.02):
                key.data()
            return [int(decode(ended.payload or b"")) for ended in ends if ended.task_id == task_id]

        return int(wait_for(lambda: ended() or None, f"the end of task {task_id}", LIMIT_S)[0])

    tasks = [start(number, -number) for number in range(4)]
    workers.start(*tasks[0])
    workers.hand_over(0, iter(tasks[1:]))
    assert end_of(0) == 0
    # The worker has not found the ticket of its own task yet.
    assert workers.take_back(3)
    assert workers.take_back(2)
    open_gate(gate)
    assert end_of(1) == 1
    workers.start(*tasks[3])
    workers.hand_over(3, iter([tasks[2]]))
    assert end_of(3) == 3
    assert end_of(2) == 2
    assert [ended.task_id for ended in ends] == [0, 1, 3, 2]


@in_own_process
def test_agent_rests_only_while_all_workers_have_enough_to_go_on_with(tmp_path: Path) -> None:
    ends: list[Ended] = []
    selector = selectors.DefaultSelector()
    workers = Workers(selector, ends.append, [selector.close])
    workers.lease.extend(time.monotonic() + LIMIT_S)

    def hear(count: int) -> None:
        def heard() -> bool:
            for key, _ in selector.select(0.02):
                key.data()
            return len(ends) >= count

        wait_for(heard, f"the end of {count} tasks", LIMIT_S)

    short = [start(number, number) for number in range(300)]
    for number, each in enumerate(short[:200]):
        workers.start(*each)
        hear(number + 1)
    assert workers.rest() == 0.0
    body = encode(wait_at)
    arguments = encode(((str(tmp_path / "gate"),), {}))
    busy = [(Start(1000 + core, 1, (core,), False, digest(body), body, arguments, None, None), body) for core in (0, 1)]
    for each in busy:
        workers.start(*each)
    assert workers.rest() == 0.0
    workers.hand_over(1000, iter(short[200:210]))
    assert workers.rest() == 0.0
    workers.hand_over(1001, iter(short[210:220]))
    assert 0.0 < workers.rest() <= 0.002
    workers.warm(1)
    assert workers.rest() == 0.0
    open_gate(tmp_path / "gate")
    hear(202)
