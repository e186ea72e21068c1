"""Parsl's per-call wrappers as data.

Parsl wraps a function anew for every call that has a walltime or is monitored. Pickling such a wrapper takes a
millisecond or more, and no two are alike. Here they are taken off before a call is stored, so that its function is the
same for all its calls, and put on again where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

AnyFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Walltime:
    """Parsl's limit for a python app."""

    seconds: float

    def wrap(self, func: AnyFunction) -> AnyFunction:
        """Put it on again."""
        from parsl.app.python import timeout

        return timeout(func, self.seconds)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Monitored:
    """Parsl's resource monitoring of one try."""

    options: Mapping[str, Any]  #: keyword arguments of ``parsl.monitoring.remote.monitor_wrapper``

    def wrap(self, func: AnyFunction) -> AnyFunction:
        """Put it on again. The task's and the try's number are in the call's own keyword arguments."""
        from parsl.monitoring.remote import monitor_wrapper

        wrapped, _, _ = monitor_wrapper(f=func, args=(), kwargs={}, x_try_id=0, x_task_id=0, **self.options)
        return wrapped  # type: ignore[no-any-return]


Layer = Walltime | Monitored

_MONITOR_OPTIONS = frozenset({"radio_config", "run_id", "logging_level", "sleep_dur", "monitor_resources", "run_dir"})


def undress(func: AnyFunction) -> tuple[AnyFunction, tuple[Layer, ...]]:
    """Take the per-call wrappers off a function; return what is inside, and the wrappers, outermost first.

    A wrapper that does not look as expected stays on: it is slower to store, not wrong.
    """
    layers: list[Layer] = []
    while isinstance(func, FunctionType) and func.__closure__:
        origin = func.__globals__.get("__name__")
        if origin not in ("parsl.app.python", "parsl.monitoring.remote"):
            break
        cells = {
            name: cell.cell_contents for name, cell in zip(func.__code__.co_freevars, func.__closure__, strict=True)
        }
        if origin == "parsl.app.python" and set(cells) == {"f", "seconds"}:
            layers.append(Walltime(cells["seconds"]))
        elif origin == "parsl.monitoring.remote" and set(cells) == {"f", *_MONITOR_OPTIONS}:
            layers.append(Monitored({name: cells[name] for name in sorted(_MONITOR_OPTIONS)}))
        else:
            break
        func = cells["f"]
    return func, tuple(layers)


def dress(func: AnyFunction, layers: tuple[Layer, ...]) -> AnyFunction:
    """Put the wrappers on again."""
    for layer in reversed(layers):
        func = layer.wrap(func)
    return func
