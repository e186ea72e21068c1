"""A launcher is cut off from the database that others reach: its tasks are dead before others have them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parsl_balsam.db.schema import attempts, blocks
from parsl_balsam.db.server import Server
from tests.conftest import new_database, running_server
from tests.executor.parsl_runs import rows
from tests.faults.conftest import Campaign, until
from tests.requirements import not_permitted, require

SCRIPT = """
    from parsl.providers import LocalProvider

    @bash_app
    def stamp(directory):
        return (
            f"cd {directory}; until [ -e gate ]; do echo $(date +%s.%N) >> stamps-$BALSAM_ATTEMPT; sleep 0.02; done; "
            "echo $BALSAM_ATTEMPT >> lines"
        )

    if __name__ == "__main__":
        with load(workflow="parted", lease_s=2.0, provider=LocalProvider(init_blocks=0, max_blocks=0)):
            future = stamp(DIRECTORY)
            Path(DIRECTORY, "loaded").touch()
            report(future.result())
"""


@dataclass(frozen=True)
class Island:
    """A network namespace that a cable joins to this host."""

    name: str
    cable: str  #: the name of its end on this host
    address: str  #: of this host, as seen from there

    def command(self, *words: str) -> list[str]:
        """Return a command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        _ip("link", "set", self.cable, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def island() -> Iterator[Island]:
    require(["ip"], "iproute2")
    token = secrets.token_hex(4)
    net = f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
    made = Island(f"balsam-{token}", f"bal{token}", f"{net}.1")
    try:
        try:
            _ip("netns", "add", made.name)
            _ip("link", "add", made.cable, "type", "veth", "peer", "name", "cable", "netns", made.name)
            _ip("address", "add", f"{net}.1/30", "dev", made.cable)
            _ip("link", "set", made.cable, "up")
            for words in (
                ("address", "add", f"{net}.2/30", "dev", "cable"),
                ("link", "set", "cable", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", made.name, *words)
        except subprocess.CalledProcessError as error:
            not_permitted(f"no network namespace can be made, which needs root: {error.stderr.strip()}")
        yield made
    finally:
        for words in (("link", "delete", made.cable), ("netns", "delete", made.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


@pytest.fixture
def reachable_server(postgres_binaries: Path, island: Island) -> Iterator[Server]:
    with running_server() as server:
        server.stop()
        server.start(host=island.address)
        yield server


@pytest.fixture
def url(reachable_server: Server) -> Iterator[str]:
    with new_database(reachable_server) as url:
        yield url


def stamps(campaign: Campaign, number: int) -> list[float]:
    """When a process of an attempt was alive."""
    path = campaign.directory / f"stamps-{number}"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def test_launcher_is_cut_off(campaign: Campaign, island: Island, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_DATABASE", campaign.url)  # not on a command line
    launcher = [str(Path(sys.executable).with_name("parsl-balsam")), "launcher", "parted"]
    script = campaign.start(campaign.write(SCRIPT))
    until((campaign.directory / "loaded").exists)
    with (campaign.directory / "cut off").open("wb") as said:
        cut_off = subprocess.Popen(island.command(*launcher), cwd=campaign.directory, stderr=said)
    other: subprocess.Popen[bytes] | None = None
    try:
        until(lambda: stamps(campaign, 1))
        other = subprocess.Popen(launcher, cwd=campaign.directory, stderr=subprocess.DEVNULL)
        until(lambda: len(rows(campaign.url, blocks, blocks.c.state == "running")) == 2)
        until(lambda: [row.started_at is not None for row in rows(campaign.url, attempts)] == [True])
        island.cut()
        until(lambda: stamps(campaign, 2))
        island.mend()
        assert cut_off.wait(60) == 1
        (campaign.directory / "gate").touch()
        assert campaign.finish(script) == 0
        other.terminate()
        other.wait(60)
    finally:
        for process in (cut_off, other):
            if process is not None:
                process.kill()
                process.wait()
    first, second = rows(campaign.url, blocks)
    assert (first.state, second.state) == ("lost", "ended")
    assert max(stamps(campaign, 1)) < first.lease_until < min(stamps(campaign, 2))
    assert campaign.attempts() == [("stamp", "done", 1, "crash"), ("stamp", "done", 2, "done")]
    assert "lost its lease" in (campaign.directory / "cut off").read_text()
    assert campaign.lines == ["2"]
    assert os.listdir(first.directory) == [name for name in os.listdir(first.directory) if "will" not in name]
    campaign.check_invariants()
    until(lambda: not campaign.processes())
