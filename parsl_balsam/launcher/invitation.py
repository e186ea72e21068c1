"""What the agents of a block must know, in a file that only its owner can read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parsl_balsam.model.errors import ConfigurationError


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
    client_secret: str = ""
    mark: str = ""  #: how the marks of all parallel tasks of the block start
    give_up: tuple[str, ...] = ()  #: the command that ends the batch job, for when the launcher's node is dead
    environ: dict[str, str] | None = None  #: of the batch job, which is that of its tasks; None = the agent's own

    def write(self, path: Path) -> None:
        """Write it to a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # the mode of a file that exists would stay
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read one back.

        Raises
        ------
        ConfigurationError
            If others than its owner can read the file.
        """
        with open(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigurationError(f"{path} gives access to your tasks, and others can read it: chmod 600 {path}")
            given: dict[str, Any] = json.load(file)
        for name in ("hosts", "python_path", "give_up"):
            given[name] = tuple(given[name])
        given["endpoints"] = tuple((host, port) for host, port in given["endpoints"])
        return cls(**{field.name: given[field.name] for field in fields(cls)})
