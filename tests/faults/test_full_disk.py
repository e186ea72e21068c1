"""The disk under the database is full: work waits until there is room again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from parsl_balsam.db.connect import open_database
from parsl_balsam.db.server import Server
from parsl_balsam.model.errors import DatabaseUnavailable
from tests.faults.conftest import Campaign, until
from tests.faults.test_database_away import check_each_ran_once
from tests.requirements import not_permitted

LEASE_S = 2.0

TASKS = """
    @python_app
    def line(number, directory):
        import os, time
        time.sleep(0.1)
        with open(directory + "/lines", "a") as file:
            file.write(f"{number}\\n")
        return number, os.urandom(100_000)

    if __name__ == "__main__":
        with load(workflow="full", lease_s=2.0):
            report([future.result()[0] for future in [line(n, DIRECTORY) for n in range(60)]])
"""


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of its own."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="balsam-disk-"))
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "none", str(directory)]
    try:
        mounted = subprocess.run(mounting, check=False, capture_output=True, text=True)
        if mounted.returncode != 0:
            not_permitted(f"no file system can be mounted, which needs root: {mounted.stderr.strip()}")
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
    finally:
        shutil.rmtree(directory)


def fill(disk: Path) -> Path:
    """Fill a file system; return the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass
    return filler


def write_much(url: str, first: str) -> None:
    """Write to a database, more and more, until it has no room."""
    with closing(open_database(url)) as database:
        while True:
            with database.begin() as connection:
                connection.exec_driver_sql(first)
                connection.exec_driver_sql("INSERT INTO filler SELECT * FROM filler")


def wait(seconds: float) -> None:
    """Let time go by, for as long as the disk is full."""
    over_at = time.monotonic() + seconds
    until(lambda: time.monotonic() > over_at)


class TestSqlite:
    @pytest.fixture
    def disk(self) -> Iterator[Path]:
        with small_disk("16m") as disk:
            yield disk

    @pytest.fixture
    def url(self, disk: Path) -> str:
        return f"sqlite:///{disk}/balsam.db"

    def test_work_waits(self, campaign: Campaign, disk: Path) -> None:
        script = campaign.start(campaign.write(TASKS))
        until(lambda: len(campaign.lines) >= 10)
        filler = fill(disk)
        with pytest.raises(DatabaseUnavailable, match="full"):
            write_much(campaign.url, "CREATE TABLE IF NOT EXISTS filler AS SELECT zeroblob(1000000)")
        wait(3 * LEASE_S)
        filler.unlink()
        check_each_ran_once(campaign, campaign.finish(script), 60)


class TestPostgres:
    @pytest.fixture
    def disk(self) -> Iterator[Path]:
        with small_disk("160m") as disk:
            yield disk

    @pytest.fixture
    def server(self, postgres_binaries: Path, disk: Path) -> Iterator[Server]:
        server = Server(disk / "server")
        server.init()
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    def url(self, server: Server) -> str:
        return server.url()

    def test_work_waits(self, campaign: Campaign, disk: Path, server: Server) -> None:
        script = campaign.start(campaign.write(TASKS))
        until(lambda: len(campaign.lines) >= 10)
        filler = fill(disk)
        with pytest.raises(DatabaseUnavailable):
            write_much(campaign.url, "CREATE TABLE IF NOT EXISTS filler AS SELECT repeat(md5('x'), 1000000)")
        wait(3 * LEASE_S)
        filler.unlink()
        if server.status().pid is None:
            server.start()
        check_each_ran_once(campaign, campaign.finish(script), 60)
        assert not os.path.exists(filler)
