"""The launcher's line to the database: a thread, so that tasks start and end while a transaction is under way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from parsl_balsam.db.blocks import reap
from parsl_balsam.db.claims import ClaimStore, Exchange, LeaseLost
from parsl_balsam.db.connect import Database
from parsl_balsam.db.outage import Outage
from parsl_balsam.db.wakeup import Bell, Topic, listen
from parsl_balsam.launcher.channel import RecentlyUsed
from parsl_balsam.model.errors import DatabaseDown, DatabaseUnavailable, UntrustedPayload
from parsl_balsam.model.payload import digest, encode
from parsl_balsam.model.signing import Signer
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import AttemptEnd, AttemptStart, BlockShape, ClaimedTask, Release, Wish

logger = logging.getLogger(__name__)

#: Between two tries while the database is away, seconds.
_RETRY_S = 0.25

#: How long its end may take, seconds.
_CLOSE_S = 2.0

_REMEMBERED_FUNCTIONS = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What the launcher wants from its next exchange with the database."""

    starts: Sequence[AttemptStart] = ()
    ends: Sequence[AttemptEnd] = ()
    wishes: Sequence[Wish] = ()
    releases: Sequence[Release] = ()
    shape: BlockShape | None = None
    known: frozenset[int] = frozenset()  #: all tasks the launcher holds


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it."""

    exchange: Exchange
    claimed: list[tuple[ClaimedTask, bytes]]  #: each with its function, and without its signature
    refused: list[AttemptEnd]  #: claimed, and not to be run: somebody else has written them
    renewed_at: float  #: when the lease began anew at the latest, on the monotonic clock


class Ledger(threading.Thread):
    """Carries out one exchange at a time and tells, between them, when something changed in the database."""

    def __init__(
        self, database: Database, workflow_id: int, block_id: int, lease_s: float, bell: Bell, signer: Signer
    ) -> None:
        super().__init__(name="balsam-ledger", daemon=True)
        self._database = database
        self._claims = ClaimStore(database, workflow_id, block_id)
        self._wakeup = listen(database, workflow_id, Topic.WORK)
        self._lease_s = lease_s
        self._signer = signer
        self._bell = bell
        self._mine = Bell()
        self._requests: deque[Request] = deque()
        self._standing: deque[tuple[Request, float]] = deque(maxlen=1)  # with the time it stands since
        self._answers: deque[Answer] = deque()
        self._bodies = RecentlyUsed(_REMEMBERED_FUNCTIONS)
        self._closing = False
        self._outage = Outage(logger)
        self._reap_at = time.monotonic() + lease_s
        self.changed = False  #: something may have changed since the launcher last cleared this
        self.refused_at = 0.0  #: when the last try began that the server refused: nobody could reap; monotonic clock
        self.renewed_at = 0.0  #: when the last try began that has renewed the lease and did no more; monotonic clock
        self.lost: LeaseLost | None = None  #: the block was reaped; nothing more can be recorded
        self.failure: BaseException | None = None  #: an error that no waiting cures

    def ask(self, request: Request) -> None:
        """Begin an exchange. The launcher asks for the next one only after it has the answer."""
        self._requests.append(request)
        self._mine.ring()

    def stand_by(self, request: Request) -> None:
        """Leave a request that becomes an exchange as soon as something may have changed in the database.

        The launcher, which may sleep then, need not be woken up first to ask for what it will ask for anyway.
        """
        self._standing.append((request, time.monotonic()))

    def take_back(self) -> bool:
        """Take back the request that stands; return False if it has become an exchange."""
        return self._take_standing() is not None

    def _take_standing(self) -> tuple[Request, float] | None:
        try:
            return self._standing.pop()  # atomic: either thread may be the one that gets it
        except IndexError:
            return None

    def answer(self) -> Answer | None:
        """Return what came of the exchange, when it is over."""
        return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        """End. An exchange that is under way is tried once more at most, and not waited for if that hangs."""
        self._closing = True
        self._mine.ring()
        self.join(_CLOSE_S)
        if not self.is_alive():
            self._wakeup.close()

    def run(self) -> None:
        """Serve the launcher. Never called directly."""
        try:
            while True:
                if self._requests:
                    request = self._requests.popleft()
                    answer = self._carry_out(request)
                    if answer is not None:
                        self._answers.append(answer)
                    self._bell.ring()
                    if not request.ends:
                        self._sync()
                elif self._closing:
                    return
                else:
                    self._wait()
        except LeaseLost as lost:
            self.lost = lost
        except BaseException as error:
            logger.exception("the line to the database broke")
            self.failure = error
        finally:
            self._bell.ring()

    def _sync(self) -> None:
        # Now that tasks are starting.
        try:
            self._claims.sync()
        except DatabaseUnavailable as error:
            self._outage.note(error)

    def _wait(self) -> None:
        due = max(0.0, self._reap_at - time.monotonic())
        if self._wakeup.wait(due, self._mine):
            if (standing := self._take_standing()) is not None:
                self._requests.append(_aged(*standing))
            else:
                self.changed = True
                self._bell.ring()
        if time.monotonic() >= self._reap_at:
            self._reap_at = time.monotonic() + self._lease_s / 2
            try:
                for block_id in reap(self._database):
                    logger.warning("block %d was lost; its tasks are ready again", block_id)
            except DatabaseUnavailable as error:
                self._outage.note(error)

    def _carry_out(self, request: Request) -> Answer | None:
        doubtful = False
        while True:
            began = time.monotonic()
            try:
                if doubtful:
                    self._claims.release_strays(request.known)
                    # On a full disk this may be all that can be written.
                    self.renewed_at = began
                    self._bell.ring()
                    began = time.monotonic()
                exchange = self._claims.exchange(
                    request.starts, request.ends, request.wishes, request.releases, request.shape
                )
                bodies = self._functions({task.function for task in exchange.claimed})
                self._outage.over()
                return Answer(exchange, *self._trusted(exchange.claimed, bodies), began)
            except DatabaseUnavailable as error:
                self._outage.note(error)
                doubtful = True
                if isinstance(error, DatabaseDown):
                    self.refused_at = began
                    self._bell.ring()
                if self._closing:
                    return None  # somebody else takes the tasks back
                time.sleep(_RETRY_S)

    def _trusted(
        self, claimed: Iterable[ClaimedTask], bodies: Mapping[bytes, bytes]
    ) -> tuple[list[tuple[ClaimedTask, bytes]], list[AttemptEnd]]:
        """Return the tasks that this launcher's user has called, and the ends of the others."""
        good: list[tuple[ClaimedTask, bytes]] = []
        refused: list[AttemptEnd] = []
        for task in claimed:
            try:
                payload = self._signer.open_call(task)
                if task.function not in bodies:
                    raise UntrustedPayload(f"the function of task {task.task_id} was altered or is missing: not run")
                good.append((replace(task, payload=payload), bodies[task.function]))
            except UntrustedPayload as error:
                logger.error("task %d is refused: %s", task.task_id, error)
                end = AttemptEnd(task.task_id, task.number, task.token, Outcome.ERROR, error=str(error), hopeless=True)
                refused.append(replace(end, payload=self._signer.seal_result(task, encode(error))))
        return good, refused

    def _functions(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return functions by their digests, without those whose bytes have another one."""
        needed = set(names)
        missing = {name for name in needed if not self._bodies.use(name) or self._bodies[name] is None}
        fetched = self._claims.functions(missing) if missing else {}
        good = {name: body for name, body in fetched.items() if digest(body) == name}
        for name, body in good.items():
            self._bodies[name] = body
        return {name: body for name in needed if (body := good.get(name) or self._bodies[name]) is not None}


def _aged(request: Request, since: float) -> Request:
    """Return a request, of which the launcher has less time left now than when it was made."""
    passed_min = (time.monotonic() - since) / 60
    wishes = [
        wish if wish.time_left_min is None else replace(wish, time_left_min=wish.time_left_min - passed_min)
        for wish in request.wishes
    ]
    return replace(request, wishes=wishes)
