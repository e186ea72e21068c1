"""What the agents of a block must know, in a file that only its owner can read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from parsl_balsam.db.private import read_private, write_private
from parsl_balsam.model.stored import read_value


@dataclass(frozen=True, slots=True)
class Invitation:
    """How agents find their launcher, and what they do for it."""

    hosts: tuple[str, ...]  #: the nodes of the block, in the order in which agents are started on them
    cores_per_node: int | None  #: None for what each node has
    gpus_per_node: int | None
    lease_s: float  #: how often to ask for a lease follows from this
    python_path: tuple[str, ...]  #: where the script found its modules
    endpoints: tuple[tuple[str, int], ...] = ()  #: addresses of the launcher; the first that answers will do
    server_key: str = ""  #: of CurveZMQ, public
    client_key: str = ""
    client_secret: str = field(default="", repr=False)
    mark: str = ""  #: how the marks of all parallel tasks of the block start
    give_up: tuple[str, ...] = ()  #: the command that ends the batch job, for when the launcher's node is dead
    #: Of the batch job, which is that of its tasks; None = the agent's own.
    environ: dict[str, str] | None = field(default=None, repr=False)

    def write(self, path: Path) -> None:
        """Write it to a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read one back.

        Raises
        ------
        ConfigurationError
            If the file is another user's or open to others, damaged, or of another version.
        """
        return read_value(cls, read_private(path), str(path))
