"""The user's key: made once, for its owner only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parsl_balsam.db.keyfile import KEY_VARIABLE, key_file, read_or_make_key
from parsl_balsam.model.errors import ConfigurationError

from .conftest import at_once


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(KEY_VARIABLE)
    return tmp_path


def test_key_is_made_for_its_owner_only_and_kept(home: Path) -> None:
    umask = os.umask(0)
    try:
        key = read_or_make_key()
    finally:
        os.umask(umask)
    assert len(key) == 32
    assert key_file() == home / ".parsl-balsam" / "key"
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert key_file().parent.stat().st_mode & 0o777 == 0o700
    assert list(key_file().parent.iterdir()) == [key_file()]
    assert read_or_make_key() == key


def test_scripts_that_start_at_once_have_one_key() -> None:
    assert len(set(at_once(*[read_or_make_key] * 8))) == 1


def test_variable_names_another_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(home / "elsewhere" / "my key"))
    assert read_or_make_key() == read_or_make_key()
    assert (home / "elsewhere" / "my key").exists()
    assert not (home / ".parsl-balsam").exists()


@pytest.mark.parametrize("opened", [0o640, 0o604, 0o660])
def test_key_that_others_can_read_is_refused(opened: int) -> None:
    key = read_or_make_key()
    key_file().chmod(opened)
    with pytest.raises(ConfigurationError, match=f"open to other users: run `chmod 600 {key_file()}`"):
        read_or_make_key()
    key_file().chmod(0o600)
    assert read_or_make_key() == key


@pytest.mark.parametrize("content", ["", "garbage", "00" * 31, "00" * 33])
def test_file_without_a_key_is_refused_and_left(content: str) -> None:
    read_or_make_key()
    key_file().write_text(content)
    with pytest.raises(ConfigurationError, match="no key of 64 hexadecimal digits: put back what was there"):
        read_or_make_key()
    assert key_file().read_text() == content


def test_place_where_no_file_can_be_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv(KEY_VARIABLE, str(home / "file" / "key"))
    with pytest.raises(ConfigurationError, match=f"File exists. Set {KEY_VARIABLE} to a file of yours"):
        read_or_make_key()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away: run this test as root")
def test_key_of_another_user_is_refused() -> None:
    read_or_make_key()
    os.chown(key_file(), 65534, 65534)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        read_or_make_key()
