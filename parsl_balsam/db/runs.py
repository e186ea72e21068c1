"""Runs: who drives a workflow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select, update
from sqlalchemy.exc import IntegrityError

from parsl_balsam.db.connect import Database, clock, server_started
from parsl_balsam.db.schema import IS_OPEN, IS_RUNNING, blocks, runs, workflows
from parsl_balsam.db.wakeup import Topic, notify
from parsl_balsam.model.errors import ConfigurationError, WorkflowBusy, WorkflowLost
from parsl_balsam.model.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that drives a workflow."""

    host: str
    host_key: str  #: tells hosts, boots and process namespaces apart: a pid means something within one only
    pid: int
    pid_started: float  #: seconds since boot; tells a process from a later one with the same pid


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A block of an earlier run that waits or runs."""

    block_id: int
    tag: str  #: name of its batch job
    scheduler: str | None  #: which kind of provider requested it; None = somebody started it by hand
    job_id: str | None  #: None where the run died before it learned it
    script: str | None  #: that was submitted
    running: bool  #: whether its launcher has come
    order: str | None  #: what launchers of its run are told, JSON


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a user's script on a workflow."""

    run_id: int
    workflow_id: int
    finish: int  #: the last transaction that ended tasks before this run began
    adopted: tuple[OpenJob, ...] = ()  #: blocks of earlier runs that work for this one now
    left: tuple[OpenJob, ...] = ()  #: those that do not: they finish what they have begun


def begin_run(
    database: Database,
    name: str,
    label: str,
    parsl_run_id: str,
    driver: Driver,
    is_dead: Callable[[Driver], bool],
    policy: RetryPolicy,
    lease_s: float,
    launch_order: str | None = None,
    block_rules: str | None = None,
    adopts: Callable[[OpenJob], bool] = lambda _: False,
) -> Run:
    """Make a process the only driver of a workflow.

    A driver known to be dead is succeeded at once. One that cannot be looked at, on another host, is given the rest of
    its lease to show that it lives.

    Parameters
    ----------
    launch_order, block_rules
        JSON, kept for launchers and commands that are started by hand; not read here.
    adopts
        Tells which of the open blocks of earlier runs this one takes over. It is called within the transaction.

    Raises
    ------
    WorkflowBusy
        If a living run drives the workflow.
    """
    heard: float | None = None
    while True:
        with database.begin("begin_run") as connection:
            _lock_blocks(connection, name, label)
            workflow = _workflow(connection, name, label)
            holder = _holder(connection, workflow.current_run)
            if holder is None or is_dead(_driver(holder)):
                run = _take_over(connection, workflow, parsl_run_id, driver, policy, lease_s, launch_order, block_rules)
                # In the same transaction: a launcher that sees that it works for an earlier run leaves.
                return _adopt(connection, run, adopts)
            rest = holder.lives_until - connection.execute(select(clock())).scalar_one()
        same_host = holder.host_key == driver.host_key
        if same_host or (heard is not None and holder.lease_until != heard):
            raise WorkflowBusy(_busy(name, label, holder))
        heard = holder.lease_until
        time.sleep(max(0.0, rest) + 0.1)


@dataclass(frozen=True, slots=True)
class FoundOrder:
    """What a launcher started by hand must know of a workflow."""

    workflow_id: int
    run_id: int  #: its current run, or its last
    order: str  #: JSON, see `parsl_balsam.model.launch`


def find_order(database: Database, name: str, label: str | None) -> FoundOrder:
    """Return what launchers of a workflow's current run are told.

    Parameters
    ----------
    label
        Of the executor; None if the workflow has only one.

    Raises
    ------
    ConfigurationError
        If there is no such workflow, or it has several executors and none is named.
    """
    query = (
        select(workflows.c.id, workflows.c.label, runs.c.id.label("run_id"), runs.c.launch_order)
        .join(runs, runs.c.id == workflows.c.current_run)
        .where(workflows.c.name == name)
        .order_by(workflows.c.label)
    )
    with database.read() as connection:
        found = connection.execute(query).all()
        known = connection.execute(select(workflows.c.name).distinct().order_by(workflows.c.name).limit(10)).scalars()
        names = ", ".join(map(repr, known)) or "none at all"
    if not found:
        raise ConfigurationError(f"no workflow {name!r} in this database: it has {names}")
    chosen = [row for row in found if label in (None, row.label)]
    if len(chosen) != 1:
        labels = ", ".join(repr(row.label) for row in found)
        raise ConfigurationError(f"workflow {name!r} has the executors {labels}: name one of them with --executor")
    if chosen[0].launch_order is None:
        raise ConfigurationError(f"the last run of workflow {name!r} has left no orders: start its script once")
    return FoundOrder(chosen[0].id, chosen[0].run_id, chosen[0].launch_order)


def of_workflow(connection: Connection, name: str | None, column: ColumnElement[int]) -> Iterable[ColumnElement[bool]]:
    """Return what limits a query to the workflows of a name: each executor has its own."""
    if name is None:
        return []
    ids = list(connection.execute(select(workflows.c.id).where(workflows.c.name == name)).scalars())
    if not ids:
        known = connection.execute(select(workflows.c.name).distinct().order_by(workflows.c.name).limit(10)).scalars()
        raise ConfigurationError(
            f"no workflow {name!r} in this database: it has {', '.join(map(repr, known)) or 'none at all'}"
        )
    return [column.in_(ids)]


