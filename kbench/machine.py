"""What this machine lets the process use."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of CPU cores that are this process's: containers and `taskset` may give it some of them."""
    return len(os.sched_getaffinity(0))
