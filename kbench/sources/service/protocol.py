"""What a competition service on the network can do, whoever runs it.

`fetch.py` (files come) and `send.py` (submissions go) are written against `Service`; `kaggle/client.py` is one.
To add a service, write a module with these methods and register a source that returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kbench.sources import Progress, Receipt

if TYPE_CHECKING:
    import requests

Connect = Callable[[Mapping[str, str]], "AbstractContextManager[requests.Response]"]
"""Asks for a file with these request headers (`Range`, `If-Range`); each call asks for a fresh address."""


@dataclass(frozen=True)
class About:
    """What a service says of a competition.

    Attributes:
        slug: its name in the address.
        title: its name for people.
        url: its page.
        metric: the evaluation metric in the service's words; empty when it does not say.
        deadline: last moment of submission, UTC; None when it does not say.
        entered: this account joined and accepted the rules.
        code_only: a notebook is submitted, no file.
        closed: submissions are switched off.
        daily: submissions a team may make per day; 0 when it does not say.
        category: such as `featured` or `playground`.
    """

    slug: str
    title: str
    url: str
    metric: str = ""
    deadline: datetime | None = None
    entered: bool = False
    code_only: bool = False
    closed: bool = False
    daily: int = 0
    category: str = ""


@dataclass(frozen=True)
class DataFile:
    """A file of a competition: its path there, with `/`, and its size as the service lists it."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Submission:
    """One of the account's own submissions.

    Attributes:
        ref: the service's id.
        date: when it was made, UTC.
        file: name of the file.
        description: what it was sent with; kbench's own end with `[tag]`.
        status: `pending`, `complete` or `error`.
        public: public score, once known.
        private: private score, once known.
        error: why it failed.
    """

    ref: str
    date: datetime | None
    file: str
    description: str
    status: str
    public: float | None = None
    private: float | None = None
    error: str = ""

    def receipt(self) -> Receipt:
        """Return the part of it that a ledger keeps."""
        return Receipt(self.ref, self.status, self.public, self.private, self.error)


@dataclass(frozen=True)
class Limits:
    """How many submissions the service takes: made today, allowed now, and whether the competition's total binds."""

    today: int
    left: int
    by_total: bool = False


class Service(Protocol):
    """The calls `fetch.py` and `send.py` need; every one raises `ServiceError`."""

    @property
    def slug(self) -> str:
        """The competition's name in its address."""

    def about(self, *, patient: bool = True) -> About:
        """Describe the competition; without patience, a service that fails on it is not asked for long."""

    def files(self) -> list[DataFile]:
        """List every file, all pages."""

    def open_bundle(self) -> Connect:
        """Return how to ask for all files in one archive."""

    def open_file(self, name: str) -> Connect:
        """Return how to ask for one file."""

    def limits(self) -> Limits | None:
        """Return how many submissions are allowed now, None when the service does not say; asked without patience."""

    def submissions(self) -> Iterable[Submission]:
        """Yield the account's submissions, newest first, page by page."""

    def upload(self, file: Path, progress: Progress) -> str:
        """Upload a submission's bytes; return the token that stands for them. It does not count yet."""

    def create(self, token: str, description: str) -> Receipt:
        """Ask once that an upload be scored; an empty `ref` means that the answer does not say whether it counted."""

    def status(self, ref: str) -> Receipt:
        """Ask for the state and score of a submission."""
