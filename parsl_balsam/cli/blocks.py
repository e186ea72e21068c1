"""``parsl-balsam blocks``: batch jobs that are requested, run or are over, and how to end them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from parsl_balsam.cli.options import database_option, json_option, opened, take_back_lost, this_user, workflow_option
from parsl_balsam.cli.output import duration, minutes, one_line, print_json, print_table, when
from parsl_balsam.db.blocklist import BlockLine, list_blocks, read_blocks
from parsl_balsam.db.blocks import abandon_block, note_job_state, wish_end
from parsl_balsam.db.connect import Database
from parsl_balsam.db.drivers import is_dead
from parsl_balsam.db.pauses import end_pause, paused_workflows
from parsl_balsam.db.service import open_runs
from parsl_balsam.model.pauses import Pause
from parsl_balsam.model.states import JOB_OVER, BlockState, JobState

if TYPE_CHECKING:
    from parsl_balsam.providers.scheduler import Scheduler

#: How long a command of a scheduler may take, seconds.
_COMMAND_S = 60.0


class _ListedByDefault(click.Group):
    """A group that lists where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx)):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListedByDefault, short_help="List blocks, end them, and end pauses in which none is requested.")
def blocks() -> None:
    """List blocks, end them, and end pauses in which none is requested.

    Without a command the blocks are listed: 'parsl-balsam blocks --workflow NAME' is short for 'parsl-balsam blocks
    list --workflow NAME'.
    """


@blocks.command("list", short_help="List blocks (this is done where no command is named).")
@workflow_option
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Of those that are over, the last N of each workflow; 0 for all.",
)
@click.option("--all", "everything", is_flag=True, help="All that are over.")
@click.option("--verbose", "-v", is_flag=True, help="Say why each was requested.")
@json_option
@database_option
def list_(workflow: str | None, limit: int, everything: bool, verbose: bool, as_json: bool, database: str) -> None:
    """List the blocks that are requested or run, and the last ones that are over, with what their scheduler says.

    Below are the workflows that request none for a while, and why. The tasks of launchers that died are taken back.
    """
    with opened(database) as db:
        take_back_lost(db)
        found = list_blocks(db, workflow, None if everything else limit or None)
        paused = paused_workflows(db, workflow).values()
    if as_json:
        print_json({"blocks": [asdict(line) for line in found], "pauses": pauses_as_json(paused)})
        return
    if found:
        _print_blocks(found, verbose)
    else:
        click.echo("There are no blocks.")
    print_pauses(paused)


@blocks.command(short_help="End blocks, whether they wait in a queue or run.")
@click.argument("ids", metavar="ID...", type=int, nargs=-1)
@database_option
@click.pass_context
def cancel(ctx: click.Context, ids: tuple[int, ...], database: str) -> None:
    """End blocks. What runs there becomes ready again, at no cost.

    Launchers are told, and end by themselves. A block that still waits in a queue is not opened any more; where its
    scheduler's commands are on the PATH of this host, its job is cancelled as well.
    """
    if not ids:
        raise click.UsageError("which blocks? Give their IDs, as 'parsl-balsam blocks' lists them")
    wanted = list(dict.fromkeys(ids))
    with opened(database) as db:
        take_back_lost(db)
        wish_end(db, wanted, this_user())
        found = read_blocks(db, wanted)
        ended = [line for line in found.values() if line.is_open]
        for block_id in wanted:
            if block_id not in found:
                click.echo(
                    f"There is no block {block_id}: 'parsl-balsam blocks --all' lists those there are.", err=True
                )
            elif block_id in {line.id for line in ended}:
                click.echo(_end(db, found[block_id]))
            else:
                click.echo(_over(found[block_id]))
        _warn_of_others(db, ended)
    if not ended:
        ctx.exit(1)


@blocks.command(short_help="Let blocks be requested again.")
@workflow_option
@database_option
def resume(workflow: str | None, database: str) -> None:
    """End the pauses in which no block is requested, since one was refused or died at once.

    The next failure is followed by a short pause again.
    """
    with opened(database) as db:
        paused = paused_workflows(db, workflow)
        end_pause(db, list(paused))
    for name, _ in paused.values():
        click.echo(f"Workflow {one_line(name)} may request blocks again.")
    if not paused:
        click.echo("No workflow is paused." if workflow is None else f"Workflow {workflow} is not paused.")


def print_pauses(paused: Iterable[tuple[str, Pause]]) -> None:
    """Say which workflows request no blocks, for how long, and why."""
    for name, pause in paused:
        click.echo(
            f"Workflow {one_line(name)}: no block is requested for another {duration(pause.left_s)}: "
            f"{one_line(pause.why)}. 'parsl-balsam blocks resume' ends the pause."
        )


def pauses_as_json(paused: Iterable[tuple[str, Pause]]) -> list[dict[str, object]]:
    """Return pauses as `print_json` takes them."""
    return [{"workflow": name, **asdict(pause)} for name, pause in paused]


