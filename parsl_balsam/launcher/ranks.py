"""How a worker starts the ranks of a parallel task."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_balsam.launcher import gpus
from parsl_balsam.launcher.messages import ENDED, MARK, Ranks
from parsl_balsam.launcher.mpi import exporting
from parsl_balsam.launcher.rank_files import RankResult, has_failed, read_results, write_call
from parsl_balsam.model.errors import RankFailed, UnreadablePayload
from parsl_balsam.model.launch import MpiStyle
from parsl_balsam.model.payload import decode
from parsl_balsam.model.resources import Launch

_BASH_ENV = Path(__file__).with_name("prefix.bash")

#: How often the ranks of a function are looked at, seconds.
_LOOK_S = 0.02

#: How long the other ranks have to end by themselves after one has failed, and then after they were told to, seconds.
_GRACE_S = 1.0
_TERM_S = 5.0


def launch_of(ranks: Ranks, is_bash: bool) -> Launch:
    """Return how many copies of an app are started: by default one of a function, and one per rank of a command."""
    return ranks.launch or (Launch.RANKS if is_bash or ranks.alone else Launch.ONCE)


def enter(ranks: Ranks, own_gpus: Sequence[str], is_bash: bool) -> None:
    """Set the environment that a parallel task and its ranks find.

    The worker puts it back after the task.
    """
    environ = {**ranks.variables, MARK: ranks.mark, ENDED: str(ranks.ended)}
    if own_gpus:
        environ |= gpus.variables(own_gpus)
    if words := exporting(MpiStyle(ranks.style), [*environ, "OMP_NUM_THREADS"]):
        for name in ("PARSL_MPI_PREFIX", "PARSL_MPIEXEC_PREFIX"):
            environ[name] += " " + shlex.join(words)
    if is_bash and launch_of(ranks, is_bash) is Launch.RANKS:
        environ |= {"BALSAM_STAGE": "launch", "BALSAM_USER_BASH_ENV": os.environ.get("BASH_ENV", "")}
        environ["BASH_ENV"] = str(_BASH_ENV)
    os.environ.update(environ)


class OnEveryRank:
    """A function that is called once per rank, in a process of its own each; it returns the list of their results.

    Parameters
    ----------
    body
        The encoded function.
    """

    def __init__(self, ranks: Ranks, body: bytes) -> None:
        self._ranks = ranks
        self._body = body
        self._directory = ranks.scratch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on every rank.

        Raises
        ------
        RankFailed
            If it raised on some rank, or some rank ended otherwise. The other ranks are ended.
        """
        self._directory.mkdir(mode=0o700)
        try:
            write_call(self._directory, self._body, args, kwargs)
            exit_code = self._run()
            results = read_results(self._directory, self._ranks.count)
            self._raise_failure(results, exit_code)
            values = [decode(results[number].payload) for number in range(self._ranks.count)]
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
        return values[0] if self._ranks.alone else values

    def _run(self) -> int:
        """Run all ranks; return the exit code of their launcher."""
        command = [*shlex.split(os.environ["PARSL_MPI_PREFIX"]), sys.executable, "-m", "parsl_balsam.launcher.rank"]
        launcher = subprocess.Popen([*command, str(self._directory)], stdin=subprocess.DEVNULL)
        deadline = float("inf")
        try:
            while launcher.poll() is None:
                time.sleep(_LOOK_S)
                # Not every launcher ends the others when one rank exits with an error.
                if deadline == float("inf") and has_failed(self._directory):
                    deadline = time.monotonic() + _GRACE_S
                if time.monotonic() > deadline:
                    break
        finally:
            _end(launcher)
        return launcher.returncode

    def _raise_failure(self, results: Mapping[int, RankResult], exit_code: int) -> None:
        failed = [result for result in results.values() if result.error is not None]
        if failed:
            first = min(failed, key=lambda result: (result.at, result.number))
            raise RankFailed(
                f"rank {first.number} of {self._ranks.count}, on {first.node}: {first.error}"
            ) from _exception(first.payload)
        missing = sorted(set(range(self._ranks.count)) - results.keys())
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            launcher = (shlex.split(os.environ["PARSL_MPI_PREFIX"]) or ["it"])[0]
            what = f"rank {shown} of {self._ranks.count} ended without a result"
            raise RankFailed(f"{what}; {launcher} ended with exit code {exit_code}")


def _end(launcher: subprocess.Popen[bytes]) -> None:
    if launcher.poll() is None:
        launcher.send_signal(signal.SIGTERM)
        try:
            launcher.wait(_TERM_S)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()


def _exception(payload: bytes) -> BaseException | None:
    """Return what a rank raised, if it can be read back here."""
    try:
        error = decode(payload)
    except UnreadablePayload:
        return None
    return error if isinstance(error, BaseException) else None
