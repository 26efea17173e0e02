"""When a fold has to stop: a limit of time, or a signal that the machine is wanted for something else.

A training looks at it after each update, and stops at a resume point that is written in time: before the limit by what
the next update, the judging of an epoch and the writing itself are known to take. What is not an update (the decoding
of images, a range test, predictions) is cut off at the limit itself; the same command begins it again.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kbench.errors import ConfigError

LIMIT = "KBENCH_TIME_LIMIT"
_UNTIL = "KBENCH_UNTIL"  # when the command that started this one stops, in seconds since 1970
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_LENGTH = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_GRACE_S = 10.0  # after a signal; a machine that is taken away leaves 30 s
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """The time is over, or a signal came: the same command goes on from the last resume point (exit code 5)."""

    exit_code = 5


def seconds_of(text: str) -> float:
    """Return a length of time in seconds.

    Args:
        text: such as `11h`, `90m`, `1h30m` or `45s`.

    Raises:
        ConfigError: it is none.
    """
    words = text.strip().lower()
    if not _LENGTH.fullmatch(words) or not sum(map(float, re.findall(r"\d+(?:\.\d+)?", words))):
        raise ConfigError(
            f"'{text}' is no length of time", "numbers with d, h, m or s, such as 11h or 1h30m",
            f"`--time-limit 11h`, or {LIMIT}=11h",
        )  # fmt: skip
    return sum(float(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"\d+(?:\.\d+)?[dhms]", words))


@dataclass(eq=False)  # a thing, not a value
class Deadline:
    """When to stop, and what the things that come before take.

    Attributes:
        at: of `clock`, in seconds; None where only a signal stops.
        clock: says what time it is.
        why: what the user is told, once there is a reason.
    """

    at: float | None = None
    clock: Callable[[], float] = time.monotonic
    why: str = ""
    _took: dict[str, float] = field(default_factory=dict)

    def took(self, what: str, seconds: float) -> None:
        """Remember how long something took: the longest time counts, and slowly loses its weight."""
        self._took[what] = max(seconds, 0.9 * self._took.get(what, 0.0))

    def lacks(self, *parts: str, more: float = 0.0) -> bool:
        """Return whether there is no time left for some things and `more` seconds, with a fifth to spare."""
        if self.why:
            return True
        if self.at is None:
            return False
        return self.clock() + 1.2 * (sum(self._took.get(part, 0.0) for part in parts) + more) >= self.at

    @property
    def left(self) -> float | None:
        """Seconds that are left, 0 or more; None without a limit."""
        return None if self.at is None else max(0.0, self.at - self.clock())

    def stop(self) -> None:
        """End the work.

        Raises:
            Stopped: always.
        """
        raise Stopped(f"{self.why or 'the time limit is near'}: stopped at a resume point; the same command goes on")


NONE = Deadline()


@contextmanager
def time_limit(text: str | None) -> Iterator[Deadline]:
    """Yield when a command stops: after a length of time, or with the command that started it, whichever is first.

    Args:
        text: such as `11h`, or None.

    Raises:
        ConfigError: it is no length of time.
    """
    limits = [] if not text else [seconds_of(text)]
    before = os.environ.get(_UNTIL)
    limits += [float(before) - time.time()] if before else []
    limit = min(limits, default=None)
    if limit is not None:
        os.environ[_UNTIL] = str(time.time() + limit)
    try:
        with deadline(limit) as ends:
            yield ends
    finally:
        os.environ.pop(_UNTIL, None)
        os.environ |= {_UNTIL: before} if before else {}


@contextmanager
def deadline(limit: float | None) -> Iterator[Deadline]:
    """Yield when to stop: in `limit` seconds, or soon after SIGTERM or SIGUSR1; to be used by a main thread.

    What has not stopped by itself at the limit, or 10 s after a signal, is stopped where it is.

    Args:
        limit: seconds from now; None for no limit.
    """
    ends = Deadline(None if limit is None else time.monotonic() + limit)
    process = os.getpid()

    def told(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a loader's process, which was forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        ends.why = f"told to stop by {signal.Signals(number).name}"
        signal.setitimer(signal.ITIMER_REAL, min(_GRACE_S, _GRACE_S if ends.left is None else max(0.01, ends.left)))

    def over(number: int, frame: Any) -> None:
        if os.getpid() == process:
            why = ends.why or "the time limit is over"
            raise Stopped(f"{why}: stopped between resume points; the same command goes on from the last one")

    before = {number: signal.signal(number, told) for number in _SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, over)
    if limit is not None:
        signal.setitimer(signal.ITIMER_REAL, max(0.01, limit))
    try:
        yield ends
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
