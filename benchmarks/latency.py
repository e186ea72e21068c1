"""How long one task takes from call to result when nothing else runs, and how well short tasks fill workers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.measure import Measure, at_most, percentile, ratio
from benchmarks.setting import WIDTH, Setting
from benchmarks.throughput import TITLES, of_sqlite


def single(setting: Setting) -> Iterator[Measure]:
    """Calls one after the other; then tasks of 10 and 100 ms."""
    calls = setting.many(200, 20)
    sleeps = {"0.01": setting.many(300, 20), "0.1": setting.many(40, 4)}
    subjects = [*setting.kinds, "htex"]
    rounds = setting.compare(subjects, "latency", setting.rounds(), calls=calls, sleeps=sleeps)
    for app in ("python", "bash"):
        name = f"latency of a {app} app"
        took = {subject: [found[app] for found in rounds[subject]] for subject in subjects}
        medians = {subject: [statistics.median(values) for values in took[subject]] for subject in subjects}
        for subject in subjects:
            yield Measure(f"{name}, {TITLES[subject]}, median", "ms", tuple(medians[subject]), note=f"{calls} calls")
            p95 = tuple(percentile(values, 95) for values in took[subject])
            yield Measure(f"{name}, {TITLES[subject]}, 95 %", "ms", p95)
        for kind in setting.kinds:
            yield ratio(f"{name}, {TITLES[kind]} vs HTEX", medians[kind], medians["htex"], at_most(1.0), "medians")
        yield from of_sqlite(name, medians, less_is_better=True)
    for seconds in sleeps:
        name = f"tasks of {1000 * float(seconds):g} ms, {WIDTH} at a time"
        shares = {subject: [found[seconds] for found in rounds[subject]] for subject in subjects}
        for subject in subjects:
            yield Measure(f"{name}, {TITLES[subject]}", "of ideal", tuple(shares[subject]))
        for kind in setting.kinds:
            yield ratio(f"{name}, {TITLES[kind]} vs HTEX", shares[kind], shares["htex"])
