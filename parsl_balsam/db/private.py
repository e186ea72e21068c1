"""Files that grant access, such as those with passwords: each is for its owner alone."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from parsl_balsam.model.errors import ConfigurationError

if TYPE_CHECKING:
    from parsl_balsam.db.binaries import Account


def write_private(path: Path, text: str, owner: Account | None = None) -> None:
    """Write a new file of mode 0600, and put it in place of `path` in one step.

    One process at a time may write a file.

    Parameters
    ----------
    owner
        To whom the file is given; None for whoever writes it.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # the mode of a file that exists would stay, and so would those who hold it open
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if owner:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def read_private(path: Path) -> str:
    """Read a file that only its owner may read; bytes that are no text are replaced.

    Raises
    ------
    ConfigurationError
        If it is another user's, or open to others. The message has the command that mends it.
    """
    with open(path, errors="replace") as file:
        found = os.fstat(file.fileno())  # of what is read, whatever the path leads to by now
        if found.st_uid != os.geteuid():
            raise ConfigurationError(f"{path} grants access and belongs to another user: run this as that user")
        if found.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} grants access and is open to other users: run `chmod 600 {shlex.quote(str(path))}`"
            )
        return file.read()
