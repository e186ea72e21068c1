"""How long a script waits for its first result, and for its imports."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Measure, at_most, ratio
from benchmarks.setting import Setting
from benchmarks.throughput import TITLES, of_sqlite


def first_result(setting: Setting) -> Iterator[Measure]:
    """From ``parsl.load`` to the result of one no-op, in a fresh process with a local block and Parsl's defaults."""
    subjects = [*setting.kinds, "htex"]
    rounds = setting.compare(subjects, "startup", setting.rounds())
    took = {subject: [found["first_s"] for found in rounds[subject]] for subject in subjects}
    for subject in subjects:
        yield Measure(f"load to first result, {TITLES[subject]}", "s", tuple(took[subject]), note="without imports")
    for kind in setting.kinds:
        yield ratio(f"load to first result, {TITLES[kind]} vs HTEX", took[kind], took["htex"], at_most(0.3))
    yield from of_sqlite("load to first result", took, less_is_better=True)
    imports = [found for subject in setting.kinds for found in rounds[subject]]
    yield Measure("import of parsl", "ms", tuple(found["parsl_ms"] for found in imports))
    name, values = "import of BalsamExecutor after parsl", tuple(found["executor_ms"] for found in imports)
    yield Measure(name, "ms", values, at_most(150))
    values = tuple(found["executor_ms"] for found in rounds["htex"])
    yield Measure("import of HighThroughputExecutor after parsl", "ms", values)
