"""Cancelling a call from the script."""

from __future__ import annotations

from typing import Any

from parsl.dataflow.futures import AppFuture

from parsl_balsam.model.errors import TaskCancelled


def cancel(app_future: AppFuture) -> bool:
    """End a call and everything it started; its future raises `TaskCancelled` when that is done.

    A running task is killed with all processes it started, on whatever node. A call that still waits for other calls never
    starts. Parsl does not retry it.

    Returns
    -------
    bool
        False if the call is over already, or runs on another kind of executor.
    """
    if app_future.done():
        return False
    record = app_future.task_record
    record["fail_cost"] = float("inf")  # Parsl retries whatever costs less than its `retries`
    submitted = record["exec_fu"]
    if submitted is None:
        record["func"] = _cancelled
        return True
    executor = record["dfk"].executors[record["executor"]]
    return hasattr(executor, "cancel") and executor.cancel(submitted)


def _cancelled(*args: Any, **kwargs: Any) -> None:
    raise TaskCancelled("the call was cancelled before it was submitted")
