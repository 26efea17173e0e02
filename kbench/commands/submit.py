"""`kbench submit` and `kbench leaderboard`: send, or grade here, and keep the ledger.

A submission is sent by one process at a time (`ledger.hold`). Its upload may be repeated, and is, without asking;
from directly before the call that counts until its answer the outcome may be unknown, and it is never sent twice
without being asked.
"""

from __future__ import annotations

import shlex
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
    Lineage,
    Status,
    adopt,
    hold,
    leaderboard_rows,
    lineage_path,
    newest_unsent,
    rank_correlation,
    read_entry,
    read_ledger,
    update_entry,
    verify_file,
)
from kbench.workspace import Choice

WAIT_S, WAIT_KERNEL_S = 900.0, 12 * 3600.0
"""Seconds that are waited for the score of a file, and of a notebook, which runs first."""

_STATUS: dict[str, Status] = {"pending": "sent", "complete": "complete", "error": "error"}


def submit(
    choice: Choice,
    file: str | None,
    *,
    own: str | None = None,
    kernel: bool = False,
    wait: bool,
    wait_s: float | None,
    resend: bool = False,
) -> dict[str, Any]:
    """Check a submission, then send it, or grade it on this machine where the solution is at hand.

    Args:
        choice: the competition.
        file: the file or its name; the newest unsent one by default.
        own: a file that kbench did not write, in place of `file`: checked, copied, and in the ledger without a score.
        kernel: the newest notebook that `kbench push` ran and nobody sent, in place of a file.
        wait: wait for the score.
        wait_s: seconds to wait at most; 900 of a file and 12 h of a notebook by default.
        resend: the user looked: one whose outcome is unknown is not in the service's list, so send it again.

    Raises:
        SubmissionError: there is nothing to send, it would be refused, another process is sending it, or the service
            could not score it.
        UnknownOutcome: it was sent and nobody knows whether it counted.
    """
    experiment = open_experiment(choice)
    entry = _entry(experiment, file, kernel=kernel) if own is None else _own(experiment, Path(own))
    try:
        source = experiment.source()
        solution = source.solution(experiment.data)
        if solution is not None:
            return _grade(experiment, entry, solution)
        with hold(entry.file) as entry:
            entry, left = _send(experiment, source, entry, resend=resend)
        if wait and entry.status == "sent":
            usual = WAIT_KERNEL_S if entry.lineage.kernel else WAIT_S
            entry = _await_score(source, entry, usual if wait_s is None else wait_s)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(read_entry(entry.file), choice)) from None
    if entry.status == "error":
        raise SubmissionError(
            f"'{entry.name}' was sent, and it could not be scored: {entry.message or 'no reason given'}",
            "a file the service can score",
            "hold it against the competition's evaluation page; `kbench leaderboard` keeps the record",
        )
    return {**_report(entry), "left": left}


def _entry(experiment: Experiment, file: str | None, *, kernel: bool) -> Entry:
    folder = experiment.workspace.submissions(experiment.competition.name)
    if file is None:
        open_ends = [entry for entry in read_ledger(folder) if entry.status in ("sending", "unknown")]
        if open_ends:  # what became of it comes first; it may have counted
            return open_ends[-1]
        entry = newest_unsent(folder, kernel=kernel)
        if entry is None and kernel:
            raise SubmissionError(
                f"'{experiment.competition.name}' has no notebook that was not sent yet", "one that `kbench push` ran",
                "`kbench export`, then `kbench push`",
            )  # fmt: skip
        if entry is None:
            raise SubmissionError(
                f"'{experiment.competition.name}' has no submission that was not sent yet", "a file written by kbench",
                "`kbench ensemble` writes one",
            )  # fmt: skip
        return entry
    path = Path(file)
    if path.is_file():
        return read_entry(path if lineage_path(path).is_file() else path.resolve())
    named = [entry for entry in read_ledger(folder) if file in (entry.name, entry.file.name)]
    if not named:
        raise SubmissionError(
            f"there is no submission '{file}'", "a file, or a name of `kbench leaderboard`", "`kbench leaderboard`"
        )
    return named[0]


