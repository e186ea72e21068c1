"""A process is killed just before or just after each of its commits: everything ends as if nothing had happened."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import parsl_balsam
from parsl_balsam.db.connect import open_database
from parsl_balsam.db.postgres import POSTGRES_IDLE_IN_TRANSACTION_S
from parsl_balsam.db.runs import end_run
from parsl_balsam.db.schema import blocks, tasks
from parsl_balsam.db.server import Server
from parsl_balsam.model.states import Outcome
from tests.conftest import new_database
from tests.db import conftest as db
from tests.db.conftest import check_invariants, snapshot
from tests.executor.parsl_runs import rows
from tests.faults.conftest import PATIENCE_S, Campaign, until

#: Transactions of which one process or another is not killed here, and why.
EXEMPT = {
    "abandon_unrequested": "it only follows an outage in the middle of a request, and is done anew if it fails",
    "upgrade": "tests/db/test_migrations.py kills it in mid-transaction; nobody else is at work then",
}


@dataclass(frozen=True)
class Stage:
    """A start of the script, which is killed where it passes a point."""

    point: str  #: transaction, or transaction:count
    refuse: bool = False  #: whether blocks are refused
    cancel: bool = False  #: whether it cancels a task that runs
    orphan: bool = False  #: whether the launcher that the start before has left is killed first


#: So many tasks that a launcher which comes later than the other finds some.
FROZEN_COUNT = 200

#: In this order: a start finds what the one before has left, as the row of a block that was never requested.
SCRIPT_STAGES = (
    Stage("check_schema"),
    Stage("begin_run"),
    Stage("end_pause"),
    Stage("record_block"),
    Stage("abandon_block"),
    Stage("record_job"),
    Stage("rename_block"),
    Stage("submit"),
    Stage("renew_run"),
    Stage("note_job_state"),
    Stage("cancel_tasks", cancel=True),
    Stage("reap", orphan=True, refuse=True),
    Stage("close_block", refuse=True),
    Stage("note_failed_block", refuse=True),
    Stage("end_run"),
)

#: An exchange of a launcher that has tasks, with claims, starts and ends.
BUSY_EXCHANGE = "exchange:4"

#: Of a launcher, each killed in a block of its own. The first exchange says that it is there, the next ones that its
#: node is, and claim.
LAUNCHER_POINTS = ("open_block", "exchange:1", "exchange:2", "exchange:3", BUSY_EXCHANGE, "close_block")

#: Of commands.
COMMAND_POINTS = ("sign_all", "wish_end", "retry_tasks")

#: Where a launcher asks what it has claimed unheard, after the server was away.
OUTAGE_POINTS = ("release_strays",)

SCRIPT = """
    from parsl.providers import LocalProvider
    from parsl_balsam import cancel

    STAGE = json.loads((Path(DIRECTORY) / "stage").read_text())

    class Quick(LocalProvider):
        status_polling_interval = 0.1

        def submit(self, *given):
            if STAGE["refuse"]:
                raise RuntimeError("no blocks today")
            return super().submit(*given)

    @python_app
    def square(number):
        import time
        time.sleep(0.1)
        return number * number

    @python_app
    def linger(directory):
        import time
        (__import__("pathlib").Path(directory) / "lingers").touch()
        time.sleep(600)

    if __name__ == "__main__":
        # What its launchers do is another test.
        provider = Quick(worker_init="unset BALSAM_CRASH_AT")
        options = dict(provider=provider, lease_s=1.5, max_crashes=1000, block_pause_s=0.001)
        with load(workflow="squares", **options):
            futures = [square(number) for number in range(STAGE["calls"])]
            if STAGE["cancel"]:
                lingering = linger(DIRECTORY)
                while not ((Path(DIRECTORY) / "lingers").exists() and lingering.task_record["exec_fu"]):
                    time.sleep(0.02)
                cancel(lingering)
                lingering.exception()
            values = [future.result() for future in futures]
            while STAGE["waits"]:
                time.sleep(1.0)
            report(values)
