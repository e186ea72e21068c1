"""Blocks die as soon as they start: the user learns why, and nothing is failed for it."""

from __future__ import annotations

from parsl_balsam.db.schema import blocks, workflows
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until

SCRIPT = """
    from parsl.providers import LocalProvider

    class Quick(LocalProvider):
        status_polling_interval = 0.1

    @bash_app
    def step():
        return "true"

    if __name__ == "__main__":
        init = f"[ -e {DIRECTORY}/module ] || {{ echo no such module >&2; exit 1; }}"
        with load(workflow="steps", provider=Quick(worker_init=init), block_pause_s=3600.0):
            report(step().result())
"""


def test_reason_is_on_the_terminal_and_a_new_start_tries_again(campaign: Campaign) -> None:
    script = campaign.write(SCRIPT)
    first = campaign.start(script)
    assert first.stdout is not None
    told = first.stdout.readline()
    assert "block 1 died at once: its job is over: exit code 1: no such module." in told
    assert "No other is requested for 3600 s, or until 'parsl-balsam blocks resume'" in told
    until(lambda: [row.pause_count for row in rows(campaign.url, workflows)] == [1])
    campaign.kill(first)
    (campaign.directory / "module").touch()
    assert campaign.run(script) == 0
    assert [block.state for block in rows(campaign.url, blocks)] == ["ended", "ended"]
    assert campaign.attempts() == [("step", "done", 1, "done")]
