"""A script is killed at any moment and run again: nothing is lost and nothing finished runs twice."""

from __future__ import annotations

import random
import subprocess
from collections import Counter

import pytest

from tests.faults.conftest import Campaign, until

TASKS = 300
KILLS = 20

SCAN = """
    @python_app
    def square(number, directory):
        import time
        time.sleep(0.5)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number * number

    @bash_app
    def line(number, directory):
        return f"sleep 0.5; echo {number} >> '{directory}/lines'"

    if __name__ == "__main__":
        with load(workflow="scan") as kernel:
            futures = [(square if n % 2 else line)(n, DIRECTORY) for n in range(300)]
            values = [future.result() for future in futures]
            counts = kernel.executors["balsam"].reuse_counts()
            report([values, [counts.reused, counts.attached, counts.new]])
"""


def test_script_killed_at_20_random_moments(campaign: Campaign) -> None:
    script = campaign.write(SCAN)
    moments = random.Random(2026)
    for number in range(KILLS):
        running = campaign.start(script)
        if number % 4 == 3:  # late enough that something was done, however slow this machine is
            done = len(campaign.lines) + moments.randrange(1, 20)
            until(lambda: len(campaign.lines) >= done)  # noqa: B023 - it is over before the loop goes on
        try:
            output, _ = running.communicate(timeout=moments.uniform(0.2, 2.4))
        except subprocess.TimeoutExpired:
            campaign.kill(running)
        else:
            pytest.fail(f"the script ended before it was killed: {output}")
    values, (reused, attached, new) = campaign.run(script)
    assert values == [n * n if n % 2 else 0 for n in range(TASKS)]
    assert reused + attached + new == TASKS
    assert reused > 0
    assert Counter(campaign.lines) == Counter(str(n) for n in range(TASKS))
    done = [outcome for _, _, _, outcome in campaign.attempts() if outcome == "done"]
    assert len(done) == TASKS
    campaign.check_invariants()
    until(lambda: not campaign.processes())


THIRD_TIME_LUCKY = """
    @python_app
    def third_time_lucky(directory):
        with open(directory + "/lines", "a") as file:
            file.write("try\\n")
        if len(open(directory + "/lines").readlines()) < 3:
            raise RuntimeError("not yet")
        return "lucky"

"""

FLAKY = (
    THIRD_TIME_LUCKY
    + """
    if __name__ == "__main__":
        with load(workflow="flaky", retry=RetryPolicy(max_retries=2, backoff_s=1.0, factor=1.0)):
            report(third_time_lucky(DIRECTORY).result())
"""
)


def test_retries_are_counted_across_runs(campaign: Campaign) -> None:
    script = campaign.write(FLAKY)
    running = campaign.start(script)
    until(lambda: len(campaign.lines) == 1)
    campaign.kill(running)
    assert campaign.run(script) == "lucky"
    assert campaign.attempts() == [
        ("third_time_lucky", "done", 1, "error"),
        ("third_time_lucky", "done", 2, "error"),
        ("third_time_lucky", "done", 3, "done"),
    ]
    assert len(campaign.lines) == 3
    campaign.check_invariants()


def test_retries_are_counted_when_the_launcher_dies_too(campaign: Campaign) -> None:
    script = campaign.write(FLAKY)
    running = campaign.start(script)
    until(lambda: [outcome for *_, outcome in campaign.attempts()] == ["error"] if campaign.lines else False)
    campaign.kill(running)
    campaign.kill_launchers()
    assert campaign.run(script) == "lucky"
    outcomes = [outcome for *_, outcome in campaign.attempts()]
    assert [outcome for outcome in outcomes if outcome != "crash"] == ["error", "error", "done"]
    assert len(campaign.lines) == 3
    campaign.check_invariants()


PARSL_RETRIES = (
    THIRD_TIME_LUCKY
    + """
    if __name__ == "__main__":
        with load(retries=2, workflow=None):
            report(third_time_lucky(DIRECTORY).result())
"""
)


def test_parsls_own_retries_stay_in_one_history(campaign: Campaign) -> None:
    assert campaign.run(campaign.write(PARSL_RETRIES)) == "lucky"
    assert campaign.attempts() == [
        ("third_time_lucky", "done", 1, "error"),
        ("third_time_lucky", "done", 2, "error"),
        ("third_time_lucky", "done", 3, "done"),
    ]
    campaign.check_invariants()