"""


def calls(number: int) -> int:
    """Return how many tasks the script has at its n-th start: some that are new, and those of before."""
    return 2 * (number + 1)


def write_stage(campaign: Campaign, count: int, stage: Stage, waits: bool) -> None:
    """Tell the next start of the script what to do, and whether it waits for its end when all is done."""
    asked = {"calls": count, "refuse": stage.refuse, "cancel": stage.cancel, "waits": waits}
    (campaign.directory / "stage").write_text(json.dumps(asked))


def point_of(where: str, moment: str) -> str:
    """Return a point as the product takes it."""
    transaction, _, count = where.partition(":")
    return f"{transaction}:{moment}:{count or 1}"


def check_end(campaign: Campaign, count: int) -> None:
    """Check that all tasks are done, each by one attempt, and that nothing is left."""
    found = campaign.attempts()
    squares = [(state, outcome) for app, state, _, outcome in found if app == "square"]
    assert {state for state, _ in squares} == {"done"}
    assert len([outcome for _, outcome in squares if outcome == "done"]) == count
    campaign.check_invariants()
    database = campaign.open()
    check_invariants(database)
    database.close()
    until(lambda: not campaign.processes())


def test_script_is_killed_at_each_of_its_commits(campaign: Campaign) -> None:
    script = campaign.write(SCRIPT)
    stages = [(stage, moment) for stage in SCRIPT_STAGES for moment in ("before", "after")]
    for number, (stage, moment) in enumerate(stages):
        write_stage(campaign, calls(number), stage, waits=stage.point != "end_run")
        if stage.orphan and moment == "before":
            until(lambda: [block.state for block in rows(campaign.url, blocks)].count("running") == 1)
            campaign.kill_launchers()
        point, once = point_of(stage.point, moment), campaign.directory / f"{stage.point}.{moment}"
        victim = campaign.start(script, {"BALSAM_CRASH_AT": point, "BALSAM_CRASH_ONCE": str(once)})
        output, _ = victim.communicate(timeout=PATIENCE_S)
        assert victim.returncode == -signal.SIGKILL, f"{point} was not passed: {output}"
        assert once.exists(), point
    count = calls(len(stages))
    write_stage(campaign, count, Stage("none"), waits=False)
    assert campaign.run(script) == [number * number for number in range(count)]
    assert {state for app, state, *_ in campaign.attempts() if app == "linger"} == {"cancelled"}
    check_end(campaign, count)


LAUNCHERS = """
    from parsl.providers import LocalProvider

    class Quick(LocalProvider):
        status_polling_interval = 0.1

    @python_app
    def square(number, directory):
        import time
        time.sleep(0.1)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number * number

    if __name__ == "__main__":
        # Each launcher takes the next point of the list.
        take = f'''
            cd {DIRECTORY}
            exec 9>lock; flock 9
            read -r BALSAM_CRASH_AT < points && sed -i 1d points && export BALSAM_CRASH_AT
            export BALSAM_CRASH_ONCE=$PWD/passed.$BALSAM_CRASH_AT
            exec 9>&-
        '''
        settings = json.loads((Path(DIRECTORY) / "settings").read_text())
        blocks, count = settings.pop("blocks"), settings.pop("count")
        provider = Quick(worker_init=take, init_blocks=blocks, max_blocks=blocks)
        with load(workflow="squares", provider=provider, max_crashes=1000, block_pause_s=0.001, **settings):
            report([future.result() for future in [square(number, DIRECTORY) for number in range(count)]])
