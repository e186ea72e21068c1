"""``parsl-balsam``: look at tasks and blocks, act on them, check configurations, and run a database server."""

from __future__ import annotations

from typing import Any

import click

from parsl_balsam.cli.actions import cancel, retry
from parsl_balsam.cli.blocks import blocks
from parsl_balsam.cli.check import check
from parsl_balsam.cli.db import db
from parsl_balsam.cli.demo import demo
from parsl_balsam.cli.launcher import launcher
from parsl_balsam.cli.plan import plan
from parsl_balsam.cli.tasks import events, show, status, tasks
from parsl_balsam.model.errors import BalsamError


class _Commands(click.Group):
    """Shows errors that a user can do something about as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BalsamError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="parsl-balsam")
def main() -> None:
    """See what becomes of the tasks of your Parsl workflows, and act on them."""


for command in (status, tasks, show, events, retry, cancel, blocks, plan, check, launcher, db, demo):
    main.add_command(command)
