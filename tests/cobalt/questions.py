"""How the commands of the stand-in ask its server, and what they say when it does not do as they wish."""

from __future__ import annotations

import json
import os
import pwd
import socket
import sys
import time
from typing import Any, NoReturn

#: What Python 2 says before all that a server complains of.
_NOISE = 'No handlers could be found for logger "Proxy"'


class Refused(Exception):
    """The server does not do it."""

    def __init__(self, component: str, code: int, text: str) -> None:
        super().__init__(text)
        self.component = component
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"<Fault {self.code}: {self.text!r}>"


class Away(Exception):
    """There is no server, or none that answers."""


def ask(home: str, do: str, **values: object) -> Any:
    """Ask the server whose directory is `home`, if need be until its settings say that this takes too long.

    Raises
    ------
    Refused, Away
        There is no answer.
    """
    deadline: float | None = None
    with socket.socket(socket.AF_UNIX) as line:
        while True:
            try:
                line.connect(f"{home}/commands")
                break
            except (ConnectionError, FileNotFoundError):
                now = time.monotonic()
                deadline = now + settings(home)["retry_s"] if deadline is None else deadline
                if now >= deadline:
                    raise Away from None
                time.sleep(0.02)
        return answer(line, {"do": do, **values})


def answer(line: socket.socket, request: dict[str, object]) -> Any:
    """Send a request on a connection, and return what comes back."""
    try:
        line.sendall(json.dumps(request).encode() + b"\n")
        with line.makefile("rb") as lines:
            said = lines.readline()
    except ConnectionError:
        raise Away from None
    if not said:
        raise Away
    values = json.loads(said)
    if "fault" in values:
        raise Refused(**values["fault"])
    return values["answer"]


def settings(home: str) -> dict[str, Any]:
    """Read the settings of the server whose directory is `home`, which may be away."""
    with open(f"{home}/settings.json") as file:
        values: dict[str, Any] = json.load(file)
    return values


def fail(*lines: str, noise: bool = False, code: int = 1) -> NoReturn:
    """End the command with lines on stderr."""
    for line in (_NOISE, *lines) if noise else lines:
        print(line, file=sys.stderr)
    sys.exit(code)


def fail_without(component: str, method: str | None = None) -> NoReturn:
    """End the command as one that has not reached a component."""
    unreachable = f"Failed to connect to {component}: Proxy.py     :L#422:cn:{component}"
    if method is not None:
        wish = f"{component}.{method}"
        unreachable = f"Following exception occurred while trying to execute {wish}: {unreachable}"
    fail(f"component error: {unreachable}", "", noise=True)


def user_name() -> str:
    """Return whose process this is, which no variable can change."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an account without a name
        return str(os.getuid())