"""


def start_launchers(
    campaign: Campaign, points: list[str], count: int, blocks: int = 1, lease_s: float = 1.5
) -> subprocess.Popen[str]:
    """Start a script whose blocks are stopped at these points, one after the other.

    At a busy exchange this is done when the file that says so is removed.
    """
    for point in points:
        if point.split(":")[2] == BUSY_EXCHANGE[-1]:
            passed(campaign, point).touch()
    (campaign.directory / "points").write_text("".join(f"{point}\n" for point in points))
    settings = {"blocks": blocks, "count": count, "lease_s": lease_s}
    (campaign.directory / "settings").write_text(json.dumps(settings))
    return campaign.start(campaign.write(LAUNCHERS))


def wait_for_lines(campaign: Campaign) -> None:
    """Return when another task has run."""
    lines = len(campaign.lines)
    until(lambda: len(campaign.lines) > lines)


def passed(campaign: Campaign, point: str) -> Path:
    """Return the file that is made when a launcher has come to a point."""
    return campaign.directory / f"passed.{point}"


def test_launchers_are_killed_at_each_of_their_commits(campaign: Campaign) -> None:
    points = [point_of(where, moment) for where in LAUNCHER_POINTS for moment in ("before", "after")]
    script = start_launchers(campaign, points, count := 150)
    for point in points:
        if passed(campaign, point).exists():  # not before it has tasks
            wait_for_lines(campaign)
            passed(campaign, point).unlink()
        if point.startswith("close_block"):
            wait_for_lines(campaign)
            for launcher in campaign.processes("parsl_balsam.launcher "):
                launcher.terminate()
        until(passed(campaign, point).exists)
    assert campaign.finish(script) == [number * number for number in range(count)]
    check_end(campaign, count)


def written(campaign: Campaign) -> dict[str, list[dict[str, Any]]]:
    """Return what the database has of tasks."""
    database = campaign.open()
    content = snapshot(database)
    database.close()
    return {name: content[name] for name in ("tasks", "attempts", "results", "events")}


def freeze_launcher(campaign: Campaign, point: str) -> psutil.Process:
    """Have one of two launchers stop at a busy exchange; return it."""

    def stopped() -> list[psutil.Process]:
        launchers = campaign.processes("parsl_balsam.launcher ")
        return [launcher for launcher in launchers if launcher.status() == psutil.STATUS_STOPPED]

    def holders() -> set[int]:
        return {task.block_id for task in rows(campaign.url, tasks, tasks.c.block_id.is_not(None))}

    wait_for_lines(campaign)
    until(lambda: len(holders()) == 2)
    passed(campaign, point).unlink()
    until(stopped)
    (found,) = stopped()
    (block,) = rows(campaign.url, blocks, blocks.c.pid == found.pid)
    assert rows(campaign.url, tasks, tasks.c.block_id == block.id)
    return found


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_launcher_frozen_in_mid_transaction_loses_its_locks(campaign: Campaign) -> None:
    """It holds its block, its tasks and the workflow's count of ends: the server lets go of them after a while."""
    script = start_launchers(campaign, [point := "exchange:before:4:SIGSTOP"], count := FROZEN_COUNT, blocks=2)
    frozen = freeze_launcher(campaign, point)
    assert PATIENCE_S > 2 * POSTGRES_IDLE_IN_TRANSACTION_S
    assert campaign.finish(script) == [number * number for number in range(count)]
    before = written(campaign)
    frozen.resume()
    check_end(campaign, count)
    assert written(campaign) == before


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("end", ["thawed", "killed"])
def test_launcher_frozen_in_mid_transaction_stops_all_writers_of_a_file(campaign: Campaign, end: str) -> None:
    """It has the only lock for writing: all wait until it goes on or is killed, and then go on too."""
    script = start_launchers(campaign, [point := "exchange:before:4:SIGSTOP"], count := FROZEN_COUNT, blocks=2)
    frozen = freeze_launcher(campaign, point)
    before = written(campaign)
    # Those of the other launcher end by themselves or with its lease: nothing runs that might be given to others.
    until(lambda: not tasks_alive(campaign))
    assert written(campaign) == before
    assert len(campaign.lines) < count
    if end == "thawed":
        frozen.resume()
    else:
        frozen.kill()
    assert campaign.finish(script) == [number * number for number in range(count)]
    check_end(campaign, count)


def tasks_alive(campaign: Campaign) -> bool:
    """Tell whether a line is still written now and then."""
    lines, until_then = len(campaign.lines), time.monotonic() + 3.0
    while time.monotonic() < until_then:
        time.sleep(0.1)
    return len(campaign.lines) > lines


