"""``python -m parsl_balsam.launcher.rank DIRECTORY``: one rank of a function that runs on all of them.

The function comes from a file in the directory, and the rank's result goes into another.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.messages import ENDED
from parsl_balsam.launcher.mpi import rank_of_environment
from parsl_balsam.launcher.rank_files import RankResult, read_call, write_failure, write_result
from parsl_balsam.model.payload import decode, encode


def main() -> int:
    """Run this rank; return its exit code."""
    directory = Path(sys.argv[1])
    if os.path.exists(os.environ.get(ENDED, "")):
        return 1
    number = rank_of_environment(os.environ) if os.environ["PARSL_MPI_PREFIX"] else 0
    if number is None:
        print("the MPI launcher has not told this process which rank it is", file=sys.stderr)
        return 1
    null = os.open(os.devnull, os.O_RDONLY)  # Hydra gives all ranks but the first one without an end
    os.dup2(null, 0)
    os.close(null)
    node = _node()
    _choose_gpus(node)
    try:
        sys.path[:], body, arguments = read_call(directory)
        args, kwargs = decode(arguments)
        payload, error = encode(_value(decode(body)(*args, **kwargs))), None
    except BaseException as raised:
        payload, error = _pickled(raised), _text(raised)
    write_result(directory, RankResult(number, node, time.time(), payload, error))
    if error is None:
        return 0
    write_failure(directory)
    sys.stdout.flush()
    sys.stderr.write(error)
    sys.stderr.flush()
    # Without MPI_Finalize, for which it would have to wait until the other ranks come to it.
    os._exit(1)


def _node() -> str:
    """Return the node this rank runs on."""
    # Others than srun pass on the variable of the node on which they were started.
    by_srun = os.environ.get("PARSL_MPI_PREFIX", "").startswith("srun ")
    return (os.environ.get("SLURMD_NODENAME") if by_srun else None) or socket.gethostname()


def _value(returned: Any) -> Any:
    """Return what the app returned; raise what it raised, which Parsl returns."""
    errors = sys.modules.get("parsl.app.errors")  # most of a second to import, and an app of Parsl has done it
    if errors is not None and isinstance(returned, errors.RemoteExceptionWrapper):
        returned.reraise()
    return returned


def _choose_gpus(node: str) -> None:
    per_rank = os.environ.get("BALSAM_GPUS_PER_RANK")
    if not per_rank:
        return
    mine = gpus.read_table(os.environ["BALSAM_GPUS"], node)
    local_rank = next((int(os.environ[name]) for name in gpus.LOCAL_RANK if name in os.environ), 0)
    os.environ.update(gpus.variables(gpus.of_rank(mine, int(per_rank), local_rank)))


def _pickled(error: BaseException) -> bytes:
    try:
        return encode(error)
    except Exception:
        return pickle.dumps(None)


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


if __name__ == "__main__":
    sys.exit(main())
