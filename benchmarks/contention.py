"""Many launchers on one PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from benchmarks.measure import Measure, ratio, skipped
from benchmarks.rows import WaitingTasks
from benchmarks.setting import Program, Setting, directory
from parsl_balsam.db.connect import open_database

LAUNCHERS = (1, 2, 4, 8, 16)


def launchers(setting: Setting) -> Iterator[Measure]:
    """Exchanges of tasks without duration: each ends 100 tasks and claims 100."""
    if setting.server is None:
        yield skipped("launchers on one PostgreSQL", "no PostgreSQL")
        return
    counts = LAUNCHERS if not setting.quick else LAUNCHERS[:2]
    totals: dict[int, list[float]] = {count: [] for count in counts}
    slow: list[str] = []
    for _ in range(setting.rounds()):
        for count in counts:
            rates, dry = _together(setting, count)
            totals[count].append(sum(rates))
            if dry:
                slow.append(str(count))
    for count in counts:
        name = f"tasks claimed and ended by {count} launcher{'s' if count > 1 else ''}"
        note = "some found nothing left" if str(count) in slow else "PostgreSQL; all on this machine"
        yield Measure(name, "tasks/s", tuple(totals[count]), note=note)
        if count > 1:
            yield Measure(f"{name}, each", "tasks/s", tuple(total / count for total in totals[count]))
            yield ratio(f"{name} vs 1", totals[count], totals[1])


def _together(setting: Setting, count: int) -> tuple[list[float], bool]:
    """Return the tasks a second of each of several launchers, and whether any ran out of tasks."""
    seconds = setting.many(2, 1)
    with directory() as path, setting.database("postgresql", path) as url:
        with closing(open_database(url)) as database:
            waiting = WaitingTasks(database)
            waiting.add(30_000 * seconds)
            waiting.analyze()
        run = waiting.run
        arguments = [url, str(run.workflow_id), str(run.run_id), str(seconds)]
        programs = [Program("claims.py", arguments, path) for _ in range(count)]
        while len(list(path.glob("ready.*"))) < count and all(program.running for program in programs):
            time.sleep(0.01)
        (path / "go").touch()
        found = [program.finish() for program in programs]
    return [one["rate"] for one in found], any(one["dry"] for one in found)
