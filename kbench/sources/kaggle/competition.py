"""One competition on Kaggle: what its answers mean, in plain values, and a file's bytes to its storage.

Nothing here imports the client: calls go by name through `Client` (`client.py`), so that a service that speaks the same
messages can stand in. To offer one more call, add a method that returns plain values. `put` is one try at an address
that was signed for the file: a repeat needs a new address, so the caller repeats both. To support storage that takes a
file in pieces, add a function beside it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import requests

from kbench.errors import ConfigError, ServiceError
from kbench.sources import Fetched, Progress, Receipt
from kbench.sources.service import faults, fetch, send
from kbench.sources.service.protocol import About, Connect, DataFile, Limits, Submission

CHUNK = 1 << 16


def put(
    file: Path, url: str, *, doing: str, timeouts: tuple[float, float], progress: Callable[[int, int], None]
) -> None:
    """Send a file's bytes to a signed address, once, without any credentials.

    Args:
        file: not empty; read while it is sent.
        url: where storage takes it.
        doing: what is being done, for messages.
        timeouts: seconds to connect and to wait for an answer.
        progress: told after every block read.

    Raises:
        ServiceError: storage did not take it; `transient`, since a new address may work.
    """
    try:
        with open(file, "rb") as handle, requests.Session() as session:
            body = _Body(handle, file.stat().st_size, progress)
            response = session.put(url, data=body, auth=_nobody, timeout=timeouts, allow_redirects=False)
    except requests.RequestException as error:
        raise faults.explain(error, doing=doing, slug="") from None
    if response.status_code not in (200, 201):
        raise ServiceError(
            f"{doing}: storage did not take the file ({response.status_code})",
            "a file that is taken; nothing was submitted",
            "run the same command again in some minutes",
            kind="upload",
            transient=True,
            retry_after=faults.retry_after(response.headers),
        )


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # keeps `requests` from adding what ~/.netrc says


class _Body:
    """A file as `requests` streams it, telling how far it is."""

    def __init__(self, handle: IO[bytes], size: int, progress: Callable[[int, int], None]) -> None:
        self._handle, self._size, self._progress = handle, size, progress

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int = -1) -> bytes:
        """Read a block; `requests` asks for them."""
        chunk = self._handle.read(max(size, CHUNK))
        self._progress(min(self._handle.tell(), self._size), self._size)
        return chunk


_BRIEF: dict[str, Any] = {"tries": 2, "longest": 10.0}  # for what only informs
_SLUG = re.compile(r"^[a-z0-9][a-z0-9-]*$")


class Client(Protocol):
    """The Kaggle client as far as it is used here; methods and requests go by the names of `kagglesdk`."""

    @property
    def sleep(self) -> Callable[[float], None]:
        """Waits seconds."""

    @property
    def clock(self) -> Callable[[], float]:
        """Tells seconds since 1970."""

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to connect and between two packets."""

    def call(
        self,
        method: str,
        request: str,
        *,
        doing: str,
        tries: int = faults.TRIES,
        longest: float = faults.LONGEST,
        **fields: Any,
    ) -> Any:
        """Make a call, repeated while it may succeed; raise `ServiceError`."""

    def ask(
        self, service: str, method: str, request: str, body: Mapping[str, Any], *, doing: str, tries: int = faults.TRIES
    ) -> Any:
        """Make a call to another service than that of competitions; raise `ServiceError`."""

    def user(self) -> str:
        """Return the name of the account that is signed in."""

    def pages(self, method: str, request: str, *, doing: str, numbered: bool = False, **fields: Any) -> Iterator[Any]:
        """Yield every page of a listing, the first one asked for by its number too where the call has one."""

    def stream(
        self, method: str, request: str, headers: Mapping[str, str], *, doing: str, **fields: Any
    ) -> AbstractContextManager[requests.Response]:
        """Ask once for a file and yield the answer of storage, its body unread."""


