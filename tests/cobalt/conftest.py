"""A stand-in for Cobalt for all tests of this directory, and what its commands are asked with."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cobalt.cobalt import Cobalt

Write = Callable[..., Path]
Done = subprocess.CompletedProcess[str]

#: What the commands say before all that a server complains of.
NOISE = 'No handlers could be found for logger "Proxy"\n'


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
def write(tmp_path: Path) -> Write:
    """Writes scripts that can be run: ``write("exit 3", "#COBALT -n 2")``, with options for directives."""

    def write(body: str, *directives: str, name: str = "job.sh") -> Path:
        script = tmp_path / name
        script.write_text("\n".join(["#!/bin/bash", *directives, textwrap.dedent(body), ""]))
        script.chmod(0o755)
        return script

    return write


@pytest.fixture
def qsub(cobalt: Cobalt, tmp_path: Path) -> Callable[..., Done]:
    """Calls qsub in the directory of scripts, with words split at blanks. The queue is stopped: jobs stay queued."""
    cobalt.stop_queue()

    def qsub(words: str, *more: str, **environ: str) -> Done:
        return cobalt.call("qsub", *words.split(), *more, cwd=tmp_path, environ=environ)

    return qsub


@pytest.fixture
def submit(qsub: Callable[..., Done], write: Write) -> Callable[..., str]:
    """Submits a script, and returns the job's id."""
    write("true")

    def submit(words: str = "-n 1 -t 10", script: str = "./job.sh") -> str:
        done = qsub(f"{words} {script}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.removesuffix("\n").isdecimal()
        return done.stdout.removesuffix("\n")

    return submit


def said(done: Done) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def column(cobalt: Cobalt, job: str, name: str) -> str:
    """Return what qstat shows in a column."""
    return cobalt.run("qstat", f"--header={name}", job).splitlines()[2].rstrip(" ")
