"""The parent of an agent: it outlives it, ends what it leaves behind, and kills it when it is frozen."""

from __future__ import annotations

import importlib
import os
import select

from parsl_balsam.launcher.invitation import Invitation
from parsl_balsam.launcher.messages import Died
from parsl_balsam.launcher.processes import die_with_parent, inherit_orphans, kill, sweep_all

#: An agent that has not beaten for this part of the lease is killed: less than `LEASE_SHARE`, after which the launcher
#: takes its tasks for dead.
_FROZEN_SHARE = 0.8


def leave_a_guard(invitation: Invitation, name: str, descriptor: int | None) -> int:
    """Go on as a child of a process that outlives it, and ends what it leaves behind; return its pulse, to be written.

    The agent ends its tasks when its launcher dies. Killed together with it, it cannot: the kernel then ends its
    workers, and the programs that these had started come to the guard. Frozen, it cannot either, and is killed.
    """
    if descriptor is None:
        # For both of them: what the guard has to say must come before the node is given up because nothing is heard.
        importlib.import_module("parsl_balsam.launcher.curve")
    guard = os.getpid()
    inherit_orphans()
    watched, pulse = os.pipe()
    agent = os.fork()
    if agent == 0:
        die_with_parent(guard)
        os.close(watched)
        return pulse
    os.close(pulse)
    if descriptor is not None:
        os.close(descriptor)  # the launcher must see the agent's end of the socket close
    frozen = _freezes(watched, invitation.lease_s * _FROZEN_SHARE)
    if frozen:
        kill(agent)
    _, status = os.waitpid(agent, 0)
    sweep_all()
    if descriptor is None and status != 0:
        code = os.waitstatus_to_exitcode(status)
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
        _report_death(invitation, name, "its agent was frozen" if frozen else f"its agent {how}")
    os._exit(0)  # any other code would make some MPI launchers end the agents of all nodes


def _freezes(pulse: int, limit_s: float) -> bool:
    """Wait until the agent has ended, or has not beaten for a time; return whether it is the latter."""
    limit = None  # what it imports before its first beat may come slowly
    while select.select([pulse], [], [], limit)[0]:
        if not os.read(pulse, 4096):
            return False
        limit = limit_s
    return True


def _report_death(invitation: Invitation, name: str, why: str) -> None:
    from parsl_balsam.launcher.curve import connect  # not before: a guard on the launcher's host does without it

    line = connect(invitation, None)
    line.post(Died(name, why))
    line.close()
