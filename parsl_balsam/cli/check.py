"""``parsl-balsam check``: what a Parsl configuration would submit, and whether it would work, before it is used."""

from __future__ import annotations

import ipaddress
import os
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from parsl_balsam.cli.config import load_config
from parsl_balsam.cli.output import one_line, printable
from parsl_balsam.db.connect import Address, open_database
from parsl_balsam.db.server import is_server_directory
from parsl_balsam.executor.blocks import launch_command, order_file
from parsl_balsam.model.blocks import BlockRequest
from parsl_balsam.model.errors import BalsamError, ConfigurationError

if TYPE_CHECKING:
    from parsl_balsam.executor.executor import BalsamExecutor
    from parsl_balsam.providers.batch import BatchProvider

#: How long a start of Python may take on a slow file system, seconds.
_PYTHON_S = 120.0

#: File systems that are the same on other hosts as well, and those that never are.
_SHARED = frozenset(
    {
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "afs", "panfs", "wekafs", "orangefs", "pvfs2", "dvs"),
        *("cvmfs", "cifs", "smb3", "glusterfs"),
    }
)
_OWN = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class Findings:
    """Says what is found, and counts what is wrong."""

    def __init__(self) -> None:
        self.problems = 0

    def good(self, what: str) -> None:
        """Something is as it should be."""
        self._say("ok", "green", what)

    def doubt(self, what: str) -> None:
        """Something cannot be told from here, or may be meant so."""
        self._say("note", "yellow", what)

    def problem(self, what: str) -> None:
        """Something will not work."""
        self.problems += 1
        self._say("problem", "red", what)

    @staticmethod
    def _say(mark: str, colour: str, what: str) -> None:
        click.echo(f"{click.style(mark.ljust(7), fg=colour)}  {one_line(what)}")


@click.command(short_help="Check a Parsl configuration: what would be submitted, and would it work?")
@click.argument("source", metavar="FILE.py[:NAME]|MODULE[:NAME]")
@click.option("--workflow", metavar="NAME", help="Passed to make_config.  [default: check, if it must have one]")
@click.option("--set", "given", metavar="NAME=VALUE", multiple=True, help="Passed to make_config; as often as needed.")
@click.option("--submit", is_flag=True, help="Submit a small job that tries to reach the database from its node.")
@click.pass_context
def check(ctx: click.Context, source: str, workflow: str | None, given: tuple[str, ...], submit: bool) -> None:
    """Check the Parsl configuration in a file or module, and show the scripts of its blocks. Nothing is started.

    NAME is a Config, or a function that returns one. Without a NAME it is 'make_config', or the only Config there is.
    With --submit a job of one node and the shortest walltime is submitted; Ctrl-C cancels it. The exit code is 0 if
    all is well.
    """
    arguments = dict(_pair(text) for text in given)
    if workflow is not None:
        arguments["workflow"] = workflow
    config = load_config(source, arguments)
    # What only this command needs: the others are quicker without Parsl.
    from parsl_balsam.executor.executor import BalsamExecutor

    executors = [executor for executor in config.executors if isinstance(executor, BalsamExecutor)]
    if not executors:
        raise ConfigurationError(f"{source} has no BalsamExecutor: there is nothing to check")
    findings = Findings()
    _check_python(findings, elsewhere=any(map(_leaves_host, executors)))
    for executor in executors:
        click.echo()
        _check_executor(executor, Path(config.run_dir).absolute(), submit, findings)
    click.echo()
    if findings.problems:
        click.echo(f"{findings.problems} {'problem' if findings.problems == 1 else 'problems'}.")
        ctx.exit(1)
    click.echo("All is well.")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.UsageError(f"--set {text} is not of the form NAME=VALUE")
    return name, value


def _check_python(findings: Findings, *, elsewhere: bool) -> None:
    """Tell whether the Python of this program can run launchers, as far as it can be told here.

    Parameters
    ----------
    elsewhere
        Whether blocks run on other hosts.
    """
    from parsl_balsam.providers.commands import run

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = 'cd / && exec "$0" -c "import parsl_balsam.launcher.block"'
    done = run(("/bin/sh", "-c", command, sys.executable), _PYTHON_S, environment)
    if done.code == 0:
        findings.good(f"{sys.executable} imports parsl_balsam from any directory.")
    else:
        findings.problem(
            f"{sys.executable} imports parsl_balsam only from this directory or by $PYTHONPATH, so that blocks may not "
            f"find it: install it into that Python. It said: {done.words.rpartition('; ')[2]}"
        )
    places = {sys.executable: "This Python", str(Path(__file__).parents[1]): "parsl_balsam"}
    for path, what in places.items() if elsewhere else ():
        kind = _file_system(path)
        if kind in _OWN:
            findings.doubt(f"{what} is in {path} on a {kind} of this host, which no other host has.")
        elif kind not in _SHARED:
            findings.doubt(f"{what} is in {path} on {kind}: blocks on other hosts must find it there as well.")


def _file_system(path: str) -> str:
    """Return the type of the file system that a path is on."""
    real = Path(os.path.realpath(os.path.dirname(path)))  # the Python of a virtual environment is a link out of it
    mounted = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    best = max(mounted, key=lambda part: len(part.mountpoint), default=None)
    return "an unknown file system" if best is None else str(best.fstype).removeprefix("fuse.")


def _leaves_host(executor: BalsamExecutor) -> bool:
    """Tell whether an executor's blocks run on other hosts."""
    from parsl.providers import LocalProvider

    return not isinstance(executor.provider, LocalProvider)


