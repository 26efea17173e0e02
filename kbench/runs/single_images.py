"""A few images, predicted and decided as a submission is: `kbench predict --image` and `Run.predict` (F-31)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kbench import files
from kbench.data.images.cache import Images, Resize
from kbench.data.table.table import Table
from kbench.errors import ConfigError
from kbench.runs.blend import Blend, EnsembleOptions, blend
from kbench.runs.members import needed_checkpoints
from kbench.runs.results import Rows, Share, is_plain, recipe_of
from kbench.runs.shown_images import GivenImages
from kbench.runs.steps import reader_of

if TYPE_CHECKING:
    from kbench.runs.run import Run

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


def predict_images(run: Run, items: Sequence[Handed], *, folds: Sequence[int] | None = None, device: str) -> Singles:
    """Predict images by the run's views, snapshots and folds, combined and decided as for a submission.

    What `ensemble:` fits is found on the out-of-fold rows of the trained folds, which are predicted where they are
    missing; a plain mean needs none.

    Args:
        run: the run.
        items: arrays [H, W, C] or tuples of paths; at least one.
        folds: whose models; all trained ones by default.
        device: where they run.

    Raises:
        ConfigError: the task predicts maps, or members are compared by ranks, which a few images do not have.
        PredictionError: a fold has no snapshot.
    """
    recipe = recipe_of(run.experiment)
    if not run.results.TAKES_IMAGES or recipe.combiner.ranks:
        competition = run.competition
        raise ConfigError(
            f"single images with the combiner '{competition.ensemble.combine.name}', which compares images"
            if run.results.TAKES_IMAGES
            else f"single images of the task '{competition.task}', whose predictions are maps",
            "a task that predicts rows, and a combiner of values",
            "`kbench predict --data FOLDER`, a folder laid out like the competition's test set",
        )
    places = tuple(run.required_folds() if folds is None else folds)
    for fold in places:
        needed_checkpoints(run, fold)  # says so when there is none, before anything is predicted
    if is_plain(recipe) and recipe.decision is None:
        share = Share(run, places=places)
        combined = Blend(run.experiment, (share,), "mean", recipe, None, None, {}, None, [])
    else:
        combined = blend([run], EnsembleOptions(device=device))
        combined = replace(combined, shares=(replace(combined.shares[0], places=places),))
    ids = np.array([f"{place:09d}" for place in range(len(items))])
    table = Table(ids, Path(), ((),) * len(ids), run.competition.task, run.experiment.train.target_names)
    reader = reader_of(run.competition)

    def images(resize: Resize) -> Images:
        return GivenImages(items, reader, resize)

    with files.scratch_folder() as folder:
        result = combined.predict(Rows(table, "images", device, handed=images, folder=folder))
        values = np.array(result.predictions.values)
        decided = None if recipe.decision is None else np.array(combined.sent(result).values)
    return Singles(result.names, values, decided)
