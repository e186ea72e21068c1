"""A user's own PostgreSQL server in one directory: init, start, stop. No administrator is needed.

The directory holds::

    connection.json   where the server is and how to log in; mode 0600, the only place that has the password
    data/             PostgreSQL's data directory
    settings.conf     our settings; written at every start, included by data/postgresql.conf
    server.key        with TLS: the server's private key; mode 0600
    server.crt        with TLS: its certificate, by which clients know it
    log               what the server says
    lock              held while the server is set up, started or stopped
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from parsl_balsam.db.binaries import Account, Binaries, find_binaries, last_lines, server_account
from parsl_balsam.db.certificate import TLS_SETTINGS, admit, check_support, provide
from parsl_balsam.db.login import Login
from parsl_balsam.db.ports import EVERYWHERE, free_port
from parsl_balsam.db.private import write_private
from parsl_balsam.model.errors import ServerError

LOOPBACK = "127.0.0.1"
USER = "balsam"
DATABASE = "balsam"

_START_WAIT_S = 600  # recovery after a crash replays up to max_wal_size (1 GB) of log
_STOP_WAIT_S = 300
_ORPHANS_WAIT_S = 10
_PORT_TRIES = 5

# unix_socket_directories: a socket's path may have 107 characters at most, a user's directory more.
# dynamic_shared_memory_type: at logout systemd deletes the user's POSIX segments (RemoveIPC), attached ones too.
# tcp_keepalives: a client whose node died would otherwise keep its locks for two hours.
_SETTINGS = """\
# Written by parsl-balsam at every start. Put settings of your own at the end of data/postgresql.conf.
listen_addresses = '{listen}'
port = {port}
unix_socket_directories = ''
max_connections = 500
shared_buffers = 128MB
dynamic_shared_memory_type = sysv
fsync = on
synchronous_commit = on
wal_level = minimal
max_wal_senders = 0
password_encryption = 'scram-sha-256'
logging_collector = off
lc_messages = 'C'
tcp_keepalives_idle = 60
tcp_keepalives_interval = 10
tcp_keepalives_count = 6
"""

_ACCESS = """\
local all all     scram-sha-256
host  all all all scram-sha-256
"""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What can be told of a server; every field can be written as JSON."""

    directory: str
    running: bool
    node: str | None  #: machine it was started on last; None before its first start
    pid: int | None  #: of its main process on `node`; None unless it runs
    host: str | None  #: where clients connect to; None before its first start
    port: int | None  #: None before its first start
    version: str  #: of PostgreSQL: "15.4" if it answers, else the major version of its data
    connections: int | None  #: clients connected now; None unless it answers
    tls: bool  #: whether connections are encrypted


def is_server_directory(path: Path | str) -> bool:
    """Tell whether `path` is a directory that ``Server.init`` has set up. Any string may be given, a URL too."""
    return os.path.isfile(os.path.join(path, "connection.json")) and os.path.isdir(os.path.join(path, "data"))


