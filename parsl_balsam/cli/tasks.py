"""``parsl-balsam status``, ``tasks``, ``show`` and ``events``: what the database knows."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from parsl_balsam.cli.blocks import print_pauses
from parsl_balsam.cli.feed import EventFeed
from parsl_balsam.cli.options import database_option, json_option, opened, take_back_lost, workflow_option
from parsl_balsam.cli.output import (
    STATE_COLOURS,
    duration,
    one_line,
    print_fields,
    print_json,
    print_table,
    print_text,
    size,
    when,
)
from parsl_balsam.db import history
from parsl_balsam.db.blocklist import BlockLine, open_blocks
from parsl_balsam.db.drivers import is_dead
from parsl_balsam.db.history import AttemptRecord, Event, TaskRecord
from parsl_balsam.db.pauses import paused_workflows
from parsl_balsam.db.service import OpenRun, open_runs, waiting_sizes
from parsl_balsam.model.shares import Share, compress
from parsl_balsam.model.states import TaskState

#: How often ``events --follow`` looks, seconds.
_LOOK_S = 0.5


@click.command(short_help="Count tasks, and show who works on them.")
@workflow_option
@json_option
@database_option
def status(workflow: str | None, as_json: bool, database: str) -> None:
    """Count the tasks in each state, and show who works on them and what those that are ready wait for.

    With --json, only the counts. The tasks of launchers that died are taken back.
    """
    with opened(database) as db:
        take_back_lost(db)
        counts = history.count_states(db, workflow)
        if as_json:
            print_json({state.value: count for state, count in counts.items()})
            return
        blocks = open_blocks(db, workflow)
        runs = [run for run in open_runs(db, workflow) if not is_dead(run.driver)]
        waiting = waiting_sizes(db, workflow)
        paused = paused_workflows(db, workflow)
    names = [state.value for state in counts]
    print_table(names, [list(counts.values())], numbers=names)
    _print_runs(runs)
    if blocks:
        click.echo()
        _print_blocks(blocks)
    for nodes, count, why in waiting:
        what = f"{count} ready {'task' if count == 1 else 'tasks'} of {nodes} {'node' if nodes == 1 else 'nodes'}"
        click.echo(f"{what} {'waits' if count == 1 else 'wait'} {one_line(why)}.")
    print_pauses(paused.values())


@click.command("tasks", short_help="List tasks.")
@click.option("--state", type=click.Choice([state.value for state in TaskState]), help="Only tasks in this state.")
@click.option("--app", metavar="NAME", help="Only calls of this app.")
@workflow_option
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=0), default=50, show_default=True, help="At most N; 0 for all."
)
@json_option
@database_option
def tasks(state: str | None, app: str | None, workflow: str | None, limit: int, as_json: bool, database: str) -> None:
    """List tasks, the latest first."""
    with opened(database) as db:
        found = history.list_tasks(
            db,
            state=TaskState(state) if state else None,
            app=app,
            workflow=workflow,
            limit=limit + 1 if limit else None,
        )
    shown = found[:limit] if limit else found
    if as_json:
        print_json([asdict(task) for task in shown])
        return
    print_table(
        ["id", "workflow", "app", "state", "attempts", "nodes", "submitted", "run time", "last error"],
        [
            (
                task.id,
                task.workflow,
                task.app,
                task.state,
                task.attempts,
                task.nodes,
                when(task.submitted_at),
                duration(task.run_time_s),
                task.error or "",
            )
            for task in shown
        ],
        numbers=["id", "attempts", "nodes", "run time"],
        elastic=["workflow", "app", "last error"],
    )
    if len(shown) < len(found):
        click.echo(f"These are the last {limit}; there are more: --limit 0 lists all.", err=True)


@click.command(short_help="Show all there is to know about a task.")
@click.argument("task_id", metavar="ID", type=int)
@json_option
@database_option
def show(task_id: int, as_json: bool, database: str) -> None:
    """Show a task with all its attempts, what they printed and how they ended."""
    with opened(database) as db:
        task = history.read_task(db, task_id)
    if as_json:
        print_json(asdict(task))
        return
    _print_task(task)
    for attempt in task.attempts:
        click.echo()
        _print_attempt(attempt)
    click.echo()
    click.echo(click.style("history", bold=True))
    for event in task.events:
        click.echo(f"  {when(event.at)}  {_state(event.state)}  {one_line(event.who)}: {one_line(event.why)}")


@click.command(short_help="Show what happened, and what happens.")
@click.argument("task_id", metavar="[ID]", type=int, required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens now, until Ctrl-C.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Only the last N; 0 for all.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line. Times are seconds since the epoch."
)
@database_option
def events(task_id: int | None, follow: bool, limit: int, as_json: bool, database: str) -> None:
    """Show the changes of state of one task, or of all."""
    with opened(database) as db:
        found = history.last_events(db, task_id, limit or None)
        _print_events(found, as_json)
        if not follow:
            return
        feed = EventFeed(db, task_id, found)
        try:
            while True:
                _print_events(feed.new(), as_json)
                time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            pass


def _print_runs(runs: Sequence[OpenRun]) -> None:
    for run in runs:
        click.echo(
            f"{run.workflow} (executor {run.executor}) is driven by process {run.driver.pid} on {run.driver.host} "
            f"since {when(run.started_at)}."
        )


def _print_blocks(blocks: Sequence[BlockLine]) -> None:
    print_table(
        ["block", "workflow", "job", "state", "host", "nodes", "tasks", "since", "time left", "lease"],
        [
            (
                block.id,
                block.workflow,
                block.job_id,
                block.state,
                block.host,
                block.nodes,
                block.held,
                when(block.started_at or block.requested_at),
                duration(block.time_left_s),
                None if block.lease_left_s is None else f"{duration(block.lease_left_s)} left",
            )
            for block in blocks
        ],
        numbers=["block", "nodes", "tasks", "time left"],
        elastic=["workflow", "host"],
    )
    for block in blocks:
        if block.lost_nodes:
            click.echo(f"Block {block.id} has lost {one_line(block.lost_nodes)}.")


def _print_task(task: TaskRecord) -> None:
    cancelling = ", being cancelled" if task.cancel_requested and task.finished_at is None else ""
    print_fields(
        [
            ("task", task.id),
            ("app", task.app),
            ("state", f"{task.state.value}{cancelling}"),
            ("waits", task.waits),
            ("workflow", f"{task.workflow} (executor {task.executor}), run {task.run_id}"),
            ("key", f"{task.key}, occurrence {task.occurrence}"),
            ("function", task.function),
            ("resources", ", ".join(f"{name}={value!r}" for name, value in task.spec.items()) or "one core"),
            ("nodes", task.nodes),
            ("priority", task.priority),
            ("stdout", task.stdout),
            ("stderr", task.stderr),
            ("submitted", when(task.submitted_at)),
            ("not before", when(task.ready_at)),
            ("finished", when(task.finished_at)),
            ("arguments", size(task.arguments_size)),
            ("result", size(task.result_size)),
            ("attempts", _attempts_made(task)),
        ]
    )


def _attempts_made(task: TaskRecord) -> str:
    made = str(len(task.attempts))
    return f"{made}; the first {task.budget_from} before it was retried" if task.budget_from else made


def _print_attempt(attempt: AttemptRecord) -> None:
    over = attempt.ended_at is not None and attempt.started_at is not None
    job = f" (job {attempt.job_id})" if attempt.job_id else ""
    print_fields(
        [
            (f"attempt {attempt.number}", attempt.outcome.value if attempt.outcome else "goes on"),
            ("  exit code", attempt.exit_code),
            ("  signal", _signal(attempt.signal)),
            ("  block", f"{attempt.block_id}{job}"),
            ("  host", attempt.host),
            ("  placement", _placement(attempt.placement)),
            ("  claimed", when(attempt.claimed_at)),
            ("  started", when(attempt.started_at)),
            ("  ended", when(attempt.ended_at)),
            ("  run time", duration((attempt.ended_at or 0) - (attempt.started_at or 0)) if over else None),
            ("  CPU time", duration(attempt.cpu_time)),
            ("  peak memory", size(attempt.peak_memory)),
        ]
    )
    print_text("error", attempt.error, indent=2)
    print_text("last output", attempt.output, indent=2)
    print_text("last of stderr", attempt.stderr_tail, indent=2)


def _placement(shares: Sequence[Share]) -> str | None:
    """Return what an attempt has of its nodes: ``n1 cores 0-3; n2 cores 0-3 GPUs 0,1``."""
    parts = [
        f"{share.node} cores {compress(share.cores)}" + (f" GPUs {','.join(share.gpus)}" if share.gpus else "")
        for share in shares
    ]
    return "; ".join(parts) or None


def _signal(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:  # real-time signals have no names
        return str(number)


def _print_events(found: Sequence[Event], as_json: bool) -> None:
    for event in found:
        if as_json:
            print_json(asdict(event))
        else:
            click.echo(
                f"{when(event.at)}  task {event.task_id:<6}  {_state(event.state)}  "
                f"{one_line(event.who)}: {one_line(event.why)}"
            )


def _state(state: TaskState) -> str:
    return click.style(state.value.ljust(len("cancelled")), fg=STATE_COLOURS.get(state.value))
