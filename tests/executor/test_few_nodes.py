"""Blocks of pretend nodes that lack something: an MPI launcher, a node, Parsl's right launcher."""

from __future__ import annotations

from typing import Any

import pytest
from parsl import bash_app
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider

from parsl_balsam import BalsamExecutor
from parsl_balsam.db.schema import blocks
from parsl_balsam.model.errors import ConfigurationError, ImpossibleTask
from parsl_balsam.model.shares import read_shares
from tests.executor.conftest import Load
from tests.executor.parsl_runs import QuickLocalProvider, wait_for


@bash_app
def command(line: str, parsl_resource_specification: Any = None) -> str:
    return line


def test_ranks_without_an_mpi_launcher(load: Load) -> None:
    run = load(provider=QuickLocalProvider(nodes_per_block=2), cores_per_node=1, mpi="none")
    call = command("true", parsl_resource_specification={"num_nodes": 2})
    with pytest.raises(ImpossibleTask, match="needs an MPI launcher, and there is none here"):
        call.result()
    assert command("true").result() == 0
    assert run.state(call) == "failed"


def test_pretend_node_whose_agent_dies_is_left_out(load: Load) -> None:
    run = load(provider=QuickLocalProvider(nodes_per_block=2), cores_per_node=1)
    call = command('[ "$BALSAM_ATTEMPT" != 1 ] || kill -KILL $(ps -o ppid= -p $PPID)')
    assert call.result() == 0
    crash, done = run.attempts(call)
    assert (crash.outcome, done.outcome) == ("crash", "done")
    assert read_shares(crash.placement) != read_shares(done.placement)
    (block,) = wait_for(lambda: run.rows(blocks, blocks.c.lost_nodes.is_not(None)), "the node to be named")
    assert (block.nodes, block.lost_nodes) == (1, f"{crash.host}: its agent died")


def test_launcher_that_parsl_would_start_on_every_node_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use launcher=SimpleLauncher"):
        BalsamExecutor(provider=LocalProvider(nodes_per_block=2, launcher=SrunLauncher()))
