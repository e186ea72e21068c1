"""``parsl-balsam plan``: which blocks would be requested for what waits, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from parsl_balsam.cli.blocks import pauses_as_json, print_pauses
from parsl_balsam.cli.options import database_option, json_option, opened, take_back_lost
from parsl_balsam.cli.output import duration, minutes, one_line, print_json, print_table
from parsl_balsam.db.blocklist import BlockLine, read_blocks
from parsl_balsam.db.connect import Database
from parsl_balsam.db.demand import Waiting, read_waiting
from parsl_balsam.db.pauses import read_pause
from parsl_balsam.db.runs import find_order
from parsl_balsam.db.service import block_rules
from parsl_balsam.model.demand import TaskGroup
from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.model.pauses import Pause

if TYPE_CHECKING:
    from parsl_balsam.providers.ensemble import Plan
    from parsl_balsam.providers.rules import BlockRules


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What waits, what will serve it, and what would be requested for the rest."""

    rules: BlockRules
    waiting: Waiting
    lines: Mapping[int, BlockLine]  #: the blocks that will serve, by id
    pause: Pause | None
    requests: Sequence[Plan]
    end: str  #: why no more would be requested


@click.command(short_help="Show which blocks would be requested for what waits, and why.")
@click.argument("workflow")
@click.option("--executor", metavar="LABEL", help="Which of the workflow's executors, where it has several.")
@json_option
@database_option
def plan(workflow: str, executor: str | None, as_json: bool, database: str) -> None:
    """Show which blocks would be requested now for the ready tasks of WORKFLOW, and why no more.

    It goes by the rules of the workflow's current run, or its last. Nothing is requested.
    """
    with opened(database) as db:
        take_back_lost(db)
        outlook = _look(db, workflow, executor)
    if as_json:
        print_json(_as_json(outlook, workflow))
        return
    _print_demand(outlook.waiting.demand.groups)
    _print_supplies(outlook)
    _print_requests(outlook)
    if outlook.pause is not None:
        print_pauses([(workflow, outlook.pause)])
    end = one_line(outlook.end)
    click.echo(f"{end[:1].upper()}{end[1:]}.")


def _look(database: Database, workflow: str, executor: str | None) -> _Outlook:
    # What only this command needs: the others are quicker without.
    from parsl_balsam.providers.ensemble import plan_all
    from parsl_balsam.providers.rules import BlockRules

    found = find_order(database, workflow, executor)
    text = block_rules(database, found.run_id)
    if text is None:
        raise ConfigurationError(f"the last run of workflow {workflow!r} has left no rules: start its script once")
    rules = BlockRules.loads(text)
    waiting = read_waiting(database, found.workflow_id, rules.cores_per_node, rules.gpus_per_node, rules.whole_nodes)
    lines = read_blocks(database, [supply.block_id for supply in waiting.blocks])
    pause = read_pause(database, found.workflow_id)
    if rules.policy is None:
        end = "nothing can be planned: blocks of this run have no end and one size, and Parsl's strategy requests them"
        return _Outlook(rules, waiting, lines, pause, (), end)
    *requests, last = plan_all(waiting.demand, rules.policy, waiting.blocks, waiting.at)
    end = last.why
    # Blocks that somebody started by hand are not Parsl's, and not counted by it.
    room = max(0, rules.max_blocks - sum(line.scheduler is not None for line in lines.values()))
    if len(requests) > room:
        requests, end = requests[:room], f"no more than max_blocks={rules.max_blocks} are requested at a time"
    return _Outlook(rules, waiting, lines, pause, requests, end)


def _print_demand(groups: Sequence[TaskGroup]) -> None:
    if not groups:
        return
    click.echo(click.style("What waits", bold=True))
    ordered = sorted(groups, key=lambda group: (-group.nodes, -(group.walltime_min or 0.0), -group.count))
    print_table(
        ["tasks", "nodes", "cores", "GPUs", "run time"],
        [
            (group.count, group.nodes, _cores(group), group.gpus or None, minutes(group.walltime_min))
            for group in ordered
        ],
        numbers=["tasks", "nodes", "cores", "GPUs", "run time"],
    )
    click.echo()


def _print_supplies(outlook: _Outlook) -> None:
    if not outlook.waiting.blocks:
        return
    click.echo(click.style("Blocks there are", bold=True))
    print_table(
        ["block", "state", "queue", "nodes", "walltime", "time left", "tasks there"],
        [
            (
                supply.block_id,
                outlook.lines[supply.block_id].state if supply.block_id in outlook.lines else None,
                supply.queue,
                supply.nodes,
                minutes(supply.walltime_min),
                None if supply.ends_at is None else duration(supply.ends_at - outlook.waiting.at),
                sum(group.count for group in supply.held),
            )
            for supply in outlook.waiting.blocks
        ],
        numbers=["block", "nodes", "walltime", "time left", "tasks there"],
    )
    click.echo()


def _print_requests(outlook: _Outlook) -> None:
    rules = outlook.rules
    if rules.policy is not None and not rules.sized:
        click.echo(
            "Blocks of this run have one size, and Parsl's strategy decides how many there are: "
            "give the executor a queue_policy to have them sized. What follows is for this size."
        )
    if not outlook.requests:
        return
    click.echo(click.style("What would be requested", bold=True))
    print_table(
        ["queue", "nodes", "walltime", "tasks", "in use", "why"],
        [
            (
                plan.request.queue or "the provider's",
                plan.request.nodes,
                minutes(plan.request.walltime_min),
                plan.tasks,
                f"{plan.fill:.0%}",
                plan.why,
            )
            for plan in outlook.requests
            if plan.request is not None
        ],
        numbers=["nodes", "walltime", "tasks", "in use"],
        elastic=["why"],
    )
    click.echo()


def _cores(group: TaskGroup) -> str | int:
    """Return which part of each of its nodes a task takes."""
    if group.cores is not None:
        return group.cores
    return "all" if group.packing in (None, 1) else f"1/{group.packing} node"


def _as_json(outlook: _Outlook, workflow: str) -> dict[str, Any]:
    return {
        "sized": outlook.rules.sized,
        "max_blocks": outlook.rules.max_blocks,
        "waiting": [asdict(group) for group in outlook.waiting.demand.groups],
        "blocks": [asdict(block) for block in outlook.waiting.blocks],
        "requests": [
            {**asdict(plan.request), "tasks": plan.tasks, "fill": plan.fill, "why": plan.why}
            for plan in outlook.requests
            if plan.request is not None
        ],
        "end": outlook.end,
        "pauses": pauses_as_json([] if outlook.pause is None else [(workflow, outlook.pause)]),
    }
