"""`kbench submit` and `kbench leaderboard`: send, or grade here, and keep the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import console
from kbench.errors import KbenchError, ServiceError, SubmissionError, UnknownOutcome, counted
from kbench.runs import parts
from kbench.runs.experiment import Experiment, open_experiment
from kbench.sources import Receipt, Source
from kbench.submission.check import check_submission
from kbench.submission.grading import grade
from kbench.submission.ledger import (
    Entry,
    Status,
    leaderboard_rows,
    newest_unsent,
    rank_correlation,
    read_entry,
    read_ledger,
    update_entry,
)
from kbench.workspace import Choice

_STATUS: dict[str, Status] = {"pending": "sent", "complete": "complete", "error": "error"}


def submit(choice: Choice, file: str | None, *, wait: bool, wait_s: float, resend: bool = False) -> dict[str, Any]:
    """Check a submission, then send it, or grade it on this machine where the solution is at hand.

    Args:
        choice: the competition.
        file: the file or its name; the newest unsent one by default.
        wait: wait for the score.
        wait_s: seconds to wait at most.
        resend: the user looked: one whose outcome is unknown is not in the service's list, so send it again.

    Raises:
        SubmissionError: there is nothing to send, it would be refused, or the service could not score it.
        UnknownOutcome: it was sent and nobody knows whether it counted.
    """
    setup = open_experiment(choice)
    entry = _entry(setup, file)
    sample = setup.read_sample()
    check_submission(entry.file, sample, format=setup.format)
    source = setup.source()
    solution = source.solution(setup.data)
    if solution is not None:
        scores = grade(
            entry.file, solution, sample=sample, format=setup.format, metric=parts.build_metric(setup.competition)
        )
        public = scores.score if scores.public is None else scores.public
        entry = update_entry(entry.file, "complete", public=public, private=scores.private, message="graded here")
        return _report(entry, all_rows=scores.score)
    entry, left = _send(source, entry, resend=resend)
    if wait and entry.status == "sent":
        entry = _await_score(source, entry, wait_s)
    if entry.status == "error":
        raise SubmissionError(
            f"'{entry.name}' was sent, and it could not be scored: {entry.message or 'no reason given'}",
            "a file the service can score",
            "hold it against the competition's evaluation page; `kbench leaderboard` keeps the record",
        )
    return {**_report(entry), "left": left}


def _entry(setup: Experiment, file: str | None) -> Entry:
    folder = setup.workspace.submissions(setup.competition.name)
    if file is None:
        open_ends = [entry for entry in read_ledger(folder) if entry.status in ("sending", "unknown")]
        if open_ends:  # what became of it comes first; it may have counted
            return open_ends[-1]
        entry = newest_unsent(folder)
        if entry is None:
            raise SubmissionError(
                f"'{setup.competition.name}' has no submission that was not sent yet", "a file written by kbench",
                "`kbench ensemble` writes one",
            )  # fmt: skip
        return entry
    path = Path(file)
    if path.is_file():
        return read_entry(path)
    named = [entry for entry in read_ledger(folder) if file in (entry.name, entry.file.name)]
    if not named:
        raise SubmissionError(
            f"there is no submission '{file}'", "a file, or a name of `kbench leaderboard`", "`kbench leaderboard`"
        )
    return named[0]


def _send(source: Source, entry: Entry, *, resend: bool) -> tuple[Entry, int | None]:
    """Send a submission, or find out what became of it; return how many are left after it, if that is known."""
    if entry.status in ("sending", "unknown"):
        found = source.find(entry.tag)
        if found is not None:
            return _record(entry, found), None
        entry = _cut_off(entry, resend=resend)
    if entry.status == "sent":  # it waits for its score
        return entry, None
    left = source.check_open()
    if left is not None:
        console.note(f"{counted(left, 'submission')} left before this one")
    if entry.status == "unknown":
        entry = update_entry(entry.file, "written", message="not in the service's list, so sent again")
    lineage = entry.lineage
    score = "" if lineage.score is None else f", CV {lineage.metric} {lineage.score:.5f}"
    message = f"{', '.join(lineage.runs)}{score}"
    entry = update_entry(entry.file, "sending")  # one that could not be scored has a new tag from here on
    try:
        with console.bar("sending") as advance:
            receipt = source.send(
                entry.file, message=message, tag=entry.tag, progress=lambda what, done, total: advance(done, total)
            )
    except UnknownOutcome as error:
        update_entry(entry.file, "unknown", message=error.what)
        raise
    except KbenchError as error:
        update_entry(entry.file, "written", message=error.what)  # it never arrived; nothing was spent
        raise
    return _record(entry, receipt), None if left is None else left - 1


def _cut_off(entry: Entry, *, resend: bool) -> Entry:
    """Refuse to send a submission twice that may have counted, unless the user looked."""
    if entry.status == "sending":  # whoever was sending it was killed, or is still at it
        entry = update_entry(entry.file, "unknown", message="the sending was cut off")
    if not resend:
        raise UnknownOutcome(
            f"'{entry.name}' was being sent before, and the service does not list it",
            f"a submission described with '[{entry.tag}]' among yours",
            f"look for it on the competition's page; if it is not there, `kbench submit {entry.name} --resend`",
        )
    return entry


def _record(entry: Entry, receipt: Receipt) -> Entry:
    status: Status = _STATUS[receipt.status]
    return update_entry(
        entry.file, status, ref=receipt.ref, public=receipt.public, private=receipt.private, message=receipt.message
    )


def _await_score(source: Source, entry: Entry, wait_s: float) -> Entry:
    assert entry.ref is not None, "a sent submission has a reference"
    with console.Status() as status:
        receipt = source.wait(
            entry.ref, limit=wait_s, progress=lambda what, done, total: status.show(f"{what}: {done} of {total} s")
        )
    entry = _record(entry, receipt)
    if entry.status == "sent":
        console.warn(f"no score after {wait_s:.0f} s; `kbench leaderboard` asks again")
    return entry


def _report(entry: Entry, *, all_rows: float | None = None) -> dict[str, Any]:
    lineage = entry.lineage
    gap = None if entry.public is None or lineage.score is None else entry.public - lineage.score
    return {
        "file": str(entry.file), "status": entry.status, "metric": lineage.metric, "cv": lineage.score,
        "low": lineage.low, "high": lineage.high, "public": entry.public, "private": entry.private, "gap": gap,
        "all_rows": all_rows, "message": entry.message,
    }  # fmt: skip


def leaderboard(choice: Choice) -> dict[str, Any]:
    """Return the ledger's rows, after asking for what is not known yet, and the rank correlation of CV and public.

    The private score comes after the competition, so what has none is asked for every time: one look at the list.
    Where the service cannot be asked, that is said and the ledger is shown as it is.
    """
    setup = open_experiment(choice)
    folder = setup.workspace.submissions(setup.competition.name)
    entries = read_ledger(folder)
    open_ends = [entry for entry in entries if _is_open(entry)]
    fresh = True
    if open_ends:
        try:
            found = setup.source().find_all([entry.tag for entry in open_ends])
        except ServiceError as error:
            console.warn(f"the scores are those known before: {error.what}; {error.todo}")
            found, fresh = {}, False
        for entry in open_ends:
            if entry.tag in found and (entry.status != "complete" or found[entry.tag].status == "complete"):
                _record(entry, found[entry.tag])
        entries = read_ledger(folder)
    return {"rows": leaderboard_rows(entries), "rank_correlation": rank_correlation(entries), "fresh": fresh}


def _is_open(entry: Entry) -> bool:
    """Return whether the service may know more of a submission than the ledger does."""
    scored = entry.status == "complete" and entry.ref is not None and entry.private is None
    return scored or entry.status in ("sent", "sending", "unknown")
