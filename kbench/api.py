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
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from kbench import files, registry
from kbench.commands import parts
from kbench.commands.predict import checkpoints, member_of
from kbench.commands.runs import open_run_setup, run_paths
from kbench.commands.samples import epoch_draws, label_text, resize_of, shown_images, stage_named, training_rows
from kbench.commands.score import out_of_fold, require_folds, trained_folds
from kbench.commands.setup import Choice, Setup, open_setup
from kbench.config import Competition
from kbench.data import seeds
from kbench.data.cache import Images, Resize
from kbench.data.dataset import Normalise, Show
from kbench.data.folds import Folds
from kbench.data.images import Reader
from kbench.data.tables import Table
from kbench.ensemble.average import ensemble_run
from kbench.errors import DataError, PredictionError, nearest
from kbench.inference.predict import Job, Member, predict
from kbench.inference.predictions import Predictions, load
from kbench.models.checkpoint import Checkpoint
from kbench.models.precision import choose_device
from kbench.report.sheets import Group, Tile, sheet
from kbench.training.context import Plan
from kbench.workspace import RunPaths

Item = str | Path | Sequence[str | Path] | np.ndarray
"""An image to predict: a path, several paths whose channels are stacked, or an array [H, W] or [H, W, C]."""


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
        return [] if self.identity is None else trained_folds(self.setup, self.paths, self.identity)

    def __repr__(self) -> str:
        trained = ", ".join(map(str, self.trained)) or "none"
        return (
            f"<kbench run '{self.name}' of '{self.config.name}': {len(self.table):,} rows, "
            f"{len(self.table.target_names)} targets, {self.folds.n} folds, trained: {trained}>"
        )

    def oof(self, *, device: str = "auto") -> Predictions:
        """Return the out-of-fold predictions of the trained folds; predicts what is not predicted yet.

        Returns:
            Predictions with sorted `ids` [n], `names` (K) and `values` [n, K]: probabilities, or target units.

        Raises:
            PredictionError: no fold is trained.
        """
        return out_of_fold(self.setup, self.paths, self._trained(), device=device).predictions

    def score(self, *, device: str = "auto") -> dict[str, Any]:
        """Return what `kbench score` reports: `metric`, `score`, `low`, `high`, `folds`, `spread`, `rows` and more.

        Raises:
            PredictionError: no fold is trained.
        """
        return out_of_fold(self.setup, self.paths, self._trained(), device=device).score

    def dataset(self, fold: int, stage: str | None = None, *, training: bool = False) -> TensorDataset:
        """Return the rows of a fold as the network sees them.

        Args:
            fold: its number.
            stage: a stage of the recipe; the last one by default.
            training: the rows the fold trains on, augmented, instead of those it is judged on.

        Returns:
            A torch Dataset of (image, target): image float32 [C, H, W], normalised; target int64 [] (`single_label`)
            or float32 [K]. With `training` a sample's augmentation changes with the dataset's `epoch`.

        Raises:
            ConfigError: there is no such stage.
            FoldError: there is no such fold.
        """
        plan = stage_named(self.config, stage)
        rows = training_rows(self.setup, plan, fold) if training else np.flatnonzero(self.folds.valid(fold))
        opened = parts.opened_images(self.config, self.table, self.setup.workspace.cache(), what="training")
        show = plan.show if training else plan.valid_show
        images = opened(resize_of(show))
        key = (seeds.AUGMENT, self.config.seed, fold, plan.index) if training else ()
        scale = self._scale(fold, lambda: opened(resize_of(plan.show)))
        return TensorDataset(images, show, scale, self.table, rows, key)

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
        found = {checkpoint.member: checkpoint for checkpoint in self._checkpoints(fold)}
        name = member or next(reversed(found))
        if name not in found:
            known = ", ".join(found)
            raise PredictionError(f"fold {fold} has no snapshot '{name}'", f"one of {known}", nearest(name, found))
        return self._member(found[name], Path(), choose_device(device)).load()

    def predict(
        self, items: Sequence[Item] | np.ndarray, *, folds: Sequence[int] | None = None, device: str = "auto"
    ) -> pd.DataFrame:
        """Predict images with the run's ensemble: the mean over folds, snapshots and views, as for a submission.

        Args:
            items: paths or arrays, read and shown as in training; an array [N, H, W, C] is N images.
            folds: which folds' models; all trained ones by default.
            device: where the models run.

        Returns:
            A frame with one row per image, named after its file or numbered, and one column per target.

        Raises:
            DataError: an image cannot be read, or has another number of channels.
            PredictionError: no fold is trained, or one of `folds` is not.
        """
        identity, config = self._trained(), self.config
        chosen = require_folds(self.setup, self.paths, identity) if folds is None else list(folds)
        reader = registry.build(
            "reader", config.input.reader.name, config.input.reader.params, _channels=config.input.channels
        )
        given = [_given(item, place, config.input.channels) for place, item in enumerate(items)]
        if not given:
            return pd.DataFrame(columns=list(self.table.target_names), dtype=np.float32)
        job = Job(
            ids=np.array([f"{place:09d}" for place in range(len(given))]), rows=np.arange(len(given)),
            images=lambda resize: _Given(given, reader, resize), names=self.table.target_names, task=config.task,
            views=parts.build_views(config), mean=config.ensemble.mean, device=choose_device(device), batch_size=64,
            seed=config.seed,
        )  # fmt: skip
        with files.scratch_folder() as folder:
            by_fold: dict[int, list[Member]] = {
                fold: [
                    self._member(checkpoint, folder / f"{fold}-{checkpoint.member}.json", job.device)
                    for checkpoint in self._checkpoints(fold)
                ]
                for fold in chosen
            }
            for _ in predict(job, [member for members in by_fold.values() for member in members]):
                pass
            made = {fold: [load(member.out) for member in members] for fold, members in by_fold.items()}
            values = np.array(ensemble_run(made, mean=config.ensemble.mean).values)
        names = [place if isinstance(item, np.ndarray) else item[0].name for place, item in enumerate(given)]
        return pd.DataFrame(values, index=pd.Index(names), columns=list(self.table.target_names))

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

    def _member(self, checkpoint: Checkpoint, out: Path, device: torch.device) -> Member:
        stages = {stage.name: stage for stage in parts.build_stages(self.config)}
        source = {key: checkpoint.info[key] for key in ("fold", "stage", "tag")}
        return member_of(self.setup, checkpoint, out, source, stages, device)


