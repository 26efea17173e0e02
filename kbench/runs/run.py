"""A run: one experiment with one seed, its files and its hashes; opened once (`opening.py`) and passed on.

What a run answers is written in the modules it asks. To have it answer more, write a function there that takes a `Run`,
and a method here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch

from kbench.config.competition import Competition
from kbench.data.folds.folds import Folds
from kbench.data.table.table import Table
from kbench.errors import ConfigError, PredictionError, nearest
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.inference.predictions import Predictions
from kbench.models.checkpoint import Checkpoint
from kbench.models.device import choose_device
from kbench.runs import map_results, members, row_results, shown_images
from kbench.runs.experiment import Experiment
from kbench.runs.out_of_fold import OutOfFold, out_of_fold
from kbench.runs.results import Result, Results, Rows, Share
from kbench.runs.shown_images import Item, Role, TensorDataset, given
from kbench.runs.single_images import predict_images
from kbench.runs.views import ViewStack, view_stack
from kbench.tasks import is_dense
from kbench.training.fold import state_of
from kbench.training.fold_context import Plan
from kbench.training.ranks import ALONE, Ranks
from kbench.workspace import RunPaths


class Engine(Protocol):
    """Runs networks in place of torch."""

    def runs(self, snapshot: Checkpoint) -> bool:
        """Return whether it has the network of a snapshot."""

    def __call__(self, snapshot: Checkpoint) -> torch.nn.Module:
        """Return the network, in eval mode."""


@dataclass(frozen=True, repr=False)
class Run:
    """An experiment's run, trained or not.

    Attributes:
        experiment: workspace, configuration, tables and folds.
        paths: the run's files.
        hashes: `training`, `contract` and `folds` of what it was trained with; None where it was opened untrained.
        engine: what runs some of its networks in place of torch, or None.
        left_out: checksums of snapshots that are no members, as there is no time for them.
    """

    experiment: Experiment
    paths: RunPaths
    hashes: dict[str, str] | None
    engine: Engine | None = None
    left_out: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The run's name, such as `baseline-s0`."""
        return self.paths.name

    @property
    def competition(self) -> Competition:
        """The YAML the run is trained with, as a frozen object."""
        return self.experiment.competition

    @property
    def results(self) -> Results:
        """How its predictions are made, scored and sent: rows of numbers, or maps."""
        return map_results if is_dense(self.competition.task) else row_results

    @property
    def trained_as(self) -> dict[str, str]:
        """Its hashes.

        Raises:
            PredictionError: it was not trained when it was opened.
        """
        if self.hashes is None:
            raise PredictionError(
                f"'{self.name}' was not trained when it was opened", "one trained fold or more",
                "`kbench train --fold 0`, then `kbench.open_run(...)` again",
            )  # fmt: skip
        return self.hashes

    @property
    def foreign(self) -> bool:
        """Whether it is somebody else's predictions."""
        return self.paths.foreign.is_file()

    @property
    def on_these_folds(self) -> bool:
        """Whether it is trained on the competition's folds as they are now: only they tell who saw which row."""
        return bool(self.experiment.folds.hash == self.trained_as["folds"])

    def state(self, fold: int | str) -> dict[str, Any]:
        """Return what is known of a fold's training: its `state` is none, begun, done or failed."""
        return state_of(self.paths.fold(fold), training=self.trained_as["training"])

    def trained_folds(self) -> list[int]:
        """Return the folds that are trained to their end."""
        return [fold for fold in self.paths.fold_numbers() if self.state(fold)["state"] == "done"]

    def required_folds(self) -> list[int]:
        """Return the trained folds.

        Raises:
            PredictionError: none is.
        """
        _ = self.trained_as  # says so where it was opened untrained
        folds = self.trained_folds()
        if not folds:
            raise PredictionError(
                f"no fold of '{self.name}' is trained to its end", "one trained fold or more", "`kbench train --fold 0`"
            )
        return folds

    def plan(self, fold: int | str, ranks: Ranks = ALONE) -> Plan:
        """Return the values a fold found while training."""
        return Plan(self.paths.fold(fold), training=self.trained_as["training"], ranks=ranks)

    def checkpoints(
        self, fold: int | str, *, subset: str = "fold", only: Sequence[str] | None = None
    ) -> list[Checkpoint]:
        """Return the snapshots of a fold that are ensemble members; see `members.checkpoints`."""
        return members.checkpoints(self, fold, subset=subset, only=only)

    def predict_rows(self, rows: Rows, *, folds: Sequence[int | str] | None = None, subset: str = "fold") -> Result:
        """Return rows as the plain mean over folds, snapshots and views predicts them, before anything is decided.

        What is not predicted yet is. A metric can score it, and a format can send it, whether it holds rows or maps.

        Args:
            rows: which.
            folds: whose snapshots; the trained folds by default.
            subset: `fold`, or `full` for models of all rows.
        """
        places = tuple(self.required_folds() if folds is None else folds)
        share = Share(self, places=places, subset=subset)
        result: Result = self.results.predict([share], rows, mean=self.competition.ensemble.mean)
        return result

    def out_of_fold(self, *, device: str = "auto") -> OutOfFold:
        """Return the out-of-fold predictions of the trained folds and their score; predicts what is missing."""
        return out_of_fold(self, device=device)

    @property
    def config(self) -> Competition:
        """The YAML the run is trained with, as a frozen object."""
        return self.competition

    @property
    def table(self) -> Table:
        """The training rows: ids [N], image paths, targets [N] or [N, K] or masks, metadata."""
        return self.experiment.train

    @property
    def test(self) -> Table:
        """The test rows."""
        return self.experiment.test

    @property
    def folds(self) -> Folds:
        """The folds: `folds.fold` is [N] int64 in the order of the table."""
        return self.experiment.folds

    @property
    def trained(self) -> list[int]:
        """The folds that are trained to their end; none where it was opened untrained."""
        return [] if self.hashes is None else self.trained_folds()

    def __repr__(self) -> str:
        trained = ", ".join(map(str, self.trained)) or "none"
        return (
            f"<kbench run '{self.name}' of '{self.config.name}': {len(self.table):,} rows, "
            f"{len(self.table.target_names)} targets, {self.folds.n} folds, trained: {trained}>"
        )

    def oof(self, *, device: str = "auto") -> Predictions | MaskSet | NumberSet:
        """Return the out-of-fold predictions of the trained folds; predicts what is not predicted yet.

        Returns:
            Predictions with sorted `ids` [n], `names` (K) and `values` [n, K]: probabilities, or target units. Of a
            dense task what is scored, read one row at a time: `ids`, `names` and `oof[row]`, a mask as [H, W] class
            numbers or [K, H, W] layers, or [K, H, W] numbers.

        Raises:
            PredictionError: no fold is trained.
        """
        return self.out_of_fold(device=device).sent()

    def score(self, *, device: str = "auto") -> dict[str, Any]:
        """Return what `kbench score` reports: `metric`, `score`, `low`, `high`, `folds`, `spread`, `rows` and more.

        Raises:
            PredictionError: no fold is trained.
        """
        return self.out_of_fold(device=device).score

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
            A torch Dataset of (image, target): image float32 [C, H, W], normalised; target int64 [] (`single_label`),
            float32 [K], or of a dense task int64 [H, W] or float32 [K, H, W]; NaN without targets. What is augmented
            changes with the dataset's `epoch`.

        Raises:
            ConfigError: there is no such stage or role.
            FoldError: there is no such fold.
        """
        return shown_images.dataset(self, fold, stage, role or ("train" if training else "valid"))

    def show_batch(self, fold: int = 0, stage: str | None = None, n: int = 16) -> Any:
        """Return a picture of the first images a fold trains on, augmented as in its first epoch, with their masks.

        Mixup and cutmix come later and are not shown; colours are those of the files, before normalisation.

        Args:
            fold: its number.
            stage: a stage of the recipe; the last one by default.
            n: how many images.

        Returns:
            A matplotlib Figure; `%matplotlib inline` lets a notebook show it.
        """
        return shown_images.show_batch(self, fold, stage, n)

    def members(self, fold: int) -> list[str]:
        """Return the snapshots of a fold that are ensemble members, such as `cycles-2`, in the order of training."""
        return list(self._snapshots(fold))

    def model(self, fold: int, member: str | None = None, *, device: str = "auto") -> torch.nn.Module:
        """Return the network of a snapshot, in eval mode: [B, C, H, W] normalised images to logits [B, K, ...].

        Args:
            fold: its number.
            member: one of `members(fold)`; the last one by default.
            device: where to.

        Raises:
            PredictionError: there is no such snapshot.
        """
        return members.load_model(self.snapshot(fold, member), device=choose_device(device))

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
        _ = self.trained_as  # says so where it is not trained
        handed = [given(item, place, self.config.input.channels) for place, item in enumerate(items)]
        columns = list(self.table.target_names)
        if not handed:
            return pd.DataFrame(columns=columns, dtype=np.float32)
        for fold in folds or ():
            self._snapshots(fold)
        predictions = predict_images(self, handed, folds=folds, device=device)
        values = predictions.decided if decided and predictions.decided is not None else predictions.values
        names = [place if isinstance(item, np.ndarray) else item[0].name for place, item in enumerate(handed)]
        return pd.DataFrame(values, index=pd.Index(names), columns=columns)

    def views(
        self, fold: int, member: str | None = None, *, role: Literal["valid", "test"] = "valid", device: str = "auto"
    ) -> ViewStack:
        """Predict a fold's own rows, or the test set, with one snapshot in every view of `tta:` apart (F-24).

        This is what fast.ai's `TTA` returns: the plain view and the n others, not averaged. The rows are predicted
        anew, and nothing is stored. `stack.mean("arithmetic")` and `stack.mean("geometric")` are the two means of
        fast.ai, before and after 2018; `ensemble.mean` names the one that the run's predictions are.

        Args:
            fold: its number.
            member: one of `members(fold)`; the last one by default.
            role: whose rows: those the fold is judged on, or the test set's.
            device: where the model runs.

        Returns:
            A stack with `values` [1 + n, N, K] (probabilities, or target units), `views`, `weights`, `ids`, `names`; of
            maps `stack[row]` is [1 + n, K, H, W].

        Raises:
            ConfigError: there is no such role.
            PredictionError: there is no such snapshot.
        """
        if role not in ("valid", "test"):
            raise ConfigError(f"there is no role '{role}'", "valid or test", nearest(role, ("valid", "test")))
        table = self.test if role == "test" else self.table
        rows = np.arange(len(table)) if role == "test" else np.flatnonzero(self.folds.valid(fold))
        return view_stack(self, self.snapshot(fold, member), table, rows, device=device)

    def snapshot(self, fold: int, member: str | None = None) -> Checkpoint:
        """Return a snapshot of a fold, the last one by default.

        Raises:
            PredictionError: there is no such snapshot.
        """
        snapshots = self._snapshots(fold)
        name = member or next(reversed(snapshots))
        if name not in snapshots:
            known = ", ".join(snapshots)
            raise PredictionError(f"fold {fold} has no snapshot '{name}'", f"one of {known}", nearest(name, snapshots))
        return snapshots[name]

    def _snapshots(self, fold: int) -> dict[str, Checkpoint]:
        _ = self.trained_as  # says so where it was opened untrained
        self.folds.valid(fold)  # says so when there is no such fold
        snapshots = {checkpoint.member: checkpoint for checkpoint in self.checkpoints(fold)}
        if not snapshots:
            raise PredictionError(
                f"fold {fold} of '{self.name}' has no snapshot", "a trained fold", f"`kbench train --fold {fold}`"
            )
        return snapshots
