"""Many rows as one value: a JSON text that the database takes apart, so that they are written by one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    Dialect,
    Insert,
    LargeBinary,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine

#: SQLite takes no more than a gigabyte as one value, and to copy large ones first takes longer than it saves, bytes.
_MOST_BYTES = 1 << 20


def for_each(element: Any, names: Sequence[str] | None, dialect: Dialect) -> Any:
    """Return the statement that does what another does, for each of the rows in its parameters.

    Those are as `as_json` makes them; for SQLite, where the statement must be an INSERT, as `packed` does.
    """
    if isinstance(element, Insert):
        assert names is not None
        types = {name: element.table.c[name].type for name in names}
        if dialect.name == "sqlite":
            return element.from_select(list(names), _taken_apart(types))
        return element.from_select(list(names), select(*given_rows(types).c))
    binds = {name: bind for bind, name in element.compile(dialect=dialect).bind_names.items() if bind.required}
    given = given_rows({name: bind.type for name, bind in binds.items()})

    return replacement_traverse(
        element, {}, lambda element, **_: given.c[element.key] if getattr(element, "required", False) else None
    )


def packed(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """Return rows as the parameters of such a statement for SQLite; None if there is too much in them."""
    blobs = _Blobs()
    text = json.dumps([[row[name] for name in names] for row in rows], default=blobs.add)
    return {"rows": text, "blobs": b"".join(blobs.pieces)} if blobs.size <= _MOST_BYTES else None


def given_rows(types: Mapping[str, TypeEngine[Any]]) -> Any:
    """Return the rows in the parameter ``rows``, see `as_json`, as a table of PostgreSQL with these columns."""
    read = func.json_to_recordset(cast(bindparam("rows", type_=Text()), JSON()))
    columns = [column(name, kind) for name, kind in types.items()]
    return read.table_valued(*columns).render_derived(name="given", with_types=True)


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as `given_rows` takes them."""
    return json.dumps(rows, default=_digits)


def _digits(value: bytes) -> str:
    return f"\\x{value.hex()}"


class _Blobs:
    """Bytes in a row, and the place of each: SQLite cannot read hexadecimal digits before 3.41."""

    def __init__(self) -> None:
        self.pieces = [b"-"]  # sqlite3 binds what is empty as a NULL
        self.size = 1

    def add(self, value: bytes) -> tuple[int, int]:
        """Return where a value begins, counted from 1, and its length."""
        place = self.size + 1, len(value)
        self.pieces.append(value)
        self.size += len(value)
        return place


def _taken_apart(types: Mapping[str, TypeEngine[Any]]) -> Any:
    each = func.json_each(bindparam("rows", type_=Text())).table_valued("value", name="given")
    columns = []
    for place, (name, kind) in enumerate(types.items()):
        value = _extracted(each, f"$[{place}]")
        if isinstance(kind, LargeBinary):
            begin, length = (_extracted(each, f"$[{place}][{part}]") for part in range(2))
            value = func.substr(bindparam("blobs", type_=LargeBinary()), begin, length)
        columns.append(value.label(name))
    # The condition keeps SQLite from taking an ON CONFLICT for one of a join.
    return select(*columns).select_from(each).where(true())


def _extracted(each: Any, path: str) -> Any:
    return func.json_extract(each.c.value, literal_column(f"'{path}'"))
