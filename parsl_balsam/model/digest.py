"""Canonical digests of values, functions and classes: what is equal in two processes has equal bytes.

Pickles do not serve: they depend on the order of sets and dictionaries, on which equal objects are one object, and, of
functions, on file names and line numbers. Here sets and dictionaries are sorted by the digests of their elements,
sharing is not seen, and functions are taken by their bytecode.

Definitions (functions and classes) of imported modules are taken by name. Those of the script itself are taken by
body. Where one refers to another that the script has by a global name, the reference is that name, and the body joins
a set of needed definitions; so definitions may refer to each other in circles, and each is digested once.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import pickle
import struct
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from parsl_balsam.model.bytecode import essence, globals_read
from parsl_balsam.model.wrappers import is_parsl, peel

#: How often parts of circular structures are visited before they count as too entangled.
ENTANGLED = 20_000

Definition = types.FunctionType | type


class NoStableIdentity(Exception):
    """A call holds something whose value cannot be told in another process, such as a lock or an open file."""


def fingerprint(data: bytes) -> bytes:
    """Return 16 bytes that stand for ``data``."""
    return blake2b(data, digest_size=16).digest()


def function_body_digest(func: Callable[..., object]) -> bytes:
    """Return the digest of a callable by its body, and by the bodies of the script's definitions that it needs.

    Parameters
    ----------
    func
        Without Parsl's wrappers. Also of an imported function the body is taken, but of what it calls only names.

    Raises
    ------
    NoStableIdentity
        A default, a closure or a global value that it reads has no stable digest.
    """
    if isinstance(func, types.FunctionType):
        known = _definition(func)
        return fingerprint(known.digest + bodies(known.needs)) if known.needs else known.digest
    digester = Digester()
    token = digester.callable_token(func)
    return fingerprint(token + bodies(digester.needs.values()))


def bodies(definitions: Iterable[Definition]) -> bytes:
    """Return the digests of definitions and of all those they need, whatever order and circles they come in."""
    waiting = list(definitions)
    found: dict[int, bytes] = {}
    while waiting:
        definition = waiting.pop()
        if id(definition) not in found:
            known = _definition(definition)
            found[id(definition)] = known.digest
            waiting.extend(known.needs)
    return b"".join(sorted(found.values()))


class Digester:
    """Turns values into tokens: bytes that are equal for equal values and that end where the value ends."""

    def __init__(self) -> None:
        #: Definitions of the script met by name. Whoever uses the tokens adds their ``bodies``.
        self.needs: dict[int, Definition] = {}
        #: Global variables read by the functions met: (globals, name, value).
        self.reads: list[tuple[dict[str, object], str, object]] = []
        # Both hold the objects themselves: the id of one that was freed may be another's.
        self._known: dict[int, tuple[object, bytes]] = {}
        self._open: dict[int, tuple[object, int]] = {}
        self._circles = 0
        self._entangled = 0

    def token(self, value: object) -> bytes:
        """Return the token of any value.

        Raises
        ------
        NoStableIdentity
            The value, or a part of it, can neither be read nor reduced.
        """
        scalar = _SCALARS.get(type(value))
        return scalar(value) if scalar is not None else b"#" + self._digest(value)

    def callable_token(self, func: object) -> bytes:
        """Return the token of a callable by its body, also when it is imported."""
        if isinstance(func, types.FunctionType):
            return self._function_body(func)
        if isinstance(func, types.MethodType):
            return b"m" + self.token(func.__self__) + self.callable_token(func.__func__)
        if type(func) is functools.partial:
            return b"p" + self.callable_token(func.func) + self.token((func.args, func.keywords))
        return self.token(func)

    def _digest(self, value: object) -> bytes:
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        above = self._open.get(id(value))
        if above is not None:
            self._circles += 1
            return fingerprint(b"^%d" % (len(self._open) - above[1]))
        circles = self._circles
        self._open[id(value)] = (value, len(self._open))
        try:
            kind: type = type(value)
            digest = fingerprint(_reader(kind)(self, value))
        finally:
            del self._open[id(value)]
        if self._circles == circles:
            self._known[id(value)] = (value, digest)
        else:
            # Part of a circle: its digest depends on where the circle was entered, so it is good for this place only.
            self._entangled += 1
            if self._entangled > ENTANGLED:
                raise NoStableIdentity("objects refer to each other in too many circles")
        return digest

    def _sequence(self, value: Iterable[object]) -> bytes:
        return type(value).__name__[:1].encode() + b"".join([self.token(item) for item in value])

    def _mapping(self, value: Mapping[object, object]) -> bytes:
        return b"d" + b"".join(sorted([self.token(key) + self.token(item) for key, item in value.items()]))

    def _set(self, value: Iterable[object]) -> bytes:
        start = b"s"
        if type(value) not in (set, frozenset):
            start = b"S" + self.token(type(value)) + self.token(getattr(value, "__dict__", None))
        elif type(value) is frozenset:
            start = b"f"
        return start + b"".join(sorted([self.token(item) for item in value]))

    def _code(self, code: types.CodeType) -> bytes:
        return b"B" + _code_digest(code)

    def _module(self, module: types.ModuleType) -> bytes:
        return b"M" + _text(_settled_name(module.__name__))

    def _function(self, func: types.FunctionType) -> bytes:
        inner = peel(func)
        if inner.func is not func:
            return b"w" + self.token((inner.bash, inner.layers)) + self.token(inner.func)
        return self._by_name(func) or self._function_body(func)

    def _function_body(self, func: types.FunctionType) -> bytes:
        home = func.__globals__.get("__name__")
        parts = [
            b"F",
            self.token(_settled_name(home)),
            _text(func.__qualname__),
            _code_digest(func.__code__),
            self.token(func.__defaults__),
            self.token(func.__kwdefaults__),
            self.token({name: item for name, item in func.__dict__.items() if name != "__wrapped__"}),
        ]
        parts += [self._cell(cell) for cell in func.__closure__ or ()]
        if _is_script(home):
            for name in globals_read(func.__code__):
                value = func.__globals__.get(name, _UNBOUND)
                self.reads.append((func.__globals__, name, value))
                if value is not _UNBOUND:
                    parts += [_text(name), self.token(value)]
        return b"".join(parts)

    def _cell(self, cell: types.CellType) -> bytes:
        try:
            value = cell.cell_contents
        except ValueError:
            return b"E"
        return self.token(value)

    def _class(self, kind: type) -> bytes:
        if not _is_script(kind.__module__):
            return b"c" + _text(kind.__module__) + _text(kind.__qualname__)
        return self._by_name(kind) or self._class_body(kind)

    def _class_body(self, kind: type) -> bytes:
        parts = [b"C", _text(_settled_name(kind.__module__)), _text(kind.__qualname__), self.token(type(kind))]
        parts += [self.token(base) for base in kind.__bases__]
        members: Mapping[str, Any] = kind.__members__ if isinstance(kind, enum.EnumMeta) else {}
        parts += [self.token((name, member._value_)) for name, member in members.items()]
        for name, value in sorted(vars(kind).items()):
            if name not in members and _is_written(kind, name, value):
                parts += [_text(name), self.token(value)]
        return b"".join(parts)

    def _by_name(self, definition: Definition) -> bytes | None:
        module, name = definition.__module__, definition.__qualname__
        if not _found_at(module, name, definition):
            return None
        if _is_script(module):
            self.needs[id(definition)] = definition
        return b"N" + _text(_settled_name(module)) + _text(name)

    def _member(self, member: enum.Enum) -> bytes:
        return b"e" + self.token(type(member)) + self.token(member._name_) + self.token(member._value_)

    def _file(self, file: Any) -> bytes:
        return b"u" + _text(type(file).__qualname__) + _text(file.url)

    def _app(self, app: Any) -> bytes:
        return b"a" + _text(type(app).__name__) + self.token(peel(app.func).func)

    def _array(self, array: Any) -> bytes:
        kind = array.dtype
        if kind.names is None and kind.subdtype is None:
            described = _text(kind.str) + _text(kind.name)
        else:
            described = self.token(kind)
        data = self.token(array.tolist()) if kind.hasobject else array.tobytes()
        return b"n" + described + self.token(array.shape) + data

    def _descriptor(self, value: Any) -> bytes:
        if isinstance(value, property):
            return b"P" + b"".join(self.token(part) for part in (value.fget, value.fset, value.fdel))
        func = value.func if isinstance(value, functools.cached_property) else value.__func__
        return b"D" + _text(type(value).__qualname__) + self.token(func)

    def _object(self, value: object) -> bytes:
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise NoStableIdentity(
                f"a value of type {type(value).__qualname__} cannot be taken apart: {error}"
            ) from error
        if isinstance(reduced, str):
            return self._global(value, reduced)
        maker, args, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
        parts = [b"o", self.token(maker), self.token(args), self.token(state), self.token(setter)]
        if items is not None:
            parts += [self.token(list(items))]
        if pairs is not None:
            ordered = isinstance(value, OrderedDict)
            parts += [self.token(list(pairs)) if ordered else self.token(dict(pairs))]
        return b"".join(parts)

    def _global(self, value: object, name: str) -> bytes:
        """Return the token of an object that is its module's global ``name``."""
        module = getattr(value, "__module__", None) or pickle.whichmodule(value, name)  # type: ignore[attr-defined]
        if _is_script(module) and not isinstance(value, (types.BuiltinFunctionType, typing.TypeVar)):
            wrapped = getattr(value, "__wrapped__", None)
            if wrapped is None:
                raise NoStableIdentity(
                    f"{name} of the script is of type {type(value).__qualname__}, known only by name"
                )
            return b"W" + self.token(type(value)) + self.token(wrapped)
        return b"N" + self.token(_settled_name(module)) + _text(name)


