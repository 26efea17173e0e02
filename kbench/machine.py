"""What this machine lets the process use."""

from __future__ import annotations

import ctypes
import os


def cores() -> int:
    """Return the number of CPU cores that are this process's: containers and `taskset` may give it some of them."""
    return len(os.sched_getaffinity(0))


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def wait_asleep() -> bool:
    """Let OpenMP's threads sleep while they wait for one another; return whether the user left that to kbench.

    By default they spin, and where other processes want the same cores they keep those from working for whom they wait.
    OpenMP reads it once, when torch loads it, so a process says it first of all; what it starts inherits it. It changes
    no result. `benchmarks/bench_shared_cores.py` has what it gains.
    """
    if any(name in os.environ for name in _WAITING):
        return False
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Keep memory that was freed for what is allocated next; return whether the C library can (glibc).

    By default glibc gives large blocks back at once, and a network on a CPU, whose every layer allocates some, spends a
    third of its time having the system hand them out again page by page. What a classifier holds at most stays so;
    maps of whole frames held half as much again, so dense tasks leave it as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def this_machine() -> str:
    """Return what tells processes apart that can see each other: the boot and the space of process numbers.

    Empty where the system does not say (only Linux does): then no process is known to be dead by its number.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            return f"{handle.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(process: int) -> str:
    """Return when a process of this machine was started, in ticks since the boot; empty where there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as handle:
            words = handle.read().rpartition(")")[2].split()  # the name before it may hold anything
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


def processor() -> str:
    """Return the name of the processor; empty where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle:
            names = [line.partition(":")[2].strip() for line in handle if line.startswith("model name")]
    except OSError:
        return ""
    return names[0] if names else ""
