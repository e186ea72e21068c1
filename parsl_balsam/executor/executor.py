"""The executor that users put into their Parsl configuration."""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import typeguard
from parsl.data_provider.staging import Staging
from parsl.executors.errors import BadStateException
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobStatus
from parsl.monitoring.radios.base import RadioConfig
from parsl.monitoring.radios.filesystem import FilesystemRadio
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.utils import RepresentationMixin

from parsl_balsam.db.connect import Address, open_database, resolve
from parsl_balsam.db.drivers import is_dead, this_process
from parsl_balsam.db.keyfile import read_or_make_key
from parsl_balsam.db.runs import begin_run, end_run
from parsl_balsam.db.tasks import TaskStore
from parsl_balsam.executor.adoption import can_adopt, trusted_order
from parsl_balsam.executor.blocks import BlockBook, write_order
from parsl_balsam.executor.calls import CallBook, TaskFuture
from parsl_balsam.executor.completion import Completion
from parsl_balsam.executor.heartbeat import Heartbeat
from parsl_balsam.executor.limits import limits_of, take_launcher, walltime_of
from parsl_balsam.executor.pending import Pending
from parsl_balsam.executor.scaling import ScalingExecutor
from parsl_balsam.executor.submission import ReuseCounts, Submission
from parsl_balsam.model.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    RunEnded,
    TaskCancelled,
)
from parsl_balsam.model.launch import JobMode, LaunchOrder
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.retry import RetryPolicy
from parsl_balsam.model.signing import Signer
from parsl_balsam.model.states import TaskState
from parsl_balsam.providers.batch import BatchProvider
from parsl_balsam.providers.policy import QueuePolicy

logger = logging.getLogger(__name__)

#: How long a clean end waits for local launchers to stop what runs, and for the database, seconds.
_SHUTDOWN_S = 15.0


