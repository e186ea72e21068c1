"""The C library, for what Python has no call for."""

from __future__ import annotations

import ctypes
import os

#: A name that it lacks, on another system or of another vendor, raises AttributeError.
libc = ctypes.CDLL(None, use_errno=True)


def why_it_failed() -> OSError:
    """Return the error of this thread's last call."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
