"""Whatever is killed, no program that a task started goes on alone."""

from __future__ import annotations

import psutil
import pytest

from tests.executor.parsl_runs import is_alive
from tests.faults.conftest import Campaign, until

STARTS_PROGRAMS = """
    @bash_app
    def start_programs(directory):
        return f'''
            (setsid setsid sleep 600 &)
            sleep 600 &
            wait
        '''

    if __name__ == "__main__":
        with load(workflow="programs", lease_s=2.0):
            start_programs(DIRECTORY).result()
"""


def sleeping(campaign: Campaign) -> list[psutil.Process]:
    """Return the programs that the task started."""
    return [process for process in campaign.processes("sleep 600") if process.name() == "sleep"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("killed", ["launcher", "agent", "worker", "launcher and agent", "agent and worker"])
def test_programs_end_with_those_who_started_them(campaign: Campaign, killed: str) -> None:
    script = campaign.start(campaign.write(STARTS_PROGRAMS))
    until(lambda: len(sleeping(campaign)) == 2)
    programs = sleeping(campaign)
    (launcher,) = campaign.processes("parsl_balsam.launcher ")
    (guard,) = launcher.children()
    (agent,) = guard.children()
    workers = agent.children()
    campaign.kill(script)
    victims = {"launcher": [launcher], "agent": [agent], "worker": workers}
    for name in killed.split(" and "):
        for process in victims[name]:
            try:
                process.kill()
            except psutil.NoSuchProcess:  # its agent was killed before
                pass
    until(lambda: not any(is_alive(program.pid) for program in programs))
    if "launcher" in killed:
        until(lambda: not campaign.processes())
