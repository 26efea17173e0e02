"""Submissions to a service: never a wasted slot, never a blind repeat.

The upload may be repeated, since it does not count; asking that it be scored happens once, with a tag of its own in
the description. When the answer to that is lost, the tag is looked for; when it is not found, the outcome is
unknown and said so. What only informs (limits, the competition's state) warns when the service fails on it and stops
nothing; its clear no does. To support a service that scores otherwise, implement `Service.create` and `Service.status`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from kbench import console
from kbench.errors import ServiceError, SubmissionError, UnknownOutcome
from kbench.sources import Progress, Receipt
from kbench.sources.service.protocol import Service, Submission

LOOKS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds before each look for a submission whose answer was lost."""

LONGEST_MESSAGE = 400

PASSING = ("network", "timeout", "server", "protocol", "rate_limited", "rejected")
"""Kinds of errors that say nothing about whether a submission would be taken."""

Sleep = Callable[[float], None]
_T = TypeVar("_T")


def check_open(service: Service, *, now: float, notebook: bool = False) -> int | None:
    """Return how many submissions are left today, or None when the service does not say.

    Args:
        service: asked for the competition and its limits.
        now: seconds since 1970; the service's day ends at 00:00 UTC.
        notebook: whether a notebook is to be submitted.

    Raises:
        SubmissionError: a notebook must be submitted, submissions are switched off, or none is left.
        ServiceError: the service refuses this account, or knows no such competition.
    """
    about = _told(lambda: service.about(patient=False))
    if about is not None and about.code_only and not notebook:
        raise SubmissionError(
            f"'{service.slug}' takes notebooks, no files",
            "a Kaggle notebook that writes the submission when it runs there",
            "`kbench export` and `kbench push`, then `kbench submit --kernel`; no slot was used",
        )
    if about is not None and about.closed:
        raise SubmissionError(
            f"'{service.slug}' takes no submissions now",
            "an open competition, or one with late submissions",
            f"see {about.url}; `kbench score` still gives the CV score",
        )
    limits = _told(service.limits)
    if limits is None:
        return None
    if limits.left <= 0:
        hours = math.ceil((86400 - now % 86400) / 3600)
        when = (
            "the competition's total is used up" if limits.by_total else f"the next are given in {hours} h (00:00 UTC)"
        )
        raise SubmissionError(
            f"no submission is left for '{service.slug}' ({limits.today} made today)",
            "at least one left",
            f"{when}; the file is kept, and nothing was sent",
        )
    return limits.left


def _told(ask: Callable[[], _T]) -> _T | None:
    """Return what a service says; a warning, and None, where it fails on saying it."""
    try:
        return ask()
    except ServiceError as error:
        if error.kind not in PASSING:
            raise
        console.warn(f"{error.what}; that is not known now, and nothing waits for it")
        return None


def check_file(file: Path) -> None:
    """Refuse a submission's file that is missing or empty."""
    if not file.is_file() or not file.stat().st_size:
        raise SubmissionError(f"'{file}' is missing or empty", "a submission file", "`kbench ensemble` makes one")


def send(service: Service, create: Callable[[str], Receipt], *, message: str, tag: str, sleep: Sleep) -> Receipt:
    """Ask, once, that an upload or a notebook be scored.

    Args:
        service: takes it.
        create: asks for it with a description; `Service.create` with an upload's token.
        message: what people read; cut to `LONGEST_MESSAGE` characters.
        tag: unique text by which this submission can be found again.
        sleep: waits seconds.

    Raises:
        ServiceError: it certainly was not submitted.
        UnknownOutcome: it was asked for, and neither an answer nor the list of submissions says whether it counted.
    """
    receipt = create(describe(message, tag))
    if receipt.ref:
        return receipt
    for pause in LOOKS:
        sleep(pause)
        try:
            sent = find(service, tag)
        except ServiceError:
            continue  # the list cannot be read now; what matters is said below
        if sent is not None:
            return sent
    raise UnknownOutcome(
        f"it was submitted to '{service.slug}', and whether it counted is not known: {receipt.message}",
        f"a submission described with '[{tag}]' in the competition's list of submissions",
        "`kbench leaderboard` looks for it; if the web site does not list it, `kbench submit --resend` sends it again",
    )


def describe(message: str, tag: str) -> str:
    """Return the description of a submission: the message and, whatever its length, the tag."""
    text = " ".join(message.split())
    return f"{text[:LONGEST_MESSAGE]} [{tag}]".strip()


def find(service: Service, tag: str) -> Receipt | None:
    """Return the submission sent with a tag, or None when the service lists none."""
    return next((item.receipt() for item in service.submissions() if _tagged(item, tag)), None)


def find_all(service: Service, tags: Collection[str]) -> dict[str, Receipt]:
    """Return the submissions sent with these tags, by tag; those the service does not list are left out."""
    receipts: dict[str, Receipt] = {}
    for item in service.submissions():  # newest first
        receipts |= {tag: item.receipt() for tag in tags if tag not in receipts and _tagged(item, tag)}
        if len(receipts) == len(set(tags)):
            break
    return receipts


def _tagged(submission: Submission, tag: str) -> bool:
    return f"[{tag}]" in submission.description


def wait(
    service: Service,
    ref: str,
    *,
    limit: float,
    progress: Progress,
    sleep: Sleep,
    clock: Callable[[], float],
) -> Receipt:
    """Ask for a submission's state until it is scored or failed, or the time is over.

    Args:
        service: asked.
        ref: its id of the submission.
        limit: seconds; the last state is returned then, `pending`.
        progress: told the seconds gone and the limit.
        sleep: waits seconds.
        clock: tells seconds.
    """
    start, pause = clock(), 2.0
    receipt = Receipt(ref, "pending")
    while True:
        try:
            receipt = service.status(ref)
        except ServiceError as error:
            if not error.transient:
                raise
        gone = clock() - start
        progress("wait for the score", min(int(gone), int(limit)), int(limit))
        if receipt.status != "pending" or gone + pause > limit:
            return receipt
        sleep(pause)
        pause = min(pause * 1.5, 30.0 if gone < 900 else 300.0)
