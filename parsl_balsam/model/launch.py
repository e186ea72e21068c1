"""What a run tells the launchers of its blocks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """Everything a launcher must know, and must not be told on a command line."""

    database: str  #: URL, password included
    workflow_id: int
    lease_s: float  #: how long a launcher may be unheard of before its tasks are given to others
    idle_timeout_s: float  #: a launcher that had no work for so long ends
    cores_per_node: int | None  #: None for what the node has
    python_path: tuple[str, ...]  #: where the script found its modules

    def dumps(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> LaunchOrder:
        """Read it back."""
        given = json.loads(text)
        return cls(**{**given, "python_path": tuple(given["python_path"])})
