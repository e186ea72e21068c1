"""Signs what a database has already: from before there were signatures, or signed with a key that is no more."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, Select, Table, bindparam, select

from parsl_balsam.db.connect import Database
from parsl_balsam.db.schema import arguments, results, runs, tasks
from parsl_balsam.db.upgrade import keep_others_out, refuse_while_in_use
from parsl_balsam.model.errors import InvalidResources
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.signing import Signer, unsealed, unsealed_order
from parsl_balsam.model.tasks import ClaimedTask

#: So many payloads are held in memory at a time.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed anew; what had a good signature is not counted."""

    calls: int
    results: int


def sign_all(database: Database, signer: Signer) -> Signed:
    """Sign all calls and results of a database, and what its launchers are told, whoever has written them.

    Raises
    ------
    DatabaseInUse
        If a script or a launcher works with the database. Nothing was changed, as after any other error.
    """
    with database.begin("sign_all") as connection:
        keep_others_out(connection)
        refuse_while_in_use(connection, database.url.render_as_string())
        counted = Signed(_sign(connection, signer, arguments), _sign(connection, signer, results))
        for row in connection.execute(select(runs.c.id, runs.c.launch_order).where(runs.c.launch_order.is_not(None))):
            order = signer.seal_order(unsealed_order(row.launch_order))
            connection.execute(runs.update().where(runs.c.id == row.id).values(launch_order=order))
    return counted


def _sign(connection: Connection, signer: Signer, payloads: Table) -> int:
    """Sign the payloads of one table; return how many were not signed well."""
    write = payloads.update().where(payloads.c.task_id == bindparam("task")).values(payload=bindparam("sealed"))
    query = _page(payloads)
    last = count = 0
    while rows := connection.execute(query, {"last": last}).all():
        anew = []
        for row in rows:
            try:
                spec = ResourceSpec.loads(row.spec)
            except InvalidResources:  # damaged: a signature would not make it good
                continue
            stored, plain = bytes(row.payload), unsealed(bytes(row.payload))
            task = ClaimedTask(
                row.id, 0, 0, bytes(row.key), row.occurrence, row.app, bytes(row.function), plain, spec, row.stderr
            )
            sealed = signer.seal_call(task) if payloads is arguments else signer.seal_result(task, plain)
            if sealed != stored:
                anew.append({"task": row.id, "sealed": sealed})
        if anew:
            connection.execute(write, anew)
        last = rows[-1].id
        count += len(anew)
    return count


def _page(payloads: Table) -> Select[tuple[object, ...]]:
    return (
        select(
            tasks.c.id,
            tasks.c.key,
            tasks.c.occurrence,
            tasks.c.app,
            tasks.c.function,
            tasks.c.spec,
            tasks.c.stderr,
            payloads.c.payload,
        )
        .join(payloads, payloads.c.task_id == tasks.c.id)
        .where(tasks.c.id > bindparam("last", type_=BigInteger()))
        .order_by(tasks.c.id)
        .limit(_AT_ONCE)
    )
