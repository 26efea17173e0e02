"""Whose a fold is: one worker trains it, on whatever machine, and another takes it up when that one no longer answers.

A lease is a file of the fold's folder, `lease-N.json`: its owner, written once by whoever is the first to create it,
and a heartbeat, its time of change, by the clock of the file system alone. Whoever takes a fold up writes the next
generation and removes the one before. A worker that comes back (from SIGSTOP, from a network that was gone) touches its
lease before each change of the folder, sees that it is no longer there, and stops.

The lock of the fold (`flock`) is held beside it: it keeps older versions and other commands away. A stopped process
still holds the lock it has, so whoever takes the fold up has a new one. Where two workers should ever write the same
moment, what they write is the same: training depends on nothing but the fold.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from kbench import console, files, machine
from kbench.errors import ConfigError, DataError, FoldBusy, NoLocks
from kbench.workspace import FoldPaths

LIMIT = "KBENCH_LEASE_LIMIT"  # seconds without a heartbeat after which a fold is taken up
WAIT = "KBENCH_LEASE"  # `wait`: a fold that is another worker's is waited for
_LIMIT_S = 120.0
_BEATS = 8  # heartbeats in that time
_POLL_S = 1.0


@dataclass(frozen=True)
class Lease:
    """The newest lease of a fold.

    Attributes:
        generation: counts its owners, from 1.
        owner: `host`, `process`, `machine` and `started` of the one who took it; `released` once it was given back.
        age: seconds since the last heartbeat, by the clock of the file system; 0 where it is free.
        state: `free` (given back, or its owner is known to be dead), `held`, or `silent` for longer than the limit.
    """

    generation: int
    owner: dict[str, Any]
    age: float
    state: Literal["free", "held", "silent"]

    @property
    def holder(self) -> str:
        """The owner, as a message names it."""
        return f"process {self.owner.get('process', '?')} of {self.owner.get('host', '?')}"


def limit_s() -> float:
    """Return the seconds without a heartbeat after which a fold is taken up by others.

    Raises:
        ConfigError: `KBENCH_LEASE_LIMIT` is no number of seconds.
    """
    text = os.environ.get(LIMIT)
    try:
        seconds = _LIMIT_S if not text else float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise ConfigError(f"{LIMIT} is '{text}'", "seconds, 1 or more", f"`unset {LIMIT}` for {_LIMIT_S:.0f} s")
    return seconds


def lease_of(place: FoldPaths) -> Lease | None:
    """Return the newest lease of a fold, or None where nobody ever had one."""
    for generation in reversed(place.leases()):
        path = place.lease(generation)
        try:
            owner = files.read_json(path)
            beat = path.stat().st_mtime
        except (DataError, FileNotFoundError):  # removed in this moment by who took the fold up
            continue
        owner = owner if isinstance(owner, dict) else {}
        if _ended(owner):
            return Lease(generation, owner, 0.0, "free")
        age = max(0.0, now(place) - beat)
        return Lease(generation, owner, age, "held" if age <= limit_s() else "silent")
    return None


def now(place: FoldPaths) -> float:
    """Return the time the file system of a fold has, in seconds: that of a file written now."""
    path = place.clock(f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    try:
        return files.write_bytes(path, b"").stat().st_mtime
    finally:
        files.remove(path)


def _ended(owner: dict[str, Any]) -> bool:
    """Return whether an owner gave its lease back, or is a process of this machine that is no more."""
    here = machine.this_machine()
    same = bool(here) and owner.get("machine") == here
    return bool(owner.get("released")) or (same and machine.started(owner["process"]) != owner["started"])


@contextmanager
def holding(place: FoldPaths, *, todo: str) -> Iterator[None]:
    """Be the one worker of a fold for the block; every change of its folder is made as long as it is.

    With `KBENCH_LEASE=wait` another worker's fold is waited for, as long as that one lives.

    Args:
        place: files of the fold.
        todo: what to do where it is another worker's.

    Raises:
        FoldBusy: it is another worker's, or became another's.
        Busy: a process that knows no leases trains it.
    """
    generation = _take(place, todo)
    with ExitStack() as held:
        still_ours = held.enter_context(_touching(place, generation))

        def check() -> None:
            if not still_ours():
                raise _lost(place, generation)

        held.enter_context(_beating(still_ours))
        held.enter_context(files.fenced(place.root, check))
        check()
        held.callback(lambda: still_ours() and files.write_json(place.lease(generation), {**_me(), "released": True}))
        try:
            held.enter_context(files.lock(place.lock, waiting=todo))
        except NoLocks:
            console.note(f"'{place.root}' lies on a file system without flock: its lease alone keeps others away")
        yield


def _lost(place: FoldPaths, generation: int) -> FoldBusy:
    after = lease_of(place)
    if after is None or after.generation <= generation:
        return FoldBusy(
            f"the lease of '{place.root}' is gone or out of reach", "the file system the fold was begun on",
            "look whether the folder is there, then type the same again: it goes on from the last resume point",
        )  # fmt: skip
    return FoldBusy(
        f"'{place.root}' was taken up by {after.holder}: this process gave no heartbeat for over {limit_s():g} s",
        "one worker a fold", "nothing: the fold goes on there from its last resume point",
    )  # fmt: skip


def _me() -> dict[str, Any]:
    process = os.getpid()
    return {
        "host": socket.gethostname(), "process": process, "machine": machine.this_machine(),
        "started": machine.started(process),
    }  # fmt: skip


def _take(place: FoldPaths, todo: str) -> int:
    """Take the fold; return the generation of its lease."""
    files.make_folder(place.root)
    said = False
    while True:
        lease = lease_of(place)
        if lease is None or lease.state != "held":
            generation = 1 if lease is None else lease.generation + 1
            if not files.write_exclusively(place.lease(generation), _me()):
                continue  # another one was faster
            if place.leases()[-1] != generation:  # a list that was read while another one took it up showed none
                files.remove(place.lease(generation))
                continue
            _clean(place, lease)
            return generation
        if os.environ.get(WAIT) != "wait":
            raise FoldBusy(
                f"{lease.holder} trains '{place.root}': another kbench process ({lease.owner.get('process', '?')}) "
                f"holds it, with a heartbeat {lease.age:.0f} s ago",
                f"one worker a fold; one without a heartbeat for {limit_s():g} s loses it", todo,
            )  # fmt: skip
        if not said:
            console.note(f"{lease.holder} trains '{place.root}': waiting for it, or for {limit_s():g} s of its silence")
            said = True
        time.sleep(_POLL_S)


def _clean(place: FoldPaths, before: Lease | None) -> None:
    """Remove the leases before; a worker that hangs loses its lock, too."""
    for generation in place.leases()[:-1]:
        files.remove(place.lease(generation))
    if before is not None and before.state == "silent":
        console.warn(
            f"{before.holder} had '{place.root}' and gave no heartbeat for {before.age:.0f} s: its fold is taken up "
            "from the last resume point"
        )
        for lock in place.locks():
            files.remove(lock)


@contextmanager
def _touching(place: FoldPaths, generation: int) -> Iterator[Callable[[], bool]]:
    """Yield what gives a lease the file system's time; it returns False once the lease is not there any more."""
    path = place.lease(generation)
    with open(path, "rb") as handle:

        def still_ours() -> bool:
            try:
                os.utime(handle.fileno())  # by its handle: a server asked so cannot answer from memory
                return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
            except OSError:
                return False

        yield still_ours


@contextmanager
def _beating(still_ours: Callable[[], bool]) -> Iterator[None]:
    ended, pause = threading.Event(), limit_s() / _BEATS

    def beat() -> None:
        while not ended.wait(pause) and still_ours():
            pass

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
