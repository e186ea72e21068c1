"""The forker of one job: starts the script, signals it, and ends all that it has started.

Its first line on stdin is the script to be started; then come lines of one word: TERM or KILL for the script's process
group, TERM-HEAD or KILL-HEAD for the script alone, CRASH for all there is at once, END for what is left. It answers on
stdout with lines of JSON: ``note`` of a file that could not be opened, ``pid``, and ``code`` when the script is over.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Mapping
from typing import Any

from parsl_balsam.launcher.processes import die_with_parent, inherit_orphans, sweep_all
from tests.cobalt.launch import become


def main(parent: int) -> None:
    """Serve one job of the process with this pid."""
    die_with_parent(parent)
    inherit_orphans()
    ended, ends = os.pipe()
    os.set_blocking(ends, False)
    signal.set_wakeup_fd(ends)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    script = _start(json.loads(_line()))
    code: int | None = None
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 100)
            code = _reap(script, code)
        if 0 in ready:
            word = _line().decode().strip()
            if word == "CRASH":
                _signal(script, signal.SIGKILL)
                if code is None:
                    os.waitid(os.P_PID, script, os.WEXITED | os.WNOWAIT)
                    code = _reap(script, code)
                sweep_all()
            elif word in ("", "END"):
                break
            else:
                name, _, head = word.partition("-")
                _signal(script, signal.Signals[f"SIG{name}"], bool(head))
    sweep_all()


def _line() -> bytes:
    """Read a line of stdin and no more, so that `select` sees what was not read."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _start(order: Mapping[str, Any]) -> int:
    streams = [_open(order["stdin"], os.O_RDONLY)]
    os.umask(order["umask"])
    streams += [_open(order[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT) for name in ("stdout", "stderr")]
    begun, begins = os.pipe()
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(me)
            os.setsid()
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            for descriptor, stream in enumerate(streams):
                os.dup2(stream, descriptor)
            become(order["command"], order["environ"], order["cwd"])
        finally:
            os._exit(255)
    # Before it is the script it has no process group to signal.
    os.close(begins)
    os.read(begun, 1)
    for descriptor in (begun, *streams):
        os.close(descriptor)
    _tell("pid", pid)
    return pid


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        _tell("note", f"unable to open {path}: {error.strerror}; using {os.devnull}")
        return os.open(os.devnull, os.O_RDWR)


def _reap(script: int, code: int | None) -> int | None:
    """Take note of all that has ended; return the script's exit code if that has."""
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == script:
                code = os.waitstatus_to_exitcode(found[1])
                code = 128 - code if code < 0 else code
                _tell("code", code)
    except ChildProcessError:
        pass
    return code


def _signal(script: int, number: signal.Signals, head: bool = False) -> None:
    try:
        (os.kill if head else os.killpg)(script, number)
    except ProcessLookupError:
        pass


def _tell(what: str, value: object) -> None:
    try:
        os.write(1, json.dumps({what: value}).encode() + b"\n")
    except BrokenPipeError:
        pass
