"""`kbench infer`: a bundle predicts a test set that nobody has seen, without network, folds or training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import console, files
from kbench.errors import ConfigError, DataError, counted, first_names
from kbench.runs.bundle_opening import Bundle, open_bundle
from kbench.runs.hidden_rows import CHECKPOINT_S, Limit, predict_hidden
from kbench.workspace import WorkPaths


def infer(
    folder: Path,
    *,
    data: Path,
    out: Path | None,
    work: Path,
    hours: float | None,
    device: str = "auto",
    checkpoint_s: float = CHECKPOINT_S,
) -> dict[str, Any]:
    """Write a checked submission for the test rows of a data folder, or go on where that was killed.

    Args:
        folder: the bundle; it is only read.
        data: the data folder, with its test images and sample submission; it is only read.
        out: the submission's file; `submission.csv` (or as the format's files end) here by default.
        work: where partial results go.
        hours: the time limit; the one the bundle was exported with by default.
        device: where models run.
        checkpoint_s: seconds between two partial results.

    Returns:
        `file`, `rows`, `members`, `left_out` (names of models), `unreadable` (ids), `seconds` and `forecast`.

    Raises:
        ConfigError: the folder is no bundle, or the limit is no time.
        DataError: there is no data folder, or no image can be read.
    """
    if not data.is_dir():
        raise DataError(f"there is no data folder '{data}'", "the competition's files", "name it with `--data DIR`")
    bundle = open_bundle(folder.absolute(), files.make_folder(work.absolute()))
    hours = bundle.said.get("hours") if hours is None else hours
    if hours is not None and not hours > 0:
        raise ConfigError(f"--hours {hours:g}", "hours above 0", "say how long the notebook may run, such as --hours 9")
    combined = bundle.combined
    table = combined.experiment.table("test", data=data.absolute(), look=False)
    limit = Limit(None if hours is None else hours * 3600, checkpoint_s)
    plan, key = WorkPaths(work.absolute()).plan, _key(bundle, table.fingerprint())
    hidden = predict_hidden(combined, table, device=device, plan=plan, key=key, limit=limit)
    result = hidden.combined.predict(hidden.rows)
    unseen = combined.experiment.with_test(hidden.rows.table, sizes=hidden.rows.sizes)
    submission = hidden.combined.submission(result, unseen=unseen, data=data.absolute())
    file = submission.write((out or Path(f"submission{unseen.format.suffix}")).absolute())
    gone = hidden.rows.table.ids[hidden.rows.table.unreadable].tolist()
    if gone:
        console.warn(f"{counted(len(gone), 'test row')} without a readable image: {first_names(gone)}: filled")
    return {
        "file": str(file), "rows": len(table), "members": len(result.members), "left_out": hidden.left_out,
        "unreadable": gone, "seconds": hidden.seconds, "forecast": hidden.forecast,
    }  # fmt: skip


def _key(bundle: Bundle, table: str) -> str:
    """Return what tells these rows and this ensemble from others."""
    return files.digest([[one["sha256"] for one in bundle.said["members"]], bundle.said["engine"], table])
