"""What this machine lets the process use."""

from __future__ import annotations

import ctypes
import os


def cores() -> int:
    """Return the number of CPU cores that are this process's: containers and `taskset` may give it some of them."""
    return len(os.sched_getaffinity(0))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Keep memory that was freed for what is allocated next; return whether the C library can (glibc).

    By default glibc gives large blocks back at once, and a network on a CPU, whose every layer allocates some, spends a
    third of its time having the system hand them out again page by page. What a classifier holds at most stays so;
    maps of whole frames held half as much again, so dense tasks leave it as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
