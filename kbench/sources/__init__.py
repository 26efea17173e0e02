"""Where competitions come from: packaged data, the user's own folder, Kaggle.

A source is a registered function that returns a `Source`; one whose submissions are graded on this machine says how
files come and wraps itself in `Unserved`. To add one, write a module here and name it in `registry.MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from kbench.errors import SourceError

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; bytes or files; total is 0 while it is not known."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Attributes:
        files: how many files lie in the folder now.
        bytes: their size.
        new: how many of them this fetch wrote.
    """

    files: int
    bytes: int
    new: int


@dataclass(frozen=True)
class Receipt:
    """What is known of a sent submission.

    Attributes:
        ref: the service's id of the submission.
        status: `pending`, `complete` or `error`.
        public: the public score, once known.
        private: the private score, once known.
        message: what the service said.
    """

    ref: str
    status: str
    public: float | None = None
    private: float | None = None
    message: str = ""


class Source(Protocol):
    """Where a competition's files come from and its submissions go."""

    def fetch(self, target: Path, *, files: Sequence[str], force: bool, progress: Progress) -> Fetched:
        """Bring the files into `target`; what is there and whole is not fetched again."""

    def solution(self, data: Path) -> Path | None:
        """Return the solution file for grading on this machine, or None when a service grades."""

    def check_open(self, *, notebook: bool = False) -> int | None:
        """Return how many submissions are left today, if the service says; raise where none would be taken."""

    def upload(self, file: Path, progress: Progress) -> str:
        """Upload a submission's file and return what stands for it; may be repeated, it does not count yet."""

    def send(self, upload: str, *, message: str, tag: str) -> Receipt:
        """Submit an upload, once; only asked when `solution` is None."""

    def send_notebook(self, notebook: Mapping[str, Any], *, message: str, tag: str) -> Receipt:
        """Submit a version of a notebook, as `send` does an upload."""

    def find(self, tag: str) -> Receipt | None:
        """Return the submission sent with a tag, or None when the service lists none."""

    def find_all(self, tags: Collection[str]) -> dict[str, Receipt]:
        """Return the submissions sent with these tags, by tag, from one look at the service's list."""

    def status(self, ref: str) -> Receipt:
        """Ask for the state and score of a sent submission."""

    def wait(self, ref: str, *, limit: float, progress: Progress) -> Receipt:
        """Ask until a submission is scored or failed, `limit` seconds at most."""


class Fetch(Protocol):
    """Brings files, as `Source.fetch` does."""

    def __call__(self, target: Path, *, files: Sequence[str], force: bool, progress: Progress) -> Fetched:
        """Bring the files into `target`; what is there and whole is not fetched again."""


@dataclass(frozen=True)
class Unserved:
    """A source without a service: files come, nothing is sent.

    Attributes:
        fetch: as in `Source`.
        solution: as in `Source`.
        refusal: what cannot be done -> the error that says what to do instead.
    """

    fetch: Fetch
    solution: Callable[[Path], Path | None]
    refusal: Callable[[str], SourceError]

    def check_open(self, *, notebook: bool = False) -> NoReturn:
        """Refuse: nobody takes submissions."""
        raise self.refusal("a submission cannot be sent")

    def upload(self, file: Path, progress: Progress) -> NoReturn:
        """Refuse: nobody takes submissions."""
        raise self.refusal(f"'{file.name}' cannot be sent")

    def send(self, upload: str, *, message: str, tag: str) -> NoReturn:
        """Refuse: nobody takes submissions."""
        raise self.refusal("a submission cannot be sent")

    def send_notebook(self, notebook: Mapping[str, Any], *, message: str, tag: str) -> NoReturn:
        """Raise: there is nobody to send it to."""
        self.check_open(notebook=True)

    def find(self, tag: str) -> None:
        """Return None: nothing was sent."""

    def find_all(self, tags: Collection[str]) -> dict[str, Receipt]:
        """Return nothing: nothing was sent."""
        return {}

    def status(self, ref: str) -> NoReturn:
        """Refuse: nothing was sent."""
        raise self.refusal(f"there is no submission '{ref}'")

    def wait(self, ref: str, *, limit: float, progress: Progress) -> NoReturn:
        """Refuse: nothing was sent."""
        raise self.refusal(f"there is no submission '{ref}'")
