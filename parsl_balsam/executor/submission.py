"""Records calls behind the back of ``submit``, as many in one transaction as have come in meanwhile."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from parsl_balsam.db.connect import Database
from parsl_balsam.db.outage import RETRY_S, Outage
from parsl_balsam.db.tasks import TaskStore, cancel_tasks
from parsl_balsam.executor.calls import TaskFuture
from parsl_balsam.executor.completion import Completion
from parsl_balsam.executor.pending import Pending
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.states import TaskState
from parsl_balsam.model.tasks import Binding, Bound, Call, FinishedTask

logger = logging.getLogger(__name__)

#: A call, the bytes of its function, and its future.
_Called = tuple[Call, bytes, TaskFuture]

#: At most so many calls, and so many bytes of arguments, go into one transaction.
_BATCH_CALLS = 500
_BATCH_BYTES = 64 * 1024 * 1024

#: So many that came during one transaction are a stream. More of it is waited for, seconds, once for each transaction.
_STREAM_CALLS = 32
_GATHER_S = 0.01


@dataclass(frozen=True, slots=True)
class ReuseCounts:
    """What the calls of a run met in the database."""

    reused: int  #: answered from a recorded result
    attached: int  #: bound to a task that an earlier run left waiting or running
    new: int  #: recorded by this run, or made ready again after a failure


class Submission(threading.Thread):
    """The thread that writes calls to the database."""

    def __init__(
        self,
        database: Database,
        store: TaskStore,
        pending: Pending,
        completion: Completion,
        on_failure: Callable[[Exception], None],
    ) -> None:
        super().__init__(name="balsam-submission", daemon=True)
        self._database = database
        self._store = store
        self._pending = pending
        self._completion = completion
        self._on_failure = on_failure
        #: Calls to record, futures whose tasks are to be ended, and None for nothing but to look up.
        self._queue: SimpleQueue[_Called | TaskFuture | None] = SimpleQueue()
        self._closing = threading.Event()
        self._outage = Outage(logger)
        self._stored: set[bytes] = set()
        self._counts: Counter[tuple[str, Binding]] = Counter()

    def put(self, call: Call, body: bytes, future: TaskFuture) -> None:
        """Queue a call. Its arguments are bytes already, so what the script does to them later does no harm."""
        self._queue.put((call, body, future))

    def cancel(self, future: TaskFuture) -> None:
        """Queue the wish that a task be ended. It is carried out after the calls queued before it are recorded."""
        self._queue.put(future)

    def counts(self, app: str | None) -> ReuseCounts:
        """Return what the calls recorded so far met, those of one app or all."""
        met: Counter[Binding] = Counter()
        for (name, binding), count in list(self._counts.items()):
            if app in (None, name):
                met[binding] += count
        return ReuseCounts(met[Binding.REUSED], met[Binding.ATTACHED], met[Binding.NEW] + met[Binding.REOPENED])

    def close(self, timeout: float) -> None:
        """Write what is queued, and end; give up after a time, in seconds."""
        self._closing.set()
        self._queue.put(None)
        self.join(timeout)

    def run(self) -> None:
        """Write batches until closed. Never called directly."""
        try:
            while self._write():
                pass
        except Exception as error:
            logger.exception("calls can no longer be recorded")
            self._on_failure(error)

    def _write(self) -> bool:
        """Wait for something to do, and do it; return False if there is nothing and will be nothing.

        While it waits, nothing holds the arguments of calls that are recorded: they may be large.
        """
        batch, cancels = self._take()
        self._until_it_works(self._record, batch)
        self._until_it_works(self._cancel, cancels)
        return bool(batch or cancels) or not self._closing.is_set()

    def _until_it_works(self, act: Callable[[list[Any]], None], items: list[Any]) -> None:
        while items:
            try:
                act(items)
                return self._outage.over()
            except DatabaseUnavailable as error:
                self._outage.note(error)
                if self._closing.wait(RETRY_S):
                    raise

    def _take(self) -> tuple[list[_Called], list[TaskFuture]]:
        """Return what came in, in parts: calls to record, and then futures whose tasks are to be ended."""
        batch: list[_Called] = []
        cancels: list[TaskFuture] = []
        size = 0
        gathered = False
        wait = not self._closing.is_set()  # if that changes now, None comes
        while len(batch) < _BATCH_CALLS and size < _BATCH_BYTES:
            try:
                item = self._queue.get(wait)
            except Empty:
                if gathered or len(batch) < _STREAM_CALLS:
                    break
                gathered = True
                self._closing.wait(_GATHER_S)
                continue
            wait = False
            if isinstance(item, TaskFuture):
                cancels.append(item)
            elif item is not None:
                batch.append(item)
                size += len(item[0].payload)
        return batch, cancels

    def _record(self, batch: list[_Called]) -> None:
        bodies = {call.function: body for call, body, _ in batch if call.function not in self._stored}
        self._pending.begin_recording()
        bound = self._store.submit([call for call, _, _ in batch], bodies)
        self._stored.update(bodies)
        futures = [future for _, _, future in batch]
        over = self._pending.note([(b.task_id, future) for b, future in zip(bound, futures, strict=True)])
        self._counts.update((call.app, b.binding) for (call, _, _), b in zip(batch, bound, strict=True))
        self._completion.hand_over(over, [_finished(b) for b in bound if b.binding is Binding.REUSED])

    def _cancel(self, futures: list[TaskFuture]) -> None:
        ids = [future.task_id for future in futures if future.task_id is not None and not future.done()]
        if ids:
            cancel_tasks(self._database, ids, "user")


def _finished(bound: Bound) -> FinishedTask:
    return FinishedTask(bound.task_id, TaskState.DONE, bound.payload, None, None)