def _print_blocks(found: Sequence[BlockLine], verbose: bool) -> None:
    print_table(
        [
            *("block", "workflow", "job", "queue", "state", "job state", "nodes", "walltime", "time left"),
            *("running", "since"),
        ],
        [
            (
                line.id,
                line.workflow,
                line.job_id,
                line.queue,
                line.state,
                line.job_state if line.is_open or line.job_state in JOB_OVER else None,
                line.requested_nodes if line.nodes is None else line.nodes,
                minutes(line.walltime_min),
                duration(line.time_left_s),
                line.running if line.state is BlockState.RUNNING else None,
                when(line.ended_at or line.started_at or line.requested_at),
            )
            for line in found
        ],
        numbers=["block", "nodes", "walltime", "time left", "running"],
        elastic=["workflow", "queue"],
        notes=["; ".join(_notes(line, verbose)) for line in found],
    )


def _notes(line: BlockLine, verbose: bool) -> Iterator[str]:
    """Yield what else is to be said of a block."""
    if line.reason:
        yield line.reason
    worth_telling = line.is_open or line.job_state in (JobState.FAILED, JobState.TIMEOUT, JobState.MISSING)
    if line.job_reason and worth_telling and line.job_reason not in (line.reason or ""):
        yield f"its scheduler says: {line.job_reason}"
    if line.is_open and line.end_wish:
        yield f"it is being ended by {line.end_wish}"
    if line.is_open and line.lost_nodes:
        yield f"it has lost {line.lost_nodes}"
    if verbose:
        if line.why:
            yield f"it was requested for {line.why}"
        elif line.scheduler is None:
            yield "it was started by hand"
        else:
            yield "it was requested by Parsl's strategy, in the provider's own size"


def _over(line: BlockLine) -> str:
    reason = f" ({one_line(line.reason)})" if line.reason else ""
    return f"Block {line.id} is over already: {line.state.value}{reason}."


def _end(database: Database, line: BlockLine) -> str:
    """Do what is left to do for the end of a block that is wished to; return what was done, and what was not."""
    if line.state is BlockState.RUNNING:
        return (
            f"Block {line.id} ends: its launcher on {line.host} was told. "
            "What runs there becomes ready again, at no cost."
        )
    if line.scheduler in (None, "local"):
        abandon_block(database, line.id, f"ended by {this_user()} before its launcher came")
        return f"Block {line.id} is over: its launcher had not come."
    job = f"its job {line.job_id}" if line.job_id else f"its job {line.tag}, whose id is not known,"
    left = f"Block {line.id} will not be opened, but {job} was not cancelled"
    scheduler = _scheduler(line.scheduler)
    if scheduler is None:
        return f"{left}: parsl-balsam cannot ask {line.scheduler}. It ends at once when it starts."
    from parsl_balsam.providers.commands import Finished, run
    from parsl_balsam.providers.scheduler import SubmittedJob

    said: list[Finished] = []

    def ask(argv: Sequence[str]) -> Finished:
        said.append(run(argv, _COMMAND_S, scheduler.environment(os.environ)))
        return said[-1]

    # By its name, which is unique: on another cluster another of the user's jobs may have this id.
    found = scheduler.find(ask, [SubmittedJob(line.tag, None, None)])
    if line.tag in found.unknown:
        abandon_block(database, line.id, f"ended by {this_user()}; {line.scheduler} had no job of its name")
        return f"Block {line.id} is over: {line.scheduler} has no job of the name {line.tag} here."
    job_id = found.ids.get(line.tag)
    if job_id is None or job_id not in scheduler.cancel(ask, [job_id]):
        return f"{left}: {said[-1].words}. It ends at once when it starts."
    note_job_state(database, line.id, JobState.CANCELLED, f"cancelled by {this_user()}")
    return f"Block {line.id} is over: its job {job_id} was cancelled before its launcher came."


def _scheduler(name: str | None) -> Scheduler | None:
    """Return how to talk to a scheduler whose jobs can be found by their names; None if there is no way here."""
    # What only this command needs: the others are quicker without Parsl.
    from parsl_balsam.providers.cobalt import CobaltProvider
    from parsl_balsam.providers.slurm import SlurmProvider

    providers = [provider for provider in (SlurmProvider, CobaltProvider) if provider.scheduler == name]
    return providers[0]().dialect if providers else None


def _warn_of_others(database: Database, ended: Sequence[BlockLine]) -> None:
    """Say which runs may request other blocks in place of those that end."""
    for name in sorted({line.workflow for line in ended}):
        for run in open_runs(database, name):
            if not is_dead(run.driver):
                click.echo(
                    f"Workflow {one_line(name)} is driven by process {run.driver.pid} on {run.driver.host}, which "
                    "requests another block if tasks wait."
                )
