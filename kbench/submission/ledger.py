"""The ledger: what every submission was made of, where it is, and what it scored.

Beside `<name>.csv` lies `<name>.lineage.json`; the ledger is all of them. A status is written before the deed it
announces: an entry says `sending` before the one call that counts is made, so a crash can hide no submission.

    written -> uploading -> sending -> sent -> complete | error        written -> complete (graded on this machine)
               may be repeated  sending -> unknown -> sent | complete | error | uploading (sent again on demand)

Who sends or writes a submission holds a lock of its name, which the system frees when the process dies: a sender
that lives is told from one that was killed. Every sending has a tag of its own; those before the last are kept.

To record one more fact of a submission's making, add a field to `Lineage` with a default.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kbench import files
from kbench.errors import Busy, DataError, SubmissionError
from kbench.metrics.metric import ranks
from kbench.workspace import check_name

Status = Literal["written", "uploading", "sending", "sent", "complete", "error", "unknown"]
_MOVES: dict[str, tuple[str, ...]] = {
    "written": ("uploading", "sending", "complete"),
    "uploading": ("uploading", "sending", "written", "complete"),
    "sending": ("sent", "complete", "error", "unknown", "written"),
    "sent": ("sent", "complete", "error"),
    "unknown": ("sent", "complete", "error", "written", "uploading"),
    "error": ("error", "complete", "uploading", "sending"),
    "complete": ("complete",),
}
_KNOWN = {"sent": ("complete", "error"), "unknown": ("sent", "complete", "error")}  # said late, it changes nothing
_REPEATABLE = ("written", "uploading")
_SUFFIX = ".lineage.json"


@dataclass(frozen=True)
class Lineage:
    """What a submission was made of; plain JSON values, empty where not known.

    Attributes:
        competition: its name.
        runs: the runs it was made from.
        members: one record per member, such as run, fold, stage and cycle.
        weights: one number per member.
        mean: how folds, snapshots and views were averaged.
        combine: how members were weighed: the combiner's name, and the weight of each member if any was found.
        thresholds: thresholds and cut points that were applied: the decision's name, what was found on all rows, and
            without each fold's.
        views: the test-time views.
        format: the submission format with its parameters, such as `clip` (row F-29).
        folds: the fold file's hash.
        hashes: run -> training hash.
        commit: the git commit.
        metric: name of the metric of the scores.
        maximise: its direction.
        score: out-of-fold score; nested, if anything was fitted.
        low: lower end of its interval.
        high: upper end of its interval.
        optimism: how much better what was fitted scores on the rows it was fitted on; None if nothing was.
        notes: marks such as mixed folds, or that what is sent is not what was scored.
        kernel: `owner`, `slug`, `version` and `file` of the notebook that is sent in place of the file.
    """

    competition: str
    runs: list[str] = field(default_factory=list)
    members: list[dict[str, Any]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    mean: str = "arithmetic"
    combine: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] = field(default_factory=dict)
    format: dict[str, Any] = field(default_factory=dict)
    folds: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    metric: str = ""
    maximise: bool = True
    score: float | None = None
    low: float | None = None
    high: float | None = None
    optimism: float | None = None
    notes: list[str] = field(default_factory=list)
    kernel: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One submission in the ledger.

    Attributes:
        file: the submission's file.
        lineage: what it was made of.
        sha256: of the file.
        created: when it was written, UTC, ISO 8601, by a clock that may be wrong.
        tag: unique text sent along, by which a submission whose answer was lost is found again; empty before.
        status: where it is.
        number: counts the entries of a folder in the order in which they were written; 0 in old records.
        sent: when the sending began, UTC; None before.
        ref: the service's id of the submission.
        public: public score.
        private: private score.
        message: what the service said.
        earlier: what is known of sendings before the last: `tag`, `status`, `ref` and `message` of each.
    """

    file: Path
    lineage: Lineage
    sha256: str
    created: str
    tag: str = ""
    status: Status = "written"
    number: int = 0
    sent: str | None = None
    ref: str | None = None
    public: float | None = None
    private: float | None = None
    message: str = ""
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @property
    def unsent(self) -> bool:
        """Whether it can be sent without asking: nothing of it can have counted."""
        return self.status in _REPEATABLE

    @property
    def kept(self) -> bool:
        """Whether its file and record are never replaced: it may have reached the service, now or earlier."""
        return not self.unsent or bool(self.earlier)

    @property
    def order(self) -> tuple[int, str, str]:
        """What entries are sorted by, the one written first first, whatever the clock said."""
        return self.number, self.created, self.name

    @property
    def name(self) -> str:
        """The submission's name: its file's without endings."""
        return _name(self.file)


