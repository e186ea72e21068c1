"""Turns finished tasks into results of futures, outside of any transaction."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import InvalidStateError
from typing import Any

from parsl.app.errors import RemoteExceptionWrapper

from parsl_balsam.db.connect import Database
from parsl_balsam.db.outage import RETRY_S, Outage
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.executor.calls import TaskFuture
from parsl_balsam.executor.pending import Pending
from parsl_balsam.model.errors import (
    BalsamError,
    DatabaseUnavailable,
    ImpossibleTask,
    TaskCancelled,
    TaskCrashed,
    TaskTimeout,
    UnreadablePayload,
    UntrustedPayload,
)
from parsl_balsam.model.payload import decode
from parsl_balsam.model.signing import Signer
from parsl_balsam.model.states import Outcome, TaskState
from parsl_balsam.model.tasks import FinishedTask

logger = logging.getLogger(__name__)

#: So many results are read in one go.
_FETCH = 200

#: How often it looks although nothing woke it, seconds. A notification may be lost with its connection.
_LOOK_S = 5.0


class Completion(threading.Thread):
    """The thread in which results arrive.

    Parameters
    ----------
    signer
        Tells whether results were written by launchers of this user.
    on_end
        Called with a future and the state of its task just before the future is completed.
    """

    def __init__(
        self,
        database: Database,
        workflow_id: int,
        store: TaskStore,
        pending: Pending,
        signer: Signer,
        finish: int,
        on_end: Callable[[TaskFuture, TaskState], None],
    ) -> None:
        super().__init__(name="balsam-completion", daemon=True)
        self._store = store
        self._pending = pending
        self._signer = signer
        self._finish = finish
        self._on_end = on_end
        self._bell = Bell()
        self._wakeup = listen(database, workflow_id, Topic.FINISHED)
        self._over: deque[int] = deque()
        self._results: deque[FinishedTask] = deque()
        self._closing = False
        self._outage = Outage(logger)

    def hand_over(self, over: Iterable[int], results: Iterable[FinishedTask]) -> None:
        """Complete futures of tasks that another thread knows to be over, with results that it has read or not."""
        self._over.extend(over)
        self._results.extend(results)
        if self._over or self._results:
            self._bell.ring()

    def close(self, timeout: float) -> None:
        """Complete what is over by now, and end; give up after a time, in seconds."""
        self._closing = True
        self._bell.ring()
        self.join(timeout)
        self._wakeup.close()
        if not self.is_alive():
            self._bell.close()

    def run(self) -> None:
        """Complete futures until closed. Never called directly."""
        while True:
            closing = self._closing  # read before looking, so that the last look comes after `close`
            try:
                self._look()
                self._outage.over()
                if closing:
                    return
                self._wakeup.wait(_LOOK_S, self._bell)
            except DatabaseUnavailable as error:
                if closing:
                    return
                self._outage.note(error)
                time.sleep(RETRY_S)
            except Exception:
                logger.exception("results could not be fetched, trying again")
                time.sleep(RETRY_S)

    def _look(self) -> None:
        while self._results:
            self._complete(self._results.popleft())
        handed = [self._over[i] for i in range(len(self._over))]
        found, rest, finish = self._store.fetch_since(
            self._finish, lambda over: self._pending.keep_waited_for(over) + handed, _FETCH
        )
        for finished in found:
            self._complete(finished)
        for start in range(0, len(rest), _FETCH):
            for finished in self._store.fetch(rest[start : start + _FETCH]):
                self._complete(finished)
        # Only now: a fetch that failed is made again.
        self._finish = finish
        for _ in handed:
            self._over.popleft()

    def _complete(self, finished: FinishedTask) -> None:
        futures = self._pending.take(finished.task_id)
        if not futures:
            return
        value, error = _outcome(finished, futures[0], self._signer)
        for future in futures:
            self._on_end(future, finished.state)
            try:
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            except InvalidStateError:  # failed already, with its executor
                pass
            except BaseException:  # what a callback raises, if it is not an Exception, comes through to here
                logger.exception("a callback of a future failed")


def _outcome(finished: FinishedTask, future: TaskFuture, signer: Signer) -> tuple[Any, BaseException | None]:
    """Return a task's value, or its exception."""
    if finished.state is TaskState.CANCELLED:
        return None, TaskCancelled(f"task {finished.task_id} was cancelled")
    if finished.payload is None:
        return None, _without_payload(finished)
    try:
        value = decode(signer.open_result(finished.task_id, future.key, future.occurrence, finished.payload))
        if isinstance(value, RemoteExceptionWrapper):
            return None, value.get_exception()
        if finished.state is TaskState.FAILED and isinstance(value, BalsamError):
            return None, value
        return value, None
    except UntrustedPayload as error:
        return None, error
    except UnreadablePayload as error:
        return None, UnreadablePayload(f"the result of task {finished.task_id} is recorded, but {error}")
    except Exception as error:
        return None, UnreadablePayload(
            f"the exception of task {finished.task_id} is recorded, but is broken: {error!r}"
        )


def _without_payload(finished: FinishedTask) -> Exception:
    text = f"task {finished.task_id}: {finished.error or 'no reason recorded'}"
    if finished.outcome is Outcome.TIMEOUT:
        return TaskTimeout(text)
    if finished.outcome is Outcome.ERROR:
        return ImpossibleTask(text)
    return TaskCrashed(text)
