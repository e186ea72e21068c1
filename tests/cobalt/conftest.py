"""A stand-in for Cobalt for all tests of this directory."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cobalt.cobalt import Cobalt


@pytest.fixture(scope="session")
def cobalt_site() -> Iterator[Cobalt]:
    """A site of four nodes that all tests share."""
    with Cobalt() as running:
        yield running


@pytest.fixture
def cobalt(cobalt_site: Cobalt) -> Iterator[Cobalt]:
    """The site for one test, as it is at the start: no jobs, first settings, nothing broken."""
    yield cobalt_site
    cobalt_site.reset()
    assert cobalt_site.server_log() == ""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes scripts that can be run: ``write("exit 3", "#COBALT -n 2")``, with options for directives."""

    def write(body: str, *directives: str, name: str = "job.sh") -> Path:
        script = tmp_path / name
        script.write_text("\n".join(["#!/bin/bash", *directives, textwrap.dedent(body), ""]))
        script.chmod(0o755)
        return script

    return write
