"""`kbench predict`: the test set, or the unseen rows of another folder, against its own sample submission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import files
from kbench.commands.ensemble import EnsembleOptions, blend_of, open_part
from kbench.commands.predict import members_of, predict_test
from kbench.commands.predict_maps import masks_of, rows_of_test
from kbench.commands.rules import apply_rule, is_plain, untuned_rule
from kbench.commands.runs import open_run_setup
from kbench.commands.score import require_folds
from kbench.commands.score_maps import maps_out_of_fold
from kbench.commands.sent import Asked, predict_blend
from kbench.commands.setup import Choice, Setup
from kbench.errors import ConfigError
from kbench.submission.check import read_sample, write_submission
from kbench.tasks import is_dense
from kbench.workspace import RunPaths


def predict_rows(choice: Choice, *, data: str | None, out: str | None, device: str, force: bool) -> dict[str, Any]:
    """Predict the test set with every trained fold, or write a checked submission for another folder's rows.

    Args:
        choice: competition, experiment and run.
        data: a folder laid out like the competition's, with its own sample submission; the test set by default.
        out: the submission's file, with `data`; `submission.csv` by default.
        device: where models run.
        force: predict again what is predicted.
    """
    if data is None and out is not None:
        raise ConfigError("--out without --data", "both, or neither", "`kbench ensemble` writes the test set's file")
    setup, paths, identity = open_run_setup(choice)
    if is_dense(setup.competition.task):
        return _predict_maps(setup, paths, identity, data=data, out=out, device=device, force=force)
    if data is None:
        folds = require_folds(paths, identity)
        predict_test(setup, paths, identity, folds, device, force=force)
        count = sum(len(members_of(setup, paths, identity, fold, "test")) for fold in folds)
        return {"rows": len(setup.test), "members": count, "file": None}
    folder = Path(data).absolute()
    table = setup.table("test", data=folder)
    part = f"data-{files.digest([str(folder), table.fingerprint()])}"
    options = EnsembleOptions(device=device)
    run = open_part((setup, paths, identity), options)
    sent = predict_blend([run], blend_of([run], options), Asked(device, table, part, force))
    sample = read_sample(folder / setup.competition.submission.sample)
    file = write_submission(
        Path(out or f"submission{setup.format.suffix}").absolute(), setup.format.build(sent.predictions, sample),
        sample=sample, format=setup.format, gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    return {"rows": len(table), "members": len(sent.members), "file": str(file)}


def _predict_maps(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    *,
    data: str | None,
    out: str | None,
    device: str,
    force: bool,
) -> dict[str, Any]:
    """Do the same for a dense task."""
    folds = require_folds(paths, identity)
    if data is None:
        rows = rows_of_test(setup, paths, identity, folds, device)
        rows.stored(force=force)
        return {"rows": len(rows.rows), "members": len(rows.members), "file": None}
    folder = Path(data).absolute()
    table = setup.table("test", data=folder)
    unseen = setup.with_test(table)
    part = f"data-{files.digest([str(folder), table.fingerprint()])}"
    rows = rows_of_test(unseen, paths, identity, folds, device, table=table, part=part)
    rule = untuned_rule(setup)
    if not is_plain(setup):
        rule = apply_rule(setup, maps_out_of_fold(setup, paths, identity, folds, device=device).maps()).rule
    masks = masks_of(rows, rule, force=force)
    sample = read_sample(folder / setup.competition.submission.sample)
    file = write_submission(
        Path(out or f"submission{setup.format.suffix}").absolute(), unseen.format.build(masks, sample),
        sample=sample, format=unseen.format, gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    return {"rows": len(table), "members": len(rows.members), "file": str(file)}
