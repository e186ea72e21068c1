"""Blocks come, go and fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import bash_app, python_app
from parsl.executors.errors import BadStateException
from parsl.jobs.states import JobState, JobStatus

from parsl_balsam import BalsamExecutor, cancel
from parsl_balsam.db.schema import attempts, blocks, tasks, workflows
from parsl_balsam.model.errors import RunEnded
from tests.executor.conftest import Load
from tests.executor.parsl_runs import (
    LIMIT_S,
    QuickLocalProvider,
    is_alive,
    open_gate,
    processes,
    rows,
    url,
    wait_for,
    wait_for_text,
    waiting,
)

QUICK = {"strategy_period": 0.05}


class BrokenProvider(QuickLocalProvider):
    """A provider whose blocks cannot be looked at, though requested and cancelled."""

    looks = 0

    def status(self, job_ids: Sequence[Any]) -> list[JobStatus]:
        self.looks += 1
        raise OSError("the scheduler does not answer")


class RefusingProvider(QuickLocalProvider):
    """A provider that refuses blocks after a number of them."""

    left = 1

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.localprovider") -> Any:
        if not self.left:
            raise OSError("the queue is full")
        self.left -= 1
        return super().submit(command, tasks_per_node, job_name)


@python_app(executors=["balsam"])
def add(first: int, second: int) -> int:
    return first + second


@python_app(executors=["other"])
def add_elsewhere(first: int, second: int) -> int:
    return first + second


@bash_app(executors=["balsam"])
def shell(command: str, parsl_resource_specification: dict[str, Any] | None = None) -> str:
    return command


def test_first_block_does_not_wait_for_the_strategy(load: Load) -> None:
    run = load({"strategy_period": 600})
    (block,) = run.rows(blocks)
    assert block.name == "0"
    assert add(1, 2).result() == 3
    run.kernel.cleanup()
    (block,) = rows(run.database, blocks)
    assert block.state == "ended"
    assert block.job_id is not None
    assert "SIGTERM" in block.reason


def test_strategy_does_not_double_the_first_blocks(load: Load) -> None:
    provider = QuickLocalProvider(init_blocks=2, max_blocks=4)
    run = load(QUICK, provider=provider)
    wait_for(lambda: not run.executor._first_blocks_started, "the first tick of the strategy")
    assert add(1, 2).result() == 3
    assert [block.name for block in run.rows(blocks)] == ["0", "1"]


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_idle_block_ends_and_a_new_one_comes_with_work(load: Load, strategy: str) -> None:
    # The lease is renewed every 0.2 s, which is no work.
    run = load({**QUICK, "strategy": strategy}, provider=QuickLocalProvider(), idle_timeout_s=0.3, lease_s=1.0)
    assert add(1, 2).result() == 3
    wait_for(lambda: not processes(run.directory), "the idle block to end")
    (block,) = run.rows(blocks)
    assert (block.state, block.reason) == ("ended", "no work for 0.3 s")
    assert add(2, 3).result() == 5
    assert [block.name for block in run.rows(blocks)] == ["0", "1"]


def test_simple_strategy_requests_and_ends_blocks(load: Load) -> None:
    provider = QuickLocalProvider(init_blocks=0, min_blocks=0, max_blocks=2)
    run = load({**QUICK, "max_idletime": 0.2}, provider=provider, cores_per_node=1)
    assert run.rows(blocks) == []
    pair = [shell("sleep 600 # first"), shell("sleep 600 # second")]
    wait_for(lambda: len(run.rows(tasks, tasks.c.state == "running")) == 2, "two blocks with a task each")
    for call in pair:
        assert cancel(call)
        assert call.exception()
    wait_for(lambda: all(block.state == "ended" for block in run.rows(blocks)), "idle blocks to be scaled in")
    wait_for(lambda: not processes(run.directory), "the processes of the blocks to end")


def test_busy_blocks_are_spared(load: Load) -> None:
    run = load(provider=QuickLocalProvider(init_blocks=2, max_blocks=2), cores_per_node=1)
    busy = shell("sleep 600")
    wait_for(lambda: run.rows(tasks, tasks.c.state == "running"), "the task to run")
    wait_for(lambda: len(run.rows(blocks, blocks.c.state == "running")) == 2, "both blocks")
    (attempt,) = run.rows(attempts)
    (ended,) = run.executor.scale_in_facade(1)
    wait_for(lambda: len(run.rows(blocks, blocks.c.state == "ended")) == 1, "a block to end")
    (block,) = run.rows(blocks, blocks.c.state == "ended")
    assert block.name == ended
    assert block.id != attempt.block_id
    assert not busy.done()


def test_scale_in_of_a_busy_block_costs_nothing(load: Load, tmp_path: Path) -> None:
    run = load(cores_per_node=1, provider=QuickLocalProvider(init_blocks=1, max_blocks=2))
    gate = tmp_path / "gate"
    call = shell(f"echo $$ > {tmp_path}/pid; [ -e {gate} ] || sleep 600")
    pid = int(wait_for_text(tmp_path / "pid"))
    assert run.executor.scale_in_facade(1) == ["0"]
    wait_for(lambda: run.state(call) == "ready", "the task to be released")
    assert not is_alive(pid)
    gate.touch()
    run.executor.scale_out_facade(0)  # the strategy's first request, which `start` has carried out
    assert run.executor.scale_out_facade(1) == ["1"]
    assert call.result() == 0
    assert [attempt.outcome for attempt in run.attempts(call)] == ["ended", "done"]


def test_polled_method_that_fails_does_not_stop_other_executors(load: Load, tmp_path: Path) -> None:
    broken = BrokenProvider()
    other = tmp_path / "other"
    other.mkdir()
    second = BalsamExecutor(
        label="other", database=url(other), provider=QuickLocalProvider(init_blocks=0, max_blocks=1)
    )
    load(QUICK, executors=[second], provider=broken, block_error_handler=fail_to_judge)
    assert add(1, 2).result() == 3
    wait_for(lambda: broken.looks > 2, "polls of the broken provider")
    # Only the strategy, in the poll that fails, gives the second executor its block.
    assert add_elsewhere(2, 3).result() == 5


def fail_to_judge(executor: Any, status: dict[str, JobStatus]) -> None:
    raise ValueError("no judgement")


def test_request_that_is_refused_is_recorded(load: Load) -> None:
    run = load(provider=RefusingProvider(max_blocks=2))
    run.executor.scale_out_facade(0)
    assert run.executor.scale_out_facade(1) == []
    assert run.executor.status_facade["1"].state is JobState.FAILED
    (refused,) = run.rows(blocks, blocks.c.name == "1")
    assert (refused.state, refused.reason) == ("ended", "it could not be requested: the queue is full")
    assert add(1, 2).result() == 3


def test_shutdown_releases_what_runs_at_no_cost(load: Load, tmp_path: Path) -> None:
    run = load(cores_per_node=1)
    running = shell(f"setsid sleep 600 & sleep 600 & echo $$ $(jobs -p) > {tmp_path}/pids; wait")
    pids = [int(pid) for pid in wait_for_text(tmp_path / "pids").split()]
    first, second = shell("true"), shell("true", parsl_resource_specification={"priority": 1})
    for call in (first, second):
        run.task_id(call)
    run.kernel.cleanup()
    for call in (running, first, second):
        with pytest.raises(RunEnded, match="same workflow"):
            call.result()
    assert [pid for pid in pids if is_alive(pid)] == []
    wait_for(lambda: not processes(tmp_path), "the processes of the run to end")
    assert {task.state for task in rows(url(tmp_path), tasks)} == {"ready"}
    assert [attempt.outcome for attempt in rows(url(tmp_path), attempts)] == ["ended"]
    with pytest.raises(RunEnded, match="was shut down"):
        run.executor.submit(len, {}, "abc")


def test_shutdown_before_the_block_is_there(load: Load) -> None:
    run = load()
    run.kernel.cleanup()
    assert [block.state for block in rows(run.database, blocks) if block.state == "running"] == []


def test_second_run_finishes_what_the_first_left(load: Load, tmp_path: Path) -> None:
    run = load(workflow="campaign", cores_per_node=1)
    done, left = shell("true # first"), shell(f"echo $$ > {tmp_path}/pid; [ -e {tmp_path}/gate ] || sleep 600")
    assert done.result() == 0
    wait_for_text(tmp_path / "pid")
    run.kernel.cleanup()
    assert isinstance(left.exception(), RunEnded)
    (tmp_path / "gate").touch()
    parsl.clear()
    again = load(workflow="campaign", cores_per_node=1)
    done, left = shell("true # first"), shell(f"echo $$ > {tmp_path}/pid; [ -e {tmp_path}/gate ] || sleep 600")
    assert (done.result(), left.result()) == (0, 0)
    assert [attempt.outcome for attempt in again.attempts(done)] == ["done"]
    assert [attempt.outcome for attempt in again.attempts(left)] == ["ended", "done"]
    counts = again.executor.reuse_counts()
    assert (counts.reused, counts.attached, counts.new) == (1, 1, 0)


def test_blocks_that_all_fail_fail_the_calls(load: Load) -> None:
    broken = QuickLocalProvider(worker_init="echo bad module >&2; exit 7")
    run = load(QUICK, provider=broken, block_error_handler=True)
    call = add(1, 2)
    with pytest.raises(BadStateException, match=r"(?s)EXIT CODE: 7.*bad module"):
        call.result()
    with pytest.raises(Exception, match="EXIT CODE: 7"):
        add(2, 3).result()
    assert run.executor.outstanding() == 0


def test_blocks_that_die_at_once_make_pauses(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = tmp_path / "module"
    broken = QuickLocalProvider(worker_init=f"[ -e {module} ] || {{ echo no module >&2; exit 7; }}")
    run = load(QUICK, provider=broken, block_pause_s=0.2)
    call = add(1, 2)
    wait_for(lambda: len(run.rows(blocks)) >= 3, "three blocks")
    (workflow,) = run.rows(workflows)
    assert workflow.pause_count >= 2
    for told in (workflow.pause_why, caplog.text):
        assert "died at once: its job is over: exit code 7: no module" in told
    assert run.state(call) == "ready"
    assert run.rows(attempts) == []
    module.touch()
    assert call.result() == 3
    served = len(run.rows(blocks))
    run.executor.scale_in_facade(1)
    wait_for(lambda: [row.pause_count for row in run.rows(workflows)] == [0], "the good block to be noted")
    assert len(run.rows(blocks)) == served


def test_end_of_the_run_leaves_ended_blocks_as_they_ended(load: Load) -> None:
    broken = QuickLocalProvider(worker_init="exit 7")
    run = load(QUICK, provider=broken, block_pause_s=3600.0)
    wait_for(lambda: run.rows(blocks, blocks.c.job_state == "failed"), "the block to fail")
    run.kernel.cleanup()
    (block,) = rows(run.database, blocks)
    assert (block.job_state, block.job_reason) == ("failed", "exit code 7")


def test_two_executors_share_a_database_file(load: Load, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    quick = QuickLocalProvider(init_blocks=1, max_blocks=1)
    second = BalsamExecutor(label="other", database=url(tmp_path))
    run = load(executors=[second], provider=quick, cores_per_node=1)
    # The file must stay whole when a launcher, with the last connection that SQLite knows of, leaves it.
    assert add(1, 2).result() == 3
    assert add_elsewhere(1, 2).result() == 3
    for executor in (run.executor, second):
        executor.scale_in_facade(1)
    wait_for(lambda: not processes(tmp_path), "the blocks to end")
    call = shell(waiting(gate))
    run.executor.scale_out_facade(0)
    run.executor.scale_out_facade(1)
    open_gate(gate)
    assert call.result(timeout=LIMIT_S) == 0


def test_results_wait_for_no_strategy(load: Load) -> None:
    run = load()
    futures = [add(number, number) for number in range(300)]
    assert [future.result() for future in futures] == [2 * number for number in range(300)]
    assert run.executor.outstanding() == 0
    assert len(run.rows(tasks, tasks.c.state == "done")) == 300
