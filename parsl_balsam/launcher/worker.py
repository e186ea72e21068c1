"""Runs one call at a time: captures what it returns or raises, what it used, and leaves the process as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.capture import Capture, tail_of_file
from parsl_balsam.launcher.channel import Channel, RecentlyUsed, complaint
from parsl_balsam.launcher.messages import Ended, Start
from parsl_balsam.launcher.processes import has_children, kill, sweep_all
from parsl_balsam.launcher.program import MeteredPopen
from parsl_balsam.launcher.ranks import OnEveryRank, enter, launch_of
from parsl_balsam.launcher.tickets import SharedLease, Tickets
from parsl_balsam.launcher.usage import Meter
from parsl_balsam.model.errors import BadMessage, NotSerializable, TaskCrashed, UnreadablePayload
from parsl_balsam.model.layers import dress
from parsl_balsam.model.payload import decode, encode, is_plain
from parsl_balsam.model.resources import Launch
from parsl_balsam.model.states import Outcome
from parsl_balsam.model.tasks import Usage
from parsl_balsam.model.wrappers import peel

#: Results up to this size are read back once before they are called good, bytes.
_CHECKED_BYTES = 1 << 20

#: A traceback longer than this loses its beginning, characters.
_LONGEST_ERROR = 64 * 1024


def serve(channel: Channel, capture: Capture, tickets: Tickets, lease: SharedLease) -> NoReturn:
    """Run calls until the agent is gone.

    Parameters
    ----------
    capture
        What stdout and stderr are.
    tickets
        Those of calls that the agent may take back.
    lease
        Without which none of these begins.

    Raises
    ------
    BadMessage
        If the agent cannot be understood any more.
    """
    # The agent ignores or handles these; what a task starts must find them as any program does.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    subprocess.Popen = MeteredPopen  # type: ignore[misc]
    worker = _Worker()
    while True:
        try:
            start = channel.receive()
        except EOFError:
            os._exit(0)
        if type(start) is not Start:
            raise BadMessage(f"its agent sent what cannot be read: {complaint(start)}")
        if start.ticket:
            lease.wait()
            if not tickets.take(start.ticket):
                worker.pass_over(start)
                continue
        ended = worker.run(start)
        # Before the next call, which may be here already, prints anything.
        output = capture.take()
        channel.send(ended if output is None else ended._replace(output=output))


class _Worker:
    def __init__(self) -> None:
        from parsl.app.errors import RemoteExceptionWrapper

        self._exception = RemoteExceptionWrapper
        self._functions = RecentlyUsed()
        # What `environb` is a view of. That one is Python code, name by name: it takes longer than a small task.
        self._environ: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined]
        self._found = self._environ.copy()  # by the task
        self._tells_threads = b"OMP_NUM_THREADS" not in self._found
        self._directory = os.getcwd()
        self._cores: tuple[int, ...] = ()
        self._meter = Meter()

    def run(self, start: Start) -> Ended:
        self._functions.use(start.function)
        self._enter(start)
        self._meter.start()
        value, error = self._call(start)
        usage = self._meter.stop()
        ended = self._report(start, value, error, usage)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        self._leave()
        return ended

    def pass_over(self, start: Start) -> None:
        """Leave a call alone that was taken back, and keep its function: it is not sent again."""
        self._functions.use(start.function)
        try:
            self._learn(start)
        except UnreadablePayload:  # those that need it say so
            pass

    def _learn(self, start: Start) -> None:
        if start.body is not None:
            self._functions[start.function] = (decode(start.body), start.body)

    def _enter(self, start: Start) -> None:
        if start.pin and start.cores != self._cores:
            self._cores = start.cores
            for thread in os.listdir("/proc/self/task"):  # numerical libraries start their threads on first use
                try:
                    os.sched_setaffinity(int(thread), start.cores)
                except OSError:
                    pass
        self._tell(b"BALSAM_TASK_ID", b"%d" % start.task_id)
        self._tell(b"BALSAM_ATTEMPT", b"%d" % start.number)
        self._tell(b"BALSAM_NODES", os.fsencode(",".join(start.nodes)))
        if self._tells_threads:
            threads = start.ranks.threads if start.ranks else len(start.cores)
            self._tell(b"OMP_NUM_THREADS", b"%d" % max(1, threads))
        if start.gpus and start.ranks is None:
            os.environ.update(gpus.variables(start.gpus))

    def _tell(self, name: bytes, value: bytes) -> None:
        """Set an environment variable that the next task is told anew."""
        os.putenv(name, value)
        self._environ[name] = self._found[name] = value

    def _leave(self) -> None:
        if has_children():
            # What the task left behind would run beside the next one. Python's own resource tracker serves all tasks.
            _end_fork_server()
            tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
            sweep_all(spare={pid} if (pid := getattr(tracker, "_pid", None)) else ())
        if self._environ != self._found:
            self._restore_environ()
        try:
            if os.getcwd() != self._directory:
                os.chdir(self._directory)
        except OSError:
            os.chdir(self._directory)

    def _restore_environ(self) -> None:
        for name in self._environ.keys() - self._found.keys():
            del os.environb[name]
        for name, value in self._found.items():
            if self._environ.get(name) != value:
                os.environb[name] = value

    def _call(self, start: Start) -> tuple[Any, BaseException | None]:
        """Run the call; return what it returned, or the exception that kept it from returning."""
        try:
            self._learn(start)
            known = self._functions[start.function]
            if known is None:
                raise UnreadablePayload("the function of this task could not be read back when it was first needed")
            function, body = known
            layers, args, kwargs = decode(start.payload)
            if start.ranks is not None:
                is_bash = peel(function).bash
                enter(start.ranks, start.gpus, is_bash)
                if not is_bash and launch_of(start.ranks, is_bash) is Launch.RANKS:
                    function = OnEveryRank(start.ranks, body)
            return dress(function, layers)(*args, **kwargs), None
        except BaseException as error:
            return None, error

    def _report(self, start: Start, value: Any, error: BaseException | None, usage: Usage) -> Ended:
        if error is not None and not isinstance(error, Exception):  # it would end the thread that waits for the result
            error = TaskCrashed(f"the task would have ended its worker: {error!r}").with_traceback(error.__traceback__)
        if error is not None:
            value = self._exception(type(error), error, error.__traceback__)
        if isinstance(value, self._exception):
            return _failure(start, value, usage)
        try:
            payload = encode(value)
            if not is_plain(value) and len(payload) <= _CHECKED_BYTES:
                decode(payload)
            return Ended(start.task_id, Outcome.DONE, payload, usage=usage)
        except (NotSerializable, UnreadablePayload) as unusable:
            reason = type(unusable)(f"the task's result cannot be returned: {unusable}")
            return _failure(start, self._exception(type(reason), reason, None), usage)


def _end_fork_server() -> None:
    """End the process from which multiprocessing forks, in a way that makes it start a new one for the next task."""
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and server._forkserver_pid is not None:
        kill(server._forkserver_pid)
        try:
            server._stop()
        except OSError:  # the task has waited for it
            pass


def _failure(start: Start, wrapper: Any, usage: Usage) -> Ended:
    """Say how a task failed, with an exception that its script can read."""
    from parsl.app.errors import AppTimeout, BashExitFailure, RemoteExceptionWrapper

    error = wrapper.e_value
    text = _describe(wrapper)
    try:
        payload = encode(wrapper)
        decode(payload)
    except (NotSerializable, UnreadablePayload) as unusable:
        reason = UnreadablePayload(f"the task raised an exception that cannot be returned: {unusable}\n{text}")
        payload = encode(RemoteExceptionWrapper(type(reason), reason, None))
    outcome, exit_code, signal_number = Outcome.ERROR, None, None
    if isinstance(error, BashExitFailure):
        outcome, exit_code = Outcome.EXIT, error.exitcode
        signal_number = -exit_code if exit_code < 0 else None  # subprocess's way to tell a signal
    elif isinstance(error, AppTimeout):
        outcome = Outcome.TIMEOUT
    return Ended(
        start.task_id,
        outcome,
        payload,
        exit_code,
        signal_number,
        usage,
        error=text,
        stderr_tail=tail_of_file(Path(start.stderr)) if start.stderr else None,
    )


def _describe(wrapper: Any) -> str:
    error = wrapper.e_value
    trace = wrapper.e_traceback.as_traceback() if wrapper.e_traceback is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as unprintable:  # its own __str__ may fail
        text = f"{type(error).__name__} (its text cannot be had: {unprintable!r})"
    return text[-_LONGEST_ERROR:]
