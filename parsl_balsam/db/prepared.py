"""Plans that PostgreSQL keeps: each connection lets a statement be read and planned once, and calls it by name then.

To read and plan a statement takes the server longer than to carry it out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.types import ARRAY, BigInteger, NullType, TypeEngine

from parsl_balsam.db.among import Values

#: In a connection's `info`: names of the plans it has.
_KEPT = "balsam_plans"

#: Plans are made once, and for tables of any size: while a table is small all ways are equally short, and by the time
#: it is large a plan would be kept that reads all of it. JIT is for what looks dear: then all that reads a table does.
_SETTINGS = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; "
)

#: psycopg2's number for a connection outside of transactions. Who works with SQLite does not import it.
_IDLE = 0

#: How the server says that it does not know a plan, or knows another by its name: somebody between us gives each
#: transaction another connection.
_SHARED = ("26000", "42P05")

#: How it says that the columns of a table have changed since.
_STALE = "0A000"

#: Whose connections are shared so.
_without: WeakSet[Engine] = WeakSet()


@dataclass(frozen=True, slots=True)
class Plan:
    """A statement as PostgreSQL keeps it."""

    name: str
    prepare: str
    call: str  #: with places for values as the driver has them


def make_plan(compiled: Any) -> Plan:
    """Return the plan of a statement that SQLAlchemy has put together."""
    # What is always the same is a value, too, unless it is spelled out: that says which rows are in the index to use.
    binds = {name: bind.type for bind, name in compiled.bind_names.items()}
    types = ", ".join(_type_name(kind, compiled.dialect) for kind in binds.values())
    values = ", ".join(f"%({name})s" for name in binds)
    statement = str(compiled) % {name: f"${place}" for place, name in enumerate(binds, 1)}
    body = f"({types}) AS {statement}" if binds else f" AS {statement}"
    # By what it is: wherever a name is known, it means the same.
    name = f"balsam_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    return Plan(name, f"PREPARE {name}{body}", f"EXECUTE {name}({values})" if binds else f"EXECUTE {name}")


def _type_name(kind: TypeEngine[Any], dialect: Dialect) -> str:
    if isinstance(kind, NullType):
        return "unknown"  # the server finds out
    return (ARRAY(BigInteger()) if isinstance(kind, Values) else kind).compile(dialect=dialect)


def is_kept(connection: Connection, plan: Plan) -> bool:
    """Tell whether a connection has a plan."""
    return plan.name in connection.info.get(_KEPT, ())


def how_to_make(connection: Connection, plan: Plan) -> str | None:
    """Return what gives a connection a plan; None where it can have none, now or at all."""
    if connection.engine in _without:
        return None
    if _KEPT in connection.info:
        return plan.prepare
    # A connection with other statements only, as the command line has, goes on as it is. Not in a transaction:
    # a ROLLBACK takes settings back, but not plans.
    idle = connection.connection.dbapi_connection.get_transaction_status() == _IDLE  # type: ignore[union-attr]
    return f"{_SETTINGS}{plan.prepare}" if idle else None


def note_kept(connection: Connection, plan: Plan) -> None:
    """Remember that a connection has a plan."""
    connection.info.setdefault(_KEPT, set()).add(plan.name)


def is_unknown(connection: Connection, code: str | None) -> bool:
    """Tell by the server's code of an error whether a plan is not what we thought. The transaction may be repeated.

    If plans do not stay where they are made, there will be no more of them.
    """
    if code in _SHARED:
        _without.add(connection.engine)
    return code in (*_SHARED, _STALE)
