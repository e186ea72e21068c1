"""Agents on the nodes of a batch job, started by one parallel launch."""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parsl_balsam.launcher.agents import END_S, Agents, agent_command
from parsl_balsam.launcher.curve import Hub
from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import Farewell
from parsl_balsam.launcher.processes import sweep_all

logger = logging.getLogger(__name__)


class RemoteAgents(Agents):
    """Agents that connect to the launcher over the network.

    Parameters
    ----------
    command
        What comes before the agent's command line so that one is started on each node.
    address
        Where the launcher listens; None for all addresses of its host.
    file
        Where their invitation is written; it is removed in the end.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        command: Sequence[str],
        invitation: Invitation,
        file: Path,
        address: str | None,
        start_timeout_s: float,
    ) -> None:
        super().__init__(hosts, invitation.lease_s, start_timeout_s)
        self._hub = Hub(address)
        self._command = command
        replace(
            invitation,
            endpoints=tuple(self._hub.endpoints),
            server_key=self._hub.server_key.decode(),
            client_key=self._hub.client_key.decode(),
            client_secret=self._hub.client_secret.decode(),
            environ=dict(os.environ),
        ).write(file)
        self._file = file
        self._hosts = hosts
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, selector: selectors.BaseSelector) -> None:
        """Start the agents."""
        selector.register(self._hub, selectors.EVENT_READ, lambda: None)
        self._process = subprocess.Popen(
            [*self._command, *agent_command(str(self._file))],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the block's process group is for the launcher to handle
        )

    def post(self, node: str, message: object) -> None:
        """Send a message to the agent of a node."""
        self._hub.post(node.encode(), message)

    def flush(self) -> None:
        """Do nothing: what was posted is on its way."""

    def pending(self) -> bool:
        """Tell whether there are messages that the selector does not tell of any more."""
        return self._hub.pending()

    def end(self) -> None:
        """End all agents. Those that cannot be reached end by themselves when nothing is heard of the launcher."""
        for host in self._hosts:
            self.post(host, Farewell())
        if self._process is not None:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                try:
                    self._process.wait(END_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
        self._hub.close()
        self._file.unlink(missing_ok=True)
        sweep_all()

    def _receive(self) -> list[tuple[str, object]]:
        if self._expected and self._process is not None and (code := self._process.poll()) is not None:
            for node in list(self._expected):
                self._lose(node, f"its agent was not started: {self._command[0]} ended with exit code {code}")
        return [(agent.decode(errors="replace"), message) for agent, message in self._hub.messages()]
