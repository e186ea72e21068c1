"""``python -m benchmarks``: measure everything, and write ``docs/benchmarks.md`` and ``docs/benchmarks.json``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from benchmarks import blocks, contention, latency, payloads, reattach, recovery, scale, startup, table, throughput
from benchmarks.machine import describe
from benchmarks.measure import Measure, skipped
from benchmarks.setting import Setting
from parsl_balsam.db.keyfile import KEY_VARIABLE
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import ServerError
from tests.conftest import running_server

#: What can be measured, by the name for ``--only``, with its title on the page.
MEASURES: dict[str, tuple[str, Callable[[Setting], Iterator[Measure]]]] = {
    "python": ("Throughput: Python apps", throughput.python),
    "logged": ("Throughput: with Parsl's default logging", throughput.logged),
    "computing": ("Throughput: a script that computes", throughput.computing),
    "bash": ("Throughput: bash apps", throughput.bash),
    "others": ("Throughput: other systems", throughput.others),
    "latency": ("Latency, and short tasks", latency.single),
    "startup": ("Start-up", startup.first_result),
    "payloads": ("Arguments and results", payloads.by_size),
    "launchers": ("Many launchers", contention.launchers),
    "claims": ("Many tasks: claims", scale.claims),
    "memory": ("Many tasks: memory", scale.memory),
    "reattach": ("Running a script again", reattach.finished),
    "recovery": ("A dead launcher", recovery.dead_launcher),
    "decisions": ("Placement", blocks.decisions),
    "packing": ("Sizes of blocks", blocks.packed),
    "slurm": ("Slurm", blocks.slurm),
}

_DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    """Return 1 if anything could not be measured that should have been; missed goals are only reported."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tasks and one repetition: do not trust the figures")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MEASURES, help=", ".join(MEASURES))
    parser.add_argument("--repetitions", type=int, metavar="N", help="of everything")
    parser.add_argument("--output", type=Path, metavar="DIR", default=_DOCS, help="for benchmarks.md and .json")
    options = parser.parse_args()

    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}"
    sections: dict[str, list[Measure]] = {}
    failed = False
    with ExitStack() as stack:
        stack.enter_context(_own_key())
        server = _server(stack)
        machine = describe(server)
        setting = Setting(options.quick, options.repetitions, server)
        for name in options.only or MEASURES:
            title, measure = MEASURES[name]
            since = time.monotonic()
            found = sections.setdefault(title, [])
            print(f"{title}:", flush=True)
            try:
                for one in measure(setting):
                    found.append(one)
                    print(f"  {table.line(one)}", flush=True)
            except Exception as error:
                traceback.print_exc()
                failed = True
                found.append(skipped(title, f"it failed: {str(error).splitlines()[-1:]}"))
            print(f"  [{name} took {time.monotonic() - since:.0f} s]", flush=True)
    took_s = time.monotonic() - began
    options.output.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("md", table.markdown), ("json", table.as_json)):
        (options.output / f"benchmarks.{suffix}").write_text(text(machine, sections, date, took_s))
    goals = [one for found in sections.values() for one in found if one.met is not None]
    print(f"{sum(one.met is True for one in goals)} of {len(goals)} goals met; all took {took_s:.0f} s")
    return int(failed)


def _server(stack: ExitStack) -> Server | None:
    try:
        return stack.enter_context(running_server())
    except ServerError as error:
        print(f"without PostgreSQL: {error}", file=sys.stderr)
        return None


@contextmanager
def _own_key() -> Iterator[None]:
    """Sign with a key of our own, and leave the user's alone."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(Path(directory) / "key"))
        yield


if __name__ == "__main__":
    sys.exit(main())
