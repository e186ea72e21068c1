"""Options that many commands have, and the database that they name."""

from __future__ import annotations

import getpass
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from parsl_balsam.db.blocks import reap
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.outage import until_it_answers
from parsl_balsam.db.server import is_server_directory
from parsl_balsam.model.errors import ConfigurationError

logger = logging.getLogger(__name__)

_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON. Times are seconds since the epoch.")
workflow_option = click.option("--workflow", metavar="NAME", help="Only what belongs to this workflow.")


def database_option(command: _Command) -> _Command:
    """Add ``--database``; the command gets what `opened` takes."""
    return click.option(
        "--database",
        metavar="WHERE",
        envvar="BALSAM_DATABASE",
        show_envvar=True,
        default="balsam.db",
        show_default=True,
        callback=lambda _context, _parameter, where: address(where),
        help="Where the tasks live: the path of an SQLite file, the directory of a server made by "
        "'parsl-balsam db init', or an SQLAlchemy URL.",
    )(command)


def address(where: str) -> str:
    """Return what `open_database` takes for what a user typed, which may also be the path of an SQLite file.

    Raises
    ------
    ConfigurationError
        If it is the path of nothing.
    """
    if "://" in where or is_server_directory(where):
        return where
    if not Path(where).exists():
        raise ConfigurationError(
            f"there is no database {where}: name one with --database or $BALSAM_DATABASE, as your executor does"
        )
    return f"sqlite:///{Path(where).absolute()}" if Path(where).is_file() else where


@contextmanager
def opened(where: str, busy_s: float | None = None, patience_s: float = 0.0) -> Iterator[Database]:
    """Open the database of a command, which must exist.

    Parameters
    ----------
    busy_s
        As in `open_database`.
    patience_s
        How long it may be away, seconds.
    """
    database = until_it_answers(lambda: open_database(where, create=False, busy_s=busy_s), patience_s, logger)
    try:
        yield database
    finally:
        database.close()


def take_back_lost(database: Database) -> None:
    """Make the tasks of dead launchers ready again, and say so."""
    if lost := reap(database):
        click.echo(
            f"Took back the tasks of {'block' if len(lost) == 1 else 'blocks'} {', '.join(map(str, lost))}: "
            "the launcher was not heard of for its lease.",
            err=True,
        )


def this_user() -> str:
    """Return how the history of a task names who typed a command."""
    try:
        return f"{getpass.getuser()} on {platform.node()}"
    except (KeyError, OSError):  # an account without a name, as in some containers
        return f"a user on {platform.node()}"
