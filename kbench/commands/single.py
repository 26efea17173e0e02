"""`kbench predict --image` and `Run.predict`: a few images, predicted and decided as a submission is (F-31)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files, registry
from kbench.commands import parts
from kbench.commands.blending import Blend, RunPart, combiner_name, is_plain, recipe_of
from kbench.commands.ensemble import EnsembleOptions, blend_of, open_part
from kbench.commands.predict import job_of, member_of, needed_checkpoints, source_of
from kbench.commands.runs import open_run_setup
from kbench.commands.score import require_folds
from kbench.commands.sent import Asked, Sent, narrowed, predict_blend
from kbench.commands.setup import Choice, Setup, label_threshold
from kbench.commands.tensors import GivenImages
from kbench.config import Competition
from kbench.errors import ConfigError
from kbench.inference.predict import predict
from kbench.inference.predictions import Predictions, load
from kbench.tasks import is_dense
from kbench.workspace import RunPaths

Handed = np.ndarray | tuple[Path, ...]
_SHOWN = 3  # classes named of each image


@dataclass(frozen=True)
class Singles:
    """What a run says of images it was handed.

    Attributes:
        names: K target names.
        values: [N, K] float32 probabilities, or target units.
        decided: [N, K] float32 as `ensemble.decision` decides, or None where there is no decision.
    """

    names: tuple[str, ...]
    values: np.ndarray
    decided: np.ndarray | None


def predict_images(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    items: Sequence[Handed],
    *,
    folds: Sequence[int],
    device: str = "auto",
) -> Singles:
    """Predict images by the run's views, snapshots and folds, combined and decided as for a submission.

    What `ensemble:` fits is found on the out-of-fold rows of the trained folds, which are predicted where they are
    missing; a plain mean needs none.

    Args:
        setup: the run's configuration.
        paths: its files.
        identity: its hashes.
        items: arrays [H, W, C] or tuples of paths; at least one.
        folds: whose models.
        device: where they run.

    Raises:
        ConfigError: the task predicts maps, or members are compared by ranks, which a few images do not have.
        PredictionError: a fold has no snapshot.
    """
    competition = setup.competition
    recipe = recipe_of(setup, combine=None, prune=False)
    if is_dense(competition.task) or recipe.combiner.ranks:
        raise ConfigError(
            f"single images of the task '{competition.task}', whose predictions are maps" if is_dense(competition.task)
            else f"single images with the combiner '{competition.ensemble.combine.name}', which compares images",
            "a task that predicts rows, and a combiner of values",
            "`kbench predict --data FOLDER`, a folder laid out like the competition's test set",
        )  # fmt: skip
    for fold in folds:
        needed_checkpoints(setup, paths, identity, fold)  # says so when there is none, before anything is predicted
    if is_plain(recipe) and recipe.decision is None:
        part = RunPart(setup, paths, identity, None, list(folds), "fold", [])
        blend = Blend(setup, combiner_name(setup, None), recipe, None, None, None, [])
    else:
        part = open_part((setup, paths, identity), EnsembleOptions(device=device))
        blend = blend_of([part], EnsembleOptions(device=device))
        part = replace(part, places=list(folds))
    sent = _predicted(part, blend, items, device)
    decided = None if recipe.decision is None else np.array(sent.predictions.values)
    return Singles(sent.mean.names, np.array(sent.mean.values), decided)


def _predicted(part: RunPart, blend: Blend, items: Sequence[Handed], device: str) -> Sent:
    reader = registry.build(
        "reader", part.setup.competition.input.reader.name, part.setup.competition.input.reader.params,
        _channels=part.setup.competition.input.channels,
    )  # fmt: skip
    ids = np.array([f"{place:09d}" for place in range(len(items))])

    with files.scratch_folder() as folder:

        def members(part: RunPart, asked: Asked, only: Sequence[str] | None) -> dict[int | str, list[Predictions]]:
            setup = narrowed(part.setup, only)
            stages = {stage.name: stage for stage in parts.build_stages(setup.competition)}
            job = job_of(setup, ids, np.arange(len(ids)), lambda resize: GivenImages(items, reader, resize), device)
            job = replace(job, workers=0)  # what is handed over lies in this process
            models = {
                place: [
                    member_of(setup, one, folder / f"{place}-{one.member}.json", source_of(setup, one, ids), stages,
                              job.device)
                    for one in needed_checkpoints(setup, part.paths, part.identity, place)
                ]
                for place in part.places
            }  # fmt: skip
            for _ in predict(job, [model for of_place in models.values() for model in of_place]):
                pass
            return {place: [load(model.out) for model in of_place] for place, of_place in models.items()}

        sent = predict_blend([part], blend, Asked(device), members=members)
        mean = replace(sent.mean, values=np.array(sent.mean.values))
        predictions = replace(sent.predictions, values=np.array(sent.predictions.values))
        return replace(sent, mean=mean, predictions=predictions)


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
