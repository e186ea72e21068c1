"""qdel: asks for the end of jobs."""

from __future__ import annotations

import optparse
import sys
import time
from collections.abc import Sequence

from tests.cobalt.questions import Away, ask, fail, fail_without, settings
from tests.cobalt.tables import table


def main(home: str, argv: Sequence[str]) -> None:
    """Delete jobs of the server whose directory is `home`."""
    parser = optparse.OptionParser("%prog [options] <jobid> [<jobid> ...]", prog="qdel.py", add_help_option=False)
    parser.add_option("--help", action="help")
    _, words = parser.parse_args(list(argv))
    if not words:
        parser.print_usage()
        fail("No Jobid(s) given")
    for word in words:
        if not word.isdecimal():
            fail(f"jobid must be an integer: {word}")
    try:
        deleted = ask(home, "del_jobs", jobs=[int(word) for word in words])
    except Away:
        fail_without("queue-manager", "del_jobs")
    time.sleep(settings(home)["qdel_s"])
    if deleted:
        sys.stdout.write("      Deleted Jobs\n" + table(["JobID", "User"], deleted))
