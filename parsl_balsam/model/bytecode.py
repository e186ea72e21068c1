"""What compiled code does, apart from where it stands in which file and how it is commented."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types

#: Flags that change what a call does, and not how the function was compiled.
_MEANINGFUL_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


def essence(code: types.CodeType) -> tuple[object, ...]:
    """Return all of a code object that matters when it runs, as plain values and code objects.

    The names of its local variables do not. Bytecode is that of one minor version of Python.
    """
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return (
        code.co_name,
        code.co_code,
        _constants(code),
        code.co_names,
        code.co_freevars,
        code.co_cellvars,
        code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred],
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        code.co_flags & _MEANINGFUL_FLAGS,
        getattr(code, "co_exceptiontable", b""),
    )


@functools.lru_cache(maxsize=4096)
def globals_read(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code, and the functions defined in it, look up among globals, sorted.

    Names such as ``__file__``, which describe the module, are left out.
    """
    names = {step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL_READS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(globals_read(constant))
    return tuple(sorted(name for name in names if not (name.startswith("__") and name.endswith("__"))))


def _constants(code: types.CodeType) -> tuple[object, ...]:
    """Return the constants of code, without its docstring and line numbers."""
    constants = code.co_consts
    if not code.co_flags & inspect.CO_OPTIMIZED:
        # From Python 3.13 the body of a class stores the line it starts on.
        if "__firstlineno__" in code.co_names:
            return tuple(0 if item == code.co_firstlineno else item for item in constants)
        return constants
    if sys.version_info >= (3, 14):
        has_docstring = bool(code.co_flags & inspect.CO_HAS_DOCSTRING)
    else:
        has_docstring = not code.co_name.startswith("<") and isinstance(constants[0], (str, type(None)))
    if has_docstring and not _loads_first_constant(code):
        return ("", *constants[1:])
    return constants


def _loads_first_constant(code: types.CodeType) -> bool:
    """Tell whether the first constant is more than a docstring: the compiler merges equal constants."""
    operations, numbers = code.co_code[::2], code.co_code[1::2]
    return any(number == 0 and operation in dis.hasconst for operation, number in zip(operations, numbers, strict=True))
