"""Failures and crashes are counted apart, whoever else dies meanwhile, and ends of blocks are not counted."""

from __future__ import annotations

import os
import platform
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from parsl import bash_app

from parsl_balsam.db.schema import attempts, blocks, tasks
from tests.executor.parsl_runs import ParslRun, QuickLocalProvider, parsl_run, rows, wait_for
from tests.faults.conftest import Campaign, until
from tests.slurm.test_lost_nodes import balsam

MAX_RETRIES = 2
MAX_CRASHES = 3

#: In each attempt `act` does one thing: it raises, or kills what it runs in.
HEAD = """
    @python_app
    def act(whats, directory, wait=0.0):
        import os, signal, time
        import psutil
        attempt = int(os.environ["BALSAM_ATTEMPT"])
        with open(directory + "/lines", "a") as file:
            file.write(f"{attempt}\\n")
        time.sleep(wait)
        while not wait and not os.path.exists(f"{directory}/gate{attempt}"):
            time.sleep(0.02)
        what = whats[min(attempt, len(whats)) - 1]
        if what == "error":
            raise ValueError("by its own doing")
        if what == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        program = {"agent": "parsl_balsam.launcher.agent", "launcher": "parsl_balsam.launcher"}[what]
        for process in psutil.Process().parents():
            if program in process.cmdline():
                process.kill()
        signal.pause()

    @bash_app
    def bystander(number):
        return f": {number}; [ $BALSAM_ATTEMPT != 1 ] || sleep 1"

    def end_of(future):
        error = future.exception()
        return [type(error).__name__, str(error)]

"""

RESTARTED = (
    HEAD
    + """
    if __name__ == "__main__":
        policy = RetryPolicy(max_retries=2, max_crashes=3)
        with load(workflow="budgets", lease_s=2.0, block_pause_s=0.2, retry=policy):
            report(end_of(act((Path(DIRECTORY) / "whats").read_text().split(), DIRECTORY)))
"""
)

KILLER = (
    HEAD
    + """
    if __name__ == "__main__":
        with load(lease_s=2.0, block_pause_s=0.2, max_crashes=3):
            killer = act([(Path(DIRECTORY) / "whats").read_text()], DIRECTORY, 0.5)
            others = [bystander(n) for n in range(8)]
            report([end_of(killer), [other.result() for other in others]])
"""
)


@pytest.mark.parametrize(
    "whats",
    ["error worker error launcher agent", "launcher error worker error error"],
    ids=["crashes are spent", "retries are spent"],
)
def test_each_budget_is_spent_once_whoever_is_killed_meanwhile(campaign: Campaign, whats: str) -> None:
    (campaign.directory / "whats").write_text(whats)
    script = campaign.write(RESTARTED)
    deeds = whats.split()
    for number in range(1, len(deeds) + 1):
        running = campaign.start(script)
        until(lambda tries=number: len(campaign.lines) == tries)  # type: ignore[misc]
        # A task that fails before a run has asked for it is given another budget by that run.
        until(lambda run=number: [row.run_id for row in rows(campaign.url, tasks)] == [run])  # type: ignore[misc]
        if number < len(deeds):
            campaign.kill(running)
        (campaign.directory / f"gate{number}").touch()
    kind, message = campaign.finish(running)
    failures = deeds.count("error")
    crashes = len(deeds) - failures
    assert (failures, crashes) in ((MAX_RETRIES, MAX_CRASHES), (MAX_RETRIES + 1, MAX_CRASHES - 1))
    assert [row.outcome for row in rows(campaign.url, attempts)] == [
        "error" if deed == "error" else "crash" for deed in deeds
    ]
    assert [row.state for row in rows(campaign.url, tasks)] == ["failed"]
    assert campaign.lines == [str(number) for number in range(1, len(deeds) + 1)]
    if deeds[-1] == "error":
        assert (kind, message) == ("ValueError", "by its own doing")
    else:
        assert kind == "TaskCrashed"
        assert "crashed 3 times (max_crashes=3)" in message
    campaign.check_invariants()
    until(lambda: not campaign.processes())


@pytest.mark.parametrize("what", ["worker", "agent", "launcher"])
def test_task_that_always_kills_what_it_runs_in_fails_and_names_the_hosts(campaign: Campaign, what: str) -> None:
    (campaign.directory / "whats").write_text(what)
    (kind, message), others = campaign.run(campaign.write(KILLER))
    assert others == [0] * 8
    host = platform.node()
    told = f"crashed 3 times (max_crashes=3), on {host}, {host}, {host}"
    assert kind == "TaskCrashed"
    assert told in message
    (killer,) = [row for row in rows(campaign.url, tasks) if row.app == "act"]
    tried = rows(campaign.url, attempts, attempts.c.task_id == killer.id)
    assert [(row.outcome, row.host) for row in tried] == [("crash", host)] * MAX_CRASHES
    assert told in tried[-1].error
    assert told in balsam("show", str(killer.id), "--database", campaign.url)
    assert Counter(row.state for row in rows(campaign.url, tasks)) == {"done": 8, "failed": 1}
    assert Counter(row.state for row in rows(campaign.url, blocks))["lost"] == (3 if what == "launcher" else 0)
    campaign.check_invariants()
    until(lambda: not campaign.processes())


@bash_app
def interrupted(directory: str) -> str:
    return f"echo $BALSAM_ATTEMPT >> {directory}/lines; [ $BALSAM_ATTEMPT = 3 ] || sleep 600"


def scale_in(run: ParslRun, block_id: int) -> None:
    run.executor.scale_in_facade(1)


def cancel_block(run: ParslRun, block_id: int) -> None:
    balsam("blocks", "cancel", str(block_id), "--database", run.database)


def drain(run: ParslRun, block_id: int) -> None:
    (block,) = run.rows(blocks, blocks.c.id == block_id)
    os.kill(block.pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [scale_in, cancel_block, drain])
def test_end_of_a_block_costs_nothing(tmp_path: Path, url: str, end: Callable[[ParslRun, int], None]) -> None:
    provider = QuickLocalProvider(init_blocks=1, min_blocks=0, max_blocks=1)
    options = {"database": url, "provider": provider, "cores_per_node": 1, "max_retries": 0, "max_crashes": 1}
    with parsl_run(tmp_path, {"strategy_period": 0.1, "strategy": "simple"}, **options) as run:
        call = interrupted(str(tmp_path))
        for number in (1, 2):
            (task,) = wait_for(lambda: run.rows(tasks, tasks.c.state == "running"), "the task to run")
            assert task.attempts == number
            end(run, task.block_id)
            wait_for(lambda tries=number: run.rows(tasks, tasks.c.attempts > tries), "the next block")  # type: ignore[misc]
        assert call.result() == 0
        assert [row.outcome for row in run.attempts(call)] == ["ended", "ended", "done"]
        assert {row.state for row in run.rows(blocks)[:2]} == {"ended"}
