"""What lets agents in is for its owner's eyes only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.model.errors import ConfigurationError

INVITATION = Invitation(
    hosts=("n1", "n2"),
    cores_per_node=4,
    gpus_per_node=None,
    lease_s=30.0,
    python_path=("/home/user/script", "/usr/lib/python3"),
    endpoints=(("n1", 40001), ("10.0.0.1", 40001)),
    server_key="public",
    client_key="also public",
    client_secret="secret",
    environ={"PATH": "/bin"},
)


def test_invitation_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agents-1.json"
    INVITATION.write(path)
    assert Invitation.read(path) == INVITATION


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_invitation_is_for_its_owner_alone(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "agents-1.json"
    path.touch(mode=0o644)  # left over
    before = os.umask(mask & 0o077)
    try:
        INVITATION.write(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Invitation.read(path) == INVITATION


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_invitation_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "agents-1.json"
    INVITATION.write(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        Invitation.read(path)


def test_invitation_replaces_one_that_others_hold_open(tmp_path: Path) -> None:
    path = tmp_path / "agents-1.json"
    path.touch(mode=0o644)
    with open(path) as old:
        INVITATION.write(path)
        assert old.read() == ""
    INVITATION.write(path)
    assert Invitation.read(path) == INVITATION
