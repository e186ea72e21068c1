"""The user's key: payloads in databases are signed with it, so that what others write there is never run."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from parsl_balsam.db.private import read_private
from parsl_balsam.model.errors import ConfigurationError
from parsl_balsam.model.signing import KEY_BYTES

#: Names another file than the usual one.
KEY_VARIABLE = "BALSAM_KEY_FILE"


def key_file() -> Path:
    """Return where the user's key is, or will be."""
    return Path(os.environ.get(KEY_VARIABLE) or Path.home() / ".parsl-balsam" / "key").absolute()


def read_or_make_key() -> bytes:
    """Return the user's key; make one if there is none yet.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or made, is another user's, or others can read it.
    """
    path = key_file()
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise ConfigurationError(
            f"the key with which your tasks are signed cannot be read from {path}: {error.strerror}. "
            f"Set {KEY_VARIABLE} to a file of yours that the launchers' user sees too"
        ) from error


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, path)  # and not a rename: another script may have made one a moment ago, and used it
    except FileExistsError:
        pass
    finally:
        new.unlink()


def _read(path: Path) -> bytes:
    text = read_private(path)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{path} has no key of {2 * KEY_BYTES} hexadecimal digits: put back what was there, or remove it and sign "
            "your databases anew with 'parsl-balsam db sign'"
        )
    return key
