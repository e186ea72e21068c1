"""``shell.py xargs|threads TASKS``: how many times a second ``bash -c true`` runs, two side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

WIDTH = 2
COMMAND = ["bash", "-c", "true"]


def by_xargs(tasks: int) -> None:
    """Let a C program start them."""
    lines = "true\n" * tasks
    subprocess.run(["xargs", "-P", str(WIDTH), "-I{}", "bash", "-c", "{}"], input=lines, text=True, check=True)


def by_threads(tasks: int) -> None:
    """Let Python start them."""
    with ThreadPoolExecutor(WIDTH) as pool:
        for _ in pool.map(lambda _: subprocess.run(COMMAND, check=True), range(tasks)):
            pass


def main() -> None:
    how, tasks = sys.argv[1], int(sys.argv[2])
    run = by_xargs if how == "xargs" else by_threads
    run(20)
    began = time.perf_counter()
    run(tasks)
    print(json.dumps({"bash": tasks / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
