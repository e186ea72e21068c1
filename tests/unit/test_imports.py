"""What a process does not import: it would wait for that, and most have no use for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: What only those need who work with PostgreSQL, or look after a database.
OF_POSTGRESQL = frozenset({"psycopg2", "sqlalchemy.dialects.postgresql", "parsl_balsam.db.server"})
OF_UPGRADES = frozenset({"alembic", "parsl_balsam.db.upgrade"})

#: A script that computes something, and then prints what it and its worker have imported.
SCRIPT = """
import sys

import parsl
from parsl_balsam import BalsamExecutor


@parsl.python_app
def imported():
    import sys

    return list(sys.modules)


if __name__ == "__main__":
    with parsl.load(parsl.Config(executors=[BalsamExecutor(cores_per_node=1)], initialize_logging=False)):
        print(*imported().result(), *sys.modules)
"""


def modules(directory: Path, *words: str) -> set[str]:
    """Run Python; return the names that it prints."""
    words = (sys.executable, *words)
    ended = subprocess.run(words, cwd=directory, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    ("wanted", "unwanted"),
    [
        ("parsl_balsam", {"parsl", "sqlalchemy", "psutil"}),
        ("parsl_balsam.executor.executor", OF_POSTGRESQL | OF_UPGRADES | {"parsl_balsam.launcher"}),
        ("parsl_balsam.launcher.__main__", OF_POSTGRESQL | OF_UPGRADES | {"parsl", "parsl_balsam.executor", "zmq"}),
        ("parsl_balsam.launcher.agent", {"parsl", "sqlalchemy", "psycopg2", "parsl_balsam.db.connect", "zmq"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(tmp_path: Path, wanted: str, unwanted: set[str]) -> None:
    found = modules(tmp_path, "-c", f"import sys, {wanted}; print(*sys.modules)")
    assert wanted in found
    assert not found & unwanted


def test_nobody_who_works_with_sqlite_imports_what_is_for_postgresql(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    found = modules(tmp_path, "script.py")
    assert {"parsl_balsam.executor.executor", "parsl_balsam.launcher.worker", "sqlalchemy.dialects.sqlite"} <= found
    assert not found & (OF_POSTGRESQL | OF_UPGRADES)
