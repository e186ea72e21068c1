"""Which batch jobs a site's queues admit, and which of them a user wants. Pure: all limits are data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from parsl_balsam.model.errors import ConfigurationError

_Part = TypeVar("_Part")

#: A launcher starts no task that is expected to end later than so long before the end of its job, minutes.
LAST_CALL_MIN = 0.25

#: From the start of a job until its first task can run, minutes, where the policy does not say.
STARTUP_MIN = 2.0

#: Largest count and largest time of a policy, minutes: ten years.
_MOST = 2**31 - 1
_LONGEST_MIN = 10 * 366 * 1440.0


@dataclass(frozen=True, slots=True)
class NodeRange:
    """Numbers of nodes for which a queue has the same limits of time.

    Raises
    ------
    ConfigurationError
        A field has a wrong type or value, or a least value is above its most; the message names it.
    """

    min_nodes: int
    max_nodes: int
    max_walltime_min: float  #: of a job, minutes
    min_walltime_min: float = 1.0  #: of a job, minutes

    def __post_init__(self) -> None:
        where = "a node range"
        _set(
            self,
            min_nodes=_count("min_nodes", self.min_nodes, where),
            max_nodes=_count("max_nodes", self.max_nodes, where),
            max_walltime_min=_number("max_walltime_min", self.max_walltime_min, where, 1, _LONGEST_MIN),
            min_walltime_min=_number("min_walltime_min", self.min_walltime_min, where, 0, _LONGEST_MIN),
        )
        if self.min_nodes > self.max_nodes:
            _refuse("min_nodes", self.min_nodes, where, f"at most max_nodes={self.max_nodes}")
        if math.ceil(self.min_walltime_min) > math.floor(self.max_walltime_min):
            most = f"max_walltime_min={self.max_walltime_min:g}"
            _refuse("min_walltime_min", self.min_walltime_min, where, f"a whole minute between it and {most}")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of a batch system, as far as its limits bind one user.

    Raises
    ------
    ConfigurationError
        A field has a wrong type or value, or ranges overlap; the message names it.
    """

    ranges: Sequence[NodeRange]  #: one for each limit of time; any collection of them
    name: str | None = None  #: None = the provider's own
    max_queued: int | None = None  #: own jobs that may wait in it; None = any number, 0 = none for now
    max_running: int | None = None  #: own jobs that may run at once; no more are requested than could run

    def __post_init__(self) -> None:
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            _refuse("name", self.name, "a queue", "a text that is not empty, or None for the provider's own queue")
        where = self.title
        _set(self, ranges=_members("ranges", self.ranges, where, NodeRange))
        for name in ("max_queued", "max_running"):
            if getattr(self, name) is not None:
                _count(name, getattr(self, name), where, least=0)
        ordered = sorted(self.ranges, key=lambda nodes: nodes.min_nodes)
        for lower, upper in itertools.pairwise(ordered):
            if upper.min_nodes <= lower.max_nodes:
                raise ConfigurationError(
                    f"Two ranges of {where} overlap: {lower.min_nodes} to {lower.max_nodes} nodes "
                    f"and {upper.min_nodes} to {upper.max_nodes} nodes."
                )

    @property
    def title(self) -> str:
        """What messages call it."""
        return title_of(self.name)


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks that may be requested: a node range of a queue, within what the user wants."""

    queue: Queue
    min_nodes: int
    max_nodes: int
    min_walltime_min: int  #: whole minutes, as in a request
    max_walltime_min: int
    longest_task_min: float  #: expected run time of the longest task that such a block starts, minutes

    def admits(self, nodes: int, walltime_min: float | None) -> bool:
        """Tell whether the largest and longest block could run a task; one of unknown duration is not too long."""
        return nodes <= self.max_nodes and (walltime_min is None or walltime_min <= self.longest_task_min)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What blocks may be requested, and how carefully their time is estimated.

    Raises
    ------
    ConfigurationError
        A field has a wrong type or value, two queues have one name, or no block is left; the message names it.
    """

    queues: Sequence[Queue]  #: any collection of them
    max_nodes: int | None = None  #: of a block, as the user wants it; None = as the queues admit
    max_walltime_min: float | None = None  #: of a block, as the user wants it, minutes; None = as the queues admit
    assumed_walltime_min: float = 30.0  #: run time of tasks that do not say, minutes; none is refused for it
    slack: float = 1.1  #: time that is given to tasks over the time that they are expected to take
    startup_min: float = STARTUP_MIN  #: from the start of a job until its first task can run, minutes
    settle_s: float = 5.0  #: a request waits until no task has come for so long, seconds, but a few times that at most
    offers: tuple[Offer, ...] = field(init=False, repr=False, compare=False)  #: what follows from the fields above

    def __post_init__(self) -> None:
        where = "a queue policy"
        queues = _members("queues", self.queues, where, Queue)
        names = [queue.title for queue in queues]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"Two queues of {where} are {name}: give each its own name.")
        checked: dict[str, object] = {
            "queues": queues,
            "assumed_walltime_min": _number("assumed_walltime_min", self.assumed_walltime_min, where, 0, _LONGEST_MIN),
            "slack": _number("slack", self.slack, where, 1, 100),
            "startup_min": _number("startup_min", self.startup_min, where, 0, _LONGEST_MIN),
            "settle_s": _number("settle_s", self.settle_s, where, 0, 3600),
        }
        if self.max_nodes is not None:
            checked["max_nodes"] = _count("max_nodes", self.max_nodes, where)
        if self.max_walltime_min is not None:
            most = _number("max_walltime_min", self.max_walltime_min, where, 1, _LONGEST_MIN)
            checked["max_walltime_min"] = most
        _set(self, **checked)
        _set(self, offers=tuple(self._offers()))
        if not self.offers:
            given = {name: getattr(self, name) for name in ("max_nodes", "max_walltime_min", "startup_min")}
            limits = ", ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)
            raise ConfigurationError(f"No block of {', '.join(names)} could run a task with {limits}: {self._least()}.")

    @classmethod
    def fixed(cls, nodes: int, walltime_min: float, max_blocks: int | None = None) -> QueuePolicy:
        """Return the policy of blocks that are all alike, in the provider's own queue.

        Their time is not estimated, so none is kept for their start.

        Parameters
        ----------
        walltime_min
            Of each block, minutes, rounded up as batch systems do.
        max_blocks
            How many there may be at once; None = any number.
        """
        whole = math.ceil(_number("walltime_min", walltime_min, "blocks that are all alike", 0, _LONGEST_MIN)) or 1
        queue = Queue((NodeRange(nodes, nodes, whole, whole),), max_running=max_blocks)
        return cls((queue,), startup_min=0.0)

    @property
    def most_nodes(self) -> int:
        """Nodes of the largest block."""
        return max(offer.max_nodes for offer in self.offers)

    @property
    def longest_task_min(self) -> float:
        """Expected run time of the longest task that any block would start, minutes."""
        return max(offer.longest_task_min for offer in self.offers)

    def usable_min(self, walltime_min: float) -> float:
        """Return how much of a block's time is there for tasks, minutes."""
        return walltime_min - self.startup_min - LAST_CALL_MIN

    def refusal(self, nodes: int, walltime_min: float | None) -> str | None:
        """Tell why no block could ever run a task of so many nodes that takes so long; None if one could.

        Parameters
        ----------
        walltime_min
            Expected run time, minutes; None = not known, which is never too long.
        """
        if any(offer.admits(nodes, walltime_min) for offer in self.offers):
            return None
        largest = max(self.offers, key=lambda offer: offer.max_nodes)
        if nodes > largest.max_nodes:
            whose = "the policy's max_nodes, " if largest.max_nodes == self.max_nodes else ""
            return (
                f"num_nodes={nodes} is more than the {largest.max_nodes} nodes of the largest block "
                f"({whose}{largest.queue.title})"
            )
        wide = [offer for offer in self.offers if nodes <= offer.max_nodes]
        longest = max(wide, key=lambda offer: offer.longest_task_min)
        whose = "the policy's max_walltime_min, " if self._shortened(longest) else ""
        return (
            f"walltime_min={walltime_min:g} is more than the {_minutes(longest.longest_task_min)} minutes that a task "
            f"may take in a block of {_nodes(nodes)} or more (at most {longest.max_walltime_min} minutes: "
            f"{whose}{longest.queue.title} with {longest.min_nodes} to {longest.max_nodes} nodes; "
            f"{self.usable_min(0) * -1:g} of them pass before the first task starts and after the last one has ended)"
        )

    def to_dict(self) -> dict[str, object]:
        """Return all fields, ready for JSON."""
        queues = [
            _described(queue) | {"ranges": [_described(nodes) for nodes in queue.ranges]} for queue in self.queues
        ]
        return _described(self) | {"queues": queues}

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> QueuePolicy:
        """Return the policy that ``to_dict`` described; fields that are missing have their default.

        Raises
        ------
        ConfigurationError
            There is no such field, one without a default is missing, or a value is wrong.
        """
        queues = [
            _built(
                Queue,
                "a queue",
                queue,
                ranges=[_built(NodeRange, "a node range", nodes) for nodes in _list(queue, "ranges")],
            )
            for queue in _list(given, "queues")
        ]
        return _built(cls, "a queue policy", given, queues=queues)

    def _offers(self) -> Iterable[Offer]:
        for queue in self.queues:
            for nodes in queue.ranges:
                most = nodes.max_nodes if self.max_nodes is None else min(nodes.max_nodes, self.max_nodes)
                longest = nodes.max_walltime_min
                if self.max_walltime_min is not None:
                    longest = min(longest, self.max_walltime_min)
                least_min, most_min = math.ceil(max(1.0, nodes.min_walltime_min)), math.floor(longest)
                usable = self.usable_min(most_min)
                if nodes.min_nodes <= most and least_min <= most_min and usable > 0:
                    yield Offer(queue, nodes.min_nodes, most, least_min, most_min, usable)

    def _shortened(self, offer: Offer) -> bool:
        """Tell whether the user's wish, not the queue, ends the longest block."""
        return self.max_walltime_min is not None and offer.max_walltime_min == math.floor(self.max_walltime_min)

    def _least(self) -> str:
        ranges = [nodes for queue in self.queues for nodes in queue.ranges]
        fewest = min(nodes.min_nodes for nodes in ranges)
        shortest = min(nodes.min_walltime_min for nodes in ranges)
        longest = max(nodes.max_walltime_min for nodes in ranges)
        return f"their jobs have {_nodes(fewest)} or more and last from {shortest:g} to {longest:g} minutes"


