"""How much the agents of a block have to go on with."""

from __future__ import annotations

from typing import cast

from parsl_balsam.launcher.agents import Agents
from parsl_balsam.launcher.attempts import Attempts, Running
from parsl_balsam.launcher.mpi import MpiStyle
from parsl_balsam.launcher.parallel import MpiSite
from parsl_balsam.launcher.pool import Node
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.tasks import ClaimedTask


class Silent:
    """Agents that start nothing."""

    def post(self, node: str, message: object) -> None:
        pass


class Block:
    """A node with two cores, and its attempts."""

    def __init__(self) -> None:
        self.space = Space()
        self.space.add(Node("n0", "n0", (0, 1)))
        site = MpiSite(MpiStyle.HYDRA, None, False, "/")
        self.attempts = Attempts(cast(Agents, Silent()), self.space, site, None)
        self.count = 0

    def task(self) -> ClaimedTask:
        self.count += 1
        return ClaimedTask(self.count, 1, 1, b"key", 0, "app", b"", b"", ResourceSpec(cores_per_rank=1), None)

    def begin(self) -> Running:
        task = self.task()
        shares = self.space.take(task.task_id, self.space.need(task.spec))
        assert shares is not None
        self.attempts.begin(task, b"", shares, 0.0)
        return self.attempts.fresh()[-1][0]

    def send_ahead(self, first: Running, count: int) -> None:
        for _ in range(count):
            self.attempts.send_ahead(self.task(), b"", first, 0.0)


def test_agents_have_enough_to_do_only_if_all_their_cores_have() -> None:
    block = Block()
    assert block.attempts.ahead() == 0.0
    one = block.begin()
    assert block.attempts.ahead() == 0.0
    block.send_ahead(one, 16)
    assert block.attempts.ahead() == 16.0
    two = block.begin()
    assert block.attempts.ahead() == 0.0
    block.send_ahead(two, 4)
    assert block.attempts.ahead() == 10.0
