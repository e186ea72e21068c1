"""`parsl-balsam db`: a user's own PostgreSQL server in one directory; upgrades and signatures of databases."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parsl_balsam.cli.options import database_option, opened, take_back_lost
from parsl_balsam.db.connect import open_any_version
from parsl_balsam.db.keyfile import read_or_make_key
from parsl_balsam.db.server import Server, ServerStatus
from parsl_balsam.model.signing import Signer

_directory = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


@click.group("db")
def db() -> None:
    """Set up, start and stop a PostgreSQL server of your own, without an administrator; upgrade and sign databases."""


@db.command()
@_directory
def init(directory: Path) -> None:
    """Set up a server in DIR, a new or empty directory."""
    server = Server(directory)
    server.init()
    click.echo(f"Set up. Start it with: parsl-balsam db start {shlex.quote(str(server.directory))}")


@db.command()
@_directory
@click.option(
    "--host",
    metavar="NAME",
    help="Name or address of this machine at which compute nodes reach it, or '*' for all it has. "
    "Kept for later starts. At first, only this machine is served.",
)
@click.option(
    "--tls/--no-tls",
    default=None,
    help="Whether all connections are encrypted, and clients know the server by its certificate. Kept for later "
    "starts. At first, they are not.",
)
def start(directory: Path, host: str | None, tls: bool | None) -> None:
    """Start the server in DIR unless it runs."""
    server = Server(directory)
    server.start(host, tls)
    status = server.status()
    click.echo(f"PostgreSQL {status.version} runs on {status.node} and listens at {status.host}:{status.port}.")
    click.echo(f"Give your executor: BalsamExecutor(database={json.dumps(status.directory, ensure_ascii=False)})")


@db.command()
@_directory
def stop(directory: Path) -> None:
    """Stop the server in DIR if it runs."""
    Server(directory).stop()
    click.echo("Stopped.")


@db.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(directory: Path, as_json: bool) -> None:
    """Show whether the server in DIR runs, and where."""
    found = Server(directory).status()
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        Console().print(_table(found))


@db.command()
@database_option
@click.option("--no-backup", is_flag=True, help="Do not copy the database first.")
def upgrade(database: str, no_backup: bool) -> None:
    """Bring the tables of a database up to date after parsl-balsam was.

    It is copied first: an SQLite file to one beside it, a database of PostgreSQL to a file in the current directory.
    All of the upgrade happens or nothing. No script and no launcher may work with the database meanwhile.
    """
    # Only this command needs Alembic: the others are quicker without.
    from parsl_balsam.db.upgrade import upgrade as upgrade_database
    from parsl_balsam.db.upgrade import waiting_blocks

    with closing(open_any_version(database)) as found:
        if not upgrade_database(found, click.echo, None if no_backup else Path.cwd()):
            return
        take_back_lost(found)
        if waiting := waiting_blocks(found):
            click.echo(f"Cancel what the earlier version has in the queue still: {', '.join(waiting)}.")


@db.command()
@database_option
def sign(database: str) -> None:
    """Sign all that a database has with your key, whoever has written it.

    For databases from before there were signatures, or signed with a key that is lost. Be sure that nobody else could
    write to it: what is signed is run, and read, as yours.
    """
    from parsl_balsam.db.signatures import sign_all

    with opened(database) as db:
        signed = sign_all(db, Signer(read_or_make_key()))
    click.echo(f"Signed {signed.calls} calls and {signed.results} results; the others had your signature before.")


def _table(status: ServerStatus) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in asdict(status).items():
        table.add_row(name, Text("-" if value is None else str(value)))
    return table
