"""What a launcher does to tasks: claim, start, end. Every write presents the token of the claim."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, exists, select

from parsl_balsam.db.among import among
from parsl_balsam.db.connect import Database, clock
from parsl_balsam.db.copying import select_rows, short
from parsl_balsam.db.endings import begin_ends, finish_ends, record_ends, unclaim
from parsl_balsam.db.events import Change, write_events
from parsl_balsam.db.ready import CURRENT_RUN, first_ready, next_ready, pick
from parsl_balsam.db.schema import arguments, attempts, blocks, functions, tasks
from parsl_balsam.db.statement import Statement
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.model.errors import InvalidResources
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import write_shares
from parsl_balsam.model.states import BlockState, Outcome, TaskState
from parsl_balsam.model.tasks import (
    AttemptEnd,
    AttemptStart,
    BlockShape,
    ClaimedTask,
    Release,
    Unserved,
    Wish,
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The database's answer to a launcher."""

    claimed: list[ClaimedTask]  #: most urgent first
    cancelled: list[int]  #: tasks this launcher holds that the user wants ended
    next_ready_s: float | None  #: seconds until a task that waits for its next try may be claimed
    superseded: bool  #: a later run drives the workflow: this block finishes what it holds and ends
    at: float  #: the database's clock, seconds since the epoch
    more: bool  #: there are, or may be, more tasks like those wished for
    unserved: Unserved | None  #: a task that is ready, where the launcher's wishes have found none
    end_wish: str | None = None  #: who wants the block ended


class LeaseLost(Exception):
    """The launcher was not heard of for a whole lease, and its tasks were given to others: it must kill its own."""


