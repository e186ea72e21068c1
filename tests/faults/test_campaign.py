"""Campaigns find their processes, and those that failed far away leave something to look at."""

from __future__ import annotations

import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import conftest
from tests.faults.conftest import PATIENCE_S, SHOWN_LINES, Campaign
from tests.requirements import not_permitted


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    """One whose scripts need no database."""
    monkeypatch.setenv("BALSAM_CAMPAIGN", str(tmp_path))
    made = Campaign(tmp_path, "sqlite:///none.db")
    yield made
    made.end()


def script(campaign: Campaign, text: str) -> Path:
    path = campaign.directory / "script.py"
    path.write_text(text)
    return path


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def start_as(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that has this pid."""
    for _ in range(1000):
        try:
            LAST_PID.write_text(str(pid - 1))
        except OSError as error:
            not_permitted(f"this user may not choose a pid: {error}")
        started = subprocess.Popen(["sleep", "600"])
        if started.pid == pid:
            return started
        started.kill()
        started.wait()
    raise AssertionError(f"others always came before this process got the pid {pid}")


def test_process_with_the_pid_of_one_that_was_seen_can_be_sent_signals(campaign: Campaign) -> None:
    before = subprocess.Popen(["sleep", "600"])
    assert [process.pid for process in campaign.processes("sleep")] == [before.pid]
    before.kill()
    before.wait()
    now = start_as(before.pid)
    try:
        (found,) = campaign.processes("sleep")
        found.suspend()
        found.resume()
        campaign.end()
        assert now.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        now.kill()
        now.wait()


def test_end_shows_the_last_words_of_scripts_and_blocks(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    log = campaign.directory / "runinfo" / "000" / "submit_scripts" / "block-0.err"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\xff first\n" + b"".join(f"line {number}\n".encode() for number in range(SHOWN_LINES)))
    with pytest.raises(AssertionError):
        campaign.finish(campaign.start(script(campaign, "raise SystemExit('it failed')")))
    killed = campaign.start(script(campaign, "import time; print('it began', flush=True); time.sleep(600)"))
    conftest.until(lambda: select.select([killed.stdout], [], [], 0.0)[0])
    campaign.end()
    shown = capsys.readouterr().out
    assert "start 0 of a script (exit code 1), the last of 1 lines:\nit failed\n" in shown
    assert "start 1 of a script (exit code -9), the last of 1 lines:\nit began\n" in shown
    assert f"{log.relative_to(campaign.directory)}, the last of {SHOWN_LINES + 1} lines:\nline 0\n" in shown
    assert "first" not in shown


def test_end_shows_a_script_that_took_too_long(
    campaign: Campaign, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "PATIENCE_S", 3.0)
    with pytest.raises(subprocess.TimeoutExpired):
        campaign.run(script(campaign, "import time; print('it began', flush=True); time.sleep(600)"))
    campaign.end()
    assert "the last of 1 lines:\nit began\n" in capsys.readouterr().out


def test_what_cannot_be_shown_hides_nothing(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    (campaign.directory / "runinfo" / "a directory.err").mkdir(parents=True)
    campaign.end()
    assert "cannot be shown: IsADirectoryError" in capsys.readouterr().out
