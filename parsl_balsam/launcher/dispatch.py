"""From claim to start: which of the tasks that were claimed begin where, and which are sent ahead to their agents."""

from __future__ import annotations

from collections.abc import Iterator

from parsl_balsam.launcher.attempts import Attempts
from parsl_balsam.launcher.pace import Pace
from parsl_balsam.launcher.placement import Queue
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.errors import ImpossibleTask
from parsl_balsam.model.tasks import ClaimedTask, Release


class Dispatch:
    """The claimed tasks that wait, and the way from there to the agents."""

    def __init__(self, space: Space, queue: Queue, attempts: Attempts) -> None:
        self._space = space
        self._queue = queue
        self._attempts = attempts
        self._pace = Pace()
        self._claimed: dict[int, tuple[ClaimedTask, bytes]] = {}  # each with its function

    def __len__(self) -> int:
        return len(self._claimed)

    def __iter__(self) -> Iterator[int]:
        return iter(self._claimed)

    def line_up(self, task: ClaimedTask, body: bytes, now: float, *, again: bool = False) -> None:
        """Let a task wait for its place.

        Parameters
        ----------
        again
            Whether it had one, and came back.
        """
        self._claimed[task.task_id] = (task, body)
        self._queue.add(task.task_id, task.spec, now, again=again)

    def withdraw(self, task_id: int) -> ClaimedTask | None:
        """Let a task wait no more and return it; None if it does not wait."""
        if task_id not in self._claimed:
            return None
        self._queue.remove(task_id)
        return self._claimed.pop(task_id)[0]

    def withdraw_unfit(self, time_left: float | None) -> list[Release]:
        """Let those wait no more that can no longer start here; return them."""
        found: list[Release] = []
        for task_id, why in self._queue.unfit(time_left):
            if (task := self.withdraw(task_id)) is not None:
                found.append(Release(task_id, task.token, f"given back: {why}"))
        return found

    def note_end(self, duration_s: float) -> None:
        """Take note of how long a task took: behind short ones others are sent ahead."""
        self._pace.note(duration_s)

    def rest(self) -> float:
        """Return for how long the agents can do without the launcher, seconds."""
        return self._pace.rest(self._attempts.ahead())

    def start(self, now: float, time_left: float | None) -> list[tuple[ClaimedTask, str]]:
        """Start what there is room for, and send ahead what follows; return what cannot be started, with the reason."""
        refused: list[tuple[ClaimedTask, str]] = []
        for task_id, shares in self._queue.place(now, time_left) if self._claimed and self._space.free_cores else ():
            task, body = self._claimed.pop(task_id)
            try:
                self._attempts.begin(task, body, shares, now)
            except ImpossibleTask as error:
                self._space.give_back(task_id)
                refused.append((task, str(error)))
        self._send_ahead(now, time_left)
        return refused

    def _send_ahead(self, now: float, time_left: float | None) -> None:
        depth = self._pace.depth()
        for first, behind in self._attempts.fresh():
            for _ in range(behind, depth):
                if (following := self._queue.next_like(first.task.spec, time_left)) is None:
                    break
                self._queue.start(following)
                task, body = self._claimed.pop(following)
                self._attempts.send_ahead(task, body, first, now)
