"""One run drives a workflow at a time."""

from __future__ import annotations

import platform
import re

from tests.faults.conftest import PATIENCE_S, Campaign, until

WAITS = """
    @python_app
    def wait_for(path):
        import os, time
        open(path + "/started", "w").close()
        while not os.path.exists(path + "/go"):
            time.sleep(0.02)
        return "went"

    if __name__ == "__main__":
        with load(workflow="driven"):
            report(wait_for(DIRECTORY).result())
"""


def test_second_driver_is_told_who_is_first(campaign: Campaign) -> None:
    script = campaign.write(WAITS)
    first = campaign.start(script)
    until((campaign.directory / "started").exists)
    second = campaign.start(script)
    output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode != 0
    said = re.search(r"WorkflowBusy: (.*)", output)
    assert said, output
    assert f"process {first.pid} on {platform.node()} since " in said[1]
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", said[1])
    (campaign.directory / "go").touch()
    assert campaign.finish(first) == "went"
    campaign.check_invariants()


def test_dead_driver_does_not_block_its_successor(campaign: Campaign) -> None:
    script = campaign.write(WAITS.replace("load(", "load(lease_s=600.0, "))
    first = campaign.start(script)
    until((campaign.directory / "started").exists)
    campaign.kill(first)
    second = campaign.start(script)
    (campaign.directory / "go").touch()
    assert campaign.finish(second) == "went"
    assert campaign.attempts() == [("wait_for", "done", 1, "done")]
    campaign.check_invariants()
