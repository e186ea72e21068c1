"""States of tasks and blocks, outcomes of attempts, and which changes are legal."""

from __future__ import annotations

from enum import Enum


class TaskState(str, Enum):
    """Where a task is in its life."""

    READY = "ready"  # waits for a launcher to claim it
    ASSIGNED = "assigned"  # claimed by a block, not started
    RUNNING = "running"  # its attempt has a process
    DONE = "done"  # has a recorded result
    FAILED = "failed"  # out of tries
    CANCELLED = "cancelled"  # ended by the user's wish


class Outcome(str, Enum):
    """How an attempt ended."""

    DONE = "done"  # returned a value
    ERROR = "error"  # raised an exception
    EXIT = "exit"  # a bash app's command exited with a non-zero code
    TIMEOUT = "timeout"  # exceeded the task's own limit
    CRASH = "crash"  # died by signal or lack of memory, or its node or launcher was lost
    ENDED = "ended"  # stopped with its block: walltime, drain, scale-in; costs nothing
    CANCELLED = "cancelled"  # stopped by the user's wish


class BlockState(str, Enum):
    """Where a block is in its life."""

    REQUESTED = "requested"  # recorded; its batch job may or may not be known to the scheduler
    RUNNING = "running"  # its launcher holds a lease
    ENDED = "ended"  # its launcher said goodbye
    LOST = "lost"  # its launcher's lease ran out and its tasks were taken back


class JobState(str, Enum):
    """Where a batch job is in its life, as its scheduler says."""

    PENDING = "pending"  # waits for nodes
    HELD = "held"  # waits for somebody to release it
    RUNNING = "running"  # has nodes, or is being cleaned up
    COMPLETED = "completed"  # ended by itself, in good order
    FAILED = "failed"  # ended by itself with an error, or lost its nodes
    CANCELLED = "cancelled"  # ended by a user's or an administrator's wish, or preempted
    TIMEOUT = "timeout"  # ended by its walltime
    MISSING = "missing"  # over; how it ended is not known


#: States in which a job stays.
JOB_OVER: frozenset[JobState] = frozenset(
    {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT, JobState.MISSING}
)

#: Ends of jobs that say nothing against the tasks that ran there.
JOB_ENDED: frozenset[JobState] = frozenset({JobState.CANCELLED, JobState.TIMEOUT})


#: States in which a task stays unless the user says otherwise.
TERMINAL: frozenset[TaskState] = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})

#: States in which a launcher holds the task.
HELD: frozenset[TaskState] = frozenset({TaskState.ASSIGNED, TaskState.RUNNING})

#: Outcomes that are the app's own doing and count against ``max_retries``.
FAILURES: frozenset[Outcome] = frozenset({Outcome.ERROR, Outcome.EXIT, Outcome.TIMEOUT})

#: Changes made by launchers, runs and reaping.
LEGAL: frozenset[tuple[TaskState, TaskState]] = frozenset(
    {
        (TaskState.READY, TaskState.ASSIGNED),
        (TaskState.ASSIGNED, TaskState.RUNNING),
        (TaskState.ASSIGNED, TaskState.READY),
        (TaskState.ASSIGNED, TaskState.FAILED),
        (TaskState.RUNNING, TaskState.READY),
        (TaskState.RUNNING, TaskState.DONE),
        (TaskState.RUNNING, TaskState.FAILED),
        (TaskState.READY, TaskState.CANCELLED),
        (TaskState.ASSIGNED, TaskState.CANCELLED),
        (TaskState.RUNNING, TaskState.CANCELLED),
    }
)

#: Changes that only an explicit wish makes: ``retry``, or a new run that calls the task again.
REOPENED: frozenset[tuple[TaskState, TaskState]] = frozenset(
    {(TaskState.FAILED, TaskState.READY), (TaskState.CANCELLED, TaskState.READY)}
)
