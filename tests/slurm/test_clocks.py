"""The clock of a block's first node is wrong: the block ends with its job all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parsl_balsam import SlurmProvider
from parsl_balsam.db.schema import blocks
from tests.clocks import WrongClock
from tests.executor.parsl_runs import LIMIT_S, ParslRun
from tests.slurm.ensembles import command

WALLTIME_S = 600


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_end_of_the_job_goes_by_the_clock_of_slurm(
    slurm_run: Callable[..., ParslRun], tmp_path: Path, hours: int
) -> None:
    clock = WrongClock.compiled(tmp_path)
    provider = SlurmProvider(walltime="00:10:00", poll_interval_s=0.2, max_blocks=1, worker_init=clock.exports(hours))
    run = slurm_run(provider=provider)
    assert command("[ $WRONG_CLOCK = " + clock.environ(hours)["WRONG_CLOCK"] + " ]").result(timeout=2 * LIMIT_S) == 0
    (block,) = run.rows(blocks)
    # The job began before its launcher; and Slurm may have noticed that seconds late.
    assert block.started_at + WALLTIME_S / 2 < block.ends_at <= block.started_at + WALLTIME_S