class BalsamExecutor(ScalingExecutor, RepresentationMixin):
    """Runs apps as durable tasks of a database, in blocks requested through a provider.

    Every call is recorded before it runs, and so is every attempt to run it. When the script is killed and started
    again with the same ``workflow``, calls that are finished return their recorded results, calls that wait or run are
    attached to, and retries go on counting where they were.

    Parameters
    ----------
    label
        Name of this executor, unique within the configuration.
    workflow
        Name of the campaign. A call means the same task in all runs with the same name. Without a name, every run is
        its own workflow and shares nothing.
    database
        Where tasks live: an SQLAlchemy URL such as ``sqlite:///balsam.db`` or ``postgresql://user:password@host/name``,
        or a directory made by ``parsl-balsam db init``. SQLite serves one host; blocks on other hosts need PostgreSQL.
    provider
        Where blocks come from. By default a `parsl.providers.LocalProvider` with one block on this host.
    max_retries
        How often a task that failed by its own doing is tried again.
    retry
        The whole policy, with pauses between tries and exit codes that are final. It replaces `max_retries` and
        `max_crashes`.
    max_crashes
        How many attempts of a task may be ended by the death of its worker, node or launcher before it counts as
        failed.
    cores_per_node
        Cores that tasks may use on each node. By default all that the node has.
    gpus_per_node
        GPUs that tasks may use on each node. By default all that the node is known to have.
    mpi
        How programs of several ranks are started: ``srun``, ``hydra`` (MPICH, Intel MPI, PALS), ``openmpi``, ``aprun``,
        ``jsrun``, ``none``, or ``auto`` for what the block's batch system and PATH suggest.
    job_mode
        ``mixed`` runs any task, and those of one process need no MPI launcher. ``serial`` runs only these. ``mpi``
        starts every task by the MPI launcher on nodes of its own, for launchers that cannot share a node (``aprun``,
        ``jsrun``).
    address
        A name or address of the block's first node at which the other nodes reach it. By default all that it has are
        tried.
    agent_timeout_s
        A node of a block that has not reported after this time is left out, seconds.
    task_defaults
        A ``parsl_resource_specification`` for calls that do not say otherwise.
    idle_timeout_s
        A launcher without work for this time ends, seconds. A new block is requested when work comes.
    lease_s
        After this time without a sign of life, in seconds, a launcher's tasks are given to others, and a run on another
        host may be succeeded.
    queue_policy
        The queues' rules, by which each block is sized for the tasks that wait. Without it all blocks have the
        provider's ``nodes_per_block`` and ``walltime``, and Parsl's strategy decides how many there are.
    on_exit
        What becomes of blocks when the script ends: ``cancel`` ends them, ``keep`` lets them go on with what is ready.
        Those of a script that was killed go on, too; the next run of the workflow adopts them.
    block_pause_s
        After a block was refused or died at once no other is requested for this time, seconds, doubled each time up to
        an hour. Tasks stay ready meanwhile.
    working_dir
        Where Parsl's staging providers put files.
    storage_access
        Staging providers of this executor.
    remote_monitoring_radio
        How tasks report to Parsl's monitoring. By default through the file system.
    block_error_handler
        True to have Parsl fail all calls when all blocks have failed; a function to judge them yourself. By default
        failing blocks only make pauses, see `block_pause_s`.

    Raises
    ------
    ConfigurationError
        If arguments are wrong or do not go together.
    """

    @typeguard.typechecked
    def __init__(
        self,
        label: str = "balsam",
        workflow: str | None = None,
        database: str | os.PathLike[str] = "sqlite:///balsam.db",
        provider: ExecutionProvider | None = None,
        max_retries: int = 0,
        retry: RetryPolicy | None = None,
        max_crashes: int = 3,
        cores_per_node: int | None = None,
        gpus_per_node: int | None = None,
        mpi: Literal["auto", "srun", "hydra", "openmpi", "aprun", "jsrun", "none"] = "auto",
        job_mode: Literal["mixed", "serial", "mpi"] = "mixed",
        address: str | None = None,
        agent_timeout_s: float = 120.0,
        task_defaults: dict[str, Any] | None = None,
        idle_timeout_s: float = 300.0,
        lease_s: float = 30.0,
        queue_policy: QueuePolicy | None = None,
        on_exit: Literal["cancel", "keep"] = "cancel",
        block_pause_s: float = 60.0,
        working_dir: str | None = None,
        storage_access: list[Staging] | None = None,
        remote_monitoring_radio: RadioConfig | None = None,
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None] = False,
    ) -> None:
        super().__init__(provider=provider or LocalProvider(), block_error_handler=block_error_handler)
        if retry is not None and (max_retries, max_crashes) != (0, 3):
            raise ConfigurationError("give either retry or max_retries and max_crashes: retry has both inside")
        if workflow == "":
            raise ConfigurationError("workflow is empty: give it a name, or leave it out")
        positive = {
            "idle_timeout_s": idle_timeout_s,
            "lease_s": lease_s,
            "cores_per_node": cores_per_node,
            "agent_timeout_s": agent_timeout_s,
            "block_pause_s": block_pause_s,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ConfigurationError(f"{name}={value!r} must be greater than zero")
        if gpus_per_node is not None and gpus_per_node < 0:
            raise ConfigurationError(f"gpus_per_node={gpus_per_node!r} must not be negative")
        if queue_policy is not None and not isinstance(self.provider, BatchProvider):
            raise ConfigurationError(
                f"queue_policy sizes each block, and {type(self.provider).__name__} makes all of one size: "
                "use SlurmProvider or CobaltProvider of parsl_balsam"
            )
        take_launcher(self.provider)
        self._address = resolve(os.fspath(database))
        if self._address.get_backend_name() == "sqlite" and not isinstance(self.provider, LocalProvider):
            raise ConfigurationError(
                f"{type(self.provider).__name__} starts blocks on other hosts, and SQLite serves one host only: set up "
                "PostgreSQL with 'parsl-balsam db init DIR' and 'parsl-balsam db start DIR', then pass database='DIR'"
            )
        self.label = label
        self.workflow = workflow
        self.database = self._address.render_as_string() if "://" in str(database) else os.fspath(database)
        self.max_retries = max_retries
        self.retry = retry
        self.max_crashes = max_crashes
        self.cores_per_node = cores_per_node
        self.gpus_per_node = gpus_per_node
        self.mpi = mpi
        self.job_mode = job_mode
        self.address = address
        self.agent_timeout_s = agent_timeout_s
        self.task_defaults = task_defaults
        self.idle_timeout_s = idle_timeout_s
        self.lease_s = lease_s
        self.queue_policy = queue_policy
        self.on_exit = on_exit
        self.block_pause_s = block_pause_s
        self.working_dir = working_dir
        self.storage_access = storage_access
        self.remote_monitoring_radio = remote_monitoring_radio or FilesystemRadio()
        self._policy = retry or RetryPolicy(max_retries=max_retries, max_crashes=max_crashes)
        self._defaults = ResourceSpec.parse(task_defaults or {})
        self._limits = limits_of(self.provider, cores_per_node, gpus_per_node, JobMode(job_mode), queue_policy)
        self._pending = Pending()
        self._counting = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Open the database, become the workflow's driver and request the first blocks.

        Raises
        ------
        DatabaseUnavailable, SchemaMismatch
            If the database cannot be used.
        ConfigurationError
            If others can read the user's key file, or it cannot be made.
        WorkflowBusy
            If another run drives the workflow.
        """
        super().start()
        key = read_or_make_key()
        signer = Signer(key)
        self._calls = CallBook(self.workflow is not None, signer)
        self._db = open_database(self._address.render_as_string(hide_password=False))
        name = self.workflow if self.workflow is not None else f"run {uuid.uuid4()}"
        order = LaunchOrder(
            database="",
            workflow_id=0,
            lease_s=self.lease_s,
            idle_timeout_s=self.idle_timeout_s,
            cores_per_node=self.cores_per_node,
            python_path=tuple(os.path.abspath(entry) for entry in sys.path),
            directory=str(Path(self.run_dir).absolute() / self.label),
            nodes=self._limits.nodes if isinstance(self.provider, LocalProvider) else None,
            gpus_per_node=self.gpus_per_node,
            walltime_s=walltime_of(self.provider),
            mpi=self.mpi,
            job_mode=JobMode(self.job_mode),
            address=self.address,
            agent_timeout_s=self.agent_timeout_s,
        )
        try:
            self._run = begin_run(
                self._db,
                name,
                self.label,
                str(self.run_id),
                this_process(),
                is_dead,
                self._policy,
                self.lease_s,
                signer.seal_order(order.dumps()),
                self._limits.rules(self.provider.max_blocks).dumps(),
                lambda job: can_adopt(self.provider, job, trusted_order(job, signer), order),
            )
        except Exception:
            self._db.close()
            raise
        store = TaskStore(self._db, self._run.workflow_id, self._run.run_id)
        self._completion = Completion(
            self._db, self._run.workflow_id, store, self._pending, signer, self._run.finish, self._on_end
        )
        self._submission = Submission(self._db, store, self._pending, self._completion, self.set_bad_state_and_fail_all)
        self._heartbeat = Heartbeat(self._db, self._run.run_id, self.lease_s, self.set_bad_state_and_fail_all)
        self._blocks = BlockBook(self._db, self._run, self.lease_s, self.block_pause_s)
        if self.queue_policy is not None:
            from parsl_balsam.executor.planner import Planner

            self._planner = Planner(self._db, self._run.workflow_id, self.queue_policy, self._limits)
        self._order_file = self._write(order, key)
        for job in self._run.adopted:
            theirs = trusted_order(job, signer)
            if job.scheduler and theirs and not job.running:  # the database may have moved since
                self._write(theirs, key)
        for thread in (self._completion, self._submission, self._heartbeat):
            thread.start()
        self.start_blocks(self._run)

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any] | None, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Take a call, and return the future of what it returns.

        Raises
        ------
        InvalidResources
            If the resource specification has an unknown key or a wrong value.
        ImpossibleTask
            If no block could run the call.
        NotSerializable
            If the function or an argument cannot be turned into bytes.
        TaskCancelled
            If the call was cancelled before it came here.
        """
        if self._closed:
            raise RunEnded(f"executor {self.label!r} was shut down: nothing can be called any more")
        if self.bad_state_is_set:
            raise self.executor_exception
        spec = ResourceSpec.parse({} if resource_specification is None else resource_specification, self._defaults)
        self._limits.check(spec)
        call, body = self._calls.enter(func, spec, args, kwargs)
        future = TaskFuture(call.key, call.occurrence)
        if self._calls.was_cancelled(call.key):
            future.set_exception(TaskCancelled(f"a call like this one of {call.app} was cancelled in this run"))
            return future
        future.weight = self._limits.weight(spec)
        with self._counting:
            self._work += future.weight
            self._tasks[future] = future
        self._submission.put(call, body, future)
        if self.bad_state_is_set and self._forget(future):  # it came about just now, without this future
            future.fail(BadStateException(self, self.executor_exception))
        return future

    def cancel(self, future: Future[Any]) -> bool:
        """End the task of a future that `submit` returned; return False if it is over already."""
        if future not in self._tasks or not isinstance(future, TaskFuture):
            return False
        future.cancel_wanted = True
        self._submission.cancel(future)
        return True

    def reuse_counts(self, app: str | None = None) -> ReuseCounts:
        """Return how many calls, of one app or all, met a recorded result, a task that waits or runs, or nothing."""
        return self._submission.counts(app)

    def shutdown(self) -> None:
        """Record what was submitted, see the blocks off, and give the workflow free. What has not run stays ready."""
        if self._closed or not hasattr(self, "_run"):  # it never started
            super().shutdown()
            return
        self._closed = True
        self._submission.close(_SHUTDOWN_S)
        if self.on_exit == "cancel":
            self.see_off_blocks(_SHUTDOWN_S)
        self._completion.close(_SHUTDOWN_S)
        for future in list(self._tasks):
            self._on_end(future, TaskState.READY)
            future.fail(RunEnded("the run ended before the task; run the script again with the same workflow to go on"))
        self._heartbeat.close(_SHUTDOWN_S)
        try:
            if self._heartbeat.is_alive():
                raise DatabaseUnavailable(f"the database has not answered for {_SHUTDOWN_S:g} s")
            end_run(self._db, self._run.run_id)
        except DatabaseUnavailable as error:
            logger.warning("the end of the run could not be recorded: %s", error)
        self._db.close()
        super().shutdown()

    @property
    def database_url(self) -> Address:
        """Where tasks live."""
        return self._address

    @property
    def workers_per_node(self) -> int:
        """How many one-core tasks run on a node at a time, as far as can be told here."""
        return self._limits.cores or 1

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        """Fail all calls, now and from now on."""
        logger.error("executor %s fails: %s", self.label, exception)
        self._executor_exception = exception
        self._executor_bad_state.set()
        for future in list(self._tasks):
            self._forget(future)
            future.fail(BadStateException(self, exception))

    def _write(self, order: LaunchOrder, key: bytes) -> Path:
        told = replace(order, database=self._db.address, workflow_id=self._run.workflow_id, key=key.hex())
        return write_order(told)

    def _forget(self, future: TaskFuture) -> bool:
        """Count a call no more; return False if it was not counted."""
        with self._counting:
            if self._tasks.pop(future, None) is None:
                return False
            self._work -= future.weight
            return True

    def _on_end(self, future: TaskFuture, state: TaskState) -> None:
        # Parsl's error handler fails all futures that it finds here: out with it before it is completed.
        self._forget(future)
        if state is not TaskState.READY:
            self._calls.note_end(future, state)
