"""Hosts whose clocks are wrong."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.requirements import require

HOUR_S = 3600


@dataclass(frozen=True)
class WrongClock:
    """What a program must find in its environment to have another clock than its host.

    Not libfaketime: with the monotonic clock left alone, it breaks `time.sleep` of Python 3.11.
    """

    library: Path

    @classmethod
    def compiled(cls, directory: Path) -> WrongClock:
        """Compile it in a directory; without a compiler the test is skipped, or fails under CI=true."""
        require(["cc"], "gcc libc6-dev")
        library = directory / "wrong_clock.so"
        source = Path(__file__).with_name("wrong_clock.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        return cls(library)

    def environ(self, hours: int) -> dict[str, str]:
        """Return the variables for a clock that is ahead by so many hours, or behind."""
        return {"LD_PRELOAD": str(self.library), "WRONG_CLOCK": str(hours * HOUR_S)}

    def exports(self, hours: int) -> str:
        """Return the line of a shell that sets them."""
        return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environ(hours).items())
