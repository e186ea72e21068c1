"""``parsl-balsam retry`` and ``cancel``: what a user wishes for tasks."""

from __future__ import annotations

from collections.abc import Sequence

import click

from parsl_balsam.cli.options import database_option, opened, take_back_lost, this_user
from parsl_balsam.db.connect import Database
from parsl_balsam.db.history import task_states
from parsl_balsam.db.service import unserved_workflows
from parsl_balsam.db.tasks import cancel_tasks, retry_tasks, tasks_in_state
from parsl_balsam.model.states import TERMINAL, TaskState

#: So many tasks are changed in one transaction: launchers wait for it.
_AT_ONCE = 1000

_ids = click.argument("ids", metavar="ID...", type=int, nargs=-1)


@click.command(short_help="Run failed or cancelled tasks again.")
@_ids
@click.option(
    "--state",
    type=click.Choice([TaskState.FAILED.value, TaskState.CANCELLED.value]),
    help="All tasks in this state, in place of IDs.",
)
@database_option
def retry(ids: tuple[int, ...], state: str | None, database: str) -> None:
    """Make failed or cancelled tasks ready again, with a fresh budget of retries. Their history is kept."""
    if ids and state:
        raise click.UsageError("give either IDs or --state, not both")
    if not ids and not state:
        raise click.UsageError("which tasks? Give their IDs, as 'parsl-balsam tasks' lists them, or --state failed")
    with opened(database) as db:
        take_back_lost(db)
        again = _retry_all(db, TaskState(state)) if state else _retry_some(db, ids)
        unserved = sorted({name for part in _parts(again) for name in unserved_workflows(db, part)})
    if unserved:
        click.echo(
            f"No block works for {', '.join(unserved)} now: "
            f"{'it runs' if len(again) == 1 else 'they run'} when the script is started again."
        )


@click.command(short_help="End tasks, whether they wait or run.")
@_ids
@database_option
def cancel(ids: tuple[int, ...], database: str) -> None:
    """End tasks. One that runs is killed with all the processes it started."""
    if not ids:
        raise click.UsageError("which tasks? Give their IDs, as 'parsl-balsam tasks' lists them")
    with opened(database) as db:
        take_back_lost(db)
        found = cancel_tasks(db, list(dict.fromkeys(ids)), this_user())
    for task_id, state in found.items():
        if state in TERMINAL:
            click.echo(f"{task_id} is over already ({state.value}).")
        elif state is TaskState.READY:
            click.echo(f"{task_id} is cancelled.")
        else:
            click.echo(f"{task_id} is {state.value}: it is being ended.")


def _retry_some(database: Database, ids: Sequence[int]) -> list[int]:
    again = retry_tasks(database, list(dict.fromkeys(ids)), this_user())
    states = task_states(database, ids)
    for task_id in dict.fromkeys(ids):
        if task_id in again:
            click.echo(f"{task_id} is ready again.")
        else:
            click.echo(f"{task_id} is {states[task_id].value}: only what failed or was cancelled can be retried.")
    return again


def _retry_all(database: Database, state: TaskState) -> list[int]:
    again: list[int] = []
    for part in _parts(tasks_in_state(database, state)):
        again += retry_tasks(database, part, this_user())
    if again:
        click.echo(f"{len(again)} {state.value} {'task is' if len(again) == 1 else 'tasks are'} ready again.")
    else:
        click.echo(f"No task is {state.value}.")
    return again


def _parts(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]
