"""From a call of an app to the row that it becomes."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

from parsl_balsam.model.errors import TaskCancelled
from parsl_balsam.model.identity import NoStableIdentity, call_key
from parsl_balsam.model.layers import Layer, undress
from parsl_balsam.model.payload import digest, encode
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.signing import Signer
from parsl_balsam.model.states import TaskState
from parsl_balsam.model.tasks import Call

logger = logging.getLogger(__name__)

_MONITORING = ("_parsl_monitoring_task_id", "_parsl_monitoring_try_id")


class TaskFuture(Future[Any]):
    """The future of one call."""

    #: Of all of them. Each would have nine objects of its own for it, which Python's garbage collector then visits
    #: again and again, and Parsl keeps the future as long as the call.
    _shared = threading.Condition()

    def __init__(self, key: bytes, occurrence: int) -> None:
        super().__init__()
        self._condition = self._shared
        self.key = key
        self.occurrence = occurrence
        self.task_id: int | None = None  #: known once the call is recorded
        self.cancel_wanted = False  #: by the script itself
        self.weight = 1  #: cores that it needs on all its nodes

    def result(self, timeout: float | None = None) -> Any:
        """Return what the call returned, as any future does."""
        self._await(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, as any future does."""
        self._await(timeout)
        return super().exception(0)

    def fail(self, error: Exception) -> None:
        """End with an exception, if the call is not over."""
        try:
            self.set_exception(error)
        except InvalidStateError:
            pass

    def _await(self, timeout: float | None) -> None:
        # `Future` takes any wake-up for its own, or for the end of the time; here it may be another's.
        if not self.done():
            with self._condition:
                self._condition.wait_for(self.done, timeout)


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for the function of a call that was cancelled before it was submitted."""
    raise TaskCancelled("the call was cancelled before it was submitted")


class CallBook:
    """Tells calls apart within a run: which is the n-th with its key, and which repeats one that has failed.

    Parameters
    ----------
    structural
        Whether a call must be recognised in later runs. If not, it need only be known again within this one, and the
        bytes of its arguments, which exist anyway, are its identity.
    signer
        Seals the arguments.
    """

    def __init__(self, structural: bool, signer: Signer) -> None:
        self._structural = structural
        self._signer = signer
        self._lock = threading.Lock()
        self._occurrences: Counter[bytes] = Counter()
        self._failed: defaultdict[bytes, list[int]] = defaultdict(list)
        self._cancelled: set[bytes] = set()
        self._functions: weakref.WeakKeyDictionary[Callable[..., Any], tuple[bytes, bytes]] = (
            weakref.WeakKeyDictionary()
        )
        self._warned: set[str] = set()

    def enter(
        self, func: Callable[..., Any], spec: ResourceSpec, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Call, bytes]:
        """Return a call and the bytes of its function.

        Raises
        ------
        NotSerializable
            If the function or an argument cannot be turned into bytes.
        TaskCancelled
            If the call was cancelled before it came here.
        """
        inner, layers = undress(func)
        if inner is refuse:
            refuse()
        function, body = self._function(inner)
        payload = encode((layers, tuple(args), dict(kwargs)))
        key = self._key(func, spec, args, kwargs, function, payload, layers)
        with self._lock:
            if self._failed.get(key):
                occurrence = self._failed[key].pop(0)
            else:
                occurrence = self._occurrences[key]
                self._occurrences[key] += 1
        app = getattr(func, "__name__", type(func).__name__)
        stdout, stderr = _path(kwargs.get("stdout")), _path(kwargs.get("stderr"))
        sealed = self._signer.seal_arguments(payload, key, occurrence, function, spec, stderr)
        return Call(key, occurrence, app, function, sealed, spec, stdout, stderr), body

    def note_end(self, future: TaskFuture, state: TaskState) -> None:
        """Remember how a call ended, for when it is repeated: Parsl's own retries look like new calls."""
        if state is TaskState.DONE:
            return
        with self._lock:
            if state is TaskState.FAILED:
                self._failed[future.key].append(future.occurrence)
            elif not future.cancel_wanted:
                self._cancelled.add(future.key)

    def was_cancelled(self, key: bytes) -> bool:
        """Tell whether a call like this was cancelled from outside the script, and is not to be run by a retry."""
        return key in self._cancelled

    def _function(self, func: Callable[..., Any]) -> tuple[bytes, bytes]:
        try:
            known = self._functions.get(func)
        except TypeError:  # it can be neither hashed nor referenced weakly
            body = encode(func)
            return digest(body), body
        if known is None:
            body = encode(func)
            known = digest(body), body
            if _stays_the_same(func):
                self._functions[func] = known
        return known

    def _key(
        self,
        func: Callable[..., Any],
        spec: ResourceSpec,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        function: bytes,
        payload: bytes,
        layers: tuple[Layer, ...],
    ) -> bytes:
        if self._structural:
            try:
                return call_key(func, args, kwargs, spec)
            except NoStableIdentity as reason:
                self._warn(getattr(func, "__name__", repr(func)), reason)
                return os.urandom(16)
        if layers and any(name in kwargs for name in _MONITORING):  # they number the try, and this may be a second one
            payload = encode((tuple(args), {name: kwargs[name] for name in kwargs if name not in _MONITORING}))
        return digest(function, payload)

    def _warn(self, app: str, reason: NoStableIdentity) -> None:
        if app not in self._warned:
            self._warned.add(app)
            logger.warning(
                "calls of %s cannot be recognised when the script is run again, and will always run: %s. "
                "Give them a 'key' in parsl_resource_specification to change that",
                app,
                reason,
            )


def _stays_the_same(func: object, depth: int = 4) -> bool:
    """Tell whether a callable holds nothing that may change between two calls, as the object of a method may."""
    if depth == 0:
        return False
    if isinstance(func, partial):
        return not func.keywords and all(_stays_the_same(part, depth - 1) for part in (func.func, *func.args))
    if not isinstance(func, FunctionType):
        return False
    try:
        return all(_stays_the_same(cell.cell_contents, depth - 1) for cell in func.__closure__ or ())
    except ValueError:  # an empty cell, to be filled later
        return False


def _path(stream: Any) -> str | None:
    """Return where Parsl's ``stdout`` or ``stderr`` argument points to."""
    if isinstance(stream, tuple) and stream:
        stream = stream[0]
    try:
        return None if stream is None else os.path.abspath(os.fspath(stream))
    except (TypeError, ValueError):  # not a path: the app will say so
        return None
