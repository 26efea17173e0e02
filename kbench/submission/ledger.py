"""The ledger: what every submission was made of, where it is, and what it scored.

Beside `<name>.csv` lies `<name>.lineage.json`; the ledger is all of them. A status is written before the deed it
announces: an entry says `sending` before a byte leaves, so a crash can hide no submission.

    written -> sending -> sent -> complete | error        written -> complete (graded on this machine)
               sending -> unknown -> sent | complete | error | written (it turned out never to have arrived)

To record one more fact of a submission's making, add a field to `Lineage` with a default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kbench import files
from kbench.errors import DataError, SubmissionError
from kbench.metrics.metric import ranks

Status = Literal["written", "sending", "sent", "complete", "error", "unknown"]
_MOVES: dict[str, tuple[str, ...]] = {
    "written": ("sending", "complete"),
    "sending": ("sent", "complete", "error", "unknown", "written"),
    "sent": ("sent", "complete", "error"),
    "unknown": ("sent", "complete", "error", "written"),
    "error": ("sending",),
    "complete": ("complete",),
}
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


@dataclass(frozen=True)
class Entry:
    """One submission in the ledger.

    Attributes:
        file: the submission's file.
        lineage: what it was made of.
        sha256: of the file.
        created: when it was written, UTC, ISO 8601.
        tag: unique text sent along, by which a submission whose answer was lost is found again.
        status: where it is.
        sent: when the sending began, UTC; None before.
        ref: the service's id of the submission.
        public: public score.
        private: private score.
        message: what the service said.
    """

    file: Path
    lineage: Lineage
    sha256: str
    created: str
    tag: str
    status: Status = "written"
    sent: str | None = None
    ref: str | None = None
    public: float | None = None
    private: float | None = None
    message: str = ""

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
    """Return `name`, or `name-2`, `name-3` ... : the first that no submission has that ever left this machine."""
    taken = {entry.name for entry in read_ledger(folder) if entry.status != "written"}
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def new_entry(file: Path, lineage: Lineage) -> Entry:
    """Record a submission's file that was just written; an unsent one of the same name is replaced.

    Raises:
        SubmissionError: a submission of this name was sent before; its record is kept.
    """
    with _locked(file):
        path = lineage_path(file)
        if path.exists() and _read(path).status != "written":
            raise SubmissionError(
                f"'{_name(file)}' is the name of a submission with the status '{_read(path).status}'",
                "a name that was never sent",
                f"choose another name, such as '{free_name(file.parent, _name(file))}'",
            )
        return _write(Entry(file, lineage, files.sha256(file), _now(), _new_tag()))


def update_entry(
    file: Path,
    status: Status,
    *,
    ref: str | None = None,
    public: float | None = None,
    private: float | None = None,
    message: str | None = None,
) -> Entry:
    """Write an entry's new status, before the deed it announces; what is None stays as it was.

    Args:
        file: the submission's file.
        status: where the submission is now.
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
        if status not in _MOVES[entry.status]:
            raise SubmissionError(
                f"the submission '{entry.name}' is '{entry.status}' and cannot become '{status}'",
                f"{' or '.join(_MOVES[entry.status])} after '{entry.status}'",
                "`kbench leaderboard` shows where every submission is",
            )
        if status == "sending":
            verify_file(entry)
        facts = {"ref": ref, "public": public, "private": private, "message": message}
        changes: dict[str, Any] = {key: fact for key, fact in facts.items() if fact is not None}
        if status in ("sending", "written"):
            changes["sent"] = _now() if status == "sending" else None
        if entry.status == "error":  # sent once more: it must not be taken for the one that failed
            changes["tag"] = _new_tag()
        return _write(replace(entry, status=status, **changes))


def verify_file(entry: Entry) -> None:
    """Hold a submission's file against its record.

    Raises:
        SubmissionError: it is missing, or is not the file that was written.
    """
    if not entry.file.is_file() or files.sha256(entry.file) != entry.sha256:
        what = "is not what was written" if entry.file.is_file() else "is missing"
        raise SubmissionError(
            f"'{entry.file}' {what}",
            f"the file with the checksum {entry.sha256[:12]}... of '{lineage_path(entry.file).name}'",
            "`kbench ensemble` writes it again; submit a changed file under a name of its own",
        )


def read_entry(file: Path) -> Entry:
    """Return the entry of a submission's file.

    Raises:
        SubmissionError: it has none.
    """
    path = lineage_path(file)
    if not path.is_file():
        raise SubmissionError(
            f"'{file}' has no record '{path.name}' beside it", "a file written by kbench", "`kbench ensemble`"
        )
    return _read(path)


def read_ledger(folder: Path) -> list[Entry]:
    """Return all entries of a competition's submissions, oldest first; none when there is no such folder.

    Raises:
        DataError: a lineage file is damaged.
    """
    return sorted(
        (_read(path) for path in folder.glob(f"[!.]*{_SUFFIX}")), key=lambda entry: (entry.created, entry.name)
    )


def newest_unsent(folder: Path) -> Entry | None:
    """Return the entry that was written last among those never sent."""
    return next((entry for entry in reversed(read_ledger(folder)) if entry.status == "written"), None)


def rank_correlation(entries: Sequence[Entry]) -> float | None:
    """Return Spearman's correlation of out-of-fold and public scores, from -1 to 1.

    Only entries scored by the newest entry's metric count. None with fewer than three of them, or where all
    scores of a kind are equal.
    """
    metric = max(entries, key=lambda entry: entry.created).lineage.metric if entries else ""
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
    return [_row(entry) for entry in sorted(entries, key=lambda entry: (entry.created, entry.name), reverse=True)]


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


def _locked(file: Path) -> Any:
    return files.lock(file.with_name(".lock"))


def _write(entry: Entry) -> Entry:
    content = {**asdict(entry), "file": entry.file.name}
    files.write_json(lineage_path(entry.file), content)
    return entry


def _read(path: Path) -> Entry:
    content = files.read_json(path)
    try:
        lineage = Lineage(**content["lineage"])
        entry = Entry(**{**content, "file": path.with_name(content["file"]), "lineage": lineage})
        if entry.status not in get_args(Status) or not isinstance(entry.created, str):
            raise ValueError(f"status '{entry.status}'")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"'{path}' is not a submission's record: {error}",
            "a JSON file written by kbench",
            "restore it from version control, or move it out of the folder",
        ) from error
    return entry
