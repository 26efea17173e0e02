"""What a fold is made of: its rows, images, device, files, and what it has found so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from kbench import files, records
from kbench.data.dataset import Show
from kbench.data.images.cache import Images, Resize
from kbench.data.images.normalise import Scale
from kbench.data.table.table import Table
from kbench.data.whole_images import class_pixels, value_statistics
from kbench.errors import ConfigError
from kbench.inference.activations import Activations, Seen
from kbench.inference.windows import Windows
from kbench.models.outputs import Units
from kbench.training.deadline import NONE, Deadline
from kbench.training.events import Epoch
from kbench.training.lr_finder import LRCurve
from kbench.training.ranks import ALONE, Ranks
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

KEEP = Resize("keep", 0, 0)
_FEW = 8  # images or masks a smoke run measures
TIMES = ("seconds", "images_per_s", "waiting", "verdict", "at")  # fields of the log that differ between equal runs


def resize_before(show: Show) -> Resize:
    """Return how images are resized before a way of showing takes its windows."""
    return Resize(show.crop.resize, *(show.size if show.crop.resize != "keep" else (0, 0)))


_PLANNED: dict[str, type | tuple[type, ...]] = {
    "lr": (int, float), "threads": int, "scale": dict, "units": dict, "precision": dict, "end": dict, "full": dict,
    "pixels": list,
}  # fmt: skip
"""What a plan's values are, by what their names begin with."""


class Plan:
    """Values found while training, in `plan.json`; once found, a value stays.

    Args:
        paths: files of the fold.
        training: training hash; values found under another one do not count.
        ranks: all of them know what rank 0 reads, and it alone writes.
    """

    def __init__(self, paths: FoldPaths, *, training: str, ranks: Ranks = ALONE) -> None:
        self._path, self._ranks = paths.plan, ranks
        known: dict[str, Any] = {}
        if ranks.first and self._path.is_file():
            todo = f"delete '{self._path}' and type the same again: the fold finds its plan anew"
            known = records.read_record(self._path, keys={"training": str}, todo=todo)
            kinds = {key: _PLANNED[key.partition("/")[0]] for key in known if key.partition("/")[0] in _PLANNED}
            known = records.read_record(self._path, keys=kinds, todo=todo)
        self._values: dict[str, Any] = known if known.get("training") == training else {"training": training}
        self._values = ranks.decided(self._values)

    def get(self, key: str) -> Any:
        """Return a value, or None."""
        return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._values[key] = value
        if self._ranks.first:
            files.write_json(self._path, self._values)

    def values(self) -> dict[str, Any]:
        """Return all values."""
        return dict(self._values)


class Log:
    """The fold's `log.jsonl`: one JSON object per line; equal runs differ only in the fields of `TIMES`.

    Args:
        paths: files of the fold.
        lines: how many lines to keep of an earlier, killed run.
        ranks: rank 0 alone writes.
    """

    def __init__(self, paths: FoldPaths, *, lines: int, ranks: Ranks = ALONE) -> None:
        self._path, self._writes = paths.log, ranks.first
        if self._writes:
            files.make_folder(paths.root)
            files.keep_lines(self._path, lines)
        self.lines = lines

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self._writes:
            files.append_line(self._path, json.dumps(record, ensure_ascii=False))
        self.lines += 1

    def epoch(self, epoch: Epoch) -> None:
        """Append an epoch."""
        self.add({"event": "epoch", **asdict(epoch)})


