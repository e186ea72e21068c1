"""A task that leaves a stamp of the clock all the time, in a file for each of its copies. Needs nothing but Python.

Run as a program: ``python stamps.py DIRECTORY NUMBER SECONDS EXIT_CODE``.
"""

import os
import secrets
import socket
import sys
import time

#: How often a copy leaves a stamp, seconds.
EVERY_S = 0.02


def work(directory: str, number: int, seconds: float, fails_first: bool = False) -> int:
    """Work for a time, leaving stamps; return what tells that it was done."""
    # All ranks of one attempt are one copy.
    copy = os.environ.get("BALSAM_RANK_OF") or secrets.token_hex(8)
    attempt = os.environ["BALSAM_ATTEMPT"]
    path = os.path.join(directory, f"{number}.{copy}.{secrets.token_hex(4)}")
    with open(path, "ab", buffering=0) as file:
        # The clock is the same for all processes of a host.
        began = now = time.monotonic()
        file.write(f"{number} {attempt} {os.getpid()} {socket.gethostname()} {now!r}\n".encode())
        while now < began + seconds:
            time.sleep(EVERY_S)
            now = time.monotonic()
            file.write(f"{now!r}\n".encode())
        if fails_first and _first(os.path.join(directory, f"failed.{number}")):
            file.write(b"raises\n")
            raise ValueError(f"task {number} fails the first time")
        file.write(b"ends\n")
    return number * 7


def _first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    sys.exit(int(sys.argv[4]))