def lineage_path(file: Path) -> Path:
    """Return the lineage JSON beside a submission's file: `a.lineage.json` for `a.csv` and `a.csv.gz`."""
    return file.with_name(_name(file) + _SUFFIX)


def _name(file: Path) -> str:
    return file.with_suffix("").stem if file.suffix == ".gz" else file.stem


def free_name(folder: Path, name: str) -> str:
    """Return `name`, or `name-2`, `name-3` ... : the first that `reserve` would take, were nobody else at it."""
    return next(candidate for candidate in _candidates(name) if _is_free(folder, candidate))


def _candidates(name: str) -> Iterator[str]:
    return (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))


def _is_free(folder: Path, name: str, *, replace: bool = True) -> bool:
    """Return whether a name may be written to: nothing of it was ever sent, and no file of the user's has it."""
    record = folder / f"{name}{_SUFFIX}"
    if record.exists():
        entry = _read(record)
        return replace and not entry.kept and (_is_whole(entry) or not entry.file.exists())
    return not any(_name(path) == name for path in folder.glob(f"{glob.escape(name)}.*"))


def _is_whole(entry: Entry) -> bool:
    """Return whether a submission's file is what was written."""
    return entry.file.is_file() and files.sha256(entry.file) == entry.sha256


@dataclass(frozen=True)
class Place:
    """A name of a submission that this process alone may write to (`reserve`).

    Attributes:
        folder: where submissions lie.
        name: the submission's name.
    """

    folder: Path
    name: str

    def file(self, suffix: str) -> Path:
        """Return the submission's file; `suffix` is the format's, such as `.csv`."""
        return self.folder / f"{self.name}{suffix}"

    def record(self, file: Path, lineage: Lineage) -> Entry:
        """Record the file that was just written in this place."""
        with _locked(file):
            return _record(file, lineage)


@contextlib.contextmanager
def reserve(folder: Path, name: str, *, replace: bool = True) -> Iterator[Place]:
    """Hold `name`, or `name-2`, `name-3` ...: the first that is free, for the block that writes it.

    Free is a name nothing was ever sent under, that no file without a record or edited since has, and that no living
    process sends or writes: of two at once each gets a name of its own. A killed one leaves nothing that is in the way.

    Args:
        folder: where submissions lie.
        name: the name wished for.
        replace: an unsent submission gives its name to the new one.

    Raises:
        ConfigError: the name is not safe as a file's name.
        DataError: the folder cannot be written, or a record in it is damaged.
    """
    check_name(name, of="a submission")
    read_ledger(folder)  # what is damaged there is said before anything is written
    for candidate in _candidates(name):
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(files.lock(_lock(folder, candidate), waiting="wait"))
            except Busy:
                continue
            if _is_free(folder, candidate, replace=replace):
                yield Place(folder, candidate)
                return


