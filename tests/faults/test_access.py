"""Nobody else gets in: secrets are shown nowhere, and files that others could read are refused."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from parsl.providers import LocalProvider
from sqlalchemy import make_url

from parsl_balsam import BalsamExecutor
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.keyfile import read_or_make_key
from parsl_balsam.db.schema import workflows
from parsl_balsam.db.server import Server
from parsl_balsam.executor.blocks import write_order
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.reach import Reached
from parsl_balsam.model.errors import DatabaseUnavailable
from parsl_balsam.model.launch import LaunchOrder
from tests.conftest import running_server
from tests.executor.parsl_runs import parsl_run, wait_for
from tests.exposure import files_with, seen_in_processes
from tests.faults.conftest import Campaign, until

SECRET = "for-nobody-else"

LOGGED_RUN = """
    import logging
    from parsl.providers import LocalProvider

    logging.basicConfig(level=logging.DEBUG, filename=DIRECTORY + "/everything.log")
    logging.getLogger("sqlalchemy").setLevel(logging.DEBUG)
    parsl.set_file_logger(DIRECTORY + "/parsl.log", level=logging.DEBUG)

    @bash_app
    def step(number, directory):
        return f"echo {number} >> {directory}/lines; until [ -e {directory}/gate ]; do sleep 0.02; done"

    if __name__ == "__main__":
        label = 'it\\'s "$(touch HACKED)"; touch HACKED & * \\u00e9'
        with load(workflow="logged", label=label, provider=LocalProvider(init_blocks=1)) as kernel:
            logging.debug("%r %r", kernel.config, vars(kernel.executors[label]))
            report([future.result() for future in [step(number, DIRECTORY) for number in range(4)]])
"""


@pytest.fixture
def server(postgres_binaries: Path) -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """Where a user's own server is: its URL is in a file that only he can read."""
    return str(server.directory)


def test_password_is_in_private_files_only(campaign: Campaign, server: Server) -> None:
    password = str(make_url(server.url()).password)
    key = read_or_make_key().hex()
    shown: list[str] = []
    seen: set[str] = set()

    def look() -> None:
        shown.extend(seen_in_processes([password, key]))
        for process in campaign.processes():
            try:
                seen.update(process.cmdline())
            except psutil.Error:
                pass

    def all_run() -> bool:
        look()
        return len(campaign.lines) == 4

    script = campaign.start(campaign.write(LOGGED_RUN))
    until(all_run)
    look()
    (campaign.directory / "gate").touch()
    assert campaign.finish(script) == [0] * 4
    assert shown == []
    assert {"parsl_balsam.launcher", "parsl_balsam.launcher.agent"} <= seen
    for secret in (password, key):
        assert [path.name for path in files_with(secret, campaign.directory)] == ["launch.json"]
    log = (campaign.directory / "everything.log").read_text()
    assert "block 1 is requested" in log
    assert "sqlalchemy" in log
    assert list(campaign.directory.rglob("HACKED")) == []
    campaign.check_invariants()


def test_secrets_are_not_printed(server: Server, tmp_path: Path) -> None:
    url = server.url()
    order = replace(an_order(tmp_path, url), key=SECRET)
    invitation = Invitation(("n1",), 4, 0, 30.0, (), client_secret=SECRET, environ={"MY_TOKEN": SECRET})
    with closing(open_database(url)) as database:
        printed = f"{order!r} {invitation!r} {invitation!s} {database!r} {BalsamExecutor(database=url)!r}"
    with pytest.raises(DatabaseUnavailable) as refusal:
        open_database(make_url(url).set(database="none").render_as_string(hide_password=False))
    printed += f"{refusal.value!r} {refusal.value.__cause__!r}"
    assert str(make_url(url).password) not in printed
    assert SECRET not in printed
    # They are there all the same.
    assert str(make_url(url).password) in order.dumps()


@pytest.mark.parametrize("query", ["password=secret-of-mine", "password=another&password=secret-of-mine"])
def test_password_in_the_query_is_not_printed(query: str) -> None:
    executor = BalsamExecutor(database=f"postgresql://me@127.0.0.1/tasks?{query}")
    assert "secret-of-mine" not in f"{executor!r} {executor.database} {executor.database_url}"
    assert executor.database_url.password == "secret-of-mine"


def test_directory_that_a_provider_of_parsl_would_let_a_shell_read_is_refused(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "$(touch HACKED)")
    # The test's own processes are none of the run's: nothing is started.
    with parsl_run(tmp_path, {"run_dir": run_dir}, provider=LocalProvider(init_blocks=1), alone=False) as run:
        (workflow,) = wait_for(lambda: run.rows(workflows, workflows.c.pause_why.is_not(None)), "the refusal")
    assert "LocalProvider gives the paths of its scripts to a shell as they are" in workflow.pause_why
    assert "use another run_dir" in workflow.pause_why
    assert not Path("HACKED").exists()


@pytest.mark.parametrize("opened", [0o640, 0o604])
def test_order_that_others_can_read_is_refused_until_it_is_mended(tmp_path: Path, opened: int) -> None:
    file = write_order(an_order(tmp_path / "it's mine", f"sqlite:///{tmp_path}/none.db"))
    file.chmod(opened)
    result = tmp_path / "result.json"
    mend = f"chmod 600 {shlex.quote(str(file))}"
    for words in (("parsl_balsam.launcher", str(file), "1"), ("parsl_balsam.launcher.reach", str(file), str(result))):
        refused = start(*words)
        assert refused.returncode == 1
        assert f"`{mend}`" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert mend in str(Reached.loads(result.read_text()).error)
    subprocess.run(mend, shell=True, check=True)
    tried = start("parsl_balsam.launcher", str(file), "1")
    assert f"cannot open the database file {tmp_path}/none.db" in tried.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_order_of_another_user_is_refused(tmp_path: Path) -> None:
    file = write_order(an_order(tmp_path, "sqlite:////none.db"))
    os.chown(file, 65534, -1)
    assert "belongs to another user" in start("parsl_balsam.launcher", str(file), "1").stderr


def test_invitation_that_others_can_read_lets_no_agent_in(tmp_path: Path) -> None:
    file = tmp_path / "agents-1.json"
    Invitation(("n1",), 1, 0, 30.0, (), client_secret=SECRET).write(file)
    file.chmod(0o644)
    refused = start("parsl_balsam.launcher.agent", str(file), "--descriptor", "0", "--name", "n1", "--index", "0")
    assert refused.returncode != 0
    assert f"`chmod 600 {file}`" in refused.stderr


def test_order_is_written_anew(tmp_path: Path) -> None:
    order = an_order(tmp_path, "postgresql://me:first@127.0.0.1/tasks")
    file = write_order(order)
    file.chmod(0o666)
    with file.open() as held_open_by_another:
        write_order(an_order(tmp_path, "postgresql://me:second@127.0.0.1/tasks"))
        assert "second" not in held_open_by_another.read()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "second" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


def an_order(directory: Path, database: str) -> LaunchOrder:
    return LaunchOrder(database, 1, 30.0, 60.0, None, (), str(directory))


def start(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
