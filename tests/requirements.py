"""What tests need that pip cannot install: skipped without it on a laptop, a failure where nothing may be skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test; under CI=true, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def not_permitted(reason: str) -> NoReturn:
    """Skip the test everywhere: what it needs is a privilege that a container may withhold, and nobody can install."""
    pytest.skip(reason)


def require(programs: Iterable[str], packages: str, path: str | None = None) -> None:
    """See to it that programs are installed.

    Parameters
    ----------
    packages
        Names of the Debian packages that have them.
    path
        Where they may be, in place of the PATH.
    """
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        unavailable(f"{', '.join(missing)} not found: apt-get install -y {packages}")