@dataclass(frozen=True, slots=True)
class _Known:
    """The digest of a definition, without the bodies it needs."""

    digest: bytes
    needs: tuple[Definition, ...]
    reads: tuple[tuple[dict[str, object], str, object], ...]

    def holds(self) -> bool:
        return all(scope.get(name, _UNBOUND) is value for scope, name, value in self.reads)


_UNBOUND = object()
_DEFINITIONS: WeakKeyDictionary[Definition, _Known] = WeakKeyDictionary()


def _definition(definition: Definition) -> _Known:
    known = _DEFINITIONS.get(definition)
    if known is None or not known.holds():
        digester = Digester()
        if isinstance(definition, type):
            token = digester._class_body(definition)
        else:
            token = digester._function_body(definition)
        known = _Known(fingerprint(token), tuple(digester.needs.values()), tuple(digester.reads))
        _DEFINITIONS[definition] = known
    return known


@functools.lru_cache(maxsize=4096)
def _code_digest(code: types.CodeType) -> bytes:
    return fingerprint(Digester().token(essence(code)))


def _is_script(module: object) -> bool:
    """Tell whether definitions of a module are the script's own, and not those of a module anyone can import."""
    return module in ("__main__", "__mp_main__") or module not in sys.modules


def _settled_name(module: object) -> object:
    return "__main__" if module == "__mp_main__" else module