@contextlib.contextmanager
def hold(file: Path, *, wait: bool = False) -> Iterator[Entry]:
    """Be the only process that sends, grades or writes a submission, for the block; yield its entry as it is now.

    Args:
        file: the submission's file.
        wait: wait for the other process; it only grades.

    Raises:
        SubmissionError: another process is at it, or there is no such entry.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.lock(_lock(file.parent, _name(file)), waiting=None if wait else "wait"))
        except Busy as error:
            raise _busy(_name(file), error.holder) from error
        yield read_entry(file)


def _busy(name: str, holder: int | None) -> SubmissionError:
    return SubmissionError(
        f"'{name}' is being sent or written now by process {holder or '(number unknown)'}",
        "one process at a time: a second sending would spend a second slot",
        f"wait until it has ended, or end it (`kill {holder or 'NUMBER'}`); then type the same command again",
    )


def new_entry(file: Path, lineage: Lineage) -> Entry:
    """Record a submission's file that was just written; an unsent one of the same name is replaced.

    Raises:
        SubmissionError: a submission of this name was sent before, and its record is kept, or it is being sent.
    """
    name = _name(file)
    try:
        with files.lock(_lock(file.parent, name), waiting="wait"), _locked(file):
            path = lineage_path(file)
            if path.exists() and _read(path).kept:
                other = free_name(file.parent, name)
                raise SubmissionError(
                    f"'{name}' is the name of a submission with the status '{_read(path).status}'",
                    "a name that was never sent",
                    f"choose another name, such as '{other}': `kbench ensemble --name {other}`",
                )
            return _record(file, lineage)
    except Busy as error:
        raise _busy(name, error.holder) from error


def adopt(folder: Path, path: Path, lineage: Lineage) -> Entry:
    """Return the entry of a file that was not written by kbench, a copy of which it keeps in `folder`.

    A file whose content the ledger has already is that submission: the same rows are never sent twice unasked.

    Raises:
        ConfigError: its name is not safe.
        DataError: it cannot be read or copied, or a record of the folder is damaged.
    """
    checksum, name = files.sha256(path), check_name(_name(path), of="a submission")
    with _locked(folder / path.name):
        same = [entry for entry in read_ledger(folder) if entry.sha256 == checksum]
        known = [entry for entry in same if entry.kept or _is_whole(entry)]
        if known:
            return known[-1]
        if path.parent.resolve() != folder.resolve() or lineage_path(path).exists():
            with reserve(folder, name, replace=False) as place:
                return _record(files.copy(path, place.file(path.name.removeprefix(name))), lineage)
    return new_entry(path, lineage)


def _record(file: Path, lineage: Lineage) -> Entry:
    """Write the record of a file, the last in the ledger so far; for who holds the folder's lock."""
    number = max((entry.number for entry in read_ledger(file.parent)), default=0) + 1
    return _write(Entry(file, lineage, files.sha256(file), _now(), number=number))


def update_entry(
    file: Path,
    status: Status,
    *,
    tag: str | None = None,
    ref: str | None = None,
    public: float | None = None,
    private: float | None = None,
    message: str | None = None,
) -> Entry:
    """Write an entry's new status, before the deed it announces; what is None stays as it was.

    What is known already is not taken back: a score that another process has written stays.

    Args:
        file: the submission's file.
        status: where the submission is now.
        tag: the sending this was said of; of one before the last, `ref` alone is written down.
        ref: the service's id.
        public: public score.
        private: private score.
        message: what the service said.

    Raises:
        SubmissionError: there is no such entry, the file changed since it was written, or the status cannot
            follow the present one (another process may be sending it).
    """
    with _locked(file):
        entry = read_entry(file)
        if tag not in (None, entry.tag):
            known = [{**one, "ref": ref} if one["tag"] == tag else one for one in entry.earlier]
            return _write(replace(entry, earlier=known))
        if entry.status in _KNOWN.get(status, ()):
            return entry
        if status not in _MOVES[entry.status]:
            raise SubmissionError(
                f"the submission '{entry.name}' is '{entry.status}' and cannot become '{status}'",
                f"{' or '.join(_MOVES[entry.status])} after '{entry.status}'",
                "`kbench leaderboard` shows where every submission is",
            )
        facts = {"ref": ref, "public": public, "private": private, "message": message}
        changes: dict[str, Any] = {key: fact for key, fact in facts.items() if fact is not None}
        if status in ("uploading", "sending"):
            verify_file(entry)
            changes |= _begin(entry)
        if status in ("sending", *_REPEATABLE):
            changes |= {"tag": _new_tag(), "sent": _now()} if status == "sending" else {"sent": None}
        return _write(replace(entry, status=status, **changes))


def _begin(entry: Entry) -> dict[str, Any]:
    """Return what changes when a submission is sent once more: what is known of the sending before is put away."""
    if entry.status not in ("error", "unknown"):
        return {}
    before = {"tag": entry.tag, "status": entry.status, "ref": entry.ref, "message": entry.message}
    return {"earlier": [*entry.earlier, before], "tag": "", "ref": None, "message": ""}


def verify_file(entry: Entry) -> None:
    """Hold a submission's file against its record.

    Raises:
        SubmissionError: it is missing, or is not the file that was written.
    """
    if _is_whole(entry):
        return
    where, record = f" -c {entry.lineage.competition}", lineage_path(entry.file).name
    expected = f"the file of '{record}' with the checksum {entry.sha256[:12]}..., whose members and score it names"
    todo = f"restore it, or `kbench ensemble{where}` writes a new one"
    if not entry.file.is_file():
        raise SubmissionError(f"'{entry.file}' is missing", expected, todo)
    raise SubmissionError(
        f"'{entry.file}' is not what was written: its checksum is {files.sha256(entry.file)[:12]}...",
        expected,
        f"`kbench submit --file {shlex.quote(str(entry.file))}{where}` sends the changed file as one of your own, "
        f"without a score; or {todo}",
    )


