"""Statements that are run for every few tasks: SQLAlchemy puts them together once, and the driver is given the text.

To hand one to SQLAlchemy each time takes many times as long as SQLite needs to carry it out. With PostgreSQL it is the
ways to the server that take time, and its reading and planning of statements: what only writes is put off, and goes
there with the next question, or the COMMIT; and each connection has a statement planned once, see
`parsl_balsam.db.prepared`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

from parsl_balsam.db.given import as_json, for_each, packed
from parsl_balsam.db.prepared import Plan, how_to_make, is_kept, is_unknown, make_plan, note_kept

#: In a connection's `info`: what was put off, as the server is to get it.
_UNSENT = "balsam_unsent"

#: So much is not put off any more, bytes.
_MUCH = 1 << 16

#: So many rows are quicker written by one statement each than by one that takes them apart.
_FEW = 3

#: A value on its way to the driver, or back.
_Process = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Text:
    """What is the same in each execution."""

    sql: str
    order: tuple[str, ...] | None  #: of the values, where the driver takes them by place; by name if None
    constants: Mapping[str, Any]
    given: tuple[tuple[str, _Process], ...]  #: values that the driver does not take as they are
    plan: Plan | None = None  #: what PostgreSQL keeps of it

    def bind(self, values: Mapping[str, Any]) -> Any:
        bound = {**self.constants, **values}
        for name, process in self.given:
            bound[name] = process(bound[name])
        return bound if self.order is None else tuple([bound[name] for name in self.order])


class Statement:
    """One statement, for both kinds of database.

    Parameters
    ----------
    element
        As SQLAlchemy has it, without values. Lists of values are for `parsl_balsam.db.among`.
    names
        The columns that an INSERT fills.
    keep
        Whether PostgreSQL plans it once for tables of all sizes.
    """

    def __init__(self, element: Select[Any] | Insert | Update | Delete, *names: str, keep: bool = True) -> None:
        self.element = element
        self._keep = keep
        self._names = list(names) or None
        self._texts: dict[str, _Text] = {}
        self._texts_of_many: dict[str, _Text] = {}
        self._rows: dict[str, Callable[[Sequence[Any]], Any]] = {}

    def rows(self, connection: Connection, **values: Any) -> list[Any]:
        """Return what is found or written: named tuples."""
        dialect = connection.dialect
        text = self._text(dialect)
        cursor = _execute(connection, text.sql, text.bind(values), text.plan)
        row_of = self._rows.get(dialect.name)
        if row_of is None:
            row_of = self._rows[dialect.name] = _row_of(self.element, dialect, cursor.description)
        return [row_of(row) for row in cursor.fetchall()]

    def first(self, connection: Connection, **values: Any) -> Any:
        """Return the first row; None if there is none."""
        return next(iter(self.rows(connection, **values)), None)

    def scalars(self, connection: Connection, **values: Any) -> list[Any]:
        """Return the first column."""
        return [row[0] for row in self.rows(connection, **values)]

    def run(self, connection: Connection, **values: Any) -> None:
        """Write."""
        self.run_each(connection, [values])

    def run_each(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> None:
        """Write once for each of these values."""
        text = self._text(connection.dialect)
        if connection.dialect.name != "sqlite":
            if len(many) > _FEW:
                _put_off(connection, self._text_of_many(connection.dialect), [{"rows": as_json(many)}])
            else:
                _put_off(connection, text, many)
        elif len(many) == 1:
            _execute(connection, text.sql, text.bind(many[0]))
        elif len(many) > _FEW and self._names is not None and (values := packed(many, self._names)) is not None:
            # With each row Python would let its other threads run, and one that only computes gives nothing back for
            # 5 ms: a busy script would hold the only write lock for seconds.
            together = self._text_of_many(connection.dialect)
            _execute(connection, together.sql, together.bind(values))
        else:
            _execute(connection, text.sql, [text.bind(values) for values in many], many=True)

    def _text(self, dialect: Dialect) -> _Text:
        text = self._texts.get(dialect.name)
        if text is None:
            text = self._texts[dialect.name] = _put_together(self.element, self._names, dialect, self._keep)
        return text

    def _text_of_many(self, dialect: Dialect) -> _Text:
        text = self._texts_of_many.get(dialect.name)
        if text is None:
            # How an UPDATE is best joined with its rows depends on how many there are in its table by then.
            each = for_each(self.element, self._names, dialect)
            text = _put_together(each, None, dialect, keep=isinstance(each, Insert))
            self._texts_of_many[dialect.name] = text
        return text


def execute(connection: Connection, sql: str) -> None:
    """Run a statement that needs no values, after those that were put off."""
    _execute(connection, sql, ())


def put_off_first(connection: Connection, sql: str) -> None:
    """Let a transaction start with a statement that needs no values. It is run with the next one."""
    connection.info[_UNSENT] = [sql.encode()]


def forget_unsent(connection: Connection) -> None:
    """Do not run what was put off."""
    connection.info.pop(_UNSENT, None)


def unsent(connection: Connection) -> int:
    """Return how many statements are put off."""
    return len(connection.info.get(_UNSENT, ()))


def send(connection: Connection) -> None:
    """Run what was put off."""
    if unsent(connection):
        _execute(connection, "", ())


def _put_off(connection: Connection, text: _Text, many: Sequence[Mapping[str, Any]]) -> None:
    if len(connection.engine.dispatch.before_cursor_execute) > 1:
        # Somebody but `parsl_balsam.db.postgres` listens, and may stop the transaction just before this statement.
        for values in many:
            _execute(connection, text.sql, text.bind(values), text.plan)
        return
    command = _command(connection, text.sql, text.plan)
    cursor = connection.connection.cursor()
    waiting = connection.info.setdefault(_UNSENT, [])
    waiting += [cursor.mogrify(command, text.bind(values)) for values in many]
    if sum(map(len, waiting)) > _MUCH:
        send(connection)


def _command(connection: Connection, sql: str, plan: Plan | None) -> str:
    """Return what the driver is given: the statement, or the call of its plan."""
    if plan is None:
        return sql
    if not is_kept(connection, plan):
        if (how := how_to_make(connection, plan)) is None:
            return sql
        # By itself: of several at once nobody could tell which were made when one fails. It may come before the BEGIN,
        # and outlives a ROLLBACK.
        cursor = connection.connection.cursor()
        try:
            cursor.execute(how)
        except BaseException as error:
            _fail(connection, cursor, plan.prepare, (), error)
        note_kept(connection, plan)
    return plan.call


def _put_together(element: Any, names: list[str] | None, dialect: Dialect, keep: bool = True) -> _Text:
    if isinstance(element, Insert):
        element = element.inline()  # or the number of the row would be asked for
    compiled = element.compile(dialect=dialect, column_keys=names)
    binds = {name: bind for bind, name in compiled.bind_names.items()}
    processes = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
    constants = {name: bind.effective_value for name, bind in binds.items() if not bind.required}
    for name in constants:
        if process := processes.pop(name):
            constants[name] = process(constants[name])
    return _Text(
        str(compiled),
        tuple(compiled.positiontup) if dialect.positional else None,
        constants,
        tuple((name, process) for name, process in processes.items() if process),
        make_plan(compiled) if keep and dialect.name != "sqlite" else None,
    )


def _row_of(element: Any, dialect: Dialect, description: Sequence[Sequence[Any]]) -> Callable[[Sequence[Any]], Any]:
    """Return what makes a named tuple of a row as the driver gives it."""
    columns = element.column_descriptions if isinstance(element, Select) else element.returning_column_descriptions
    kind: Any = namedtuple("Row", (column["name"] for column in columns))  # type: ignore[misc]
    processes = [
        (place, process)
        for place, (column, described) in enumerate(zip(columns, description, strict=True))
        if (process := column["type"].dialect_impl(dialect).result_processor(dialect, described[1]))
    ]
    return partial(_processed, kind, processes) if processes else kind._make


def _processed(kind: Any, processes: Sequence[tuple[int, _Process]], row: Sequence[Any]) -> Any:
    values = list(row)
    for place, process in processes:
        values[place] = process(values[place])
    return kind._make(values)


def _execute(connection: Connection, sql: str, values: Any, plan: Plan | None = None, many: bool = False) -> Any:
    pooled = connection.connection
    cursor = pooled.cursor()
    for hear in connection.engine.dispatch.before_cursor_execute:
        hear(connection, cursor, sql, values, None, many)
    command = _command(connection, sql, plan)
    waiting = pooled.info.pop(_UNSENT, None)
    try:
        if waiting:
            cursor.execute(b";".join([*waiting, cursor.mogrify(command, values)] if command else waiting))
        elif many:
            cursor.executemany(command, values)
        else:
            cursor.execute(command, values)
    except BaseException as error:
        _fail(connection, cursor, sql, values, error, many)
    return cursor


def _fail(
    connection: Connection, cursor: Any, sql: str, values: Any, error: BaseException, many: bool = False
) -> NoReturn:
    """Raise an error of the driver as SQLAlchemy does."""
    driver = connection.dialect.loaded_dbapi
    # A connection that was lost, or left in the middle of an answer, is not used again.
    lost = not isinstance(error, Exception) or (
        isinstance(error, driver.Error)
        and (
            connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
            or is_unknown(connection, getattr(error, "pgcode", None))
        )
    )
    if lost:
        connection.invalidate(error)
    if not isinstance(error, driver.Error):
        raise error
    wrapped = DBAPIError.instance(
        sql, values, error, driver.Error, connection_invalidated=lost, dialect=connection.dialect, ismulti=many
    )
    raise wrapped from error
