"""How this process gets its memory from the system."""

from __future__ import annotations

from parsl_balsam.model.libc import libc

#: Parameters of glibc's `mallopt`, and the most that it would come to by itself in time.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Use memory again where an argument or a result was before: one of a mebibyte is copied several times here.

    By default the C library gives it back to the system, and gets it anew page by page, which takes longer than to
    fill it.
    """
    try:
        mallopt = libc.mallopt
    except AttributeError:  # another C library
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_KEPT_BYTES)