@dataclass
class FoldContext:
    """Everything a stage needs to know about its fold.

    Attributes:
        fold: its number, or `full`.
        number: the integer its random numbers derive from.
        seed: of the run.
        table: all training rows.
        train_rows: rows a stage with `subset: fold` trains on.
        valid_rows: rows it is judged on; empty for `full`.
        images: resizing -> images of the table.
        scale: (images, rows) -> normalisation, asked once.
        device: where the model is.
        paths: files of the fold.
        identity: `training`, `contract` and `folds` hashes, written into every checkpoint.
        plan: what has been found.
        log: the log.
        plan_of: another fold's plan.
        workers: loader processes.
        valid_batch_size: images per batch when judging.
        checkpoint_s: seconds between resume points inside an epoch.
        limit: batches per stage of a smoke run, or None.
        masks: resizing -> masks of the table, of dense tasks.
        windows: what the network sees of a whole image at once, of dense tasks.
        activations: (model, how its body sees images) -> its features of all rows of the table.
        standardise: whether a regression's targets are learned standardised.
        deadline: when to stop.
        tell: called as `tell(what, done, total)` after each update of a range test or stage.
        ranks: the processes that train the fold together, of which this is one.
    """

    fold: int | str
    number: int
    seed: int
    table: Table
    train_rows: np.ndarray
    valid_rows: np.ndarray
    images: Callable[[Resize], Images]
    scale: Callable[[Images, np.ndarray], Scale]
    device: torch.device
    paths: FoldPaths
    identity: dict[str, str]
    plan: Plan
    log: Log
    plan_of: Callable[[int], Plan]
    workers: int = 0
    valid_batch_size: int | None = None
    checkpoint_s: float = 300.0
    limit: int | None = None
    masks: Callable[[Resize], Images] | None = None
    windows: Windows | None = None
    activations: Callable[[nn.Module, Seen], Activations] | None = None
    standardise: bool = False
    deadline: Deadline = NONE
    tell: Callable[[str, int, int], None] = lambda what, done, total: None
    ranks: Ranks = ALONE
    _opened: dict[Resize, Images] = field(default_factory=dict)

    def images_for(self, show: Show) -> Images:
        """Return the images a way of showing takes its windows from."""
        resize = resize_before(show)
        if resize not in self._opened:
            self._opened[resize] = self.images(resize)
        return self._opened[resize]

    def rows_of(self, plan: StagePlan) -> np.ndarray:
        """Return the rows a stage trains on."""
        return np.arange(len(self.table)) if plan.stage.subset == "full" else self.train_rows

    def scale_for(self, images: Images | None) -> dict[str, Any]:
        """Return `scale`, `mean` and `std`; found at the first stage and kept for the fold."""
        scale = self.plan.get("scale")
        if scale is None:
            self.plan.set("scale", self.ranks.once(lambda: self._scale(images)))
        return dict(self.plan.get("scale"))

    def _scale(self, images: Images | None) -> dict[str, Any]:
        assert images is not None, "the first stage brings its images"
        return self.scale(images, self._measured(self.train_rows)).known()

    def units(self) -> Units | None:
        """Return the units of a regression's targets, by the fold's training rows; found once and kept for the fold.

        None where targets are learned as they are. A target that does not vary keeps its scale, one that is never known
        its mean too.
        """
        if not self.standardise or "regression" not in self.table.task:
            return None
        if self.plan.get("units") is None:
            mean, std = self.ranks.once(self._statistics)
            self.plan.set("units", {
                "mean": np.where(np.isfinite(mean), mean, 0).tolist(), "std": np.where(std > 0, std, 1).tolist(),
            })  # fmt: skip
        return Units.of_checkpoint({"units": self.plan.get("units")})

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return [K] means and standard deviations of the known targets of the fold's training rows."""
        if self.masks is not None:
            return value_statistics(self.masks(KEEP), self._measured(self.train_rows))
        assert self.table.targets is not None, "training rows have targets"
        return value_statistics([self.table.targets[self.train_rows]], np.zeros(1, dtype=int))

    def _measured(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows whose pixels are looked at: all of them, or those a smoke run has the time for."""
        return rows[:_FEW] if self.limit else rows

    def masks_for(self, show: Show) -> Images | None:
        """Return the masks that go with `images_for`, or None where targets are no images."""
        return None if self.masks is None else self.masks(resize_before(show))

    def balance(self, rows: np.ndarray) -> tuple[np.ndarray | None, int]:
        """Return [K] positives per target among some rows (pixels of dense tasks) and how many there are in all.

        Without counts (regression) the first is None. A smoke run counts the pixels of a few masks only.
        """
        if self.masks is None:
            return self.counts(rows), len(rows)
        if "regression" in self.table.task:
            return None, len(rows)
        rows = self._measured(rows)
        key = f"pixels/{len(rows)}"
        if self.plan.get(key) is None:
            masks, names = self.masks(KEEP), self.table.target_names
            pixels, total = self.ranks.once(lambda: class_pixels(masks, rows, len(names), self.table.task))
            self.plan.set(key, [pixels.tolist(), total])
        pixels, total = self.plan.get(key)
        return np.asarray(pixels), total

    def counts(self, rows: np.ndarray) -> np.ndarray | None:
        """Return [K] positives per target among some rows, or None for regression."""
        targets = self.table.targets
        if targets is None or "regression" in self.table.task:
            return None
        if targets.ndim == 1:
            return np.bincount(targets[rows], minlength=len(self.table.target_names))
        return np.asarray(np.nansum(targets[rows], axis=0))

    def rate_found_elsewhere(self, plan: StagePlan) -> tuple[float, bool] | None:
        """Return the rate an earlier stage or another fold found for a stage, and whether on a level stretch of loss.

        None where the stage looks for its own.

        Raises:
            ConfigError: that fold has not found it yet.
        """
        stage = plan.stage
        if stage.lr_from_stage is not None:
            return _rate(self.plan, stage.lr_from_stage)
        fold = stage.lr_from_fold
        if fold is None or fold == self.fold:
            return None
        known = _rate(self.plan_of(fold), plan.name)
        if known is None:
            raise ConfigError(
                f"stages.{plan.name}.lr_from_fold is {fold}, and fold {fold} has not found a rate yet",
                f"a fold {fold} that is trained",
                f"`kbench train --fold {fold}` first, or remove `lr_from_fold`",
            )
        return known

    def keep_curve(self, stage: str, curve: LRCurve) -> None:
        """Write the curve of a learning-rate range test."""
        if not self.ranks.first:
            return
        with files.replacing(self.paths.lr_find(stage)) as temporary:
            pd.DataFrame(curve.rows()).to_csv(temporary, index=False, lineterminator="\n")


def _rate(plan: Plan, stage: str) -> tuple[float, bool] | None:
    rate = plan.get(f"lr/{stage}")
    return None if rate is None else (float(rate), bool(plan.get(f"level/{stage}")))
