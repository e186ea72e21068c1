"""What a launcher asks the database for: tasks that it has room for, and some that it must make room for. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeAlias

from parsl_balsam.db.claims import Exchange
from parsl_balsam.launcher.placement import STARVING_S, Queue
from parsl_balsam.launcher.space import Space
from parsl_balsam.model.resources import LARGEST
from parsl_balsam.model.tasks import Wish

#: Tasks are claimed ahead for so much time, at the present rate of ends, seconds.
_AHEAD_S = 0.1

#: The rate is that of the last so many ends, or more, within these times, seconds: what comes at once is no rate.
_RATE_ENDS = 32
_RATE_WINDOW_S = (0.02, 0.2)

#: At most so many tasks are claimed at a time.
_MOST = 1000

#: A task that must be made room for is left to others, who may have room, for this time after it was recorded, seconds.
_OTHERS_FIRST_S = 2.0

#: How often a task of the next smaller size is claimed though larger ones wait, seconds.
_TURN_S = STARVING_S / 10

#: Cores in all, idle nodes, cores of one node, GPUs of one.
_Room: TypeAlias = tuple[int, int, int, int]


class Demand:
    """Decides what to claim, from what is free and what was found before.

    Parameters
    ----------
    parallel
        Whether tasks of several ranks may run here.
    """

    def __init__(self, space: Space, queue: Queue, parallel: bool) -> None:
        self._space = space
        self._queue = queue
        self._parallel = parallel
        self._more = True  # whether the database may have what there is room for
        self._asked: tuple[float, ...] = ()  # the room for which it had nothing
        self._room: tuple[float, ...] = ()  # for which it was asked last
        self._turn_at = 0.0
        self._turn_nodes = 0  # the size whose turn it was last
        self._turning = False
        self._rate = 0.0  # ends a second, lately
        self._rate_since = 0.0
        self._rate_count = 0
        self._asked_for_any = False  # also for what there is no room for
        self._unserved: tuple[float, str] | None = None

    def renew(self) -> None:
        """Take note that the database may have other tasks than before."""
        self._more = True

    def note_end(self, now: float) -> None:
        """Take note that a task has ended."""
        self._rate_count += 1
        self._recent_rate(now)

    def wishes(self, now: float, time_left: float | None, renewing: bool, busy: bool, largest: int) -> list[Wish]:
        """Return what to claim in the next exchange, the widest wish last.

        Parameters
        ----------
        time_left
            Until the block ends, seconds; None = no end is known.
        renewing
            Whether the exchange takes place anyway.
        busy
            Whether the launcher holds any task.
        largest
            Cores of the largest task that runs, on all its nodes.
        """
        space = self._space
        if not space.nodes:
            return []
        ahead = self._ahead(now)
        budget = space.free_cores + ahead - self._queue.cores
        most_cores = space.largest_node if ahead else space.most_free_cores
        most_gpus = space.most_gpus if ahead else space.most_free_gpus
        room: _Room = (budget, space.idle_nodes, most_cores, most_gpus)
        if renewing:
            self._more = True
        grown = len(self._asked) < len(room) or any(new > old for new, old in zip(room, self._asked, strict=True))
        if not (self._more or grown):
            return []
        # Where nothing is wished for, nothing is learnt of whether there is anything.
        self._room = room if budget > 0 else ()
        wishes = [self._fitting(room, time_left)] if budget > 0 else []
        if len(space.nodes) > 1 and now >= self._turn_at and busy:
            self._turn_at = now + _TURN_S
            wishes.append(self._turn(time_left))
        self._asked_for_any = not busy
        if not busy:
            wishes.append(replace(self._any(len(space.nodes), time_left), fallback=True))
        elif renewing and self._queue.reserved is None:
            # One no larger than what runs finds its room by itself, here or in another block.
            wishes.append(self._any(len(space.nodes), time_left, _OTHERS_FIRST_S, largest + 1))
        return wishes

    def enough(self, now: float) -> bool:
        """Tell whether more than half of what is claimed ahead still waits: the other half may begin meanwhile."""
        return self._queue.cores > self._ahead(now) // 2

    def standing(self, time_left: float | None) -> list[Wish]:
        """Return what a launcher that holds nothing is going to ask for when the database has something.

        It asks for no more than there is room for: other launchers may have room, too, by the time something comes.
        """
        space = self._space
        room: _Room = (space.free_cores, space.idle_nodes, space.largest_node, space.most_gpus)
        self._room = room
        self._asked_for_any = True
        return [self._fitting(room, time_left), replace(self._any(len(space.nodes), time_left), fallback=True)]

    def take_back(self) -> None:
        """Take note that what was standing was not asked for."""
        self._room = ()

    def learn(self, exchange: Exchange, now: float) -> None:
        """Take note of what came of the wishes."""
        asked = bool(self._room)
        if asked:
            self._more = exchange.more and bool(exchange.claimed)
            # What was too large for what was left may fit when more is left; what was not there may not.
            self._asked = self._room if exchange.more else (math.inf, *self._room[1:])
            self._room = ()
        if self._turning:
            self._turning = False
            sizes = [task.spec.num_nodes for task in exchange.claimed if task.spec.num_nodes <= self._turn_nodes]
            self._turn_nodes = min(sizes, default=1)  # the next turn is for smaller ones, or begins anew
        if exchange.claimed or not self._asked_for_any or (asked and exchange.unserved is None):
            # The last: what was ready a moment ago is with another launcher, which was claiming it just then.
            self._unserved = None
        if exchange.unserved is None or not self._asked_for_any:
            return
        since = now if self._unserved is None else self._unserved[0]
        task, nodes = exchange.unserved, len(self._space.nodes)
        if task.nodes > nodes:
            why = f"task {task.task_id} needs {task.nodes} nodes, and this block has {nodes}"
        elif task.walltime_min is not None:
            why = f"task {task.task_id} needs {task.walltime_min:g} min, and this block ends before"
        else:
            why = f"task {task.task_id} has no place here"
        self._unserved = (since, why)

    def unserved(self, now: float, patience_s: float) -> str | None:
        """Return why nothing that is ready can be run here, if that has been so for a time, in seconds."""
        if self._unserved is None or now - self._unserved[0] < patience_s:
            return None
        return self._unserved[1]

    def _fitting(self, room: _Room, time_left: float | None) -> Wish:
        """Return the wish for what there is room for."""
        cores, nodes, most_cores, most_gpus = room
        return self._wish(min(cores, _MOST), cores, max(1, nodes), most_cores, most_gpus, time_left)

    def _any(self, most_nodes: int, time_left: float | None, waited_s: float = 0.0, least_cores: int = 0) -> Wish:
        """Return the wish for one task of up to so many nodes, whether there is room for it now or not.

        What is too large for every node is claimed too: to be refused, where it would otherwise wait for ever.
        """
        return self._wish(1, LARGEST, most_nodes, LARGEST, LARGEST, time_left, waited_s, least_cores)

    def _turn(self, time_left: float | None) -> Wish:
        """Return the wish for a task of the next size: in the database's order the largest would always be first."""
        self._turn_nodes = self._turn_nodes - 1 if self._turn_nodes > 1 else len(self._space.nodes)
        self._turning = True
        return self._any(self._turn_nodes, time_left, STARVING_S)

    def _wish(
        self,
        tasks: int,
        cores: int,
        most_nodes: int,
        most_cores: int,
        most_gpus: int,
        time_left: float | None,
        waited_s: float = 0.0,
        least_cores: int = 0,
    ) -> Wish:
        return Wish(
            tasks,
            cores,
            most_nodes,
            most_cores,
            most_gpus,
            self._space.largest_node,
            None if time_left is None else time_left / 60,
            self._parallel,
            waited_s,
            least_cores,
        )

    def _ahead(self, now: float) -> int:
        """Return how many cores' tasks may wait that there is no room for yet."""
        return min(int(self._recent_rate(now) * _AHEAD_S), _MOST)

    def _recent_rate(self, now: float) -> float:
        """Return how many tasks ended in a second, lately."""
        least, most = _RATE_WINDOW_S
        elapsed = now - self._rate_since
        if elapsed > most or (elapsed > least and self._rate_count >= _RATE_ENDS):
            self._rate = self._rate_count / elapsed
            self._rate_count, self._rate_since = 0, now
        return self._rate
