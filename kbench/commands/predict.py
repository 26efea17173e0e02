"""`kbench predict`: the test set, or the unseen rows of another folder, against its own sample submission.

`kbench predict --image` and `Run.predict`: a few images, predicted and decided as a submission is (F-31).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files
from kbench.commands.ensemble import EnsembleOptions, blend_of, open_part
from kbench.config.competition import Competition
from kbench.errors import ConfigError
from kbench.runs.blend import Asked, apply_rule, predict_blend, untuned_rule, without_rule
from kbench.runs.experiment import Setup, label_threshold
from kbench.runs.members import members_of
from kbench.runs.out_of_fold import maps_out_of_fold, require_folds
from kbench.runs.predict import masks_of, predict_test, rows_of_test
from kbench.runs.run import open_run_setup
from kbench.runs.single_images import predict_images
from kbench.submission.check import read_sample, write_submission
from kbench.tasks import is_dense
from kbench.workspace import Choice, RunPaths


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
    if not without_rule(setup):
        rule = apply_rule(setup, maps_out_of_fold(setup, paths, identity, folds, device=device).maps()).rule
    masks = masks_of(rows, rule, force=force)
    sample = read_sample(folder / setup.competition.submission.sample)
    file = write_submission(
        Path(out or f"submission{setup.format.suffix}").absolute(), unseen.format.build(masks, sample),
        sample=sample, format=unseen.format, gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    return {"rows": len(table), "members": len(rows.members), "file": str(file)}


_SHOWN = 3  # classes named of each image


def predict_files(choice: Choice, names: Sequence[str], *, device: str = "auto") -> dict[str, Any]:
    """Predict image files with all trained folds of a run.

    Args:
        choice: competition, experiment and run.
        names: the files.
        device: where models run.

    Returns:
        `run`, `task` and `rows`: of each file its name, its `values` (probabilities, or target units) and the same
        `decided`, None without a decision; and `words`, of each file the columns of `most_likely`.
    """
    setup, paths, identity = open_run_setup(choice)
    folds = [] if is_dense(setup.competition.task) else require_folds(paths, identity)
    made = predict_images(setup, paths, identity, [(Path(name),) for name in names], folds=folds, device=device)
    rows, words = [], []
    for place, name in enumerate(names):
        values = dict(zip(made.names, map(float, made.values[place]), strict=True))
        chosen = None
        if made.decided is not None:
            chosen = dict(zip(made.names, map(float, made.decided[place]), strict=True))
        rows.append({"file": name, "values": values, "decided": chosen})
        words.append({"file": name, **most_likely(values, setup.competition, chosen)})
    return {"run": paths.name, "task": setup.competition.task, "rows": rows, "words": words}


# -- in words ----------------------------------------------------------------------------------------------------


def most_likely(
    values: Mapping[str, float], competition: Competition, decided: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return the columns of a table row: the three likeliest classes, the chosen tags, or the numbers themselves.

    Tags are those the decision chose; without one, those above the metric's threshold.

    Args:
        values: one probability per class or tag, or one number per target of a regression.
        competition: whose task it is.
        decided: the same as the run's decision has them.
    """
    if competition.task == "regression":
        return {name: f"{value:.5g}" for name, value in (decided or values).items()}
    ranked = sorted(values.items(), key=lambda item: -item[1])
    if competition.task == "multi_label":
        chosen = _chosen(values, competition) if decided is None else {name for name in decided if decided[name] > 0.5}
        likely = [f"{name} {value:.3f}" for name, value in ranked if name in chosen]
        return {"labels": ", ".join(likely) or f"none; most: {ranked[0][0]} {ranked[0][1]:.3f}"}
    named = ("most likely", "then", "and then")
    return {word: f"{name} {value:.3f}" for word, (name, value) in zip(named, ranked[:_SHOWN], strict=False)}


def _chosen(values: Mapping[str, float], competition: Competition) -> set[str]:
    own = competition.submission.format.params.get("threshold")  # of the tags that are sent
    limit = label_threshold(competition) if own is None else own
    limits = np.broadcast_to(np.asarray(limit, dtype=np.float64), len(values))
    return {name for (name, value), limit in zip(values.items(), limits, strict=True) if value > limit}
