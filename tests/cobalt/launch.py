"""The launcher on a node: becomes the script, or ends with the code that says why it could not.

It is a program too, as ssh starts it, for which it imports nothing of ours.
"""

from __future__ import annotations

import errno
import optparse
import os
from collections.abc import Mapping, Sequence
from typing import NoReturn


def become(command: Sequence[str], environ: Mapping[str, str], cwd: str) -> NoReturn:
    """Replace this process by a command."""
    try:
        os.chdir(cwd)
        os.execve(command[0], list(command), dict(environ))
    except OSError as error:
        os.write(2, f"[Errno {error.errno}] {error.strerror}\n".encode())
        codes = {errno.ENOENT: 127, errno.EACCES: 126, errno.EPERM: 126}
        os._exit(codes.get(error.errno or 0, 1))


def main() -> NoReturn:
    """Read the words that are left of them after the shell has parsed them once more."""
    parser = optparse.OptionParser()
    parser.disable_interspersed_args()
    parser.add_option("--nf")
    parser.add_option("--jobid")
    parser.add_option("--cwd")
    parser.add_option("--env", action="append", default=[])
    options, command = parser.parse_args()
    # Python may have added a locale to its own.
    with open("/proc/self/environ") as file:
        inherited = [item for item in file.read().split("\0") if item]
    environ = dict(item.split("=", 1) for item in [*inherited, *options.env])
    environ.update(COBALT_NODEFILE=options.nf, COBALT_JOBID=options.jobid)
    become(command, environ, options.cwd)


if __name__ == "__main__":
    main()