def _own(experiment: Experiment, path: Path) -> Entry:
    """Return the entry of a file that kbench did not write, once it is known to fit the sample."""
    suffixes = (experiment.format.suffix, *((".csv.gz",) if experiment.format.encode is None else ()))
    if not path.name.endswith(suffixes):
        raise SubmissionError(
            f"'{path}' does not end in {' or '.join(suffixes)}", f"a file as '{experiment.competition.name}' takes it",
            f"rename it: `mv {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix(experiment.format.suffix)))}`",
        )  # fmt: skip
    check_submission(path, experiment.read_sample(), format=experiment.format)
    competition = experiment.competition
    metric = parts.build_metric(competition)
    lineage = Lineage(
        competition.name, format=competition.submission.format.model_dump(), metric=metric.name,
        maximise=metric.maximise, notes=[f"a file of the user's own, '{path.name}': nothing is known of its making"],
    )  # fmt: skip
    entry = adopt(experiment.workspace.submissions(competition.name), path.resolve(), lineage)
    console.note(f"'{path}' is the submission '{entry.name}' of the ledger")
    return entry


def _grade(experiment: Experiment, entry: Entry, solution: Path) -> dict[str, Any]:
    """Grade a submission on this machine, if it is still what was written."""
    with hold(entry.file, wait=True) as entry:
        sample, metric = experiment.read_sample(), parts.build_metric(experiment.competition)
        check_submission(entry.file, sample, format=experiment.format)
        verify_file(entry)
        scores = grade(entry.file, solution, sample=sample, format=experiment.format, metric=metric)
        public = scores.score if scores.public is None else scores.public
        entry = update_entry(entry.file, "complete", public=public, private=scores.private, message="graded here")
    return _report(entry, all_rows=scores.score)


def _send(experiment: Experiment, source: Source, entry: Entry, *, resend: bool) -> tuple[Entry, int | None]:
    """Send a submission, or find out what became of it; return how many are left after it, if that is known."""
    if entry.status in ("sending", "unknown"):
        answer = _look(source, entry, resend=resend, again=_command(entry, experiment.choice, "--resend"))
        if answer is not None:
            return _record(entry, answer), None
    if entry.status == "sent":  # it waits for its score
        return entry, None
    if entry.status == "complete":
        raise SubmissionError(
            f"'{entry.name}' is sent and scored: {entry.public}", "a file that was not sent yet",
            "`kbench leaderboard` shows its scores; `kbench ensemble` writes a new file",
        )  # fmt: skip
    check_submission(entry.file, experiment.read_sample(), format=experiment.format)
    verify_file(entry)
    left = source.check_open(notebook=bool(entry.lineage.kernel))
    if left is not None:
        console.note(f"{counted(left, 'submission')} left before this one")
    if entry.status == "uploading":
        console.note(f"the upload of '{entry.name}' was cut off, and nothing of it counted; it is sent now")
    return _submit_once(source, entry, experiment.choice), None if left is None else left - 1


def _submit_once(source: Source, entry: Entry, choice: Choice) -> Entry:
    """Upload a submission and make the one call that counts; every step is in the ledger before it is taken."""
    if entry.status == "sending":  # whoever sent it was killed: this process holds its lock
        entry = update_entry(entry.file, "unknown", message="the sending was cut off")
    lineage = entry.lineage
    if not lineage.kernel:
        entry = update_entry(entry.file, "uploading")
    score = "" if lineage.score is None else f", CV {lineage.metric} {lineage.score:.5f}"
    message = f"{', '.join(lineage.runs) or entry.name}{score}"
    try:
        if lineage.kernel:
            entry = update_entry(entry.file, "sending")
            receipt = source.send_notebook(lineage.kernel, message=message, tag=entry.tag)
        else:
            with console.bar("sending") as advance:
                upload = source.upload(entry.file, lambda what, done, total: advance(done, total))
            entry = update_entry(entry.file, "sending")  # with a tag of its own from here on
            receipt = source.send(upload, message=message, tag=entry.tag)
    except UnknownOutcome as error:
        entry = update_entry(entry.file, "unknown", message=error.what)
        if entry.status != "unknown":  # `kbench leaderboard` has found it meanwhile
            return entry
        again = _command(entry, choice, "--resend")
        error.todo = f"`kbench leaderboard{_where(choice)}` looks for it; if the web site does not list it, {again}"
        raise
    except KbenchError as error:
        update_entry(entry.file, "written", message=error.what)  # it never arrived; nothing was spent
        raise
    return _record(entry, receipt)


