"""What a running task may know of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CurrentTask:
    """The task that this process works for."""

    task_id: int  #: as ``parsl-balsam show`` takes it
    attempt: int  #: number of this try, from 1
    nodes: tuple[str, ...]  #: of its placement, as the block calls them


def current_task(environ: Mapping[str, str] = os.environ) -> CurrentTask | None:
    """Return the task that is running here, or None outside of tasks.

    Programs that a task starts find the same in ``$BALSAM_TASK_ID``, ``$BALSAM_ATTEMPT`` and ``$BALSAM_NODES``.
    """
    if "BALSAM_TASK_ID" not in environ:
        return None
    nodes = tuple(environ["BALSAM_NODES"].split(","))
    return CurrentTask(int(environ["BALSAM_TASK_ID"]), int(environ["BALSAM_ATTEMPT"]), nodes)
