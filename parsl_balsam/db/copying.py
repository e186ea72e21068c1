"""Rows to and from tables whose values may be large, in as few bytes and copies as each database allows.

The driver of PostgreSQL sends bytes as hexadecimal digits in the text of a statement, and gets them as such. COPY takes
and gives them as they are, which costs a third of the time for a mebibyte, and no more for small ones.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from struct import Struct
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Integer, LargeBinary, Select, Table, Text, case, event, func
from sqlalchemy.types import TypeEngine

from parsl_balsam.db.statement import Statement

#: What COPY's binary format begins and ends with: its name, no flags and no more in the head; a row of -1 columns.
_BEGINNING = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_END = b"\xff\xff"

_COUNT = Struct(">h")
_LENGTH = Struct(">i")
_NONE = _LENGTH.pack(-1)
_BIGINT = Struct(">q")

#: So much is handed to the driver at a time, bytes. It makes a copy of its own.
_PIECE_BYTES = 1 << 16

#: So few rows, of fewer bytes, are inserted by ordinary statements, which need not go to the server by themselves.
_FEW = 4
_LARGE_BYTES = 1 << 14

#: By which option of a statement the driver is given the rows, or the place for them.
_STREAM = "balsam_copy"


def enable_copying(engine: Engine) -> None:
    """Let the functions of this module use an engine of PostgreSQL."""

    # As an event: what goes wrong is then translated by SQLAlchemy as that of any other statement.
    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        stream = context.execution_options.get(_STREAM)
        if stream is None:
            return False
        cursor.copy_expert(cursor.mogrify(statement, parameters), stream)
        return True


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that have a value for every column: a BIGINT, a text, bytes, or None."""
    few = len(rows) <= _FEW and sum(len(row["payload"]) for row in rows) < _LARGE_BYTES
    if few or connection.dialect.name == "sqlite":
        _insert(table).run_each(connection, rows)
    else:
        names = table.columns.keys()
        statement = f"COPY {table.name} ({', '.join(names)}) FROM STDIN (FORMAT binary)"
        source = _Source([row[name] for name in names] for row in rows)
        connection.exec_driver_sql(statement, execution_options={_STREAM: source})


def short(payload: ColumnElement[bytes]) -> ColumnElement[bytes | None]:
    """Return a payload where it may come with other columns; NULL where it is for `select_rows`."""
    return case((func.length(payload) < _LARGE_BYTES, payload))


def select_rows(connection: Connection, query: Statement, **values: Any) -> Sequence[Any]:
    """Return the rows of a query whose columns are numbers, texts or bytes."""
    if connection.dialect.name == "sqlite":
        return query.rows(connection, **values)
    statement, constants, kind, readers = _prepared(query)
    sink = _Sink(readers)
    connection.exec_driver_sql(statement, {**constants, **values}, execution_options={_STREAM: sink})
    return [kind(*row) for row in sink.rows]


@cache
def _insert(table: Table) -> Statement:
    return Statement(table.insert(), *table.columns.keys())


@cache
def _prepared(query: Statement) -> tuple[str, Mapping[str, Any], Callable[..., Any], Sequence[Callable[..., Any]]]:
    from sqlalchemy.dialects.postgresql.psycopg2 import dialect as psycopg2_dialect

    dialect = psycopg2_dialect()  # type: ignore[no-untyped-call]
    element = query.element
    assert isinstance(element, Select)
    compiled = element.compile(dialect=dialect)
    columns = element.selected_columns
    return (
        f"COPY ({compiled.string}) TO STDOUT (FORMAT binary)",
        compiled.params,
        namedtuple("Row", columns.keys()),
        [_reader(column.type) for column in columns],
    )


def _reader(kind: TypeEngine[Any]) -> Callable[[memoryview], Any]:
    if isinstance(kind, Integer):
        return lambda data: int.from_bytes(data, "big", signed=True)
    if isinstance(kind, Text):
        return lambda data: str(data, "utf-8")
    assert isinstance(kind, LargeBinary), kind
    return bytes


class _Source:
    """Rows as a file for the driver to read."""

    def __init__(self, rows: Iterator[Sequence[Any]]) -> None:
        self._pieces = _pieces(rows)

    def read(self, _size: int) -> bytes:
        """Return the next piece; none at the end."""
        return next(self._pieces, b"")


def _pieces(rows: Iterator[Sequence[Any]]) -> Iterator[bytes]:
    waiting = bytearray(_BEGINNING)
    for row in rows:
        waiting += _COUNT.pack(len(row))
        for value in row:
            if isinstance(value, int):
                value = _BIGINT.pack(value)
            elif isinstance(value, str):
                value = value.encode()
            elif value is None:
                waiting += _NONE
                continue
            waiting += _LENGTH.pack(len(value))
            if len(value) < _PIECE_BYTES:
                waiting += value
            else:
                yield bytes(waiting)
                waiting.clear()
                for start in range(0, len(value), _PIECE_BYTES):
                    yield value[start : start + _PIECE_BYTES]
        if len(waiting) >= _PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting + _END)


class _Sink:
    """A file for the driver to write rows to."""

    def __init__(self, readers: Sequence[Callable[[memoryview], Any]]) -> None:
        self.rows: list[list[Any]] = []
        self._readers = readers
        self._begun = False
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Take what came, most often a whole row."""
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._begun and len(data) >= len(_BEGINNING):
            self._begun = True
            at = len(_BEGINNING)
        view = memoryview(data)
        while self._begun and (end := self._row(view, at)):
            at = end
        self._rest = data[at:]

    def _row(self, view: memoryview, at: int) -> int:
        """Take the row that begins at a place; return where it ends, 0 if that has not come yet."""
        at += _COUNT.size
        if at > len(view) or view[at - _COUNT.size : at] == _END:
            return 0
        row: list[Any] = []
        for read in self._readers:
            if at + _LENGTH.size > len(view):
                return 0
            (length,) = _LENGTH.unpack_from(view, at)
            at += _LENGTH.size
            if length < 0:
                row.append(None)
                continue
            if at + length > len(view):
                return 0
            row.append(read(view[at : at + length]))
            at += length
        self.rows.append(row)
        return at