class ClaimStore:
    """The tasks of one block, as its launcher sees them. Each method is one transaction."""

    def __init__(self, database: Database, workflow_id: int, block_id: int) -> None:
        self._database = database
        self._workflow_id = workflow_id
        self._block_id = block_id
        self._who = f"block {block_id}"

    def exchange(
        self,
        starts: Sequence[AttemptStart] = (),
        ends: Sequence[AttemptEnd] = (),
        wishes: Sequence[Wish] = (),
        releases: Sequence[Release] = (),
        shape: BlockShape | None = None,
    ) -> Exchange:
        """Renew the lease, record what started, ended or was given back, and claim what is wished for.

        It may be repeated when its outcome is unknown: what was written already is not written again, and
        `release_strays` gives back what was claimed unheard. On SQLite, only ends are on disk when it returns: for the
        rest see `sync`.

        Parameters
        ----------
        wishes
            Granted one after the other. The last one is the widest: what it would not take waits in vain.
        shape
            What the block has to run tasks on, if that changed.

        Raises
        ------
        LeaseLost
            If the block was reaped. Nothing was written.
        """
        with self._database.begin("exchange", early=not ends) as connection:
            at, superseded, end_wish, cancels = self._renew(connection)
            if bool(starts) + bool(ends) + bool(releases) > 1:
                # All at once and by id: whoever locked some of them before the others could wait in a circle.
                touched: list[AttemptStart | AttemptEnd | Release] = [*starts, *ends, *releases]
                _LOCK.rows(connection, ids=[item.task_id for item in touched])
            ended = begin_ends(connection, ends, self._who, at)
            over = {task_id for ids in ended.over.values() for task_id in ids}  # these do not look so yet
            begun = [start for start in starts if start.task_id not in over]
            cancels = self._record_starts(connection, begun, at) or cancels
            released = self._release(connection, [release for release in releases if release.task_id not in over], at)
            if shape is not None:
                self._describe(connection, shape, at)
            leaving = superseded or end_wish is not None
            claimed, more, to_cancel = ([], False, []) if leaving else self._claim(connection, wishes, at)
            if cancels:
                to_cancel = _TO_CANCEL.scalars(connection, block=self._block_id)
            cancelled = [task_id for task_id in to_cancel if task_id not in over]
            wait, unserved = None, None
            if wishes and not leaving and not more:
                wait = next_ready(connection, self._workflow_id, wishes[-1], at)
                unserved = None if claimed else first_ready(connection, self._workflow_id, at)
            if released or any(end.outcome is not Outcome.DONE for end in ended.written):
                notify(connection, self._workflow_id, Topic.WORK)  # some of them may be ready again
            if ended.written:
                notify(connection, self._workflow_id, Topic.FINISHED)
            finish_ends(connection, self._workflow_id, ended, at)
        return Exchange(claimed, cancelled, wait, superseded, at, more, unserved, end_wish)

    def sync(self) -> None:
        """Wait until the last exchange is on disk.

        Raises
        ------
        DatabaseUnavailable
            If it may not be there.
        """
        self._database.sync()

    def functions(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return stored functions by digest."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(functions.c.digest, functions.c.body).where(functions.c.digest.in_(list(digests)))
            )
            return {bytes(row.digest): bytes(row.body) for row in rows}

    def release_strays(self, known: Iterable[int]) -> int:
        """Give back tasks that this block has claimed and its launcher knows nothing of; return how many.

        A claim whose commit was done but never acknowledged leaves such tasks. None of them has started.

        Raises
        ------
        LeaseLost
            If the block was reaped. Nothing was written.
        """
        with self._database.begin("release_strays") as connection:
            at, *_ = self._renew(connection)
            strays = connection.execute(
                select(tasks.c.id, tasks.c.attempts, tasks.c.token, tasks.c.cancel_requested)
                .where(
                    tasks.c.block_id == self._block_id,
                    tasks.c.state == TaskState.ASSIGNED.value,
                    tasks.c.id.not_in(list(known)),
                )
                .order_by(tasks.c.id)
                .with_for_update()
            ).all()
            wanted = [row.id for row in strays if not row.cancel_requested]
            unclaim(connection, wanted, self._who, "its claim was not acknowledged", at)
            unwanted = [
                AttemptEnd(row.id, row.attempts, row.token, Outcome.CANCELLED) for row in strays if row.cancel_requested
            ]
            record_ends(connection, self._workflow_id, unwanted, self._who, at)
            if wanted:
                notify(connection, self._workflow_id, Topic.WORK)
            if unwanted:
                notify(connection, self._workflow_id, Topic.FINISHED)
        return len(strays)

    def _renew(self, connection: Connection) -> tuple[float, bool, str | None, bool]:
        """Renew the lease and lock it, so that nobody reaps the block before this transaction ends.

        Return the database's clock, whether a later run drives the workflow, who wants the block ended, and whether
        there were tasks to cancel: whoever wants another cancelled wakes the launcher up after that.
        """
        row = _RENEW.first(connection, workflow=self._workflow_id, block=self._block_id)
        if row is None:
            raise LeaseLost(f"block {self._block_id} lost its lease")
        return float(row.at), bool(row.superseded), row.end_wish, bool(row.cancels)

    def _record_starts(self, connection: Connection, starts: Sequence[AttemptStart], at: float) -> bool:
        """Record starts; return whether one of these tasks is to be cancelled, maybe since a moment ago."""
        if not starts:
            return False
        rows = _ASSIGNED.rows(connection, ids=[start.task_id for start in starts])
        held = {row.id: row.token for row in rows}
        cancels = any(row.cancel_requested for row in rows)
        mine = [start for start in starts if held.get(start.task_id) == start.token]
        if not mine:
            return cancels
        _RUNNING.run(connection, ids=[start.task_id for start in mine])
        _START_ATTEMPT.run_each(
            connection,
            [
                {
                    "t": start.task_id,
                    "n": start.number,
                    "host": start.shares[0].node,
                    "placement": write_shares(start.shares),
                    "started_at": min(start.started_at, at),  # see `record_ends`
                }
                for start in mine
            ],
        )
        write_events(
            connection,
            self._who,
            [Change(start.task_id, TaskState.RUNNING, at, f"attempt {start.number}") for start in mine],
        )
        return cancels

    def _release(self, connection: Connection, releases: Sequence[Release], at: float) -> bool:
        """Give back tasks that wait here in vain; return whether there were any."""
        if not releases:
            return False
        rows = _ASSIGNED.rows(connection, ids=[release.task_id for release in releases])
        held = {row.id: row.token for row in rows}
        by_reason: defaultdict[str, list[int]] = defaultdict(list)
        for release in releases:
            if held.get(release.task_id) == release.token:
                by_reason[release.why].append(release.task_id)
        for why, ids in by_reason.items():
            unclaim(connection, ids, self._who, why, at)
        return bool(by_reason)

    def _describe(self, connection: Connection, shape: BlockShape, at: float) -> None:
        connection.execute(
            _DESCRIBE,
            {
                "block": self._block_id,
                "nodes": shape.nodes,
                "cores_per_node": shape.cores_per_node,
                "gpus_per_node": shape.gpus_per_node,
                "ends_at": None if shape.ends_in_s is None else at + shape.ends_in_s,
                "lost_nodes": "; ".join(shape.lost_nodes) or None,
            },
        )

    def _claim(
        self, connection: Connection, wishes: Sequence[Wish], at: float
    ) -> tuple[list[ClaimedTask], bool, list[int]]:
        """Claim what is wished for; return it, whether something was left for want of room, and which are to cancel."""
        token = secrets.randbits(62)
        rows: list[Any] = []
        more = False
        for wish in wishes:
            if wish.fallback and rows:
                continue
            found = pick(connection, self._workflow_id, wish, at)
            chosen: list[int] = []
            budget = wish.cores
            for row in found:
                if row.cores <= budget:
                    chosen.append(row.id)
                    budget -= row.cores
            more = more or len(chosen) < len(found) or len(found) == wish.tasks
            if chosen:
                rows += _CLAIM.rows(connection, ids=chosen, block=self._block_id, new_token=token)
        if not rows:
            return [], more, []
        rows = sorted(rows, key=lambda row: (-row.priority, -row.nodes, row.id))
        payloads = {row.id: row.payload for row in rows}
        if large := [task_id for task_id, payload in payloads.items() if payload is None]:
            payloads |= {row.task_id: row.payload for row in select_rows(connection, _ARGUMENTS, ids=large)}
        _INSERT_ATTEMPTS.run_each(
            connection,
            [
                {"task_id": row.id, "number": row.attempts, "block_id": self._block_id, "claimed_at": row.claimed_at}
                for row in rows
            ],
        )
        write_events(
            connection,
            self._who,
            [Change(row.id, TaskState.ASSIGNED, row.claimed_at, f"attempt {row.attempts}") for row in rows],
        )
        claimed = [
            ClaimedTask(
                task_id=row.id,
                number=row.attempts,
                token=token,
                key=bytes(row.key),
                occurrence=row.occurrence,
                app=row.app,
                function=bytes(row.function),
                payload=payloads[row.id],
                stderr=row.stderr,
                **_specified(row.spec),
            )
            for row in rows
        ]
        return claimed, more, [row.id for row in rows if row.cancel_requested]


