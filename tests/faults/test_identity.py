"""Which calls of a second run are the tasks of the first."""

from __future__ import annotations

from collections import Counter

from tests.faults.conftest import Campaign

TWO_APPS = """
    @python_app
    def double(number, directory):
        with open(directory + "/lines", "a") as file:
            file.write(f"double{{number}}\\n")
        return number * {factor}

    @bash_app
    def shout(number, directory, stdout=None):
        return f"echo shout{{number}} >> '{{directory}}/lines'"

    if __name__ == "__main__":
        with load(workflow={workflow!r}) as kernel:
            futures = [double(n, DIRECTORY) for n in range(5)]
            futures += [shout(n, DIRECTORY, stdout=parsl.AUTO_LOGNAME) for n in range(5)]
            futures += [double(0, DIRECTORY)]
            values = [future.result() for future in futures]
            counts = kernel.executors["balsam"].reuse_counts()
            report([values, counts.reused, counts.new])
"""
ONCE = Counter([f"double{n}" for n in range(5)] + [f"shout{n}" for n in range(5)] + ["double0"])


def test_without_workflow_nothing_is_shared(campaign: Campaign) -> None:
    script = campaign.write(TWO_APPS.format(factor=2, workflow=None))
    first, second = campaign.run(script), campaign.run(script)
    assert first == second == [[0, 2, 4, 6, 8, 0, 0, 0, 0, 0, 0], 0, 11]
    assert Counter(campaign.lines) == ONCE + ONCE
    campaign.check_invariants()


def test_an_edited_function_runs_again_alone(campaign: Campaign) -> None:
    values, reused, new = campaign.run(campaign.write(TWO_APPS.format(factor=2, workflow="edited")))
    assert (reused, new) == (0, 11)
    values, reused, new = campaign.run(campaign.write(TWO_APPS.format(factor=2, workflow="edited")))
    assert (reused, new) == (11, 0)
    assert Counter(campaign.lines) == ONCE
    values, reused, new = campaign.run(campaign.write(TWO_APPS.format(factor=3, workflow="edited"), "renamed.py"))
    assert values[:5] == [0, 3, 6, 9, 12]
    assert (reused, new) == (5, 6)
    assert Counter(campaign.lines) == ONCE + Counter([f"double{n}" for n in range(5)] + ["double0"])
    campaign.check_invariants()
