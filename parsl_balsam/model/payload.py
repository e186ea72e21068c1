"""Python objects as bytes: functions, arguments, results and exceptions on their way through the database."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from parsl_balsam.model.errors import NotSerializable, UnreadablePayload

_PLAIN_LEAVES = frozenset({type(None), bool, int, float, str, bytes})

#: Containers longer than this are not searched for what they hold.
_PLAIN_LENGTH = 64


def encode(value: object) -> bytes:
    """Return an object as bytes.

    Functions and classes that cannot be imported elsewhere, such as those of a script, are written out whole, together
    with the global names they use.

    Raises
    ------
    NotSerializable
        If something in it cannot be written.
    """
    if is_plain(value):
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        reason = error
    import dill

    try:  # it knows some objects that cloudpickle does not
        return pickle.dumps(_Dilled(dill.dumps(value)))
    except Exception:
        raise NotSerializable(
            f"{_describe(value)} cannot be turned into bytes: {type(reason).__name__}: {reason}"
        ) from reason


def decode(data: bytes | memoryview) -> Any:
    """Return the object that was encoded.

    Raises
    ------
    UnreadablePayload
        If it cannot be made again here: a module that is missing, a constructor that wants other arguments, or bytes
        that were never an object. Whatever is raised meanwhile comes as this, also what is no `Exception`: a module
        that leaves when it is imported must not end the process that reads, nor may one object too large for it.
    """
    try:
        return pickle.loads(data)
    except BaseException as error:
        raise UnreadablePayload(
            f"{len(data)} stored bytes cannot be read back here: {type(error).__name__}: {text_of(error)}"
        ) from error


def is_plain(value: object, depth: int = 4) -> bool:
    """Tell whether a value is made of built-in types only, so that every Python reads it back as it was."""
    kind = type(value)
    if kind in _PLAIN_LEAVES:
        return True
    if depth == 0:
        return False
    if kind is tuple or kind is list:
        return len(value) <= _PLAIN_LENGTH and _all_plain(value, depth - 1)  # type: ignore[arg-type]
    if kind is dict:
        return len(value) <= _PLAIN_LENGTH and (  # type: ignore[arg-type]
            _all_plain(value, depth - 1) and _all_plain(value.values(), depth - 1)  # type: ignore[arg-type,attr-defined]
        )
    return False


def _all_plain(values: Iterable[object], depth: int) -> bool:
    # A list or a generator would take twice as long, and this is done for every call and every result.
    for value in values:  # noqa: SIM110
        if type(value) not in _PLAIN_LEAVES and not is_plain(value, depth):
            return False
    return True


def digest(*parts: bytes) -> bytes:
    """Return the name under which bytes are stored once; those of several parts are taken as one."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.digest()


class _Dilled:
    """Bytes made by dill, in a pickle that anyone with dill can read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        import dill

        return dill.loads, (self._data,)


def text_of(error: BaseException) -> str:
    """Return what an exception says, whatever its class may raise when it is asked."""
    try:
        return str(error)
    except BaseException as unprintable:  # it is the user's class
        return f"its text cannot be had: {type(unprintable).__name__}"


def _describe(value: object) -> str:
    text = f"{type(value).__module__}.{type(value).__qualname__} object"
    try:
        shown = repr(value)
    except Exception:
        return text
    return f"{text} {shown if len(shown) <= 200 else shown[:200] + '...'}"
