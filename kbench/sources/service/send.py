"""Submissions to a service: never a wasted slot, never a blind repeat.

The upload may be repeated, since it does not count; asking that it be scored happens once, with a tag of its own in
the description. When the answer to that is lost, the tag is looked for; when it is not found, the outcome is
unknown and said so. To support a service that scores otherwise, implement `Service.create` and `Service.status`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

from kbench.errors import ServiceError, SubmissionError, UnknownOutcome
from kbench.sources import Progress, Receipt
from kbench.sources.service.protocol import Service, Submission

LOOKS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds before each look for a submission whose answer was lost."""

LONGEST_MESSAGE = 400

Sleep = Callable[[float], None]


def check_open(service: Service, *, now: float) -> int | None:
    """Return how many submissions are left today, or None when the service does not say.

    Args:
        service: asked for the competition and its limits.
        now: seconds since 1970; the service's day ends at 00:00 UTC.

    Raises:
        SubmissionError: a notebook must be submitted, submissions are switched off, or none is left.
        ServiceError: the service could not be asked.
    """
    about = service.about()
    if about.code_only:
        raise SubmissionError(
            f"'{service.slug}' takes notebooks, no files",
            "a Kaggle notebook that writes the submission when it runs there",
            f"run `kbench predict --data DIR` in a notebook (see {about.url}/code) and submit that; no slot was used",
        )
    if about.closed:
        raise SubmissionError(
            f"'{service.slug}' takes no submissions now",
            "an open competition, or one with late submissions",
            f"see {about.url}; `kbench score` still gives the CV score",
        )
    limits = service.limits()
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


def send(service: Service, file: Path, *, message: str, tag: str, progress: Progress, sleep: Sleep) -> Receipt:
    """Upload a file and ask, once, that it be scored.

    Args:
        service: takes it.
        file: the submission, not empty.
        message: what people read; cut to `LONGEST_MESSAGE` characters.
        tag: unique text by which this submission can be found again.
        progress: told while the bytes are sent.
        sleep: waits seconds.

    Raises:
        SubmissionError: the file is empty.
        ServiceError: it certainly was not submitted.
        UnknownOutcome: it was asked for, and neither an answer nor the list of submissions says whether it counted.
    """
    if not file.is_file() or not file.stat().st_size:
        raise SubmissionError(f"'{file}' is missing or empty", "a submission file", "`kbench ensemble` makes one")
    token = service.upload(file, progress)
    receipt = service.create(token, describe(message, tag))
    if receipt.ref:
        return receipt
    for pause in LOOKS:
        sleep(pause)
        try:
            found = find(service, tag)
        except ServiceError:
            continue  # the list cannot be read now; what matters is said below
        if found is not None:
            return found
    raise UnknownOutcome(
        f"'{file.name}' was submitted to '{service.slug}', and whether it counted is not known: {receipt.message}",
        f"a submission described with '[{tag}]' in the competition's list of submissions",
        "`kbench leaderboard` looks for it; submit again only if it is not in the list on the web site",
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
    found: dict[str, Receipt] = {}
    for item in service.submissions():  # newest first
        found |= {tag: item.receipt() for tag in tags if tag not in found and _tagged(item, tag)}
        if len(found) == len(set(tags)):
            break
    return found


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
        pause = min(pause * 1.5, 30.0)
