"""Twenty thousand tasks leave no trace in the processes that handle them."""

from __future__ import annotations

import os

import psutil

from tests.faults.conftest import Campaign, until

TASKS = 20_000

#: What a task may cost for good, bytes. The script keeps a key of 16 bytes and a count for each call, to tell the n-th
#: call like this from the first: about 100 bytes, and twice that when the table of them has just grown. The launcher
#: keeps nothing.
SCRIPT_BYTES = 200
LAUNCHER_BYTES = 0

#: What allocators and caches may still be taking after the first 5,000 tasks, bytes.
SLACK_BYTES = 6_000_000

MANY = """
    @python_app
    def nothing(number):
        return None

    def resident():
        import gc, psutil
        gc.collect()
        mine = {psutil.Process().pid: psutil.Process()}
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or [])
            if "parsl_balsam.launcher" in command and DIRECTORY in command:
                mine[process.pid] = process
        return {pid: [process.memory_info().rss, process.num_fds()] for pid, process in mine.items()}

    def run(first, last):
        for start in range(first, last, 1000):
            for future in [nothing(number) for number in range(start, start + 1000)]:
                future.result()

    if __name__ == "__main__":
        with load():
            run(0, 5000)
            before = resident()
            run(5000, 20000)
            after = resident()
            import os
            report([os.getpid(), before, after])
"""


def test_memory_and_descriptors_stay(campaign: Campaign) -> None:
    script, before, after = campaign.run(campaign.write(MANY))
    assert before.keys() == after.keys(), "a launcher or agent was replaced"
    assert len(before) >= 2
    for pid, (grown_to, descriptors) in after.items():
        who, kept = ("script", SCRIPT_BYTES) if int(pid) == script else ("launcher", LAUNCHER_BYTES)
        growth = grown_to - before[pid][0]
        print(f"{who} {pid}: {growth / (TASKS - 5000):.0f} bytes a task, {descriptors} descriptors")
        assert growth < (TASKS - 5000) * kept + SLACK_BYTES
        assert descriptors <= before[pid][1] + 2
    until(lambda: not campaign.processes())
    assert not [p for p in psutil.Process(os.getpid()).children() if p.status() == psutil.STATUS_ZOMBIE]
    campaign.check_invariants()
