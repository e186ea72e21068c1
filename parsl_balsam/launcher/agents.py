"""The agents of a block, as the launcher sees them: who is there, who is not heard of any more, and the way to each."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from parsl_balsam.launcher.channel import Channel, complaint, wait_for_room
from parsl_balsam.launcher.messages import (
    LEASE_SHARE,
    PROTOCOL,
    Beat,
    Cleaned,
    Died,
    Ended,
    Farewell,
    Hello,
    Lease,
    Returned,
)
from parsl_balsam.launcher.processes import sweep_all

_OTHER_VERSION = (
    "its agent is of another version of parsl-balsam than the launcher (it speaks protocol {}, the launcher "
    f"{PROTOCOL}): install one version for all nodes of a block, and for the script"
)

#: How long agents that were told to end may take, seconds.
END_S = 5.0


_DIED = "its agent died"

#: What agents say.
_SAID = frozenset({Beat, Cleaned, Died, Ended, Hello, Returned})


class Agents(ABC):
    """All agents of a block.

    Parameters
    ----------
    names
        The nodes that are to have one.
    lease_s
        The launcher's lease, seconds.
    start_timeout_s
        An agent that has not reported after this time is not waited for any more, seconds.
    """

    def __init__(self, names: Sequence[str], lease_s: float, start_timeout_s: float) -> None:
        self._lease_s = lease_s * LEASE_SHARE
        self._expected = dict.fromkeys(names, time.monotonic() + start_timeout_s)
        self._start_timeout_s = start_timeout_s
        self._heard: dict[str, float] = {}
        self._gone: dict[str, str] = {}  # noticed, and not yet told by `lost`
        self._unheard: dict[str, str] = {}  # nodes whose agents are not listened to any more, and why
        #: Until when tasks may run, on the monotonic clock: agents are told when they ask.
        self.lease_until = time.monotonic() + self._lease_s

    @property
    def expected(self) -> int:
        """How many agents have neither reported nor been given up."""
        return len(self._expected)

    @abstractmethod
    def open(self, selector: selectors.BaseSelector) -> None:
        """Start the agents. From now on the selector wakes up when one of them speaks."""

    @abstractmethod
    def post(self, node: str, message: object) -> None:
        """Send a message to the agent of a node."""

    @abstractmethod
    def flush(self) -> None:
        """Send what can be sent without waiting. The selector wakes up when more can be."""

    @abstractmethod
    def pending(self) -> bool:
        """Tell whether there are messages that the selector does not tell of any more."""

    @abstractmethod
    def end(self) -> None:
        """End all agents and what they started."""

    @abstractmethod
    def _receive(self) -> list[tuple[str, object]]:
        """Return what has arrived, each message with the node whose agent sent it."""

    def messages(self) -> list[tuple[str, object]]:
        """Return what agents say of nodes and tasks, without waiting."""
        found: list[tuple[str, object]] = []
        now = time.monotonic()
        for node, message in self._receive():
            if node in self._unheard:
                continue
            if type(message) not in _SAID:
                self._refuse(node, f"its agent sent what cannot be read: {complaint(message)}")
            elif isinstance(message, Died):
                self._lose(message.node, self._unheard.pop(message.node, message.why))
            elif isinstance(message, Hello) and (theirs := getattr(message, "protocol", 0)) != PROTOCOL:
                self._refuse(node, _OTHER_VERSION.format(theirs))
            elif isinstance(message, Hello) and node in self._expected:
                del self._expected[node]
                self._heard[node] = now
                found.append((node, message))
            elif node not in self._heard:
                self.post(node, Farewell())  # it was given up, and its tasks with it
            else:
                self._heard[node] = now
                if isinstance(message, Beat):
                    self.post(node, Lease(message.at, max(0.0, min(self._lease_s, self.lease_until - now))))
                else:
                    found.append((node, message))
        return found

    def lost(self) -> list[tuple[str, str]]:
        """Return the nodes that are to be given up, each once, with the reason."""
        now = time.monotonic()
        for node, until in list(self._expected.items()):
            if now >= until:
                self._lose(node, f"its agent did not report within {self._start_timeout_s:g} s")
        for node, heard in list(self._heard.items()):
            # By now its tasks have ended by themselves: the lease it was given last is over.
            if now - heard > self._lease_s:
                self._lose(node, self._unheard.pop(node, f"its agent was not heard of for {now - heard:.1f} s"))
        gone, self._gone = self._gone, {}
        return list(gone.items())

    def look_at(self) -> float:
        """Return when `lost` may have news though nobody has spoken, on the monotonic clock."""
        return min((*self._expected.values(), *(heard + self._lease_s for heard in self._heard.values())), default=1e18)

    def _refuse(self, node: str, why: str) -> None:
        """Do without a node whose agent cannot be understood. It is told to end, but may not understand that, either.

        If it may have tasks, the node is lost only when their lease is over: before, they might run twice.
        """
        self.post(node, Farewell())
        if node in self._heard:
            self._unheard[node] = why
        else:
            self._lose(node, why)

    def _lose(self, node: str, why: str) -> None:
        if self._heard.pop(node, None) is not None or self._expected.pop(node, None) is not None:
            self._gone[node] = why


class LocalAgents(Agents):
    """Agents on the launcher's own host, each of which stands for a node.

    Parameters
    ----------
    nodes
        Name of each node, and what MPI launchers call its host.
    invitation
        A file, see `parsl_balsam.launcher.invitation`.
    """

    def __init__(self, nodes: Mapping[str, str], invitation: Path, lease_s: float, start_timeout_s: float) -> None:
        super().__init__(list(nodes), lease_s, start_timeout_s)
        self.nodes = nodes
        self._invitation = invitation
        self._channels: dict[str, Channel] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._selector: selectors.BaseSelector

    def open(self, selector: selectors.BaseSelector) -> None:
        """Start the agents."""
        self._selector = selector
        for node in self.nodes:
            self._start(node)

    def restart(self, node: str) -> None:
        """Start another agent in place of one that was lost."""
        self._expected[node] = time.monotonic() + self._start_timeout_s
        self._start(node)

    def post(self, node: str, message: object) -> None:
        """Send a message to the agent of a node."""
        if node in self._channels:
            self._channels[node].post(message)

    def flush(self) -> None:
        """Send what can be sent without waiting. The selector wakes up when more can be."""
        for node, channel in list(self._channels.items()):
            try:
                wait_for_room(self._selector, channel, not channel.flush())
            except EOFError:
                self._lose(node, _DIED)

    def pending(self) -> bool:
        """Tell whether there are messages that the selector does not tell of any more."""
        return False

    def end(self) -> None:
        """End all agents. What they or their workers may leave behind becomes this process's children, and ends too."""
        for node in list(self._channels):
            self._selector.unregister(self._channels[node])
            self._channels.pop(node).close()
        for process in self._processes.values():
            _wait_or_kill(process)
        sweep_all()

    def _receive(self) -> list[tuple[str, object]]:
        found: list[tuple[str, object]] = []
        for node, channel in list(self._channels.items()):
            try:
                found += [(node, message) for message in channel.messages()]
            except EOFError:
                self._lose(node, _DIED)
        return found

    def _refuse(self, node: str, why: str) -> None:
        """Do without a node whose agent cannot be understood: it and its tasks are killed."""
        if node in self._channels:
            self._lose(node, why)

    def _start(self, node: str) -> None:
        ours, theirs = socket.socketpair()
        words = [str(self._invitation), "--descriptor", str(theirs.fileno())]
        words += ["--name", node, "--host", self.nodes[node]]
        words += ["--index", str(list(self.nodes).index(node))]
        self._processes[node] = subprocess.Popen(
            agent_command(*words),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the block's process group is for the launcher to handle
        )
        theirs.close()
        self._channels[node] = Channel(ours)
        # What there is to read, `messages` reads.
        self._selector.register(self._channels[node], selectors.EVENT_READ, lambda: None)

    def _lose(self, node: str, why: str) -> None:
        self._selector.unregister(self._channels[node])
        self._channels.pop(node).close()
        process = self._processes.pop(node)
        process.kill()  # it may be frozen; what dies with it, and what does not, this process sweeps up
        process.wait()
        sweep_all(spare={process.pid for process in self._processes.values()})
        super()._lose(node, why)


def agent_command(*words: str) -> list[str]:
    """Return the command line of an agent."""
    return [sys.executable, "-m", "parsl_balsam.launcher.agent", *words]


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
