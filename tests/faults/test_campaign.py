"""What a campaign that failed far away leaves to look at."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import conftest
from tests.faults.conftest import SHOWN_LINES, Campaign


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
