"""What a task needs: ``parsl_resource_specification``, parsed and checked."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from numbers import Integral, Real
from typing import NoReturn

from parsl_balsam.model.errors import InvalidResources

#: Largest integer of a database column that holds a count or a priority.
LARGEST = 2**31 - 1


class Launch(str, Enum):
    """How many copies of a task's app are started."""

    ONCE = "once"  # one, on the first node; it finds its nodes and ranks in PARSL_* variables
    RANKS = "ranks"  # one per rank; the result is the list of their results


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """What one task needs and how it is to be tried.

    Raises
    ------
    InvalidResources
        A field has the wrong type or a value that makes no sense; the message names it.
    """

    num_nodes: int = 1  #: nodes, at least 1
    ranks_per_node: int = 1  #: MPI processes on each node, at least 1
    cores_per_rank: int | None = None  #: cores of each rank; None = 1, and all of the node's for tasks of several nodes
    gpus_per_rank: int = 0  #: GPUs of each rank
    node_packing_count: int | None = None  #: how many such tasks may share one node; each gets 1/count of its cores
    memory_gb: float | None = None  #: memory on each node, GB
    walltime_min: float | None = None  #: expected run time, minutes; used to place the task, never to end it
    timeout_s: float | None = None  #: limit of the run time, seconds; the task is killed when it is over
    priority: int = 0  #: larger starts first
    key: str | None = None  #: the user's own name for this call, in place of one derived from its arguments
    max_retries: int | None = None  #: tries after the first that failed; None = as the executor's policy says
    launch: Launch | None = None  #: copies of the app; None = `RANKS` for a command line, `ONCE` for a function
    launcher_options: str = ""  #: more options for the MPI launcher, as on its command line
    tags: tuple[tuple[str, str], ...] = ()  #: (name, value) pairs to find the task by, sorted by name

    def __post_init__(self) -> None:
        count, number, text = _count, _number, _text
        checked: dict[str, object] = {
            "num_nodes": count("num_nodes", self.num_nodes, 1),
            "ranks_per_node": count("ranks_per_node", self.ranks_per_node, 1),
            "gpus_per_rank": count("gpus_per_rank", self.gpus_per_rank, 0),
            "priority": count("priority", self.priority, -LARGEST),
            "launcher_options": text("launcher_options", self.launcher_options),
            "tags": _tags(self.tags),
        }
        if self.cores_per_rank is not None:
            checked["cores_per_rank"] = count("cores_per_rank", self.cores_per_rank, 1)
        if self.launch is not None:
            checked["launch"] = _launch(self.launch)
        if self.node_packing_count is not None:
            checked["node_packing_count"] = count("node_packing_count", self.node_packing_count, 1)
        if self.max_retries is not None:
            checked["max_retries"] = count("max_retries", self.max_retries, 0)
        if self.memory_gb is not None:
            checked["memory_gb"] = number("memory_gb", self.memory_gb, zero=False)
        if self.walltime_min is not None:
            checked["walltime_min"] = number("walltime_min", self.walltime_min, zero=True)
        if self.timeout_s is not None:
            checked["timeout_s"] = number("timeout_s", self.timeout_s, zero=False)
        if self.key is not None and not text("key", self.key).strip():
            _refuse("key", self.key, "a text that is not empty")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.node_packing_count is not None and self.num_nodes > 1:
            raise InvalidResources(
                f"node_packing_count={self.node_packing_count} lets tasks share one node, "
                f"but num_nodes={self.num_nodes}. Leave one of the two out."
            )

    @classmethod
    def parse(cls, given: Mapping[str, object], defaults: ResourceSpec | None = None) -> ResourceSpec:
        """Return the resources a call asks for.

        Parameters
        ----------
        given
            The call's ``parsl_resource_specification``: the fields of this class, ``tags`` as a mapping, and
            ``num_ranks``. As with Parsl's MPIExecutor, any two of ``num_nodes``, ``ranks_per_node`` and ``num_ranks``
            determine the third; ``num_ranks`` alone is spread over the default number of nodes.
        defaults
            Values of the keys that are not given.

        Raises
        ------
        InvalidResources
            A key is unknown, or a value is wrong or contradicts another.
        """
        base = _PLAIN if defaults is None else defaults
        if not isinstance(given, Mapping):
            raise InvalidResources(f"A resource specification is a dictionary, not {given!r}.")
        if not given:
            return base
        chosen = dict(given)
        for name in chosen:
            if name not in _KEYS:
                raise InvalidResources(f"Unknown key {name!r} in a resource specification: {_advice(name)}")
        if "num_ranks" in chosen:
            _share_out(chosen, base.num_nodes)
        values = {name: getattr(base, name) for name in _FIELDS}
        if "num_nodes" in chosen and "node_packing_count" not in chosen and chosen["num_nodes"] != 1:
            values["node_packing_count"] = None
        if chosen.get("node_packing_count") is not None and "num_nodes" not in chosen:
            values["num_nodes"] = 1
        values.update(chosen)
        return cls(**values)

    @property
    def num_ranks(self) -> int:
        """MPI processes on all nodes together."""
        return self.num_nodes * self.ranks_per_node

    @property
    def cores(self) -> int | None:
        """Cores on each of the task's nodes; None where that depends on the node.

        A task of several nodes takes them whole, unless it says how many cores a rank needs.
        """
        if self.node_packing_count is not None or (self.num_nodes > 1 and self.cores_per_rank is None):
            return None
        return self.ranks_per_node * (self.cores_per_rank or 1)

    def cores_on(self, node_cores: int) -> int:
        """Return the cores that the task takes on each of its nodes.

        Parameters
        ----------
        node_cores
            Cores of one node.
        """
        if self.cores is not None:
            return self.cores
        if self.node_packing_count is not None:
            return max(1, node_cores // self.node_packing_count)
        # More ranks than cores would otherwise look as if they fitted.
        return max(node_cores, self.ranks_per_node)

    @property
    def gpus_on_node(self) -> int:
        """GPUs that the task needs on each of its nodes."""
        return self.ranks_per_node * self.gpus_per_rank

    @property
    def is_parallel(self) -> bool:
        """Whether the task has more than one rank, and so needs an MPI launcher."""
        return self.num_ranks > 1 or self.launch is Launch.RANKS

    @classmethod
    def loads(cls, text: str | None) -> ResourceSpec:
        """Return the specification that the database has as JSON; None is the plain one.

        Raises
        ------
        InvalidResources
            It is damaged.
        """
        if not text:
            return _PLAIN
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidResources(f"The recorded resource specification cannot be read: {error}.") from None
        return cls.parse(given)

    def to_dict(self) -> dict[str, object]:
        """Return what differs from the plain task, ready for JSON; ``parse`` makes an equal specification of it."""
        changed = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) != getattr(_PLAIN, name)}
        if self.launch is not None:
            changed["launch"] = self.launch.value
        if "tags" in changed:
            changed["tags"] = dict(self.tags)
        return changed


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise InvalidResources(f"{name}={value!r} in a resource specification: expected {expected}.")


