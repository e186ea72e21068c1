"""By which rules the blocks of a run are requested, as the database keeps them for the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from parsl_balsam.model.stored import read_value
from parsl_balsam.providers.policy import QueuePolicy


@dataclass(frozen=True, slots=True)
class BlockRules:
    """All that decides which block is requested next, but for what waits."""

    policy: QueuePolicy | None  #: None where blocks have no walltime: on this host
    sized: bool  #: whether each block is sized for what waits; else Parsl's strategy counts blocks of one size
    max_blocks: int
    cores_per_node: int | None = None
    gpus_per_node: int | None = None
    whole_nodes: bool = False  #: whether each task gets nodes of its own

    def dumps(self) -> str:
        """Return it as JSON."""
        described = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps(described | {"policy": None if self.policy is None else self.policy.to_dict()})

    @classmethod
    def loads(cls, text: str) -> BlockRules:
        """Read it back.

        Raises
        ------
        ConfigurationError
            It is damaged, or of another version.
        """
        return read_value(cls, text, "the record of the run's rules", policy=_policy)


def _policy(given: Any) -> QueuePolicy | None:
    return None if given is None else QueuePolicy.from_dict(given)
