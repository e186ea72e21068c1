"""Programs of tasks are started as `subprocess` starts them, also by the short way that bash apps have."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsl.app.bash import remote_side_bash_executor

from parsl_balsam.launcher import program
from parsl_balsam.launcher.program import MeteredPopen

#: Says what a command finds: arguments, environment, directory, process group, open files, and signals.
SITUATION = """
echo "$0 $# $-"
env | grep -av ^_= | sort
pwd
umask
for fd in /proc/$$/fd/*; do echo "${fd##*/} $(readlink $fd | cut -d: -f1)"; done
group_of() { sed 's/.*) //' /proc/$1/stat | cut -d' ' -f3; }
[ $(group_of $$) = $(group_of $PPID) ] && echo same group
grep '^Sig[BIC]' /proc/$$/status
"""


def bash(kind: type[subprocess.Popen[Any]], command: str, out: Any = None, err: Any = None) -> subprocess.Popen[Any]:
    """Start a command as Parsl's wrapper of bash apps does."""
    return kind(command, stdout=out, stderr=err, shell=True, executable="/bin/bash", close_fds=False)


@pytest.fixture(autouse=True)
def shortened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a first command started the long way; return those that are started the short way from now on."""
    monkeypatch.setattr(program, "_usual", None)
    assert bash(MeteredPopen, "exit 3").wait() == 3
    commands: list[str] = []
    start = MeteredPopen._start_bash

    def noted(self: MeteredPopen, command: str, *more: Any) -> None:
        commands.append(command)
        start(self, command, *more)

    monkeypatch.setattr(MeteredPopen, "_start_bash", noted)
    return commands


def printed(kind: type[subprocess.Popen[Any]], command: str, directory: Path) -> tuple[int, str, str]:
    """Return the exit code of a command, and what it wrote to both its files."""
    paths = [directory / "out", directory / "err"]
    with open(paths[0], "w") as out, open(paths[1], "w") as err:
        code = bash(kind, command, out, err).wait()
    return code, paths[0].read_text(errors="surrogateescape"), paths[1].read_text()


@pytest.mark.parametrize("command", [SITUATION, "echo word; echo trouble >&2; exit 7", "kill -9 $$", "no-such-program"])
def test_command_finds_and_does_what_it_does_with_subprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortened: list[str], command: str
) -> None:
    monkeypatch.setenv("BALSAM_TEST_SET", "a value\nof two lines and \udcff")
    monkeypatch.setenv("BALSAM_TEST_UNSET", "1")
    monkeypatch.delenv("BALSAM_TEST_UNSET")
    expected = printed(subprocess.Popen, command, tmp_path)
    assert printed(MeteredPopen, command, tmp_path) == expected
    assert shortened == [command]
    if command == SITUATION:
        assert "BALSAM_TEST_SET=a value" in expected[1]
        assert "same group" in expected[1]


def test_object_is_what_subprocess_makes(shortened: list[str]) -> None:
    usual, ours = bash(subprocess.Popen, "exec sleep 60"), bash(MeteredPopen, "exec sleep 60")
    assert shortened == ["exec sleep 60"]
    theirs, found = dict(vars(usual)), dict(vars(ours))
    assert type(theirs.pop("_waitpid_lock")) is type(found.pop("_waitpid_lock"))
    assert theirs.pop("pid") != found.pop("pid")
    assert theirs == found
    for each in (usual, ours):
        assert each.poll() is None
        each.send_signal(signal.SIGTERM)
        assert (each.wait(), each.poll(), each.returncode) == (-signal.SIGTERM,) * 3


def test_two_commands_have_a_lock_each(shortened: list[str]) -> None:
    one, other = bash(MeteredPopen, "true"), bash(MeteredPopen, "true")
    assert vars(one)["_waitpid_lock"] is not vars(other)["_waitpid_lock"]
    assert (one.wait(), other.wait(), len(shortened)) == (0, 0, 2)


def test_environment_that_was_replaced_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortened: list[str]
) -> None:
    monkeypatch.setattr(os, "environ", {"ONLY": "this"})
    assert 'ONLY="this"' in printed(MeteredPopen, "export -p", tmp_path)[1]
    assert len(shortened) == 1


def test_shell_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    for kind in (subprocess.Popen, MeteredPopen):
        with pytest.raises(OSError, match="/bin/bash") as error:
            bash(kind, "x" * 10_000_000)
        raised.append((type(error.value), str(error.value)))
    assert raised[0] == raised[1]


def test_bash_apps_are_started_the_short_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortened: list[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", MeteredPopen)

    def words(**_: object) -> str:
        return "echo words"

    assert remote_side_bash_executor(words, stdout=str(tmp_path / "new" / "out"), walltime=60) == 0
    assert (tmp_path / "new" / "out").read_text() == "words\n"
    assert shortened == ["echo words"]


class Derived(MeteredPopen):
    """A user's own."""


def test_other_programs_are_started_the_long_way(tmp_path: Path, shortened: list[str]) -> None:
    options: dict[str, Any] = {"stdout": None, "stderr": None, "shell": True, "executable": "/bin/bash"}
    others: list[Callable[[], subprocess.Popen[Any]]] = [
        lambda: MeteredPopen("exit 3", **options),
        lambda: MeteredPopen("exit 3", **options, close_fds=True),
        lambda: MeteredPopen("exit 3", **options, close_fds=False, cwd="/"),
        lambda: MeteredPopen(["exit 3"], **options, close_fds=False),
        lambda: MeteredPopen("exit 3", **{**options, "executable": "/bin/sh"}, close_fds=False),
        lambda: MeteredPopen("exit 3", **{**options, "stdout": subprocess.DEVNULL}, close_fds=False),
        lambda: MeteredPopen("exit 3", **{**options, "stderr": subprocess.STDOUT}, close_fds=False),
        lambda: Derived("exit 3", **options, close_fds=False),
    ]
    for start in others:
        assert start().wait() == 3
    assert shortened == []
    piped = bash(MeteredPopen, "echo words", subprocess.PIPE)
    assert piped.communicate()[0] == b"words\n"
    assert shortened == []


def test_memory_of_a_command_is_noted(shortened: list[str]) -> None:
    program.largest = 0
    assert bash(MeteredPopen, "x=$(printf '%050000000d' 0)").wait() == 0
    assert shortened
    assert 50_000 < program.largest < 1_000_000


def test_program_with_a_limit_is_waited_for_and_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: float) -> None:
        raise AssertionError("it was looked at again and again")

    # The first command of all is started the long way, the others are not: they are waited for alike.
    monkeypatch.setattr(time, "sleep", fail)
    for limit in (60.0, 1e12, float("inf")):
        assert bash(MeteredPopen, "read -t 0.1 < <(exec sleep 1); exit 5").wait(limit) == 5
    slow = bash(MeteredPopen, "exec sleep 60")
    for limit in (0.1, 0, -1):
        with pytest.raises(subprocess.TimeoutExpired) as expired:
            slow.wait(limit)
        assert (expired.value.cmd, expired.value.timeout) == ("exec sleep 60", limit)
    slow.kill()
    assert slow.wait(60) == -signal.SIGKILL
    assert slow.wait(60) == -signal.SIGKILL


def test_program_with_a_limit_where_the_kernel_cannot_tell_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert bash(MeteredPopen, "sleep 0.1; exit 5").wait(60) == 5
    with pytest.raises(subprocess.TimeoutExpired):
        bash(MeteredPopen, "sleep 0.3").wait(0.01)
