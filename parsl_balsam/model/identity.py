"""What makes two calls, in two runs of a script, the same task: the key of a call.

The key is a digest of the structure of the user's function and its arguments, less what changes from run to run.
It does not see the code of imported modules other than the function itself, the environment, or what is in files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from parsl_balsam.model.digest import Digester, NoStableIdentity, bodies, fingerprint, function_body_digest
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.wrappers import Peeled, peel

__all__ = ["NoStableIdentity", "call_key", "function_digest"]

#: Part of every key: another way of making keys needs another value here, so that old keys are never met by chance.
VERSION = b"1"

#: What ``parsl.AUTO_LOGNAME`` becomes; numbers of run and task are in it (``DataFlowKernel.default_std_autopath``).
AUTO_LOGNAME = re.compile(r"(?:.*/)?task_logs/\d{4,}/task_\d{4,}_.+\.(?:stdout|stderr)", re.DOTALL)


def function_digest(func: Callable[..., object]) -> bytes:
    """Return 16 bytes that stand for a function as it reaches an executor.

    Equal in every process for the same code, whatever the file is called and wherever the function stands in it.
    Different when its body, a default, a closure or, for a function of the script, a global that it reads differs.

    Parameters
    ----------
    func
        The user's function, within Parsl's wrappers. Walltime and files staged by the task itself count, monitoring
        does not.

    Raises
    ------
    NoStableIdentity
        The function holds something that has no value in another process.
    """
    try:
        return _peeled_digest(peel(func))
    except NoStableIdentity:
        raise
    # Reading a value runs the user's code: properties of metaclasses, __reduce_ex__, __getattr__, endless nesting.
    except Exception as error:
        raise NoStableIdentity(f"the function cannot be read: {type(error).__name__}: {error}") from error


def call_key(
    func: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object], spec: ResourceSpec
) -> bytes:
    """Return 16 bytes that stand for a call; calls with equal keys compute the same.

    Parameters
    ----------
    func, args, kwargs
        As Parsl hands them to an executor.
    spec
        What the call asks for. Nodes, ranks, cores, GPUs and the way of launching count; times, priority, tags and
        retries do not. With ``spec.key``, only that and the name of the function count.

    Raises
    ------
    NoStableIdentity
        The function or an argument holds something that has no value in another process; the message says which.
    """
    inner = peel(func)
    if spec.key is not None:
        name = getattr(inner.func, "__qualname__", type(inner.func).__qualname__)
        return fingerprint(VERSION + Digester().token((spec.key, _module(inner.func), name, inner.bash)))
    place = "the function"
    try:
        parts = [VERSION, _peeled_digest(inner), _spec_token(spec)]
        digester = Digester()
        staging = bool(kwargs.get("_parsl_staging_inhibit"))
        for number, value in enumerate(args):
            place = f"argument {number}"
            parts.append(b"*" if staging and isinstance(value, Future) else digester.token(value))
        for name in sorted(kwargs):
            value = kwargs[name]
            if name.startswith("_parsl_monitoring_") or name == "parsl_resource_specification":
                continue
            if staging and (name == "parent_fut" or isinstance(value, Future)):
                continue
            if name in ("stdout", "stderr"):
                value = _settled_path(value)
            place = f"argument {name}"
            parts += [b"=", digester.token(name), digester.token(value)]
        if digester.needs:
            place = "a definition of the script"
            parts += [b"+", bodies(digester.needs.values())]
        return fingerprint(b"".join(parts))
    except NoStableIdentity as error:
        raise NoStableIdentity(f"{place}: {error}") from error
    # Reading a value runs the user's code: properties of metaclasses, __reduce_ex__, __getattr__, endless nesting.
    except Exception as error:
        raise NoStableIdentity(f"{place} cannot be read: {type(error).__name__}: {error}") from error


def _peeled_digest(inner: Peeled) -> bytes:
    digest = function_body_digest(inner.func)
    if inner.bash or inner.layers:
        return fingerprint(digest + Digester().token((inner.bash, inner.layers)))
    return digest


def _module(func: object) -> object:
    module = getattr(func, "__module__", None)
    return "__main__" if module == "__mp_main__" else module


def _spec_token(spec: ResourceSpec) -> bytes:
    numbers = b"%d,%d,%d,%d" % (spec.num_nodes, spec.ranks_per_node, spec.cores_per_rank or 0, spec.gpus_per_rank)
    options = spec.launcher_options.encode()
    launch = spec.launch.value.encode() if spec.launch is not None else b""
    return b"%b,%b,%d:%b" % (numbers, launch, len(options), options)


def _settled_path(path: object) -> object:
    """Return a constant for a path that Parsl chose, and any other path as it is."""
    if isinstance(path, tuple) and len(path) == 2:
        return (_settled_path(path[0]), path[1])
    text = getattr(path, "url", path)
    if isinstance(text, (str, os.PathLike)) and AUTO_LOGNAME.fullmatch(os.fspath(text)):
        return "AUTO_LOGNAME"
    return path