def renew_run(database: Database, run_id: int, lease_s: float) -> None:
    """Say that the run lives.

    Raises
    ------
    WorkflowLost
        If another run has taken the workflow over.
    """
    with database.begin("renew_run") as connection:
        renewed = connection.execute(
            runs.update().where(runs.c.id == run_id, runs.c.ended_at.is_(None)).values(lease_until=clock() + lease_s)
        )
        if renewed.rowcount != 1:
            raise WorkflowLost("another run took this workflow over while this one was not heard of")


def end_run(database: Database, run_id: int) -> None:
    """Record that a run is over."""
    with database.begin("end_run") as connection:
        connection.execute(runs.update().where(runs.c.id == run_id, runs.c.ended_at.is_(None)).values(ended_at=clock()))


def _lock_blocks(connection: Connection, name: str, label: str) -> None:
    # Before the workflow's row: launchers lock their block's row first and the workflow's last, and whoever did it the
    # other way round would wait for them in a circle.
    connection.execute(
        select(blocks.c.id)
        .join(workflows, workflows.c.id == blocks.c.workflow_id)
        .where(workflows.c.name == name, workflows.c.label == label, IS_OPEN)
        .order_by(blocks.c.id)
        .with_for_update(of=blocks)
    )


def _workflow(connection: Connection, name: str, label: str) -> Any:
    """Read the workflow's row, made if missing, and lock it until this transaction ends."""
    query = (
        select(workflows.c.id, workflows.c.current_run, workflows.c.last_finish)
        .where(workflows.c.name == name, workflows.c.label == label)
        # KEY SHARE: the run before may be recording tasks, which refer to this row: it is waited for, so never blocked.
        .with_for_update(key_share=True)
    )
    row = connection.execute(query).first()
    if row is None:
        try:
            with connection.begin_nested():
                connection.execute(workflows.insert().values(name=name, label=label, created_at=clock()))
        except IntegrityError:  # another run made it first
            pass
        row = connection.execute(query).one()
    return row


def _holder(connection: Connection, run_id: int | None) -> Any:
    """Return the run that may still drive the workflow: it could not renew its lease while the server was away."""
    could_renew = server_started(connection) + func.coalesce(runs.c.lease_s, 0.0)
    lives_until = case((runs.c.lease_until > could_renew, runs.c.lease_until), else_=could_renew)
    return connection.execute(
        select(runs, lives_until.label("lives_until")).where(
            runs.c.id == run_id, runs.c.ended_at.is_(None), lives_until > clock()
        )
    ).first()


def _driver(row: Any) -> Driver:
    return Driver(row.host, row.host_key, row.pid, row.pid_started)


def _take_over(
    connection: Connection,
    workflow: Any,
    parsl_run_id: str,
    driver: Driver,
    policy: RetryPolicy,
    lease_s: float,
    launch_order: str | None,
    block_rules: str | None,
) -> Run:
    connection.execute(
        update(runs).where(runs.c.workflow_id == workflow.id, runs.c.ended_at.is_(None)).values(ended_at=clock())
    )
    run_id = connection.execute(
        runs.insert()
        .values(
            workflow_id=workflow.id,
            parsl_run_id=parsl_run_id,
            host=driver.host,
            host_key=driver.host_key,
            pid=driver.pid,
            pid_started=driver.pid_started,
            retry_policy=json.dumps(policy.to_dict()),
            launch_order=launch_order,
            block_rules=block_rules,
            started_at=clock(),
            lease_s=lease_s,
            lease_until=clock() + lease_s,
        )
        .returning(runs.c.id)
    ).scalar_one()
    connection.execute(workflows.update().where(workflows.c.id == workflow.id).values(current_run=run_id))
    notify(connection, workflow.id, Topic.WORK)  # launchers of the run before learn that they are superseded
    return Run(run_id, workflow.id, workflow.last_finish)


def _adopt(connection: Connection, run: Run, adopts: Callable[[OpenJob], bool]) -> Run:
    rows = connection.execute(
        select(
            blocks.c.id.label("block_id"),
            blocks.c.tag,
            blocks.c.scheduler,
            blocks.c.job_id,
            blocks.c.script,
            IS_RUNNING.label("running"),
            runs.c.launch_order.label("order"),
        )
        .join(runs, runs.c.id == blocks.c.run_id)
        .where(blocks.c.workflow_id == run.workflow_id, IS_OPEN, blocks.c.end_wish.is_(None))
        .order_by(blocks.c.id)
    )
    found = [OpenJob(**{**row, "running": bool(row["running"])}) for row in rows.mappings()]
    adopted = tuple(job for job in found if adopts(job))
    connection.execute(
        blocks.update().where(blocks.c.id.in_([job.block_id for job in adopted])).values(run_id=run.run_id)
    )
    return replace(run, adopted=adopted, left=tuple(job for job in found if job not in adopted))


def _busy(name: str, label: str, holder: Any) -> str:
    started = datetime.fromtimestamp(holder.started_at, timezone.utc)
    return (
        f"workflow {name!r} (executor {label!r}) is driven by process {holder.pid} on {holder.host} since "
        f"{started:%Y-%m-%d %H:%M:%S} UTC: wait for it or end it, or use another workflow name"
    )