def _look(source: Source, entry: Entry, *, resend: bool, again: str) -> Receipt | None:
    """Return what the service lists of a submission that may have counted; None where it is to be sent again.

    Raises:
        UnknownOutcome: the service does not list it, or cannot say, and the user has not looked.
    """
    said, todo = "the service does not list it", f"look for it on the competition's page; if it is not there, {again}"
    try:
        answer = source.find(entry.tag)
    except ServiceError as error:
        if error.kind in ("auth", "forbidden", "config", "install"):
            raise
        answer, said, todo = None, f"the service's list cannot be read now: {error.what}", error.todo
    if answer is None and not resend:
        if entry.status == "sending":  # whoever sent it was killed: this process holds its lock
            update_entry(entry.file, "unknown", message="the sending was cut off")
        raise UnknownOutcome(
            f"'{entry.name}' was being sent before, and {said}",
            f"a submission described with '[{entry.tag}]' among yours",
            todo,
        )
    if answer is None:
        console.note(f"{said}; it is sent again, as you asked")
    return answer


def _command(entry: Entry, choice: Choice, *options: str) -> str:
    """Return what to type to go on with a submission."""
    return f"`{' '.join(['kbench submit', entry.name, *options])}{_where(choice)}`"


def _where(choice: Choice) -> str:
    """Return the option that names the competition again in what is typed next."""
    return f" -c {choice.competition}" if choice.competition else ""


def _stopped(entry: Entry, choice: Choice) -> str:
    """Return what is true of a submission at which the user pressed Ctrl-C."""
    again = _command(entry, choice)
    if entry.unsent:
        return f"stopped; nothing of '{entry.name}' was submitted: {again} does it"
    if entry.status in ("sending", "unknown"):
        return f"stopped while '{entry.name}' was being submitted: it may have counted; {again} looks for it first"
    return f"stopped; '{entry.name}' is '{entry.status}': `kbench leaderboard{_where(choice)}` asks for its score"


def _record(entry: Entry, receipt: Receipt, *, tag: str | None = None) -> Entry:
    """Write down what a service said of a sending: the last one, or that of a tag."""
    return update_entry(
        entry.file, _STATUS[receipt.status], tag=tag or entry.tag, ref=receipt.ref, public=receipt.public,
        private=receipt.private, message=receipt.message,
    )  # fmt: skip


def _await_score(source: Source, entry: Entry, wait_s: float) -> Entry:
    assert entry.ref is not None, "a sent submission has a reference"
    try:
        with console.Status() as status:
            receipt = source.wait(
                entry.ref, limit=wait_s, progress=lambda what, done, total: status.show(f"{what}: {done} of {total} s")
            )
    except ServiceError as error:
        console.warn(f"'{entry.name}' was sent; its score is not known: {error.what}; `kbench leaderboard` asks again")
        return entry
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
    experiment = open_experiment(choice)
    folder = experiment.workspace.submissions(experiment.competition.name)
    entries = read_ledger(folder)
    open_ends = [(entry, tag) for entry in entries if _is_open(entry) for tag in _tags(entry)]
    fresh = True
    if open_ends:
        try:
            answers = experiment.source().find_all([tag for _, tag in open_ends])
        except ServiceError as error:
            console.warn(f"the scores are those known before: {error.what}; {error.todo}")
            answers, fresh = {}, False
        for entry, tag in open_ends:
            if tag in answers:
                _update(entry, tag, answers[tag])
        entries = read_ledger(folder)
    return {"rows": leaderboard_rows(entries), "rank_correlation": rank_correlation(entries), "fresh": fresh}


def _is_open(entry: Entry) -> bool:
    """Return whether the service may know more of a submission than the ledger does."""
    scored = entry.status == "complete" and entry.ref is not None and entry.private is None
    return scored or entry.status in ("sent", "sending", "unknown")


def _tags(entry: Entry) -> list[str]:
    """Return the tags of the sendings of a submission that the service may know more of."""
    return [entry.tag, *(one["tag"] for one in entry.earlier if not one["ref"])]


def _update(entry: Entry, tag: str, receipt: Receipt) -> None:
    """Write down what the service's list says of a sending; a score that is known is not taken back."""
    if tag != entry.tag:
        console.warn(f"'{entry.name}' was received twice: as {receipt.ref}, too, which was not listed before")
    if tag != entry.tag or entry.status != "complete" or receipt.status == "complete":
        _record(entry, receipt, tag=tag)
