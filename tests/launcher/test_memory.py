"""Memory of payloads that are done with serves the next ones."""

from __future__ import annotations

import subprocess
import sys

#: Tells how many pages the system has to give while eight blocks of a mebibyte are made and let go, ten times.
PROGRAM = """
import resource, sys
from parsl_balsam.launcher.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def blocks():
    return [bytes(bytearray(1 << 20)) for _ in range(8)]

if sys.argv[1] == "keep":
    keep_freed_memory()
blocks()
before = faults()
for _ in range(10):
    blocks()
print(faults() - before)
"""


def pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    one_round = 8 * (1 << 20) // 4096
    assert pages("keep") < one_round < pages("give back")
