"""What would be requested for what waits is told before it is requested, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from parsl import bash_app

from parsl_balsam import NodeRange, Queue, QueuePolicy
from parsl_balsam.cli.main import main
from parsl_balsam.db.blocks import Requested, record_block, wish_end
from parsl_balsam.db.connect import Database, open_database
from parsl_balsam.db.pauses import note_failed_block
from parsl_balsam.db.runs import Driver, Run, begin_run
from parsl_balsam.db.schema import blocks
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.tasks import Call
from parsl_balsam.providers.rules import BlockRules
from tests.executor.parsl_runs import QuickLocalProvider, parsl_run

REGULAR = Queue([NodeRange(1, 16, 120)], "regular")
POLICY = QueuePolicy([REGULAR])
SIZED = BlockRules(POLICY, sized=True, max_blocks=10, cores_per_node=4, gpus_per_node=0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(open_database(f"sqlite:///{tmp_path}/balsam.db")) as opened:
        yield opened


@pytest.fixture
def begin(database: Database) -> Callable[..., Run]:
    """Begins a run of the workflow "scan" that requests blocks by some rules."""

    def run(rules: BlockRules | None = SIZED, label: str = "balsam") -> Run:
        driver = Driver("login1", "login1 boot", 4711, 0.0)
        text = None if rules is None else rules.dumps()
        return begin_run(
            database, "scan", label, "000", driver, lambda _: True, RetryPolicy(), 60.0, "{}", block_rules=text
        )

    return run


def submit(database: Database, run: Run, count: int, **spec: Any) -> None:
    """Record tasks that need the same."""
    calls = [
        Call(f"{spec} {number}".encode(), 0, "square", b"digest", b"", ResourceSpec(**spec)) for number in range(count)
    ]
    TaskStore(database, run.workflow_id, run.run_id).submit(calls, {b"digest": b"def square"})


def request(database: Database, run: Run, scheduler: str | None = "slurm", **asked: Any) -> int:
    """Record a block that is requested."""
    return record_block(database, run.workflow_id, run.run_id, "0", 60.0, Requested(scheduler=scheduler, **asked))


def balsam(database: Database | str, *arguments: object) -> Result:
    address = database if isinstance(database, str) else database.address
    return CliRunner().invoke(main, [*map(str, arguments)], env={"BALSAM_DATABASE": address})


def answer(database: Database, *arguments: object) -> Any:
    result = balsam(database, "plan", "scan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def words(result: Result) -> list[str]:
    """Return what was said, without how it is aligned."""
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines() if line]


def test_block_is_sized_for_what_waits(database: Database, begin: Callable[..., Run]) -> None:
    run = begin()
    submit(database, run, 8, num_nodes=4, walltime_min=20)
    submit(database, run, 6, node_packing_count=2, walltime_min=5)
    submit(database, run, 3)
    told = answer(database)
    assert sorted((group["count"], group["nodes"], group["walltime_min"]) for group in told["waiting"]) == [
        (3, 1, None),
        (6, 1, 5.0),
        (8, 4, 20.0),
    ]
    (asked,) = told["requests"]
    assert asked["queue"] == "regular"
    assert 4 <= asked["nodes"] <= 16
    assert 20 < asked["walltime_min"] <= 120
    assert asked["tasks"] == 17
    assert told["end"] == "1 planned block will serve what waits"
    lines = words(balsam(database, "plan", "scan"))
    assert lines[:5] == [
        "What waits",
        "tasks nodes cores GPUs run time",
        "8 4 all - 20 min",
        "6 1 1/2 node - 5 min",
        "3 1 1 - -",
    ]
    assert lines[5:7] == ["What would be requested", "queue nodes walltime tasks in use why"]
    assert lines[7].startswith(f"regular {asked['nodes']} ")
    assert lines[7].endswith(asked["why"])
    assert lines[-1] == "1 planned block will serve what waits."


def test_nothing_is_requested_where_nothing_waits(database: Database, begin: Callable[..., Run]) -> None:
    begin()
    assert balsam(database, "plan", "scan").stdout == "Nothing waits.\n"


def test_nothing_changes_when_it_is_looked_at(database: Database, begin: Callable[..., Run]) -> None:
    submit(database, begin(), 5)
    assert answer(database)["requests"] == answer(database)["requests"] != []
    with database.read() as connection:
        assert connection.execute(blocks.select()).all() == []


def test_blocks_that_are_there_are_counted_in(database: Database, begin: Callable[..., Run]) -> None:
    run = begin()
    submit(database, run, 8, num_nodes=4, walltime_min=20)
    serving = request(database, run, nodes=16, walltime_min=120, queue="regular")
    told = answer(database)
    assert told["requests"] == []
    assert told["end"] == f"block {serving} will serve what waits"
    lines = words(balsam(database, "plan", "scan"))
    assert lines[3:6] == [
        "Blocks there are",
        "block state queue nodes walltime time left tasks there",
        f"{serving} requested regular 16 2 h - 0",
    ]
    wish_end(database, [serving], "user")
    assert len(answer(database)["requests"]) == 1


def test_queue_that_is_full_is_named(database: Database, begin: Callable[..., Run]) -> None:
    policy = QueuePolicy([Queue([NodeRange(1, 4, 60)], "debug", max_queued=1)])
    run = begin(BlockRules(policy, sized=True, max_blocks=10, cores_per_node=4))
    submit(database, run, 100, num_nodes=4, walltime_min=50)
    told = answer(database)
    assert len(told["requests"]) == 1
    assert told["end"] == "queue 'debug' may hold 1 job and has 1 planned block"


@pytest.mark.parametrize(("max_blocks", "expected"), [(5, 3), (2, 0), (1, 0)])
def test_no_more_blocks_than_may_be_open(
    database: Database, begin: Callable[..., Run], max_blocks: int, expected: int
) -> None:
    run = begin(BlockRules(POLICY, sized=True, max_blocks=max_blocks, cores_per_node=4))
    submit(database, run, 200, num_nodes=16, walltime_min=100)
    for _ in range(2):
        request(database, run, nodes=1, walltime_min=10, queue="regular")
    request(database, run, None)  # by hand: Parsl does not count it
    told = answer(database)
    assert len(told["requests"]) == expected
    assert told["end"] == f"no more than max_blocks={max_blocks} are requested at a time"


def test_pause_is_told(database: Database, begin: Callable[..., Run]) -> None:
    run = begin()
    submit(database, run, 4)
    note_failed_block(database, run.workflow_id, "block 3 could not be requested: Invalid account", 3000.0)
    told = answer(database)
    assert [pause["why"] for pause in told["pauses"]] == ["block 3 could not be requested: Invalid account"]
    assert len(told["requests"]) == 1
    *_, paused, end = words(balsam(database, "plan", "scan"))
    assert paused.startswith("Workflow scan: no block is requested for another ")
    assert "Invalid account. 'parsl-balsam blocks resume' ends the pause." in paused
    assert end == "1 planned block will serve what waits."


def test_blocks_of_one_size_are_told_as_what_they_are(database: Database, begin: Callable[..., Run]) -> None:
    run = begin(BlockRules(QueuePolicy.fixed(2, 30, 4), sized=False, max_blocks=4, cores_per_node=4))
    submit(database, run, 4, num_nodes=2, walltime_min=25)
    told = answer(database)
    assert not told["sized"]
    assert {(asked["nodes"], asked["walltime_min"], asked["queue"]) for asked in told["requests"]} == {(2, 30, None)}
    lines = words(balsam(database, "plan", "scan"))
    assert "Blocks of this run have one size, and Parsl's strategy decides how many there are: give the executor" in (
        " ".join(lines)
    )
    assert any(line.startswith("the provider's 2 30 min") for line in lines)


def test_executor_is_named_where_there_are_several(database: Database, begin: Callable[..., Run]) -> None:
    begin(SIZED, "cpu")
    submit(database, begin(SIZED, "gpu"), 3)
    refused = balsam(database, "plan", "scan")
    assert refused.exit_code == 1
    assert "the executors 'cpu', 'gpu': name one of them with --executor" in refused.stderr
    assert len(answer(database, "--executor", "gpu")["requests"]) == 1
    assert answer(database, "--executor", "cpu")["end"] == "nothing waits"


def test_what_cannot_be_planned(database: Database, begin: Callable[..., Run]) -> None:
    begin(None)
    for name, why in (("scan", "'scan' has left no rules: start its script once"), ("scam", "no workflow 'scam'")):
        refused = balsam(database, "plan", name)
        assert refused.exit_code == 1
        assert why in refused.stderr


@bash_app
def shell(command: str) -> str:
    return command


def test_run_on_this_host_has_nothing_to_plan(tmp_path: Path) -> None:
    nowhere = QuickLocalProvider(init_blocks=0, min_blocks=0, max_blocks=0)
    with parsl_run(tmp_path, provider=nowhere, workflow="scan", cores_per_node=2) as run:
        calls = [shell("true") for _ in range(3)]
        for call in calls:
            run.task_id(call)
        lines = words(balsam(run.database, "plan", "scan"))
        assert lines[2] == "3 1 1 - -"
        assert lines[-1] == (
            "Nothing can be planned: blocks of this run have no end and one size, and Parsl's strategy requests them."
        )
