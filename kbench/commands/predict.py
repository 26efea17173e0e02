"""`kbench predict`: the test set, another folder's rows against its own sample submission, or single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files
from kbench.config.competition import Competition
from kbench.errors import ConfigError, DataError
from kbench.runs.blend import EnsembleOptions, blend
from kbench.runs.experiment import Experiment, label_threshold
from kbench.runs.opening import open_run
from kbench.runs.results import Rows
from kbench.runs.single_images import predict_images
from kbench.workspace import Choice


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
    run = open_run(choice)
    if data is None:
        result = run.predict_rows(Rows(run.experiment.test, device=device, force=force))
        run.results.made(result)
        return {"rows": len(result.ids), "members": len(result.members), "file": None}
    folder = Path(data).absolute()
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'", "a folder laid out like the competition's", "correct --data")
    table = run.experiment.table("test", data=folder)
    file = Path(out or f"submission{run.experiment.format.suffix}").absolute()
    _refuse_loss(file, run.experiment, [folder, run.experiment.data])
    part = f"data-{files.digest([str(folder), table.fingerprint()])}"
    combined = blend([run], EnsembleOptions(device=device))
    result = combined.predict(Rows(table, part, device, force=force))
    unseen = combined.experiment.with_test(table)
    file = combined.submission(result, unseen=unseen, data=folder).write(file)
    return {"rows": len(table), "members": len(result.members), "file": str(file)}


def _refuse_loss(file: Path, experiment: Experiment, data: Sequence[Path]) -> None:
    """Refuse to write over what cannot be made again: data, and submissions with a lineage.

    Raises:
        ConfigError: the file is one of these, or a folder.
    """
    kept = [*data, experiment.workspace.submissions(experiment.competition.name)]
    inside = next((folder for folder in kept if file.resolve().is_relative_to(folder.resolve())), None)
    if not file.exists() or (inside is None and file.is_file()):
        return
    what = "is a folder" if file.is_dir() else f"is a file of '{inside}'"
    raise ConfigError(f"'{file}' {what}, which a prediction would replace", "a new file", "name another one by --out")


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
    run = open_run(choice)
    predictions = predict_images(run, [(Path(name),) for name in names], device=device)
    rows, words = [], []
    for place, name in enumerate(names):
        values = dict(zip(predictions.names, map(float, predictions.values[place]), strict=True))
        chosen = None
        if predictions.decided is not None:
            chosen = dict(zip(predictions.names, map(float, predictions.decided[place]), strict=True))
        rows.append({"file": name, "values": values, "decided": chosen})
        words.append({"file": name, **most_likely(values, run.competition, chosen)})
    return {"run": run.name, "task": run.competition.task, "rows": rows, "words": words}


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
