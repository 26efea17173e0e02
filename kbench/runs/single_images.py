"""`kbench predict --image` and `Run.predict`: a few images, predicted and decided as a submission is (F-31)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kbench import files
from kbench.commands.ensemble import EnsembleOptions, blend_of, open_part
from kbench.errors import ConfigError
from kbench.inference.predictions import Predictions, load
from kbench.inference.row_pass import predict
from kbench.runs import parts
from kbench.runs.blend import Asked, Blend, RunPart, Sent, combiner_name, is_plain, narrowed, predict_blend, recipe_of
from kbench.runs.experiment import Setup, reader_of
from kbench.runs.members import needed_checkpoints, source_of
from kbench.runs.predict import job_of, member_of
from kbench.runs.shown_images import GivenImages
from kbench.tasks import is_dense
from kbench.workspace import RunPaths

Handed = np.ndarray | tuple[Path, ...]


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
    reader = reader_of(part.setup.competition)
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
