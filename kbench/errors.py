"""Errors a user can act on.

    KbenchError
    ├── ConfigError        a YAML file, a registered name or an option
    ├── DataError          files, tables, images, archives
    │   └── NoLocks            a file system without locks between processes
    ├── FoldError          fold files and fold strategies
    ├── TrainingError      a fold that cannot be trained
    │   ├── Diverged           its loss or weights are not finite; the only error that marks a fold failed for good
    │   └── RankLost           another process of the fold, on another device, is gone
    ├── CheckpointError    weights and resume files
    ├── PredictionError    predictions that cannot be made or combined
    ├── SubmissionError    a file that would be refused
    │   └── UnknownOutcome     sent, but whether it counted is not known (exit code 3)
    ├── Busy               another process holds what one process at a time may hold
    │   └── FoldBusy           a fold that is another worker's, or has become another's (exit code 6)
    └── SourceError        a competition's origin: archive, folder, Kaggle
        └── ServiceError       a service refused, failed or could not be reached; carries its kind

A message has three parts: what was wrong, what was expected, what to type next. To add one, subclass
`KbenchError` here and give it an `exit_code` only if a script must be able to tell it apart.
"""

from __future__ import annotations

import difflib
import numbers
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class KbenchError(Exception):
    """An error with a remedy; the command line prints it without a traceback.

    Args:
        what: what was wrong, with the offending value in quotes.
        expected: what would have been right, listed or computed.
        todo: what to type or edit next.
    """

    exit_code = 1

    def __init__(self, what: str, expected: str, todo: str) -> None:
        super().__init__(what)
        self.what, self.expected, self.todo = what, expected, todo
        self.problems: tuple[Problem, ...] = ()  # those it lists, if it lists any

    def __str__(self) -> str:
        return f"{self.what}\n  expected: {self.expected}\n  next: {self.todo}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.expected, self.todo), self.__dict__


class ConfigError(KbenchError):
    """A YAML file, a registered name or an option is wrong."""


class DataError(KbenchError):
    """A file, table, image or archive is wrong."""


class FoldError(KbenchError):
    """A fold file or strategy is wrong."""


class TrainingError(KbenchError):
    """A fold cannot be trained."""


class Diverged(TrainingError):
    """A loss or weights are not finite: the same training would end the same again."""


class RankLost(TrainingError):
    """Another process that trains the fold, on another device, is gone; what ended it says why."""


class CheckpointError(KbenchError):
    """A weights or resume file is missing, damaged or of another run."""


class PredictionError(KbenchError):
    """Predictions cannot be made, read or combined."""


class SubmissionError(KbenchError):
    """A submission would be refused."""


class UnknownOutcome(SubmissionError):
    """A submission was sent and it is not known whether it counted."""

    exit_code = 3


class Busy(KbenchError):
    """Another process holds what one process at a time may hold; `holder` is its number, if that is known."""

    holder: int | None = None


class FoldBusy(Busy):
    """A fold is another worker's, or was taken up by another one while this one did not answer."""

    exit_code = 6


class NoLocks(DataError):
    """A folder lies on a file system without locks between processes (flock)."""


class SourceError(KbenchError):
    """A competition cannot be fetched from where it comes from."""


class ServiceError(SourceError):
    """A competition service refused, failed, or could not be reached.

    Args:
        what: what was wrong.
        expected: what would have been right.
        todo: what to type or do next.
        kind: `install`, `config`, `auth`, `forbidden`, `not_found`, `rejected`, `rate_limited`, `network`,
            `timeout`, `server`, `protocol`, `corrupt` or `upload`; stable, for scripts.
        transient: the same call may succeed later.
        retry_after: seconds the service asked to wait before the next try.
        sent: whether anything may have reached the service.
    """

    def __init__(
        self,
        what: str,
        expected: str,
        todo: str,
        *,
        kind: str = "protocol",
        transient: bool = False,
        retry_after: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(what, expected, todo)
        self.kind, self.transient, self.retry_after, self.sent = kind, transient, retry_after, sent


@dataclass(frozen=True)
class Problem:
    """One finding of a check.

    Attributes:
        where: path in a file (`stages.head.lr`) or name of a column or file.
        what: what is wrong there.
        hint: the nearest valid name or the value to type; may be empty.
    """

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


def as_problems(where: str, error: KbenchError) -> list[Problem]:
    """Return an error as findings of a check: one, or those it lists."""
    if error.problems:
        return [Problem(f"{where}: {problem.where}", problem.what, problem.hint) for problem in error.problems]
    return [Problem(where, error.what, f"expected: {error.expected}; {error.todo}")]


def raise_all(
    problems: Sequence[Problem],
    *,
    error: type[KbenchError],
    subject: str,
    expected: str,
    todo: str,
) -> None:
    """Raise one error that lists every problem; do nothing when there is none.

    Args:
        problems: the findings, in the order they are shown.
        error: the class raised.
        subject: what was checked, such as a file's name.
        expected: second part of the message.
        todo: third part of the message.
    """
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        gathered = error(f"{subject}: {count}\n{lines}", expected, todo)
        gathered.problems = tuple(problems)
        raise gathered


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `did you mean 'flip'?`, or the known names when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{visible(close[0])}'?"
    return f"known: {', '.join(map(visible, names))}" if names else "none is known"


def visible(name: str) -> str:
    r"""Return a name with every sign that does not show, or shows like another one, written as `\u200b`."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(sign.encode("unicode_escape").decode() if _unseen(sign) else sign for sign in name)


def _unseen(sign: str) -> bool:
    kind = unicodedata.category(sign)
    return kind in ("Cc", "Cf", "Mn", "Zl", "Zp") or (kind == "Zs" and sign != " ")


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """Return the first few names and how many more there are: `'a', 'b' and 7 more`."""
    shown = ", ".join(f"'{visible(str(name))}'" for name in list(names)[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def check_number(name: str, value: object, interval: str, *, whole: bool = False) -> None:
    """Hold a component's parameter against an interval.

    Args:
        name: the parameter, as a YAML spells it.
        value: what was given.
        interval: such as `[0, 1)` or `(0, inf)`; a round bracket leaves the end out.
        whole: only whole numbers are right.

    Raises:
        ConfigError: the value is no number, no whole one, or outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    if isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool):
        number: Any = value
        above = low < number if interval[0] == "(" else low <= number
        below = number < high if interval[-1] == ")" else number <= high
        if above and below:
            return
    raise ConfigError(
        f"{name} is '{value}'", f"a {'whole ' if whole else ''}number in {interval}", f"correct `{name}:` in the YAML"
    )


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
