"""What processes are to one another: who holds a lock, and who left a file half written; nothing here writes."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kbench.errors import Busy, NoLocks

NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_DAY = 24 * 3600


@functools.cache
def host() -> str:
    """Return six digits of this machine's name: a process number means a process on one machine alone."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def runs(process: int) -> bool:
    """Return whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def leftovers(folder: Path, prefix: str) -> list[Path]:
    """Return the temporary files in a folder that nobody writes any more.

    A process of this machine that is gone left them behind; what another machine writes counts after a day.

    Args:
        folder: the folder.
        prefix: of the names of temporary files; process and machine follow.
    """
    named = re.compile(re.escape(prefix) + r"([0-9]+)(?:\.([0-9a-f]{6}))?-")
    with os.scandir(folder) as entries:
        matches = [(folder / entry.name, match) for entry in entries if (match := named.match(entry.name))]
    return [path for path, match in matches if _is_left(path, int(match[1]), match[2])]


def _is_left(path: Path, process: int, machine: str | None) -> bool:
    if machine == host():
        return not runs(process)
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except OSError:
        return False  # gone by now


def take(handle: IO[bytes], on_wait: Callable[[], None] | None, *, wait: bool) -> None:
    """Take the lock on an open file; without `wait` a lock that is held is a `BlockingIOError`."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if on_wait is not None:
            on_wait()
        fcntl.flock(handle, fcntl.LOCK_EX)


def no_locks(path: Path, error: OSError) -> NoLocks:
    """Return the error of a file system without locks."""
    what = f"'{path.parent}' lies on a file system without locks between processes: {error.strerror}"
    todo = "move the folder (KBENCH_DATA, KBENCH_RUNS), or mount it with locks, then run this again"
    return NoLocks(what, "a file system with flock: a local disk, NFS 4, Lustre with `-o flock`", todo)


def busy(path: Path, handle: IO[bytes], todo: str) -> Busy:
    """Return the error of a lock that another process holds, with its number where the file says it."""
    handle.seek(0)
    number = handle.read(20).decode("ascii", "replace")
    error = Busy(f"another kbench process ({number or '?'}) holds '{path}'", "one process at a time here", todo)
    error.holder = int(number) if number.isdecimal() else None
    return error
