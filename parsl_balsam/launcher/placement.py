"""Which waiting task starts now, and where. Pure: time comes as an argument, in seconds on any clock.

Priority first, then large and long tasks first. The first that does not fit gets a reservation: nodes that will be free
for it soonest. Those behind it fill the gaps, as in EASY backfilling (Lifka, "The ANL/IBM SP scheduling system", 1995).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from parsl_balsam.launcher.groups import Group, Shape, Waiting, by_shape, shape_of
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import ResourceSpec
from parsl_balsam.model.shares import Share

#: How long after it came a task may be overtaken on its reserved nodes, where nobody knows when they will be free,
#: seconds.
PATIENCE_S = 10.0

#: A task is put before larger and longer ones of its priority when one that came so much later has started, seconds.
STARVING_S = 600.0

_Placed = tuple[int, tuple[Share, ...]]


class _Reservation:
    """The nodes that are kept for a task."""

    def __init__(self, task: Waiting, ready: dict[str, float], losses: int, now: float) -> None:
        self.task = task
        self.nodes = set(ready)
        self.losses = losses  #: of the space, when they were chosen
        self._busy = {node: time for node, time in ready.items() if time > now}  # until when, as far as is known
        self._by_end = sorted((time, node) for node, time in self._busy.items())  # the same, and some that hold no more

    def starts_at(self, now: float) -> float | None:
        """Return when the task can start; None if nobody knows."""
        last = self._last()
        return now if last is None else last if last < math.inf else None

    def note(self, node: str, ready_at: float, now: float) -> None:
        """Note when a node will be ready for the task."""
        if ready_at <= now:
            self._busy.pop(node, None)
        elif self._busy.get(node) != ready_at:
            self._busy[node] = ready_at
            insort(self._by_end, (ready_at, node))

    def exchange(self, free: Sequence[str], now: float) -> list[tuple[str, str]]:
        """Take free nodes in place of those that will be ready last, where that helps; return pairs of both."""
        pairs: list[tuple[str, str]] = []
        while len(pairs) < len(free) and (last := self._last()) is not None:
            left = free[len(pairs) :]
            spared = list(itertools.islice(self._busy_until(last), len(left) + 1))
            if len(spared) > len(left) and now < last < math.inf:
                break  # the task would start no sooner, and more nodes would idle until then
            for node, other in zip(spared, left, strict=False):
                pairs.append((node, other))
                del self._busy[node]
                self.nodes.remove(node)
                self.nodes.add(other)
        return pairs

    def _busy_until(self, last: float) -> Iterator[str]:
        """Return the nodes that will be ready last."""
        seen: set[str] = set()
        for time, node in reversed(self._by_end):
            if time != last:
                return
            if self._busy.get(node) == time and node not in seen:
                seen.add(node)
                yield node

    def _last(self) -> float | None:
        """Return when the last node will be ready; None if all are."""
        while self._by_end and self._busy.get(self._by_end[-1][1]) != self._by_end[-1][0]:
            self._by_end.pop()
        return self._by_end[-1][0] if self._by_end else None


class Queue:
    """The tasks that wait for their place in a block."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()  # the oldest first
        self._groups: dict[Shape, Group] = {}
        self._order: list[Group] = []  # those that are not empty, the most demanding first
        self._reservation: _Reservation | None = None
        self._newest = -math.inf  # when the last to come of those that have started came
        self._starving: Group | None = None  # of one task, that is put before others
        self._look_for_starving_at = -math.inf

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[int]:
        return iter(self._waiting)

    @property
    def cores(self) -> int:
        """How many cores the waiting tasks need together, that with the reservation left out."""
        largest = self._space.largest_node
        kept_for = None if (reserved := self.reserved) is None else self._waiting[reserved].group
        return sum(
            (len(group.came) - (group is kept_for)) * group.need.nodes * group.need.cores[largest]
            for group in self._order
        )

    @property
    def reserved(self) -> int | None:
        """The task that nodes are kept for."""
        if self._reservation is None:
            return None
        task = self._reservation.task
        return task.task_id if self._waiting.get(task.task_id) is task else None

    def add(self, task_id: int, spec: ResourceSpec, now: float, *, again: bool = False) -> None:
        """Let a task wait.

        Parameters
        ----------
        again
            Whether it has waited before, and lost the place that it had: none of those that wait came before it.
        """
        shape = shape_of(spec)
        group = self._groups.get(shape)
        if group is None:
            group = self._groups[shape] = Group(shape, spec, self._space.need(spec))
        if not group.came:
            insort(self._order, group, key=by_shape)
        walltime_s = None if spec.walltime_min is None else spec.walltime_min * 60
        since = min(now, next(iter(self._waiting.values())).since) if again and self._waiting else now
        task = self._waiting[task_id] = Waiting(task_id, spec, since, walltime_s, group)
        if again:
            self._waiting.move_to_end(task_id, last=False)
        group.put(task, again=again)

    def remove(self, task_id: int) -> None:
        """Let a task wait no more."""
        task = self._waiting.pop(task_id)
        group = task.group
        group.drop(task)
        if not group.came:
            del self._order[bisect_left(self._order, group.shape, key=by_shape)]
        if self._starving is not None and task_id in self._starving.came:
            self._starving.drop(task)
            self._starving = None
            self._look_for_starving_at = -math.inf

    def unfit(self, time_left: float | None) -> list[tuple[int, str]]:
        """Return the tasks that cannot start in this block any more, with the reason.

        Parameters
        ----------
        time_left
            Until the block ends, seconds; None = no end is known.
        """
        found: list[tuple[int, str]] = []
        for group in self._order:
            why = self._space.lacking(group.spec)
            for task_id in group.came:
                walltime_s = self._waiting[task_id].walltime_s
                if why is not None:
                    found.append((task_id, why))
                elif walltime_s is not None and time_left is not None and walltime_s > time_left:
                    left = f"the block has {max(0.0, time_left) / 60:.3g} min left"
                    found.append((task_id, f"it needs {walltime_s / 60:g} min, and {left}"))
        return found

    def place(self, now: float, time_left: float | None = None) -> list[_Placed]:
        """Choose the tasks that start now; they have their shares of the nodes, and wait no more.

        Parameters
        ----------
        now
            Seconds, on the clock of `add`.
        time_left
            Until the block ends, seconds. Tasks that are expected to take longer are not started.
        """
        limit = math.inf if time_left is None else time_left
        placed: list[_Placed] = []
        self._look_for_starving(now, limit)
        groups = self._in_order()
        for number, group in enumerate(groups, 1):
            if not self._space.free_cores:
                return placed
            blocked = self._start_all(group, now, limit, placed)
            if blocked is not None:
                self._fill_gaps(self._reserve(blocked, now), groups[number:], now, limit, placed)
                return placed
        self._forget_reservation()
        return placed

    def next_like(self, spec: ResourceSpec, time_left: float | None = None) -> int | None:
        """Return the task that starts next, if it needs just what another one does, and nothing larger is waited for.

        Parameters
        ----------
        spec
            What the other one needs.
        time_left
            As for `place`.
        """
        if not self._order or self._starving is not None:
            return None
        group = self._order[0]
        if group.shape != shape_of(spec) or (
            self._reservation is not None and self._reservation.task.group is not group
        ):
            return None
        return group.first(math.inf if time_left is None else time_left)

    def start(self, task_id: int) -> None:
        """Let a task wait no more, because it has a place."""
        task = self._waiting[task_id]
        self._newest = max(self._newest, task.since)
        task.group.newest = max(task.group.newest, task.since)
        self.remove(task_id)

    def _in_order(self) -> list[Group]:
        """Return groups, the most urgent first."""
        groups = self._order.copy()
        if self._starving is not None:
            place = bisect_left(groups, self._starving.shape[0], key=lambda group: group.shape[0])
            groups.insert(place, self._starving)
        return groups

    def _start_all(self, group: Group, now: float, limit: float, placed: list[_Placed]) -> Waiting | None:
        """Start tasks of a group wherever there is room; return the first for which there is none."""
        while (task_id := group.first(limit)) is not None:
            task = self._waiting[task_id]
            if not self._start(task, now, placed, aside=True):
                # One that waits for what the block has no more must not keep others from the rest.
                return task if self._space.suffices(group.need) else None
        return None

    def _fill_gaps(
        self, reservation: _Reservation, groups: list[Group], now: float, limit: float, placed: list[_Placed]
    ) -> None:
        """Start tasks where they do not keep the blocked task from its nodes."""
        starts_at = reservation.starts_at(now)
        known = starts_at is not None
        gap = min(limit, starts_at - now) if starts_at is not None else limit
        patient = known or now - reservation.task.since < PATIENCE_S
        room, open_room = self._space.room()
        idle, cores = room
        for group in [group for group in groups if group.need.idle_nodes <= idle and group.need.least_cores <= cores]:
            if group is reservation.task.group:
                continue  # where one does not fit, none of its shape does
            while group.need.may_fit(open_room) and (task_id := group.first(limit)) is not None:
                if not self._start(self._waiting[task_id], now, placed, aside=False):
                    break
                room, open_room = self._space.room()
            while patient and group.need.may_fit(room) and (task_id := group.first(gap, known=known)) is not None:
                if not self._start(self._waiting[task_id], now, placed, aside=True):
                    break
                room, open_room = self._space.room()

    def _start(self, task: Waiting, now: float, placed: list[_Placed], *, aside: bool) -> bool:
        until = None if task.walltime_s is None else now + task.walltime_s
        shares = self._space.take(task.task_id, task.group.need, until, aside=aside)
        if shares is None:
            return False
        self.start(task.task_id)
        placed.append((task.task_id, shares))
        held = self._reservation
        if held is not None and held.task is not task:
            for share in shares:
                if share.node in held.nodes:
                    held.note(share.node, self._space.ready_at(share.node, held.task.group.need, now), now)
        return True

    def _reserve(self, task: Waiting, now: float) -> _Reservation:
        """Keep nodes for a task. They stay the same while it is the first that waits, unless others are free sooner."""
        space = self._space
        held = self._reservation
        freed = space.freed()
        if held is None or held.task is not task or held.losses != space.losses:
            ready = space.soonest(task.group.need, now)
            if held is not None:
                space.open_up(held.nodes - ready.keys())
            space.set_aside(ready)
            self._reservation = _Reservation(task, ready, space.losses, now)
            return self._reservation
        free: list[str] = []
        for node in freed:
            if node in held.nodes:
                held.note(node, space.ready_at(node, task.group.need, now), now)
            elif space.fits(node, task.group.need):
                free.append(node)
        for spared, node in held.exchange(free, now):
            space.open_up([spared])
            space.set_aside([node])
        return held

    def _forget_reservation(self) -> None:
        if self._reservation is not None:
            self._space.open_up(self._reservation.nodes)
            self._reservation = None

    def _look_for_starving(self, now: float, limit: float) -> None:
        """Find the task that was overtaken most, of those that one has overtaken that came much later."""
        if now < self._look_for_starving_at:
            return
        self._look_for_starving_at = now + STARVING_S / 10
        self._starving = None
        found: Waiting | None = None
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None or self._newest - oldest.since < STARVING_S:
            return
        newest, priority = -math.inf, 0
        for group in self._order:
            if group.shape[0] != priority:
                if found is not None:
                    break
                newest, priority = -math.inf, group.shape[0]
            newest = max(newest, group.newest)
            latest = newest - STARVING_S if found is None else found.since
            for task_id, since in group.came.items():
                if since > latest:
                    break
                task = self._waiting[task_id]
                if (task.walltime_s or 0.0) <= limit and self._space.suffices(group.need):
                    found = task
                    break
        if found is not None:
            self._starving = found.group.only(found)
