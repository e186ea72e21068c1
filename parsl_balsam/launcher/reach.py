"""``python -m parsl_balsam.launcher.reach ORDER RESULT``: tries from a batch job what its launcher would need.

ORDER is the file that launchers are given, RESULT the one to which the answer is written.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from parsl_balsam.db.connect import open_database
from parsl_balsam.db.private import read_private, write_private
from parsl_balsam.model.errors import BalsamError
from parsl_balsam.model.launch import LaunchOrder
from parsl_balsam.model.stored import read_value


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of a try to reach the database."""

    host: str  #: from which it was tried
    seconds: float  #: until it was open, or was given up
    error: str | None = None  #: why it was not reached, without passwords

    def dumps(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str | bytes) -> Reached:
        """Read it back; raises ConfigurationError if it is damaged."""
        return read_value(cls, text, "the answer from the batch job")


def reach(order_file: Path) -> Reached:
    """Try to open the database of an order."""
    began = time.monotonic()
    error: str | None = None
    try:
        order = LaunchOrder.loads(read_private(order_file), str(order_file))
        open_database(order.database, create=False).close()
    except (BalsamError, OSError) as failure:
        error = " ".join(str(failure).split())
    return Reached(platform.node(), time.monotonic() - began, error)


def main() -> int:
    """Write the answer; return the exit code of the batch job."""
    order_file, result_file = map(Path, sys.argv[1:])
    reached = reach(order_file)
    write_private(result_file, reached.dumps())  # in one step: whoever waits for it reads all of it or nothing
    if reached.error is not None:
        print(reached.error, file=sys.stderr)
    return 0 if reached.error is None else 1


if __name__ == "__main__":
    sys.exit(main())
