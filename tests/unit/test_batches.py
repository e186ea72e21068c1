"""How many calls go into one transaction: one that comes alone goes at once, and a stream is gathered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from parsl_balsam.executor import submission
from parsl_balsam.executor.calls import TaskFuture
from parsl_balsam.executor.pending import Pending
from parsl_balsam.executor.submission import Submission
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.tasks import Binding, Bound, Call


class Store:
    """Notes how many calls come in each transaction."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def submit(self, calls: Sequence[Call], bodies: Mapping[bytes, bytes]) -> list[Bound]:
        self.batches.append(len(calls))
        return [Bound(call.occurrence, Binding.NEW) for call in calls]


class Completion:
    """Is told of nothing here."""

    def hand_over(self, *given: object) -> None:
        pass


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.setattr(submission, "_GATHER_S", 60.0)
    none: Any = None
    completion: Any = Completion()
    recorder: Any = store
    return Submission(none, recorder, Pending(), completion, none)


def put(thread: Submission, numbers: Sequence[int]) -> None:
    for number in numbers:
        call = Call(b"key", number, "app", b"function", b"", ResourceSpec())
        thread.put(call, b"body", TaskFuture(b"key", number))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_few_calls_are_recorded_at_once(thread: Submission, store: Store) -> None:
    thread.start()
    for number in range(3):
        put(thread, [number])
        until(lambda done=number + 1: len(store.batches) == done)  # type: ignore[misc]
    thread.close(30)
    assert store.batches == [1, 1, 1]


def test_more_of_a_stream_is_waited_for(thread: Submission, store: Store) -> None:
    many = submission._STREAM_CALLS
    put(thread, range(many))
    thread.start()
    until(thread._queue.empty)
    put(thread, range(many, many + 5))
    thread.close(30)  # ends the wait, too
    assert not thread.is_alive()
    assert store.batches == [many + 5]


def test_a_full_batch_waits_for_nothing(thread: Submission, store: Store) -> None:
    full = submission._BATCH_CALLS
    put(thread, range(full))
    thread.start()
    until(lambda: store.batches == [full])
    thread.close(30)