def _specified(text: str | None) -> dict[str, Any]:
    """Return what a task's specification says. One that is damaged must not keep the other tasks from being claimed."""
    try:
        return {"spec": ResourceSpec.loads(text)}
    except InvalidResources as error:
        return {"spec": ResourceSpec(), "flaw": str(error)}


_to_cancel = (tasks.c.block_id == bindparam("block"), tasks.c.cancel_requested)

# Earlier than the current run, not other: a statement that waits for a takeover to end sees its own row as it is after
# that, maybe adopted, and the workflow's as it was before (PostgreSQL's READ COMMITTED).
_RENEW = Statement(
    blocks.update()
    .where(blocks.c.id == bindparam("block"), blocks.c.state == BlockState.RUNNING.value)
    .values(lease_until=clock() + blocks.c.lease_s)
    .returning(
        clock().label("at"),
        (blocks.c.run_id < CURRENT_RUN).label("superseded"),
        blocks.c.end_wish,
        exists().where(*_to_cancel).label("cancels"),
    )
)

_LOCK = Statement(select(tasks.c.id).where(among(tasks.c.id, "ids")).order_by(tasks.c.id).with_for_update())

_TO_CANCEL = Statement(select(tasks.c.id).where(*_to_cancel))

_ASSIGNED = Statement(
    select(tasks.c.id, tasks.c.token, tasks.c.cancel_requested)
    .where(among(tasks.c.id, "ids"), tasks.c.state == TaskState.ASSIGNED.value)
    .with_for_update()
)

_RUNNING = Statement(tasks.update().where(among(tasks.c.id, "ids")).values(state=TaskState.RUNNING.value))

_CLAIM = Statement(
    tasks.update()
    .where(among(tasks.c.id, "ids"))
    .values(
        state=TaskState.ASSIGNED.value,
        block_id=bindparam("block"),
        token=bindparam("new_token"),
        attempts=tasks.c.attempts + 1,
        ready_at=None,
    )
    .returning(
        tasks.c.id,
        tasks.c.attempts,
        tasks.c.key,
        tasks.c.occurrence,
        tasks.c.app,
        tasks.c.function,
        tasks.c.spec,
        tasks.c.stderr,
        tasks.c.priority,
        tasks.c.nodes,
        # Not when the transaction began: the attempt before may have ended since.
        clock().label("claimed_at"),
        tasks.c.cancel_requested,
        select(short(arguments.c.payload)).where(arguments.c.task_id == tasks.c.id).scalar_subquery().label("payload"),
    )
)

_INSERT_ATTEMPTS = Statement(attempts.insert(), "task_id", "number", "block_id", "claimed_at")

_ARGUMENTS = Statement(select(arguments).where(among(arguments.c.task_id, "ids")))

_START_ATTEMPT = Statement(
    attempts.update()
    .where(attempts.c.task_id == bindparam("t"), attempts.c.number == bindparam("n"))
    .values(host=bindparam("host"), placement=bindparam("placement"), started_at=bindparam("started_at"))
)

_DESCRIBE = (
    blocks.update()
    .where(blocks.c.id == bindparam("block"))
    .values({name: bindparam(name) for name in ("nodes", "cores_per_node", "gpus_per_node", "ends_at", "lost_nodes")})
)
