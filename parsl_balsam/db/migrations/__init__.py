"""The changes of the tables from each version of the schema to the next, in Alembic's operations.

A step must never change once it is released: it may use neither `parsl_balsam.db.schema`, which is of today, nor the
rules of `parsl_balsam.model`. The number in the table ``schema_version`` says which steps a database has behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alembic.operations import Operations

from parsl_balsam.db.migrations import version_2, version_3, version_4

#: What makes each version of the one before.
STEPS: Mapping[int, Callable[[Operations], None]] = {
    2: version_2.upgrade,
    3: version_3.upgrade,
    4: version_4.upgrade,
}

#: What users must know of a version besides.
NOTES: Mapping[int, str] = {
    2: "Calls are recognised in another way since version 2: tasks from before keep their results and their history, "
    "but scripts that call them again start new ones, except for calls with a `key` of their own.",
    4: "Calls and results are signed since version 4; others are neither run nor read. If nobody else could "
    "write to this database, sign what it has: parsl-balsam db sign --database WHERE",
}