@dataclass(frozen=True)
class KaggleCompetition:
    """A competition on Kaggle: a `Source` for the commands, a `Service` for fetching and sending.

    Attributes:
        slug: last part of the competition's address.
        client: makes the calls.
        nested: unpack zips inside the downloaded one too.
        mounted: where Kaggle's own notebooks have the data.
    """

    slug: str
    client: Client
    nested: bool = True
    mounted: Path = Path("/kaggle/input")

    def fetch(self, target: Path, *, files: Sequence[str], force: bool, progress: Progress) -> Fetched:
        """Bring the files into `target` (`fetch.fetch`)."""
        return fetch.fetch(
            self,
            target,
            asked=files,
            force=force,
            nested=self.nested,
            mounted=self.mounted,
            progress=progress,
            sleep=self.client.sleep,
        )

    def solution(self, data: Path) -> Path | None:
        """Return None: Kaggle grades."""
        return None

    def send(self, upload: str, *, message: str, tag: str) -> Receipt:
        """Submit an upload, once (`send.send`)."""
        ask = functools.partial(self.create, upload)
        return send.send(self, ask, message=message, tag=tag, sleep=self.client.sleep)

    def send_notebook(self, notebook: Mapping[str, Any], *, message: str, tag: str) -> Receipt:
        """Submit a version of a notebook, once (`send.send`).

        Args:
            notebook: `owner`, `slug`, `version` and the `file` it writes.
            message: what people read.
            tag: unique text by which the submission can be found again.
        """
        ask = functools.partial(self._create_of_notebook, notebook)
        return send.send(self, ask, message=message, tag=tag, sleep=self.client.sleep)

    def check_open(self, *, notebook: bool = False) -> int | None:
        """Return the submissions left today, or raise when none can be made (`send.check_open`)."""
        return send.check_open(self, now=self.client.clock(), notebook=notebook)

    def find(self, tag: str) -> Receipt | None:
        """Return the submission sent with a tag, or None."""
        return send.find(self, tag)

    def find_all(self, tags: Collection[str]) -> dict[str, Receipt]:
        """Return the submissions sent with these tags, by tag (`send.find_all`)."""
        return send.find_all(self, tags)

    def wait(self, ref: str, *, limit: float, progress: Progress) -> Receipt:
        """Wait until a submission is scored, at most `limit` seconds (`send.wait`)."""
        return send.wait(self, ref, limit=limit, progress=progress, sleep=self.client.sleep, clock=self.client.clock)

    def about(self, *, patient: bool = True) -> About:
        """Describe the competition; without patience, asked for ten seconds or so."""
        doing = f"ask about '{self.slug}'"
        answer = self._call("get_competition", "ApiGetCompetitionRequest", doing=doing, **({} if patient else _BRIEF))
        return About(
            slug=self.slug,
            title=answer.title or self.slug,
            url=f"{faults.SITE}/competitions/{self.slug}",
            metric=answer.evaluation_metric or "",
            deadline=_utc(answer.deadline),
            entered=answer.user_has_entered,
            code_only=answer.is_kernels_submissions_only,
            closed=answer.submissions_disabled,
            daily=answer.max_daily_submissions,
            category=answer.category or "",
        )

    def pages(self) -> dict[str, str]:
        """Return the text of the competition's pages (overview, data, evaluation ...), by name."""
        doing = f"read the pages of '{self.slug}'"
        answer = self._call("list_competition_pages", "ApiListCompetitionPagesRequest", doing=doing)
        return {page.name: page.content for page in answer.pages}

    def files(self) -> list[DataFile]:
        """List every file, all pages."""
        doing = f"list the files of '{self.slug}'"
        pages = self.client.pages("list_data_files", "ApiListDataFilesRequest", doing=doing, competition_name=self.slug)
        return [DataFile(file.name or file.ref, file.total_bytes) for page in pages for file in page.files]

    def limits(self) -> Limits | None:
        """Return how many submissions are allowed now; None when Kaggle does not say."""
        doing = f"ask how many submissions '{self.slug}' takes"
        try:
            answer = self._call("get_submission_limits", "ApiGetSubmissionLimitsRequest", doing=doing, **_BRIEF)
        except ServiceError as error:
            if error.kind == "not_found":
                return None
            raise
        return Limits(answer.num_today, answer.num_allowed_now, answer.limited_by_total)

    def remaining(self) -> int | None:
        """Return how many submissions are allowed now; None when Kaggle does not say."""
        limits = self.limits()
        return limits.left if limits else None

    def submissions(self) -> Iterator[Submission]:
        """Yield the account's submissions, newest first, page by page."""
        doing = f"list the submissions to '{self.slug}'"
        method, request = "list_submissions", "ApiListSubmissionsRequest"
        for page in self.client.pages(method, request, doing=doing, numbered=True, competition_name=self.slug):
            yield from (_submission(item) for item in page.submissions)

    def status(self, ref: str) -> Receipt:
        """Ask for the state and score of a submission; one not listed yet is pending."""
        doing = f"ask for submission {ref}"
        if not ref.isdecimal():
            raise ConfigError(f"'{ref}' is no submission of Kaggle", "a number", "see `kbench leaderboard`")
        try:
            answer = self.client.call("get_submission", "ApiGetSubmissionRequest", doing=doing, ref=int(ref))
        except ServiceError as error:
            if error.kind == "not_found":
                return Receipt(ref, "pending", message="not listed yet")
            raise
        return _submission(answer).receipt()

    def upload(self, file: Path, progress: Progress) -> str:
        """Upload a submission's bytes; return their token. A repeat starts over at a new address.

        Raises:
            SubmissionError: the file is missing or empty.
            ServiceError: it cannot be uploaded; nothing was submitted.
        """
        send.check_file(file)
        what = f"upload {file.name}"
        fields = {
            "file_name": file.name,
            "content_length": file.stat().st_size,
            "last_modified_epoch_seconds": int(file.stat().st_mtime),
        }

        def attempt() -> str:
            start = self._call(
                "start_submission_upload", "ApiStartSubmissionUploadRequest", doing=what, tries=1, **fields
            )
            put(
                file,
                start.create_url,
                doing=what,
                timeouts=self.client.timeouts,
                progress=lambda done, total: progress(what, done, total),
            )
            return str(start.token)

        return faults.persist(attempt, sleep=self.client.sleep)

    def create(self, token: str, description: str) -> Receipt:
        """Ask once that an upload be scored; an empty `ref` means that the answer does not say whether it counted."""
        fields = {"blob_file_tokens": token, "submission_description": description}
        return self._created("create_submission", "ApiCreateSubmissionRequest", fields)

    def _create_of_notebook(self, notebook: Mapping[str, Any], description: str) -> Receipt:
        fields = {
            "kernel_owner": notebook["owner"], "kernel_slug": notebook["slug"], "kernel_version": notebook["version"],
            "file_name": notebook["file"], "submission_description": description,
        }  # fmt: skip
        return self._created("create_code_submission", "ApiCreateCodeSubmissionRequest", fields)

    def _created(self, method: str, request: str, fields: Mapping[str, Any]) -> Receipt:
        try:
            answer = self._call(method, request, doing=f"submit to '{self.slug}'", tries=1, **fields)
        except ServiceError as error:
            if error.kind in ("network", "timeout", "server", "protocol") and error.sent:
                return Receipt("", "pending", message=error.what)
            raise
        return Receipt(str(answer.ref or ""), "pending", message=answer.message)

    def open_bundle(self) -> Connect:
        """Return how to ask for all files in one zip."""
        return self._open("download_data_files", "ApiDownloadDataFilesRequest", doing=f"download '{self.slug}'")

    def open_file(self, name: str) -> Connect:
        """Return how to ask for one file."""
        doing = f"download '{name}' of '{self.slug}'"
        return self._open("download_data_file", "ApiDownloadDataFileRequest", doing=doing, file_name=name)

    def _call(self, method: str, request: str, *, doing: str, **fields: Any) -> Any:
        return self.client.call(method, request, doing=doing, competition_name=self.slug, **fields)

    def _open(self, method: str, request: str, *, doing: str, **fields: Any) -> Connect:
        def connect(headers: Mapping[str, str]) -> AbstractContextManager[requests.Response]:
            return self.client.stream(method, request, headers, doing=doing, competition_name=self.slug, **fields)

        return connect


