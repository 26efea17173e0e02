"""The Python API for notebooks: a run with its table, folds, predictions, datasets and models.

    run = kbench.open_run(competition="digits")
    run.show_batch()

`open_run` gives the objects the commands work with, so that what a notebook shows is what was trained, scored and
sent. To add something a notebook needs, add a method to `Run` that calls the wings below `commands/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from kbench.config.competition import Competition
from kbench.data import seeds
from kbench.data.folds.folds import Folds
from kbench.data.images.cache import Images
from kbench.data.table.table import Table
from kbench.errors import ConfigError, PredictionError, nearest
from kbench.inference.map_store import MaskSet
from kbench.inference.predictions import Predictions
from kbench.inference.row_pass import Member
from kbench.models.checkpoint import Checkpoint
from kbench.models.device import choose_device
from kbench.report.sheets import Group, Tile, sheet
from kbench.runs import parts
from kbench.runs.blend import any_out_of_fold, score_run
from kbench.runs.experiment import Setup, open_setup
from kbench.runs.members import checkpoints
from kbench.runs.out_of_fold import MapsOutOfFold, masks_out_of_fold, require_folds, trained_folds
from kbench.runs.predict import ViewStack, member_of, view_stack
from kbench.runs.run import open_run_setup, run_paths
from kbench.runs.shown_images import (
    Item,
    TensorDataset,
    epoch_draws,
    given,
    label_text,
    resize_of,
    shown_images,
    stage_named,
    training_rows,
)
from kbench.runs.single_images import predict_images
from kbench.training.fold_context import Plan
from kbench.workspace import Choice, RunPaths

Role = Literal["train", "valid", "fix", "aug", "test", "test_aug"]
ROLES = {
    "train": ("train", True),
    "valid": ("valid", False),
    "fix": ("train", False),
    "aug": ("valid", True),
    "test": ("test", False),
    "test_aug": ("test", True),
}  # rows, and whether they are augmented


def open_run(
    run: str | None = None,
    *,
    competition: str | None = None,
    experiment: str | None = None,
    workspace: str | Path | None = None,
) -> Run:
    """Open a run, or an experiment that is not trained yet.

    Args:
        run: name of a run that exists; by default the one `kbench train` makes of the experiment. If that is not
            trained yet, the experiment is opened as its YAML stands: table, folds, datasets and batches are there,
            predictions and models are not.
        competition: its name; chosen as on the command line by default.
        experiment: its name; the baseline by default.
        workspace: a folder in the workspace; the current one by default.

    Raises:
        ConfigError: there is no such run, competition, experiment or workspace, or the YAML has problems.
    """
    choice = Choice(competition, experiment, run, workspace=None if workspace is None else Path(workspace))
    if run is None:
        setup = open_setup(choice)
        if not run_paths(setup).manifest.is_file():
            return Run(setup, run_paths(setup), None)
    return Run(*open_run_setup(choice))


@dataclass(frozen=True, repr=False)
class Run:
    """A run as a notebook sees it; made by `open_run`.

    Attributes:
        setup: workspace, configuration, tables and folds.
        paths: the run's files.
        identity: its hashes, or None when it was not trained as it was opened.
    """

    setup: Setup
    paths: RunPaths
    identity: dict[str, str] | None

    @property
    def name(self) -> str:
        """The run's name, such as `baseline-s0`."""
        return self.paths.name

    @property
    def config(self) -> Competition:
        """The YAML the run is trained with, as a frozen object."""
        return self.setup.competition

    @property
    def table(self) -> Table:
        """The training rows: ids [N], image paths, targets [N] or [N, K], metadata."""
        return self.setup.train

    @property
    def test(self) -> Table:
        """The test rows."""
        return self.setup.test

    @property
    def folds(self) -> Folds:
        """The folds: `folds.fold` is [N] int64 in the order of the table."""
        return self.setup.folds

    @property
    def trained(self) -> list[int]:
        """The folds that are trained to their end."""
        return [] if self.identity is None else trained_folds(self.paths, self.identity)

    def __repr__(self) -> str:
        trained = ", ".join(map(str, self.trained)) or "none"
        return (
            f"<kbench run '{self.name}' of '{self.config.name}': {len(self.table):,} rows, "
            f"{len(self.table.target_names)} targets, {self.folds.n} folds, trained: {trained}>"
        )

    def oof(self, *, device: str = "auto") -> Predictions | MaskSet:
        """Return the out-of-fold predictions of the trained folds; predicts what is not predicted yet.

        Returns:
            Predictions with sorted `ids` [n], `names` (K) and `values` [n, K]: probabilities, or target units. Of a
            segmentation the masks that are scored, read one at a time: `ids`, `names` and `oof[row]`, [H, W] class
            numbers or [K, H, W] layers.

        Raises:
            PredictionError: no fold is trained.
        """
        made = any_out_of_fold(self.setup, self.paths, self._trained(), device=device)
        return masks_out_of_fold(made) if isinstance(made, MapsOutOfFold) else made.predictions

    def score(self, *, device: str = "auto") -> dict[str, Any]:
        """Return what `kbench score` reports: `metric`, `score`, `low`, `high`, `folds`, `spread`, `rows` and more.

        Raises:
            PredictionError: no fold is trained.
        """
        return score_run(self.setup, self.paths, self._trained(), device=device)

    def dataset(
        self, fold: int, stage: str | None = None, *, training: bool = False, role: Role | None = None
    ) -> TensorDataset:
        """Return the rows of a fold as the network sees them.

        Args:
            fold: its number.
            stage: a stage of the recipe; the last one by default.
            training: short for the role `train`.
            role: one of the lesson's six (F-05): `train`, the rows the fold trains on, augmented; `valid`, those it is
                judged on, the default; `fix`, the training rows as they would be judged; `aug`, the judged rows
                augmented; `test` and `test_aug`, the test set in both ways.

        Returns:
            A torch Dataset of (image, target): image float32 [C, H, W], normalised; target int64 [] (`single_label`)
            or float32 [K], NaN without targets. What is augmented changes with the dataset's `epoch`.

        Raises:
            ConfigError: there is no such stage or role.
            FoldError: there is no such fold.
        """
        role = role or ("train" if training else "valid")
        if role not in ROLES:
            raise ConfigError(f"there is no role '{role}'", f"one of {', '.join(ROLES)}", nearest(role, ROLES))
        plan, (split, augmented) = stage_named(self.config, stage), ROLES[role]
        valid = np.flatnonzero(self.folds.valid(fold))  # says so when there is no such fold
        table = self.test if split == "test" else self.table
        rows = np.arange(len(table)) if split == "test" else valid
        rows = training_rows(self.setup, plan, fold) if split == "train" else rows
        cache = self.setup.workspace.cache()
        opened = parts.opened_images(self.config, table, cache, what="test" if split == "test" else "training")
        show = plan.show if augmented else plan.valid_show
        key = (seeds.AUGMENT, self.config.seed, fold, plan.index) if augmented else ()
        measured = parts.opened_images(self.config, self.table, cache, what="training") if split == "test" else opened
        scale = self._scale(fold, lambda: measured(resize_of(plan.show)))
        return TensorDataset(opened(resize_of(show)), show, scale, table, rows, key)

    def _scale(self, fold: int, images: Callable[[], Images]) -> dict[str, Any]:
        """Return the normalisation the fold is trained with, or would be."""
        training = "" if self.identity is None else self.identity["training"]
        found = Plan(self.paths.fold(fold), training=training).get("scale") if self.identity else None
        if found is None:
            train_rows = np.flatnonzero(self.folds.train(fold))
            found = asdict(parts.build_scale(self.config)(images(), train_rows))
        return dict(found)

    def show_batch(self, fold: int = 0, stage: str | None = None, n: int = 16) -> Any:
        """Return a picture of the first images a fold trains on, augmented as in its first epoch.

        Mixup and cutmix come later and are not shown; colours are those of the files, before normalisation.

        Args:
            fold: its number.
            stage: a stage of the recipe; the last one by default.
            n: how many images.

        Returns:
            A matplotlib Figure; `%matplotlib inline` lets a notebook show it.
        """
        plan = stage_named(self.config, stage)
        draws = epoch_draws(self.setup, plan, fold, n)
        shown = shown_images(self.config, self.table, draws, plan.show)
        tiles = [
            Tile(image, (label_text(self.table, draw.row), str(self.table.ids[draw.row])))
            for image, draw in zip(shown, draws, strict=True)
        ]
        return sheet([Group("", tiles)], title=f"fold {fold}, stage {plan.name}", side=96)

    def members(self, fold: int) -> list[str]:
        """Return the snapshots of a fold that are ensemble members, such as `cycles-2`, in the order of training."""
        return [checkpoint.member for checkpoint in self._checkpoints(fold)]

    def model(self, fold: int, member: str | None = None, *, device: str = "auto") -> torch.nn.Module:
        """Return the network of a snapshot, in eval mode: [B, C, H, W] normalised images to logits [B, K].

        Args:
            fold: its number.
            member: one of `members(fold)`; the last one by default.
            device: where to.

        Raises:
            PredictionError: there is no such snapshot.
        """
        return self._member(self._named(fold, member), Path(), choose_device(device)).load()

    def predict(
        self,
        items: Sequence[Item] | np.ndarray,
        *,
        folds: Sequence[int] | None = None,
        decided: bool = True,
        device: str = "auto",
    ) -> pd.DataFrame:
        """Predict images with the run's ensemble as for a submission: weighed and decided as `ensemble:` says.

        What `ensemble:` fits (weights, thresholds, cut points) is found on the out-of-fold rows of all trained folds,
        which are predicted where they are missing.

        Args:
            items: paths or arrays, read and shown as in training; an array [N, H, W, C] is N images.
            folds: which folds' models; all trained ones by default.
            decided: whether `ensemble.decision` is applied, as it is to what is sent; False: the probabilities or
                numbers before it.
            device: where the models run.

        Returns:
            A frame with one row per image, named after its file or numbered, and one column per target.

        Raises:
            ConfigError: the task predicts maps, not rows, or members are compared by ranks.
            DataError: an image cannot be read, or has another number of channels.
            PredictionError: no fold is trained, or one of `folds` is not.
        """
        identity = self._trained()
        handed = [given(item, place, self.config.input.channels) for place, item in enumerate(items)]
        columns = list(self.table.target_names)
        if not handed:
            return pd.DataFrame(columns=columns, dtype=np.float32)
        for fold in folds or ():
            self._checkpoints(fold)
        chosen = require_folds(self.paths, identity) if folds is None else list(folds)
        made = predict_images(self.setup, self.paths, identity, handed, folds=chosen, device=device)
        values = made.decided if decided and made.decided is not None else made.values
        names = [place if isinstance(item, np.ndarray) else item[0].name for place, item in enumerate(handed)]
        return pd.DataFrame(values, index=pd.Index(names), columns=columns)

    def views(
        self, fold: int, member: str | None = None, *, role: Literal["valid", "test"] = "valid", device: str = "auto"
    ) -> ViewStack:
        """Predict a fold's own rows, or the test set, with one snapshot in every view of `tta:` apart (F-24).

        This is what fast.ai's `TTA` returns: the plain view and the n others, not averaged. The rows are predicted
        anew, in one pass, and nothing is stored. `stack.mean("arithmetic")` and `stack.mean("geometric")` are the two
        means of fast.ai, before and after 2018; `ensemble.mean` names the one that the run's predictions are.

        Args:
            fold: its number.
            member: one of `members(fold)`; the last one by default.
            role: whose rows: those the fold is judged on, or the test set's.
            device: where the model runs.

        Returns:
            A stack with `values` [1 + n, N, K] (probabilities, or target units), `views`, `weights`, `ids`, `names`.

        Raises:
            ConfigError: the task predicts maps, or there is no such role.
            PredictionError: there is no such snapshot.
        """
        if role not in ("valid", "test"):
            raise ConfigError(f"there is no role '{role}'", "valid or test", nearest(role, ("valid", "test")))
        table = self.test if role == "test" else self.table
        rows = np.arange(len(table)) if role == "test" else np.flatnonzero(self.folds.valid(fold))
        return view_stack(self.setup, self._named(fold, member), table, rows, device=device)

    def _trained(self) -> dict[str, str]:
        if self.identity is None:
            raise PredictionError(
                f"'{self.name}' was not trained when it was opened",
                "one trained fold or more",
                "`kbench train --fold 0`, then `kbench.open_run(...)` again",
            )
        return self.identity

    def _checkpoints(self, fold: int) -> list[Checkpoint]:
        identity = self._trained()
        self.folds.valid(fold)  # says so when there is no such fold
        found = checkpoints(self.setup, self.paths, identity, fold)
        if not found:
            raise PredictionError(
                f"fold {fold} of '{self.name}' has no snapshot", "a trained fold", f"`kbench train --fold {fold}`"
            )
        return found

    def _named(self, fold: int, member: str | None) -> Checkpoint:
        found = {checkpoint.member: checkpoint for checkpoint in self._checkpoints(fold)}
        name = member or next(reversed(found))
        if name not in found:
            known = ", ".join(found)
            raise PredictionError(f"fold {fold} has no snapshot '{name}'", f"one of {known}", nearest(name, found))
        return found[name]

    def _member(self, checkpoint: Checkpoint, out: Path, device: torch.device) -> Member:
        stages = {stage.name: stage for stage in parts.build_stages(self.config)}
        source = {key: checkpoint.info[key] for key in ("fold", "stage", "tag")}
        return member_of(self.setup, checkpoint, out, source, stages, device)
