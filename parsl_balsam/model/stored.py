"""Values that were written as JSON by this or another version of parsl-balsam, and may have been damaged since."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from parsl_balsam.model.errors import ConfigurationError

_Kind = TypeVar("_Kind")

#: Largest whole number that is taken.
_LARGEST = 2**63 - 1


def read_value(kind: type[_Kind], text: str | bytes, what: str, **parts: Callable[[Any], Any]) -> _Kind:
    """Return the value that `dataclasses.asdict` and JSON described; fields that are missing have their default.

    Parameters
    ----------
    kind
        A dataclass whose fields are numbers, texts, enums, None, and tuples and mappings of them.
    what
        It is, for messages.
    parts
        What makes the values of other fields; each may raise ConfigurationError.

    Raises
    ------
    ConfigurationError
        It cannot be read, has fields that are not known, lacks one that has no default, or one has a wrong type.
    """
    given = _object(text, what)
    _check_names(kind, given, what)
    kinds = get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if name in parts:
            values[name] = parts[name](value)
            continue
        try:
            values[name] = _read(kinds[name], value)
        except (TypeError, ValueError, OverflowError):
            # The value itself may be a password.
            raise _damaged(what, f"{name} has a wrong value, a JSON {type(value).__name__}") from None
    return kind(**values)


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(what, f"it is no JSON text ({error})") from None
    # What the reader of a file has put in place of bytes that are no text.
    if isinstance(text, str) and "\N{REPLACEMENT CHARACTER}" in text:
        raise _damaged(what, "it has bytes that are no text")
    if not isinstance(given, dict):
        raise _damaged(what, f"it is a JSON {type(given).__name__}, not an object")
    return given


def _check_names(kind: type[Any], given: Mapping[str, object], what: str) -> None:
    known = {field.name: field for field in fields(kind)}
    strange = [name for name in given if name not in known]
    missing = [
        name
        for name, field in known.items()
        if name not in given and field.default is MISSING and field.default_factory is MISSING
    ]
    if strange or missing:
        wrong = [f"does not know {name!r}" for name in strange] + [f"misses {name!r}" for name in missing]
        raise ConfigurationError(
            f"{what} was written by another version of parsl-balsam: this one {', '.join(wrong)}. "
            "Install one version for the script, the command line and all nodes."
        )


def _read(kind: Any, value: object) -> Any:
    """Return a value as its type wants it; raises TypeError, ValueError or OverflowError."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        (kind,) = [part for part in parts if part is not NoneType]
        return _read(kind, value)
    if origin is tuple:
        members = _exactly(list, value)
        each = [parts[0]] * len(members) if parts[1] is ... else parts
        return tuple(_read(part, member) for part, member in zip(each, members, strict=True))
    if origin is dict:
        return {_read(parts[0], name): _read(parts[1], member) for name, member in _exactly(dict, value).items()}
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float:
        number = float(_exactly(int if type(value) is int else float, value))
        if math.isnan(number):
            raise ValueError
        return number
    if kind is int and abs(_exactly(int, value)) > _LARGEST:
        raise ValueError
    return _exactly(kind, value)


def _exactly(kind: type[_Kind], value: object) -> _Kind:
    # Not isinstance: a bool is an int.
    if type(value) is not kind:
        raise TypeError
    return value


def _damaged(what: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{what} is damaged: {why}. It must be written anew: start again what has written it.")
