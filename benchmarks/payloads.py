"""What arguments and results cost by their size."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Measure, ratio
from benchmarks.setting import WIDTH, Setting
from benchmarks.throughput import TITLES

KIB = 1024
MIB = 1024 * KIB


def by_size(setting: Setting) -> Iterator[Measure]:
    """Tasks that return what they are given."""
    many = {KIB: setting.many(500, 50), MIB: setting.many(30, 5)}
    yield from _compared(setting, many, setting.rounds())
    yield from _compared(setting, {100 * MIB if not setting.quick else 10 * MIB: 1}, 1)


def _compared(setting: Setting, tasks: dict[int, int], rounds: int) -> Iterator[Measure]:
    subjects = [*setting.kinds, "htex"]
    found = setting.compare(subjects, "payloads", rounds, tasks=tasks)
    for size, count in tasks.items():
        shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
        name = f"argument and result of {shown}"
        took = {subject: [round[str(size)] for round in found[subject]] for subject in subjects}
        for subject in subjects:
            note = f"{count} tasks, {WIDTH} at a time" if count > 1 else "one task"
            yield Measure(f"{name}, {TITLES[subject]}", "ms/task", tuple(took[subject]), note=note)
        for kind in setting.kinds:
            yield ratio(f"{name}, {TITLES[kind]} vs HTEX", took[kind], took["htex"], note="of times")