def slug_of(text: str) -> str:
    """Return a competition's slug from its slug or an address of one of its pages.

    Raises:
        ConfigError: it is neither.
    """
    path = re.sub(r"^(https?://)?(www\.)?kaggle\.com/", "", text.strip(), flags=re.IGNORECASE)
    parts = [part for part in re.split(r"[?#]", path)[0].split("/") if part]
    if len(parts) > 1 and parts[0] in ("c", "competitions"):
        parts = parts[1:2]
    slug = parts[0].lower() if len(parts) == 1 else ""
    if not _SLUG.match(slug):
        raise ConfigError(
            f"'{text}' names no Kaggle competition",
            "the last part of a competition's address, such as `dog-breed-identification`, or the address itself",
            f"look it up at {faults.SITE}/competitions",
        )
    return slug


def _submission(item: Any) -> Submission:
    return Submission(
        ref=str(item.ref),
        date=_utc(item.date),
        file=item.file_name or "",
        description=item.description or "",
        status=item.status.name.lower(),
        public=_score(item.public_score),
        private=_score(item.private_score),
        error=item.error_description or "",
    )


def _score(text: str | None) -> float | None:
    """Return a score, which Kaggle sends as text, empty until it is known."""
    try:
        score = float(text or "nan")
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment else None  # the client parses UTC and forgets that it is
