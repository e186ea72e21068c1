"""The calls of this run whose tasks are not over."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from parsl_balsam.executor.calls import TaskFuture


class Pending:
    """Which future waits for which task.

    A task may be over before the thread that recorded it has noted its future here. While calls are being recorded,
    ends that nobody waits for are therefore kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[int, tuple[TaskFuture, ...]] = {}
        self._recording = False
        self._early: set[int] = set()

    def begin_recording(self) -> None:
        """Expect `note`. Called before the calls are in the database."""
        with self._lock:
            self._recording = True

    def note(self, recorded: Sequence[tuple[int, TaskFuture]]) -> list[int]:
        """Let futures wait for tasks; return the tasks among them that are over already."""
        with self._lock:
            for task_id, future in recorded:
                future.task_id = task_id
                self._futures[task_id] = (*self._futures.get(task_id, ()), future)
            over = [task_id for task_id, _ in recorded if task_id in self._early]
            self._early.clear()
            self._recording = False
            return over

    def keep_waited_for(self, over: Sequence[int]) -> list[int]:
        """Return the tasks, of those that are over, that a future waits for."""
        with self._lock:
            if self._recording:
                self._early.update(task_id for task_id in over if task_id not in self._futures)
            return [task_id for task_id in over if task_id in self._futures]

    def take(self, task_id: int) -> tuple[TaskFuture, ...]:
        """Return the futures that wait for a task, and forget them."""
        with self._lock:
            return self._futures.pop(task_id, ())