def _found_at(module: str, name: str, definition: Definition) -> bool:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if is_parsl(type(found), "parsl.app.app", "AppBase"):
        found = peel(found.func).func
    return found is definition


def _is_written(kind: type, name: str, value: object) -> bool:
    """Tell whether an attribute of a class stands in its body; Python, enum, abc and copyreg add others."""
    if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)) or name == "_abc_impl":
        return False
    dunder = name.startswith("__") and name.endswith("__")
    if dunder or (isinstance(kind, enum.EnumMeta) and name.startswith("_") and name.endswith("_")):
        if isinstance(value, (types.FunctionType, classmethod, staticmethod)) or name in (
            "__slots__",
            "__match_args__",
        ):
            return True
        return dunder and type(value) in _SCALARS and name not in _BOOKKEEPING
    return True


def _text(text: object) -> bytes:
    data = str(text).encode("utf-8", "surrogatepass")
    return b"t%d:%b" % (len(data), data)


@functools.lru_cache(maxsize=4096)
def _reader(kind: type) -> Callable[[Digester, Any], bytes]:
    """Return how values of a type that is not a scalar are read."""
    for types_, reader in _READERS:
        if kind in types_:
            return reader
    if issubclass(kind, type):
        return Digester._class
    if issubclass(kind, enum.Enum):
        return Digester._member
    if issubclass(kind, (set, frozenset)):
        return Digester._set
    if issubclass(kind, (property, classmethod, staticmethod, functools.cached_property)):
        return Digester._descriptor
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return Digester._array
    if is_parsl(kind, "parsl.data_provider.files", "File"):
        return Digester._file
    if is_parsl(kind, "parsl.app.app", "AppBase"):
        return Digester._app
    return Digester._object


_READERS: tuple[tuple[tuple[type, ...], Callable[[Digester, Any], bytes]], ...] = (
    ((list, tuple), Digester._sequence),
    ((dict,), Digester._mapping),
    ((set, frozenset), Digester._set),
    ((types.FunctionType,), Digester._function),
    ((types.CodeType,), Digester._code),
    ((types.ModuleType,), Digester._module),
)

_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"0",
    type(...): lambda value: b".",
    type(NotImplemented): lambda value: b"!",
    bool: lambda value: b"1T" if value else b"1F",
    int: lambda value: b"i%x;" % value,
    float: lambda value: b"r" + struct.pack(">d", value),
    complex: lambda value: b"z" + struct.pack(">dd", value.real, value.imag),
    str: _text,
    bytes: lambda value: b"b%d:%b" % (len(value), value),
}

#: Attributes of classes that tell nothing about what they do.
_BOOKKEEPING = frozenset({"__doc__", "__module__", "__qualname__", "__firstlineno__", "__dict__", "__weakref__"})