def test_launcher_frozen_after_a_claim_gives_it_up(campaign: Campaign) -> None:
    script = start_launchers(campaign, [point := "exchange:after:4:SIGSTOP"], count := FROZEN_COUNT, blocks=2)
    frozen = freeze_launcher(campaign, point)
    assert campaign.finish(script) == [number * number for number in range(count)]
    before = written(campaign)
    frozen.resume()
    check_end(campaign, count)
    assert written(campaign) == before


@pytest.fixture
def outage_campaign(own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    """A campaign on a server that may be stopped."""
    monkeypatch.setenv("BALSAM_CAMPAIGN", str(tmp_path))
    with new_database(own_server) as url:
        made = Campaign(tmp_path, url)
        yield made
        made.end()


def test_launcher_is_killed_as_it_asks_for_unheard_claims(outage_campaign: Campaign, own_server: Server) -> None:
    campaign = outage_campaign
    points = [point_of(where, moment) for where in OUTAGE_POINTS for moment in ("before", "after")]
    script = start_launchers(campaign, points, count := 100)
    for point in points:
        wait_for_lines(campaign)
        wait_for_outage(campaign, own_server)
        own_server.start()
        until(passed(campaign, point).exists)
    assert campaign.finish(script) == [number * number for number in range(count)]
    check_end(campaign, count)


def wait_for_outage(campaign: Campaign, server: Server) -> None:
    """Stop the server; return when a launcher has missed it."""

    def missed() -> int:
        logs = campaign.directory.glob("runinfo/*/submit_scripts/*.err")
        return sum("the database does not answer" in log.read_text() for log in logs)

    before = missed()
    server.stop()
    until(lambda: missed() > before)


def command(campaign: Campaign, *words: str, **environ: str) -> int:
    """Run ``parsl-balsam``; return its exit code."""
    program = Path(sys.executable).with_name("parsl-balsam")
    return subprocess.run(
        [program, *words, "--database", campaign.url], env={**os.environ, **environ}, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize("moment", ["before", "after"])
def test_command_is_killed_at_its_commit(campaign: Campaign, moment: str) -> None:
    with closing(open_database(campaign.url)) as database:
        workflow = db.Campaign(database)
        failed = workflow.task()
        end_run(database, workflow.run.run_id)  # it would be in the way of the next command
        crash = {"BALSAM_CRASH_AT": point_of("sign_all", moment)}
        before = snapshot(database)
        assert command(campaign, "db", "sign", **crash) == -signal.SIGKILL
        assert (snapshot(database) == before) == (moment == "before")
        command(campaign, "db", "sign")
        assert snapshot(database) != before

        launcher = db.Launcher(workflow)
        launcher.run(Outcome.ERROR)
        crash = {"BALSAM_CRASH_AT": point_of("retry_tasks", moment)}
        assert command(campaign, "retry", str(failed), **crash) == -signal.SIGKILL
        assert db.state(database, failed) == ("failed" if moment == "before" else "ready")
        command(campaign, "retry", str(failed))
        assert db.state(database, failed) == "ready"

        crash = {"BALSAM_CRASH_AT": point_of("wish_end", moment)}
        assert command(campaign, "blocks", "cancel", str(launcher.block_id), **crash) == -signal.SIGKILL
        assert (launcher.exchange().end_wish is None) == (moment == "before")
        command(campaign, "blocks", "cancel", str(launcher.block_id))
        assert launcher.exchange().end_wish is not None
        check_invariants(database)


def test_every_transaction_is_one_at_which_somebody_is_killed() -> None:
    points = {stage.point for stage in SCRIPT_STAGES} | {*LAUNCHER_POINTS, *COMMAND_POINTS, *OUTAGE_POINTS}
    covered = {point.partition(":")[0] for point in points}
    assert covered | set(EXEMPT) == named_transactions(Path(parsl_balsam.__file__).parent)
    assert not covered & set(EXEMPT)


def named_transactions(package: Path) -> set[str]:
    """Return the names that are given to `Database.begin`; each has one."""
    names: set[str] = set()
    for path in package.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "begin"):
                continue
            of = ast.unparse(node.func.value)
            if of.endswith("database"):
                assert [type(argument) for argument in node.args] == [ast.Constant], f"{path}:{node.lineno} has no name"
                names.add(ast.literal_eval(node.args[0]))
    return names