def _check_executor(executor: BalsamExecutor, run_dir: Path, submit: bool, findings: Findings) -> None:
    from parsl_balsam.providers.batch import BatchProvider

    provider = executor.provider
    name = type(provider).__name__
    click.echo(click.style(f"Executor {executor.label}: {name}", bold=True))
    batch = isinstance(provider, BatchProvider)
    if batch:
        for request, what in _requests(executor):
            _check_script(executor, run_dir, request, what, findings)
    elif not _leaves_host(executor):
        click.echo("Blocks run on this host, without a batch job.")
    else:
        click.echo(f"A block has {provider.nodes_per_block} nodes for {getattr(provider, 'walltime', 'any time')}.")
        if init := getattr(provider, "worker_init", ""):
            click.echo("Before its launcher it runs:")
            _show(init)
        click.echo(f"Its script is rendered by Parsl's {name} when a block is requested, and cannot be shown here.")
    reachable = _check_database(executor, findings, elsewhere=_leaves_host(executor), tried=submit and batch)
    if not submit:
        return
    if not batch:
        click.echo(f"Nothing is submitted: a try from a block's node needs a provider of parsl_balsam, not {name}.")
    elif not reachable:
        click.echo("Nothing is submitted: it would not reach the database.")
    else:
        from parsl_balsam.cli.trial import try_there

        try_there(executor, run_dir, findings)


def _requests(executor: BalsamExecutor) -> Iterator[tuple[BlockRequest, str]]:
    """Yield what an executor may ask its scheduler for, with a name for each."""
    policy, provider = executor.queue_policy, executor.provider
    if policy is None:
        yield provider.usual_request, "each block"
        return
    for queue in policy.queues:
        offers = [offer for offer in policy.offers if offer.queue == queue]
        if offers:
            least = min(offers, key=lambda offer: (offer.min_nodes, offer.min_walltime_min))
            yield (
                BlockRequest(least.min_nodes, least.min_walltime_min, queue.name),
                f"the smallest block of {queue.title}",
            )


def _check_script(
    executor: BalsamExecutor, run_dir: Path, request: BlockRequest, what: str, findings: Findings
) -> None:
    """Show the script of a block, and ask its scheduler whether it would take it."""
    provider: BatchProvider = executor.provider
    provider.script_dir = str(run_dir / "000" / "submit_scripts")
    command = launch_command(order_file(run_dir / "000" / executor.label), "0", 1)
    name = f"parsl.{executor.label}.block-0"
    argv, script = provider.preview(command, request, name)
    click.echo(f"The script of {what} ({_nodes(request.nodes)} for {request.walltime_min} min):")
    _show(script)
    # Not all that is asked for is in the script.
    click.echo(f"It is submitted by: {shlex.join(argv)}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "script.sh"
        path.touch(mode=0o700)  # users may have put secrets into it
        path.write_text(script)
        said = _ask(provider, str(path))
    if said is None:
        findings.doubt(f"{provider.label} cannot be asked whether it would take the script: only --submit tells.")
    else:
        (findings.good if said[0] else findings.problem)(f"{provider.label}: {said[1]}")


def _ask(provider: BatchProvider, script: str) -> tuple[bool, str] | None:
    """Ask a scheduler whether it would take a script; return whether, and its words. None if it has no such command."""
    from parsl_balsam.providers.commands import run

    argv = provider.check_command(script)
    if argv is None:
        return None
    done = run(argv, provider.cmd_timeout, provider.dialect.environment(os.environ))
    return done.code == 0, done.words


def _check_database(executor: BalsamExecutor, findings: Findings, *, elsewhere: bool, tried: bool) -> bool:
    """Tell whether the database can be opened here, and may be where other hosts look for it.

    Parameters
    ----------
    elsewhere
        Whether blocks run on other hosts.
    tried
        Whether it will be tried from there.
    """
    url: Address = executor.database_url
    shown = url.render_as_string()
    if elsewhere and (why := _only_here(url)) is not None:
        where = executor.database if is_server_directory(executor.database) else "DIR"
        what = (
            f"Blocks on other hosts will not reach the database at {shown}: {why}. If it is a server of your own: "
            f"parsl-balsam db start {shlex.quote(str(where))} --host NAME, with the name of this host that they know."
        )
        (findings.doubt if tried else findings.problem)(what)
    path = Path(str(url.database))
    if url.get_backend_name() == "sqlite" and not path.exists():
        if os.access(path.parent, os.W_OK):
            findings.good(f"The database file {path} will be made by the first run.")
            return True
        findings.problem(f"The database file {path} cannot be made: {path.parent} is not there, or closed to you.")
        return False
    try:
        open_database(url.render_as_string(hide_password=False)).close()
    except BalsamError as error:
        findings.problem(f"The database cannot be opened here: {error}")
        return False
    findings.good(f"The database can be opened here: {shown}")
    return True


def _only_here(url: Address) -> str | None:
    """Tell why a database's address means another machine to each host, or none; None if it may be meant for all."""
    named = url.query.get("host") or url.host or ""
    for host in [part for text in ([named] if isinstance(named, str) else named) for part in text.split(",")]:
        if not host or host.startswith(("/", "@")):
            return "it is a socket of this host" if host else "its URL names no host"
        if host.rstrip(".").lower() in ("localhost", "localhost.localdomain", "ip6-localhost"):
            return f"{host} is each host's own name for itself"
        try:
            if ipaddress.ip_address(host.strip("[]")).is_loopback:
                return f"{host} is each host's own address for itself"
        except ValueError:  # a name
            pass
    return None


def _show(script: str) -> None:
    click.echo(
        textwrap.indent("\n".join(printable(line) for line in script.rstrip().splitlines()), "  | ", lambda _: True)
    )


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
