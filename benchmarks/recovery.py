"""What it takes until the tasks of a dead launcher run again elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Measure, at_most
from benchmarks.setting import Setting
from benchmarks.throughput import TITLES

LEASE_S = 5.0


def dead_launcher(setting: Setting) -> Iterator[Measure]:
    """SIGKILL to the launcher of a busy block, at any moment between two renewals of its lease."""
    for kind in setting.kinds:
        took = [setting.run(kind, "recovery", lease_s=LEASE_S, seed=seed)["leases"] for seed in range(setting.rounds())]
        name = f"a dead launcher's tasks run again in another block, {TITLES[kind]}"
        yield Measure(name, "leases", tuple(took), at_most(1.2), f"lease of {LEASE_S:g} s")
