"""The Parsl configuration that a user names on the command line."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from parsl_balsam.model.errors import BalsamError, ConfigurationError

if TYPE_CHECKING:
    from parsl import Config


def load_config(source: str, given: Mapping[str, str]) -> Config:
    """Return the Parsl configuration that a user names.

    Parameters
    ----------
    source
        A file or module, with the name of a Config or of a function that returns one after a colon.
    given
        Arguments for the function, as they were typed. A ``workflow`` is passed only to one that takes it, and one
        that must have it gets "check".

    Raises
    ------
    ConfigurationError
        If it cannot be loaded, or there is no configuration, or more than one.
    """
    place, _, name = source.partition(":")
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigurationError(f"there is no file {place}")
    with _errors_of(source):
        module = _module(place)
        from parsl import Config
    name = name or _only_one(place, module, Config)
    if not hasattr(module, name):
        raise ConfigurationError(f"{place} has no {name}")
    value = getattr(module, name)
    if callable(value) and not isinstance(value, Config):
        arguments = _arguments(value, name, given)
        with _errors_of(source):
            value = value(**arguments)
    elif others := given.keys() - {"workflow"}:
        raise ConfigurationError(f"{name} of {place} is no function: it takes no {', '.join(sorted(others))}")
    if not isinstance(value, Config):
        raise ConfigurationError(f"{name} of {place} is a {type(value).__name__}, not a parsl.Config")
    return value


def _module(place: str) -> ModuleType:
    """Import a module by its path or name, as Python does for a script in its directory."""
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    path = Path(place).absolute()
    sys.path.insert(0, str(path.parent))
    # Not by the name of the file, which may be that of a module that is needed.
    spec = importlib.util.spec_from_file_location("checked_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _only_one(place: str, module: ModuleType, kind: type) -> str:
    """Return the name of the configuration in a module: that of the function for it, or of the only Config."""
    if callable(getattr(module, "make_config", None)):
        return "make_config"
    names = [name for name, value in vars(module).items() if isinstance(value, kind)]
    if len(names) != 1:
        what = f"the Configs {', '.join(names)}" if names else "neither make_config nor a Config"
        raise ConfigurationError(f"{place} has {what}: name what is to be checked, as in {place}:NAME")
    return names[0]


def _arguments(function: Any, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments for a function that makes a configuration."""
    taken = {each.name: each for each in inspect.signature(function).parameters.values() if each.kind in _NAMED}
    required = {each.name for each in taken.values() if each.default is each.empty}
    given = {**({"workflow": "check"} if "workflow" in required else {}), **given}
    if missing := sorted(required - given.keys()):
        values = " ".join(f"--set {each}=VALUE" for each in missing)
        raise ConfigurationError(f"{name} must be called with {', '.join(missing)}: give {values}")
    if unknown := sorted(given.keys() - taken.keys() - {"workflow"}):
        raise ConfigurationError(f"{name} takes no {', '.join(unknown)}: it takes {', '.join(taken) or 'nothing'}")
    return {each: _value(text, taken[each]) for each, text in given.items() if each in taken}


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _value(text: str, parameter: inspect.Parameter) -> Any:
    """Return what was typed for a parameter: a text where one is expected, else the number or other literal it is."""
    annotation = parameter.annotation if isinstance(parameter.annotation, str) else repr(parameter.annotation)
    if "str" in annotation or "Literal" in annotation or isinstance(parameter.default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """Tell where the user's code fails, in place of a traceback through this program."""
    try:
        yield
    except (Exception, SystemExit) as error:
        what = str(error) if isinstance(error, BalsamError) else f"{type(error).__name__}: {error}"
        files = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        theirs = [place for place in files if place[0] != __file__ and "importlib" not in place[0]]
        where = f" ({theirs[0][0]}, line {theirs[0][1]})" if theirs else ""
        raise ConfigurationError(f"{source} cannot be loaded: {what}{where}") from error