def title_of(queue: str | None) -> str:
    """Return what messages call a queue."""
    return "the provider's queue" if queue is None else f"queue {queue!r}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _minutes(most: float) -> str:
    # Rounded down: what is just above the limit must not look as if it were within.
    return f"{math.floor(most * 100) / 100:.12g}"


def _refuse(name: str, value: object, where: str, expected: str) -> NoReturn:
    raise ConfigurationError(f"{name}={value!r} of {where}: expected {expected}.")


def _count(name: str, value: object, where: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        _refuse(name, value, where, f"a whole number from {least} to {_MOST}")
    return value


def _number(name: str, value: object, where: str, least: float, most: float) -> float:
    # Compared before it is converted: an int may be too large for a float. NaN compares false.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        _refuse(name, value, where, f"a number from {least:g} to {most:g}")
    return float(value)


def _members(name: str, value: object, where: str, kind: type[_Part]) -> tuple[_Part, ...]:
    members = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else ()
    if not members or not all(isinstance(member, kind) for member in members):
        _refuse(name, value, where, f"a collection of at least one {kind.__name__}")
    return members


def _set(owner: object, **checked: object) -> None:
    for name, value in checked.items():
        object.__setattr__(owner, name, value)


def _names(kind: type[Any]) -> list[str]:
    return [each.name for each in fields(kind) if each.init]


def _described(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _names(type(value))}


def _list(given: object, name: str) -> list[object]:
    value = given.get(name) if isinstance(given, Mapping) else None
    if not isinstance(value, (list, tuple)):
        _refuse(name, value, "a queue policy", "a list of descriptions")
    return list(value)


def _built(kind: type[_Part], where: str, given: object, **parts: object) -> _Part:
    """Return the value that `_described` described, with parts that were built before."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"A description of {where} is a dictionary, not {given!r}.")
    known = _names(kind)
    for name in given:
        if name not in known:
            raise ConfigurationError(f"There is no {name!r} in {where}; it has {', '.join(known)}.")
    try:
        return kind(**{**given, **parts})
    except TypeError as error:
        raise ConfigurationError(f"A description of {where} is not complete: {error}") from None