def read_entry(file: Path) -> Entry:
    """Return the entry of a submission's file; none is a `SubmissionError`, a damaged one a `DataError`."""
    path = lineage_path(file)
    if not path.is_file():
        raise SubmissionError(
            f"'{file}' has no record '{path.name}' beside it",
            "a file written by `kbench ensemble`, or one of your own with `--file`",
            f"`kbench submit --file {shlex.quote(str(file))}` sends a file of your own",
        )
    return _read(path)


def read_ledger(folder: Path) -> list[Entry]:
    """Return all entries of a folder, the one written first first; a damaged one is a `DataError`."""
    return sorted((_read(path) for path in folder.glob(f"[!.]*{_SUFFIX}")), key=lambda entry: entry.order)


def newest_unsent(folder: Path, *, kernel: bool = False) -> Entry | None:
    """Return the last entry, of a file or of a notebook, that was never sent; one whose upload was cut off is one."""
    wanted = (entry for entry in reversed(read_ledger(folder)) if bool(entry.lineage.kernel) == kernel)
    return next((entry for entry in wanted if entry.unsent), None)


def rank_correlation(entries: Sequence[Entry]) -> float | None:
    """Return Spearman's correlation of out-of-fold and public scores, from -1 to 1.

    Only entries scored by the newest entry's metric count. None with fewer than three of them, or where all
    scores of a kind are equal.
    """
    metric = max(entries, key=lambda entry: entry.order).lineage.metric if entries else ""
    pairs = [
        (entry.lineage.score, entry.public)
        for entry in entries
        if entry.lineage.metric == metric and entry.lineage.score is not None and entry.public is not None
    ]
    if len(pairs) < 3:
        return None
    cv, public = (ranks(column) for column in np.array(pairs, dtype=np.float64).T)
    return float(np.corrcoef(cv, public)[0, 1]) if cv.std() > 0 and public.std() > 0 else None


def leaderboard_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return one row per entry, newest first: name, run, metric, cv, low, high, public, private, gap, status ...

    `gap` is public minus out-of-fold score. What is not known is None.
    """
    return [_row(entry) for entry in sorted(entries, key=lambda entry: entry.order, reverse=True)]


def _row(entry: Entry) -> dict[str, Any]:
    lineage = entry.lineage
    known = lineage.score is not None and entry.public is not None
    return {
        "name": entry.name,
        "run": ", ".join(lineage.runs),
        "members": len(lineage.members),
        "metric": lineage.metric,
        "cv": lineage.score,
        "low": lineage.low,
        "high": lineage.high,
        "public": entry.public,
        "private": entry.private,
        "gap": entry.public - lineage.score if known else None,  # type: ignore[operator]
        "status": entry.status,
        "created": entry.created,
        "ref": entry.ref,
        "notes": list(lineage.notes),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _new_tag() -> str:
    return f"kbench-{os.urandom(4).hex()}"


def _locked(file: Path) -> Any:  # the ledger, while one entry is read and written
    return files.lock(file.with_name(".lock"))


def _lock(folder: Path, name: str) -> Path:  # of who sends or writes a submission
    return folder / f".{name}.lock"


def _write(entry: Entry) -> Entry:
    files.write_json(lineage_path(entry.file), {**asdict(entry), "file": entry.file.name})
    return entry


def _read(path: Path) -> Entry:
    try:
        content = files.read_json(path)
        lineage = Lineage(**content["lineage"])
        entry = Entry(**{**content, "file": path.with_name(content["file"]), "lineage": lineage})
        if entry.status not in get_args(Status) or not isinstance(entry.created, str):
            raise ValueError(f"status '{entry.status}'")
    except (DataError, TypeError, ValueError, KeyError, AttributeError) as error:
        aside = shlex.quote(f"{path}.damaged")
        raise DataError(  # it may be the only record of what was sent: nothing may tell the user to delete it
            f"'{path}' is not a submission's record: {error.what if isinstance(error, DataError) else error}",
            "a JSON file written by kbench",
            f"correct it, restore it from version control, or put it aside (`mv {shlex.quote(str(path))} {aside}`): "
            "it keeps what it says, and the submission's file is not written over",
        ) from error
    return entry
