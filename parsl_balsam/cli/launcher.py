"""``parsl-balsam launcher``: the nodes of an allocation that the user holds, put to work for a workflow."""

from __future__ import annotations

import logging
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from parsl_balsam.cli.options import database_option, opened, this_user
from parsl_balsam.db.blocks import abandon_block, record_block
from parsl_balsam.db.claims import LeaseLost
from parsl_balsam.db.connect import LAUNCHER_BUSY_S, Database
from parsl_balsam.db.keyfile import read_or_make_key
from parsl_balsam.db.runs import find_order
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.launch import JobMode, LaunchOrder, MpiStyle
from parsl_balsam.model.signing import Signer

#: How long the database may be away when the launcher starts, seconds, where the user does not say `--idle-timeout`.
_PATIENCE_S = 300.0


@click.command(short_help="Run a workflow's tasks on the nodes of an allocation that you hold.")
@click.argument("workflow")
@click.option("--executor", metavar="LABEL", help="Which of the workflow's executors, where it has several.")
@click.option("--nodes", metavar="N", type=click.IntRange(min=1), help="Let this host stand for N nodes.")
@click.option("--cores-per-node", metavar="N", type=click.IntRange(min=1), help="Cores that tasks may use on a node.")
@click.option("--gpus-per-node", metavar="N", type=click.IntRange(min=0), help="GPUs that tasks may use on a node.")
@click.option("--mpi", type=click.Choice(["auto", *(style.value for style in MpiStyle)]), help="The MPI launcher.")
@click.option("--job-mode", type=click.Choice([mode.value for mode in JobMode]), help="Which tasks are run, and how.")
@click.option("--address", metavar="HOST", help="A name of this host at which the other nodes reach it.")
@click.option("--idle-timeout", "idle_timeout_s", metavar="S", type=click.FloatRange(min=0), help="End when idle.")
@database_option
def launcher(workflow: str, executor: str | None, nodes: int | None, database: str, **changes: Any) -> None:
    """Run the ready tasks of WORKFLOW on the nodes of the allocation that this shell is in.

    Without an allocation it runs them on this host. What is not given here is as the workflow's executor says. Ctrl-C
    ends it: what runs becomes ready again, at no cost.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    with opened(database, LAUNCHER_BUSY_S, changes["idle_timeout_s"] or _PATIENCE_S) as db:
        found = find_order(db, workflow, executor)
        given = {name: value for name, value in changes.items() if value is not None}
        key = read_or_make_key()
        order = LaunchOrder.loads(Signer(key).open_order(found.order))
        order = replace(order, **given, database=db.address, workflow_id=found.workflow_id, key=key.hex())
        order = replace(order, nodes=nodes, walltime_s=None, own_job=False)
        if not os.access(order.directory, os.W_OK):
            order = replace(order, directory=str(Path.cwd() / ".parsl-balsam"))
        _run(db, replace(order, job_mode=JobMode(order.job_mode)), found.run_id)


def _run(db: Database, order: LaunchOrder, run_id: int) -> None:
    # What only this command needs: the others are quicker without.
    from parsl_balsam.launcher.block import prepare
    from parsl_balsam.launcher.launcher import run_block

    name = f"by {this_user()} on {platform.node()}"
    block_id = record_block(db, order.workflow_id, run_id, name, order.lease_s)
    try:
        parts = prepare(order, block_id)
    except BalsamError as error:
        abandon_block(db, block_id, str(error))
        raise
    try:
        run_block(order, db, block_id, parts)
    except LeaseLost as error:
        raise click.ClickException(f"{error}: its tasks were given to others") from error
