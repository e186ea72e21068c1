"""The tables. ``tasks`` is narrow, since launchers search it; payloads have tables of their own and are written once.

Times are seconds since the epoch on the database's clock.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
    text,
)

#: Raised by one whenever the tables change.
SCHEMA_VERSION = 4

metadata = MetaData()

# SQLite numbers rows by itself only where the column is exactly INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


def _partial(index: Index, rows: ColumnElement[bool]) -> None:
    """Have only some rows of its table in an index."""

    # When the table is made and not with the index: SQLAlchemy would import the code for both databases, which takes a
    # script as long as all the rest of this package.
    @event.listens_for(index.table, "before_create")
    def limit(_table: Table, connection: Connection, **_: object) -> None:
        index.dialect_options[connection.dialect.name]["where"] = rows


schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

workflows = Table(
    "workflows",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("current_run", BigInteger),
    # The number of the last transaction that ended tasks. Its row lock makes these numbers grow in commit order.
    Column("last_finish", BigInteger, nullable=False, server_default=text("0")),
    # While its queue takes no blocks, or they die at once, no other is requested.
    Column("pause_count", Integer, nullable=False, server_default=text("0")),
    Column("pause_until", Float),
    Column("pause_why", Text),
    UniqueConstraint("name", "label"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workflow_id", ForeignKey("workflows.id"), nullable=False, index=True),
    Column("parsl_run_id", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("host_key", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_started", Float, nullable=False),
    Column("retry_policy", Text, nullable=False),
    # What launchers started by hand must know, as JSON.
    Column("launch_order", Text),
    # The rules by which its blocks are requested, as JSON.
    Column("block_rules", Text),
    Column("started_at", Float, nullable=False),
    Column("lease_s", Float),
    Column("lease_until", Float, nullable=False),
    Column("ended_at", Float),
)

functions = Table(
    "functions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

blocks = Table(
    "blocks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workflow_id", ForeignKey("workflows.id"), nullable=False, index=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("name", Text, nullable=False),
    # The name of its batch job, by which it is found when the script dies before it learns the job's id.
    Column("tag", Text, nullable=False, unique=True),
    Column("scheduler", Text),
    Column("job_id", Text),
    Column("script", Text),
    # What was asked for, and why.
    Column("queue", Text),
    Column("requested_nodes", Integer),
    Column("walltime_min", Float),
    Column("why", Text),
    # What the scheduler said last.
    Column("job_state", Text),
    Column("job_reason", Text),
    # Who wants it ended before its time.
    Column("end_wish", Text),
    Column("state", Text, nullable=False),
    Column("host", Text),
    Column("pid", Integer),
    Column("requested_at", Float, nullable=False),
    Column("started_at", Float),
    Column("lease_s", Float, nullable=False),
    Column("lease_until", Float),
    Column("ended_at", Float),
    Column("reason", Text),
    # What its launcher found, less what it has lost since.
    Column("nodes", Integer),
    Column("cores_per_node", Integer),
    Column("gpus_per_node", Integer),
    Column("ends_at", Float),
    Column("lost_nodes", Text),
    # Where its launcher leaves what it cannot write here.
    Column("directory", Text),
)
#: Spelled out for the same reason as `IS_READY`.
IS_RUNNING = blocks.c.state == text("'running'")
IS_OPEN = blocks.c.state.in_(["requested", "running"])
_partial(Index("blocks_by_lease", blocks.c.lease_until), IS_RUNNING)

tasks = Table(
    "tasks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workflow_id", ForeignKey("workflows.id"), nullable=False),
    # The last run that asked for the task; launchers work for the workflow's current run only.
    Column("run_id", BigInteger, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("occurrence", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("app", Text, nullable=False),
    Column("function", LargeBinary, nullable=False),
    Column("priority", Integer, nullable=False),
    # What a launcher must know to tell whether it has room for the task; the rest is in the specification.
    Column("nodes", Integer, nullable=False),
    Column("cores", Integer),
    Column("packing", Integer),
    Column("gpus", Integer, nullable=False, server_default=text("0")),
    Column("parallel", Boolean, nullable=False, server_default=false()),
    Column("walltime_min", Float),
    Column("spec", Text),
    Column("stdout", Text),
    Column("stderr", Text),
    Column("ready_at", Float),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # Attempts up to this number belong to budgets already spent.
    Column("budget_from", Integer, nullable=False, server_default=text("0")),
    Column("block_id", BigInteger),
    Column("token", BigInteger),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("submitted_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("finish", BigInteger),
    UniqueConstraint("workflow_id", "key", "occurrence"),
)
#: Spelled out, not bound: SQLite uses an index of some rows only where the query says in so many words that it wants
#: these rows.
IS_READY = tasks.c.state == text("'ready'")
_partial(
    Index(
        "tasks_to_claim",
        tasks.c.workflow_id,
        tasks.c.run_id,
        tasks.c.priority.desc(),
        tasks.c.nodes.desc(),
        tasks.c.id,
    ),
    IS_READY,
)
_partial(Index("tasks_by_block", tasks.c.block_id), tasks.c.block_id.is_not(None))
_partial(Index("tasks_by_finish", tasks.c.workflow_id, tasks.c.finish), tasks.c.finish.is_not(None))

arguments = Table(
    "arguments",
    metadata,
    Column("task_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("task_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("block_id", BigInteger, nullable=False),
    Column("host", Text),
    Column("placement", Text),
    Column("claimed_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("outcome", Text),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("peak_memory", BigInteger),
    Column("cpu_time", Float),
    Column("error", Text),
    Column("output", Text),
    Column("stderr_tail", Text),
    PrimaryKeyConstraint("task_id", "number"),
    sqlite_with_rowid=False,
)

# SQLite's stand-in for NOTIFY; PostgreSQL does not use it.
notices = Table(
    "notices",
    metadata,
    Column("workflow_id", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    PrimaryKeyConstraint("workflow_id", "topic"),
)

events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("task_id", BigInteger, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
)