class Server:
    """A PostgreSQL that belongs to one user and lives in one directory.

    It outlives the process that starts it. All methods may be called at the same time by any number of processes.
    Every failure is a ServerError with PostgreSQL's own last words.

    Parameters
    ----------
    directory
        Need not exist before ``init``. If several machines share it, the server runs on one of them at a time.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self._data = self.directory / "data"
        self._pid_file = self._data / "postmaster.pid"
        self._log = self.directory / "log"
        self._connection_file = self.directory / "connection.json"

    def init(self) -> None:
        """Create the data and a random password; does nothing if that was done before.

        Raises
        ------
        ServerError
            If the directory has other content, belongs to someone else, or initdb fails.
        """
        if is_server_directory(self.directory):
            return
        account = server_account()
        binaries = find_binaries()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_foreign_directory()
            self.directory.chmod(0o700)
            if account:
                os.chown(self.directory, -1, account.gid)
                self.directory.chmod(0o710)
                account.check_reach(self.directory)
            with self._locked():
                if not is_server_directory(self.directory):
                    self._create(binaries, account)
        except OSError as error:
            raise ServerError(f"Cannot set up a PostgreSQL server in {self.directory}: {error}") from error

    def start(self, host: str | None = None, tls: bool | None = None) -> str:
        """Start the server unless it runs, and return its URL, which has the password.

        Parameters
        ----------
        host
            A name or address of this machine that other machines reach, or ``*`` for all of them. By default
            what the last start was given; at first the loopback address, which serves this machine only.
        tls
            Whether all connections must be encrypted; clients then know the server by its certificate, which is made
            at the first start with TLS. By default what the last start was given; at first False.
        """
        self._require_init()
        with self._locked():
            login = self._login()
            how = host or login.listen, login.encrypted if tls is None else tls
            if not self._runs(login):
                self._refuse_running_elsewhere(login)
                login = self._launch(login, *how)
            elif host not in (None, login.listen, login.host):
                raise ServerError(
                    f"The server runs already and listens on {login.listen}, not on {host}: "
                    f"stop it first with `{self._command('stop')}`"
                )
            elif tls not in (None, login.encrypted):
                raise ServerError(
                    f"The server runs already {'with' if login.encrypted else 'without'} TLS: "
                    f"stop it first with `{self._command('stop')}`"
                )
            try:
                login.create_database()
            except ServerError:
                if self._runs(login):
                    raise
                # It was killed, and not yet gone when it was looked at.
                login = self._launch(login, *how)
                login.create_database()
        return login.url()

    def stop(self) -> None:
        """Stop the server if it runs, and end the connections of its clients."""
        self._require_init()
        with self._locked():
            login = self._login()
            self._refuse_running_elsewhere(login)
            if self._postmaster() is not None:
                arguments = ("stop", "-D", ".", "-m", "fast", "-w", "-t", str(_STOP_WAIT_S))
                self._binaries().run("pg_ctl", *arguments, cwd=self._data, account=server_account())

    def status(self) -> ServerStatus:
        """Return what can be told of the server now."""
        self._require_init()
        login = self._login()
        elsewhere = self._is_elsewhere(login)
        running = elsewhere or self._postmaster() is not None
        answer = login.ask() if running else None
        if elsewhere and answer is None:
            running = False  # another machine's process cannot be looked at
        started = login.port is not None
        return ServerStatus(
            directory=str(self.directory),
            running=running,
            node=login.node,
            pid=self._recorded_pid() if running else None,
            host=login.host if started else None,
            port=login.port,
            version=answer.version if answer else str(self._major_version()),
            connections=answer.connections if answer else None,
            tls=login.encrypted,
        )

    def url(self) -> str:
        """Return the URL of the running server, which has the password.

        Raises
        ------
        ServerError
            If the server does not run, or cannot be reached from here; names the command to run.
        """
        self._require_init()
        login = self._login()
        if self._is_elsewhere(login):
            if login.host == LOOPBACK:
                raise ServerError(
                    f"The PostgreSQL of {self.directory} serves {login.node} only: to serve other machines too, "
                    f"run `{self._command('stop')}` and `{self._command('start')} --host {login.node}` there"
                )
        elif self._postmaster() is None:
            raise ServerError(f"The PostgreSQL of {self.directory} does not run: `{self._command('start')}` starts it")
        return login.url()

    def _create(self, binaries: Binaries, account: Account | None) -> None:
        """Run initdb in a temporary directory, so that `data` exists only when it is complete."""
        data = self.directory / "data.new"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        password_file = self.directory / "password"
        password = secrets.token_urlsafe(32)
        try:
            write_private(password_file, password, account)
            if account:
                os.chown(data, account.uid, account.gid)
            arguments = ("-D", ".", "--pwfile=../password", f"--username={USER}", "--encoding=UTF8", "--locale=C")
            scram = ("--auth-local=scram-sha-256", "--auth-host=scram-sha-256")
            binaries.run("initdb", *arguments, *scram, cwd=data, account=account)
        finally:
            password_file.unlink(missing_ok=True)
        # When root does this, the directory belongs to another user: never write through a link.
        for name, text, flags in (
            ("postgresql.conf", "\ninclude '../settings.conf'\n", os.O_APPEND),
            ("pg_hba.conf", _ACCESS, os.O_TRUNC),
        ):
            with os.fdopen(os.open(data / name, os.O_WRONLY | os.O_NOFOLLOW | flags), "w") as file:
                file.write(text)
        Login(USER, password, DATABASE, listen=LOOPBACK, host=LOOPBACK).write(self._connection_file)
        data.rename(self._data)

    def _launch(self, login: Login, listen: str, encrypted: bool) -> Login:
        """Start the server on the port it had, so that clients find it again, or else on a free one."""
        account = server_account()
        binaries = self._binaries()
        self._forget_dead_server()
        certificate = None
        if encrypted:
            check_support(binaries)
            certificate = str(provide(self.directory, account))
        admit(self._data / "pg_hba.conf", encrypted, account)
        login = replace(login, certificate=certificate)
        node = socket.gethostname()
        host = node if listen in EVERYWHERE else listen
        ports = [login.port, *[None] * _PORT_TRIES]
        while True:
            login = replace(login, listen=listen, host=host, port=free_port(listen, ports.pop(0)), node=node)
            settings = _SETTINGS.format(listen=listen, port=login.port)
            write_private(self.directory / "settings.conf", settings + TLS_SETTINGS * encrypted, account)
            login.write(self._connection_file)
            try:
                self._start_process(binaries, account)
                return login
            except ServerError as error:
                # Somebody may take the port before the server does.
                if not ports or "Address already in use" not in str(error):
                    raise

    def _start_process(self, binaries: Binaries, account: Account | None) -> None:
        if not self._log.exists():
            write_private(self._log, "", account)
        log_start = self._log.stat().st_size
        # Relative paths: pg_ctl gives them to a shell between double quotes, and the directory's may hold anything.
        arguments = ("start", "-D", ".", "-l", "../log", "-w", "-t", str(_START_WAIT_S))
        try:
            binaries.run("pg_ctl", *arguments, cwd=self._data, account=account)
        except ServerError as error:
            with self._log.open(errors="replace") as file:
                file.seek(log_start)
                raise ServerError(f"{error}\n{self._log}:\n{last_lines(file.read())}") from error

    def _forget_dead_server(self) -> None:
        """Make way for a start after the server was killed.

        PostgreSQL itself copes with the pid file of a dead server, unless its number was given to another process
        of this user, or is kept by a zombie that nobody reaps, as in many containers.
        """
        # With the pid file goes PostgreSQL's own test for processes that outlive their server: never under one.
        give_up = time.monotonic() + _ORPHANS_WAIT_S
        while self._processes():
            if time.monotonic() > give_up:
                return
            time.sleep(0.05)
        self._pid_file.unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        """Return the PostgreSQL processes that work, or may work, in the data directory."""
        return [process for process in psutil.process_iter() if self._works_here(process)]

    def _works_here(self, process: psutil.Process) -> bool:
        try:
            if "postgres" not in process.name():
                return False
            try:
                return os.path.samefile(process.cwd(), self._data)
            except psutil.AccessDenied:
                # In a container root may not look at other users' processes.
                return bool(process.uids().real == self._data.stat().st_uid)
        except (psutil.NoSuchProcess, OSError):
            return False

    def _recorded_pid(self) -> int | None:
        try:
            return int(self._pid_file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _postmaster(self) -> int | None:
        """Return the process id of the server if it runs on this machine."""
        pid = self._recorded_pid()
        try:
            return pid if pid is not None and self._works_here(psutil.Process(pid)) else None
        except psutil.NoSuchProcess:
            return None

    def _is_elsewhere(self, login: Login) -> bool:
        """Tell whether the server was started on another machine and, as far as the files tell, not stopped there."""
        return login.node not in (None, socket.gethostname()) and self._pid_file.exists()

    def _runs(self, login: Login) -> bool:
        if self._is_elsewhere(login):
            return login.ask() is not None
        return self._postmaster() is not None

    def _refuse_running_elsewhere(self, login: Login) -> None:
        # PostgreSQL sees the processes of its own machine only: two servers on one directory destroy the data.
        if self._is_elsewhere(login):
            raise ServerError(
                f"The server was started on {login.node} and was not stopped there: run "
                f"`{self._command('stop')}` on {login.node}. If that machine is gone or was restarted since, "
                f"run `rm {shlex.quote(str(self._pid_file))}`"
            )

    def _refuse_foreign_directory(self) -> None:
        if self.directory.stat().st_uid != os.geteuid():
            raise ServerError(f"{self.directory} belongs to another user: choose a directory of your own")
        unfinished = {"lock", "password", "password.new", "data.new", "connection.json", "connection.json.new"}
        foreign = sorted({path.name for path in self.directory.iterdir()} - unfinished)
        if foreign:
            raise ServerError(
                f"{self.directory} is not empty (it has {foreign[0]}) and not a server's directory: "
                "choose an empty or a new one"
            )

    def _require_init(self) -> None:
        if not is_server_directory(self.directory):
            raise ServerError(f"{self.directory} has no PostgreSQL server: `{self._command('init')}` sets one up")

    def _command(self, verb: str) -> str:
        return f"parsl-balsam db {verb} {shlex.quote(str(self.directory))}"

    def _major_version(self) -> int:
        return int((self._data / "PG_VERSION").read_text().split(".")[0])

    def _binaries(self) -> Binaries:
        return find_binaries(self._major_version())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time set up, start or stop; whatever the file system refuses becomes a ServerError."""
        try:
            descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ServerError(f"Cannot work in {self.directory}: {error}") from error

    def _login(self) -> Login:
        return Login.read(self._connection_file)
