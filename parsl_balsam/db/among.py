"""``column IN (many values)`` as one statement, whatever their number.

A list of bound values makes a new statement for every length, which driver and database then prepare and keep. Here the
list is one value: an array on PostgreSQL, a JSON text on SQLite.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import BindParameter, Boolean, ColumnElement, Dialect, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import Text, TypeDecorator
from typing_extensions import Self


class Values(TypeDecorator[list[int]]):
    """A list of numbers."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: list[int] | None, dialect: Dialect) -> Any:
        """Return what the driver is given."""
        return json.dumps(value) if dialect.name == "sqlite" else value


class _Among(ColumnElement[bool]):
    type = Boolean()
    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012
        ("column", InternalTraversal.dp_clauseelement),
        ("values", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, column: ColumnElement[int], values: BindParameter[list[int]]) -> None:
        self.column = column
        self.values = values

    def self_group(self, against: Any = None) -> Self:
        # Where booleans are numbers SQLAlchemy would compare it to 1, and SQLite would then not use the column's index.
        return self


def among(column: ColumnElement[int], values: Iterable[int] | str) -> ColumnElement[bool]:
    """Return the condition that an integer column has one of these values, or of those in the parameter so named."""
    if isinstance(values, str):
        return _Among(column, bindparam(values, type_=Values()))
    return _Among(column, bindparam(None, list(values), type_=Values(), unique=True))


@compiles(_Among, "sqlite")
def _sqlite(element: _Among, compiler: SQLCompiler, **kw: Any) -> str:
    return (
        f"({compiler.process(element.column, **kw)} IN "
        f"(SELECT value FROM json_each({compiler.process(element.values, **kw)})))"
    )


@compiles(_Among, "postgresql")
def _postgresql(element: _Among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.column, **kw)} = ANY({compiler.process(element.values, **kw)}::bigint[]))"