class TensorDataset(Dataset):
    """Rows of a table as normalised tensors with their targets; made by `Run.dataset`.

    Attributes:
        ids: [n] text.
        rows: [n] rows of the run's table.
        epoch: augmentations are drawn for it; set it before each epoch to see new ones.
    """

    def __init__(
        self, images: Images, show: Show, scale: dict[str, Any], table: Table, rows: np.ndarray, key: tuple[int, ...]
    ) -> None:
        self.rows, self.ids, self.epoch = rows, table.ids[rows], 0
        self._images, self._show, self._key = images, show, key
        self._targets = None if table.targets is None else table.targets[rows]
        self._normalise = Normalise(**scale)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image [C, H, W] float32 and target, int64 [] or float32 [K]; NaN [] without targets."""
        index = range(len(self))[index]  # negative numbers count from the end, others than there are end a loop
        rng = seeds.generator(*self._key, self.epoch, index) if self._key else seeds.generator(0)
        shown, _ = self._show(self._images[int(self.rows[index])], rng)
        image = self._normalise(torch.from_numpy(np.array(shown))[None])[0].contiguous()
        target = np.float32("nan") if self._targets is None else self._targets[index]
        return image, torch.as_tensor(target)


class _Given:
    """Images handed over by the user, brought to a size when they are asked for."""

    def __init__(self, items: Sequence[Any], reader: Reader, resize: Resize) -> None:
        self._items, self._reader, self._resize = items, reader, resize

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> np.ndarray:
        item = self._items[row]
        return self._resize(item if isinstance(item, np.ndarray) else self._reader(item))


def _given(item: Item, place: int, channels: int) -> np.ndarray | tuple[Path, ...]:
    """Return an array [H, W, C] or a tuple of paths."""
    if isinstance(item, str | Path):
        return (Path(item),)
    if not isinstance(item, np.ndarray):
        return tuple(Path(path) for path in item)
    image = item[:, :, None] if item.ndim == 2 else item
    if image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise DataError(
            f"image {place} has the shape {item.shape}",
            f"[height, width, {channels}]" + (" or [height, width]" if channels == 1 else ""),
            "hand over images as the competition's files hold them, channels last",
        )
    return np.ascontiguousarray(image)
