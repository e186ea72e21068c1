"""How many tasks a second pass through Parsl and an executor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Goal, Measure, at_least, in_turns, ratio, skipped
from benchmarks.setting import ProgramFailed, Setting, directory, run_program

TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "htex": "HighThroughputExecutor"}

_ABOUT = {
    "hyperqueue": "for information; nothing durable, and its client looks once a second whether a job is over",
    "executorlib": "for information; nothing durable",
}


def python(setting: Setting) -> Iterator[Measure]:
    """No-op Python apps."""
    tasks = setting.many(3000, 200)
    subjects = [*setting.kinds, "htex"]
    rounds = setting.compare(subjects, "throughput", setting.rounds(5), python=tasks, bash=0)
    rates = {subject: [found["python"] for found in rounds[subject]] for subject in subjects}
    yield from _beside_htex("no-op python app", rates, f"{tasks} tasks", at_least(3.0))
    yield from of_sqlite("no-op python app", rates)


def logged(setting: Setting) -> Iterator[Measure]:
    """No-op Python apps with Parsl's logging as it is by default, which costs about a millisecond a task."""
    tasks = setting.many(2000, 100)
    subjects = ["sqlite", "htex"]
    rounds = setting.compare(subjects, "throughput", setting.rounds(), python=tasks, bash=0, logging=True)
    rates = {subject: [found["python"] for found in rounds[subject]] for subject in subjects}
    note = f"{tasks} tasks; the log takes Parsl about 0.9 ms a task"
    yield from _beside_htex("no-op python app, Parsl's DEBUG log on", rates, note)


def computing(setting: Setting) -> Iterator[Measure]:
    """No-op Python apps of a script that computes meanwhile, and leaves its other threads little time."""
    tasks = setting.many(1000, 50)
    subjects = [*setting.kinds, "htex"]
    rounds = setting.compare(subjects, "computing", setting.rounds(), tasks=tasks)
    rates = {subject: [found["rate"] for found in rounds[subject]] for subject in subjects}
    yield from _beside_htex("no-op python app, the script computes", rates, f"{tasks} tasks")


def bash(setting: Setting) -> Iterator[Measure]:
    """No-op bash apps, and ``bash -c true`` without any of this."""
    tasks = setting.many(1000, 60)

    def bare(how: str) -> dict[str, Any]:
        with directory() as path:
            return run_program("shell.py", [how, str(tasks)], path)

    executors = [*setting.kinds, "htex"]
    acts = {subject: lambda s=subject: setting.run(s, "throughput", python=0, bash=tasks) for subject in executors}
    shells = {how: lambda h=how: bare(h) for how in ("threads", "xargs")}
    rounds = in_turns({**acts, **shells}, setting.rounds())
    rates = {subject: [found["bash"] for found in rounds[subject]] for subject in rounds}
    for subject in executors:
        yield Measure(f"no-op bash app, {TITLES[subject]}", "tasks/s", tuple(rates[subject]), note=f"{tasks} tasks")
    yield Measure("bash -c true, two Python threads", "tasks/s", tuple(rates["threads"]), note="subprocess.run")
    yield Measure("bash -c true, xargs -P 2", "tasks/s", tuple(rates["xargs"]))
    for kind in setting.kinds:
        yield ratio(f"no-op bash app, {TITLES[kind]} vs HTEX", rates[kind], rates["htex"], at_least(1.5))
        note = "two Python threads with subprocess.run"
        yield ratio(
            f"no-op bash app, {TITLES[kind]} vs bash -c true", rates[kind], rates["threads"], at_least(0.8), note
        )
        yield ratio(f"no-op bash app, {TITLES[kind]} vs xargs", rates[kind], rates["xargs"])
    yield from of_sqlite("no-op bash app", rates)


def others(setting: Setting) -> Iterator[Measure]:
    """Other systems, for information."""
    tasks = setting.many(500, 50)
    for system in _ABOUT:
        if importlib.util.find_spec(system) is None:
            yield skipped(system, "not installed; pip install '.[bench]'")
            continue
        rounds = []
        try:
            for _ in range(setting.rounds()):
                with directory() as path:
                    rounds.append(run_program("others.py", [system, str(tasks)], path))
        except ProgramFailed as error:
            yield skipped(system, str(error).splitlines()[-1])
            continue
        for kind, name, unit in (
            ("python", "no-op Python function", "tasks/s"),
            ("bash", "bash -c true", "tasks/s"),
            ("latency_ms", "latency of a single task", "ms"),
        ):
            if kind in rounds[0]:
                values = tuple(found[kind] for found in rounds)
                yield Measure(f"{name}, {system}", unit, values, note=_ABOUT[system])


def _beside_htex(name: str, rates: dict[str, list[float]], note: str, goal: Goal | None = None) -> Iterator[Measure]:
    for subject in rates:
        yield Measure(f"{name}, {TITLES[subject]}", "tasks/s", tuple(rates[subject]), note=note)
    for kind in rates:
        if kind != "htex":
            yield ratio(f"{name}, {TITLES[kind]} vs HTEX", rates[kind], rates["htex"], goal)


def of_sqlite(name: str, rates: dict[str, list[float]], less_is_better: bool = False) -> Iterator[Measure]:
    """Compare the databases, if there are two."""
    if "postgresql" in rates:
        one, other = ("sqlite", "postgresql") if less_is_better else ("postgresql", "sqlite")
        note = "as a speed: SQLite's time over PostgreSQL's" if less_is_better else ""
        yield ratio(f"{name}, PostgreSQL vs SQLite", rates[one], rates[other], at_least(0.8), note)
