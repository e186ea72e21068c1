"""The future of a call behaves as any other, although all of them share what they wait with."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, TimeoutError, wait

import pytest

from parsl_balsam.executor.calls import TaskFuture


def test_the_end_of_another_call_ends_no_wait() -> None:
    mine, other = TaskFuture(b"mine", 0), TaskFuture(b"other", 0)
    found: list[object] = []
    waiting = [
        threading.Thread(target=lambda: found.append(mine.result(30)), daemon=True),
        threading.Thread(target=lambda: found.append(mine.exception(30)), daemon=True),
        threading.Thread(target=lambda: found.append(mine.result()), daemon=True),
    ]
    for thread in waiting:
        thread.start()
    wait_until_waiting(len(waiting))
    other.set_result("another's")
    for thread in waiting:
        thread.join(0.1)
    assert all(thread.is_alive() for thread in waiting)
    assert not found
    mine.set_result("mine")
    for thread in waiting:
        thread.join(30)
    assert sorted(map(str, found)) == ["None", "mine", "mine"]


def test_a_wait_ends_with_its_time() -> None:
    future = TaskFuture(b"", 0)
    for ask in (future.result, future.exception):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(0.05)
        assert time.monotonic() - began >= 0.05


def test_what_was_raised_is_told() -> None:
    future, error = TaskFuture(b"", 0), ValueError("wrong")
    future.set_exception(error)
    assert future.exception() is error
    with pytest.raises(ValueError, match="wrong"):
        future.result()


def test_several_are_waited_for_at_once() -> None:
    one, two = TaskFuture(b"one", 0), TaskFuture(b"two", 0)
    threading.Timer(0.05, one.set_result, [1]).start()
    done, left = wait([one, two], 30, FIRST_COMPLETED)
    assert (done, left) == ({one}, {two})
    threading.Timer(0.05, two.set_result, [2]).start()
    assert wait([one, two], 30, ALL_COMPLETED).done == {one, two}


def wait_until_waiting(threads: int) -> None:
    """Return when so many threads wait for a future."""
    until = time.monotonic() + 30
    while len(TaskFuture._shared._waiters) < threads:  # type: ignore[attr-defined]
        assert time.monotonic() < until
        time.sleep(0.001)
