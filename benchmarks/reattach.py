"""What a finished task costs when its script is run again."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Measure, at_most, ratio
from benchmarks.setting import Setting, directory, run_workflow
from benchmarks.throughput import TITLES


def finished(setting: Setting) -> Iterator[Measure]:
    """Run a workflow, and run it again: the same calls, first with work to do and then with results to read."""
    tasks = setting.many(100_000, 2_000)
    for kind, count in {"sqlite": tasks, "postgresql": tasks // 10}.items():
        if kind in setting.kinds:
            with directory() as path, setting.database(kind, path) as url:
                first = run_workflow(kind, url, "recorded", path, tasks=count)["seconds"]
                again = run_workflow(kind, url, "recorded", path, tasks=count)["seconds"]
            name = f"{count:,} finished tasks, {TITLES[kind]}"
            yield Measure(f"{name}: first run", "us/task", (1e6 * first,), note="no-op, each call unlike the others")
            yield Measure(f"{name}: second run", "us/task", (1e6 * again,))
            yield ratio(f"{name}: second run vs first", [again], [first], at_most(0.3))
