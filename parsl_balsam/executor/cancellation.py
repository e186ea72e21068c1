"""Cancelling a call from the script."""

from __future__ import annotations

import time

from parsl.dataflow.futures import AppFuture
from parsl.dataflow.states import States

from parsl_balsam.executor.calls import refuse
from parsl_balsam.executor.executor import BalsamExecutor


def cancel(app_future: AppFuture) -> bool:
    """End a call and everything it started; its future raises `TaskCancelled` when that is done.

    A running task is killed with all processes it started, on whatever node. A call that still waits for other calls
    never starts; its future raises when they are over. Parsl does not retry it.

    Returns
    -------
    bool
        False if the call is over already, or runs on another kind of executor.
    """
    if app_future.done():
        return False
    record = app_future.task_record
    executor = record["dfk"].executors[record["executor"]]
    with record["task_launch_lock"]:
        if record["status"] is States.pending:
            record["func"] = refuse
            record["fail_cost"] = float("inf")
            return True
    if not isinstance(executor, BalsamExecutor):
        return False
    record["fail_cost"] = float("inf")  # Parsl retries whatever costs less than its `retries`
    while record["exec_fu"] is None:  # Parsl notes it a moment after it has called `submit`
        time.sleep(0.001)
    return executor.cancel(record["exec_fu"])