def _count(name: str, value: object, least: int) -> int:
    # Integral and Real let numbers of numpy in, too.
    if isinstance(value, Integral) and not isinstance(value, bool):  # type: ignore[unreachable]
        count = int(value)
        if least <= count <= LARGEST:
            return count
    _refuse(name, value, f"a whole number from {least} to {LARGEST}")


def _number(name: str, value: object, *, zero: bool) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):  # type: ignore[unreachable]
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and (number > 0 or (zero and number == 0)):
            return abs(number)  # -0.0 is equal to 0.0, and equal specifications must be written alike
    _refuse(name, value, "a finite number, zero or more" if zero else "a finite number above zero")


def _text(name: str, value: object) -> str:
    # PostgreSQL stores neither NUL nor lone surrogates.
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        _refuse(name, value, "a text without NUL and surrogate characters")
    return value


def _launch(value: object) -> Launch:
    try:
        return Launch(value)
    except ValueError:
        _refuse("launch", value, " or ".join(repr(launch.value) for launch in Launch))


def _tags(value: object) -> tuple[tuple[str, str], ...]:
    try:
        tags = dict(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        _refuse("tags", value, "a mapping of text to text")
    for name, text in tags.items():
        if not _text("tags", name):
            _refuse("tags", value, "names that are not empty")
        _text(f"tags[{name!r}]", text)
    return tuple(sorted(tags.items()))


def _share_out(chosen: dict[str, object], default_nodes: int) -> None:
    """Replace ``num_ranks`` by ``num_nodes`` and ``ranks_per_node``."""
    ranks = _count("num_ranks", chosen.pop("num_ranks"), 1)
    if "ranks_per_node" in chosen:
        per_node = _count("ranks_per_node", chosen["ranks_per_node"], 1)
        if "num_nodes" not in chosen:
            chosen["num_nodes"] = _quotient(ranks, "ranks_per_node", per_node)
        nodes = _count("num_nodes", chosen["num_nodes"], 1)
        if nodes * per_node != ranks:
            raise InvalidResources(
                f"num_ranks={ranks} contradicts num_nodes={nodes} x ranks_per_node={per_node} = {nodes * per_node}. "
                "Leave one of the three out."
            )
    else:
        nodes = _count("num_nodes", chosen.setdefault("num_nodes", default_nodes), 1)
        chosen["ranks_per_node"] = _quotient(ranks, "num_nodes", nodes)


def _quotient(ranks: int, name: str, divisor: int) -> int:
    if ranks % divisor:
        raise InvalidResources(
            f"num_ranks={ranks} is not a multiple of {name}={divisor}: "
            f"{ranks} = {ranks // divisor} x {divisor} + {ranks % divisor}. Change one of the two."
        )
    return ranks // divisor


def _advice(name: object) -> str:
    meant = _ALIASES.get(str(name))
    if meant is None:
        meant = next(iter(difflib.get_close_matches(str(name), _KEYS, n=1)), None)
    if meant is None:
        return f"the keys are {', '.join(_KEYS)}."
    return f"did you mean {meant}?" + (f" It is in {_UNITS[meant]}." if meant in _UNITS else "")


_FIELDS = tuple(field.name for field in fields(ResourceSpec))
_KEYS = tuple(sorted((*_FIELDS, "num_ranks")))
_PLAIN = ResourceSpec()

#: Names from other executors and from batch systems.
_ALIASES = {
    "cores": "cores_per_rank",
    "gpus": "gpus_per_rank",
    "memory": "memory_gb",
    "mem": "memory_gb",
    "nodes": "num_nodes",
    "ranks": "num_ranks",
    "retries": "max_retries",
    "running_time_min": "walltime_min",
    "timeout": "timeout_s",
    "walltime": "walltime_min",
}
_UNITS = {"memory_gb": "GB", "timeout_s": "seconds", "walltime_min": "minutes"}
