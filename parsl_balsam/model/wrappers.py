"""Parsl's own wrappers around a user's function, recognised without importing Parsl.

``functools.wraps`` disguises most of them as the user's function, and users' decorators look the same from outside.
What tells them apart is where their code lives, so each is known by the module of its globals and the names in its
closure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType


@dataclass(frozen=True, slots=True)
class Peeled:
    """A user's function and what Parsl had wrapped around it."""

    func: Callable[..., object]  #: the user's own function, with the user's own decorators
    bash: bool  #: it returns a command for bash
    layers: tuple[tuple[object, ...], ...]  #: outermost first: ("walltime", seconds) or ("staging", wrapper, URL)


def peel(func: Callable[..., object]) -> Peeled:
    """Return the user's function inside ``func``, which may be wrapped by Parsl or not.

    The wrapper that reports to Parsl's monitoring leaves no layer: it does not change what the call computes.
    """
    bash = False
    layers: list[tuple[object, ...]] = []
    while True:
        if isinstance(func, FunctionType) and func.__closure__:
            home = func.__globals__.get("__name__")
            if not isinstance(home, str) or not home.startswith("parsl."):
                break
            name = func.__code__.co_name
            cells = dict(zip(func.__code__.co_freevars, func.__closure__, strict=True))
            if home == "parsl.app.errors" and name == "wrapper" and "func" in cells:
                func = cells["func"].cell_contents
            elif home == "parsl.app.python" and name == "wrapper" and {"f", "seconds"} <= cells.keys():
                layers.append(("walltime", cells["seconds"].cell_contents))
                func = cells["f"].cell_contents
            elif home == "parsl.monitoring.remote" and name == "wrapped" and "f" in cells:
                func = cells["f"].cell_contents
            elif home.startswith("parsl.data_provider.") and name == "wrapper" and {"func", "file"} <= cells.keys():
                layers.append(("staging", f"{home}.{func.__qualname__}", cells["file"].cell_contents.url))
                func = cells["func"].cell_contents
            else:
                break
        elif isinstance(func, partial) and _runs_bash(func.func) and func.args:
            bash = True
            func = func.args[0]
        else:
            break
    return Peeled(func, bash, tuple(layers))


def is_parsl(kind: type, module: str, name: str) -> bool:
    """Tell whether ``kind`` is, or is derived from, the class ``module.name``."""
    return any(base.__module__ == module and base.__name__ == name for base in kind.__mro__)


def _runs_bash(func: Callable[..., object]) -> bool:
    return (
        getattr(func, "__module__", None) == "parsl.app.bash"
        and getattr(func, "__name__", None) == "remote_side_bash_executor"
    )
