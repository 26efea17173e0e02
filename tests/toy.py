"""Small real things that tests train and predict with: a tiny network, a stage, a fold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn_images import ArrayImages, drawn, write_images
from torch import nn

from kbench import registry
from kbench.config.section import Component
from kbench.config.stage import Stage
from kbench.data.dataset import Show
from kbench.data.images.normalise import Scale
from kbench.data.table.table import Table
from kbench.inference.activations import Activations, Source, activations
from kbench.training.fold_context import FoldContext, Log, Plan
from kbench.training.ranks import ALONE
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

CPU = torch.device("cpu")
IDENTITY = {"training": "t" * 16, "contract": "c" * 16, "folds": "f" * 16}


def table(
    rows: int, *, task: str = "single_label", targets: np.ndarray | None = None, names=("left", "right")
) -> Table:
    """A table whose classes are row modulo 2 unless targets are given."""
    return Table(
        ids=np.array([f"r{row:07d}" for row in range(rows)]),
        root=Path(),
        images=tuple((f"{row:04d}.png",) for row in range(rows)),
        task=task,
        target_names=tuple(names),
        targets=np.arange(rows, dtype=np.int64) % 2 if targets is None else targets,
    )


class TinyNet(nn.Module):
    """Two layer groups: a convolution with batch norm, and a linear head with dropout."""

    def __init__(self, n_outputs: int = 2, *, channels: int = 3, norm: bool = True, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 4, n_outputs)
        self.layer_prefixes = [["conv.", "norm."], ["fc."]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.adaptive_avg_pool2d(self.norm(self.conv(images)).relu(), 2)
        logits: torch.Tensor = self.fc(self.drop(features.flatten(1)))
        return logits


class SplitNet(nn.Module):
    """A convolution with batch norm as body, and a head of its own: batch norm, dropout, linear."""

    def __init__(self, n_outputs: int = 2, *, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, n_outputs))
        self.layer_prefixes = [["conv.", "norm."], ["head."]]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.norm(self.conv(images)).relu(), 2).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def with_activations(made: FoldContext, folder: Path, *, rows: int, seen: list[Any] | None = None) -> FoldContext:
    """The same fold with activations of its images, which are written to files, since a key holds their content."""
    paths = write_images(folder / "pictures", drawn(rows))
    source = Source(
        ids=made.table.ids, rows=paths, images=made.images, reader="toy", folder=folder / "cache", device=CPU
    )

    def known(model: nn.Module, how: Any) -> Activations:
        found = activations(source, model, how)
        if seen is not None:
            seen.append(found)
        return found

    return replace(made, activations=known)


PARTS = {"schedule": ("constant", {"epochs": 2}), "optimizer": ("sgd", {}), "loss": ("cross_entropy", {}),
         "sampler": ("shuffle", {}), "augment": ("none", {}), "crop": ("random", {}), "mix": None}  # fmt: skip
PLANNED = ("index", "step", "monitor", "stop_after", "rates")  # what is built or found


def stage(name: str = "only", *, size: tuple[int, int] = (8, 8), **changes: Any) -> StagePlan:
    """A stage of two epochs with settings of its own; parts are named as `schedule=("constant", {"epochs": 3})`."""
    planned = {key: changes.pop(key) for key in PLANNED if key in changes}
    named = {key: changes.pop(key, default) for key, default in PARTS.items()}
    components = {key: Component(name=part[0], **part[1]) for key, part in named.items() if part}
    keep = sorted(changes.pop("keep", {"last"}))
    plain = Stage(lr=0.05, batch_size=8, precision="fp32", channels_last=True, keep=keep, **components)
    settings = plain.model_copy(update=changes)  # any value: a rate of 0 keeps a stage still
    plan = StagePlan(
        name=name, index=0, stage=settings, schedule=partial(settings.build, "schedule"),
        optimizer=partial(settings.build, "optimizer"),
        show=Show(size, settings.build("crop"), settings.build("augment")),
        valid_show=Show(size, registry.build("crop", "centre", {})),
        loss=lambda counts, rows, units=None: settings.build("loss", _counts=counts, _rows=rows, _units=units),
        mix=settings.build("mix") if settings.mix else None, sampler=partial(settings.build, "sampler"),
        step=settings.build("step"), monitor=None,
    )  # fmt: skip
    return replace(plan, **planned)


def context(folder: Path, *, rows: int = 36, lines: int = 0, **changes: Any) -> FoldContext:
    """A fold of drawn images: the last quarter of the rows is held out."""
    images = changes.pop("arrays", None)
    images = drawn(rows) if images is None else images
    held_out = np.arange(rows - rows // 4, rows)
    paths, ranks = FoldPaths(folder), changes.get("ranks", ALONE)
    known = table(rows)
    made = FoldContext(
        fold=0, number=0, seed=0, table=known, train_rows=np.setdiff1d(np.arange(rows), held_out), valid_rows=held_out,
        images=lambda resize: ArrayImages(images, resize),
        scale=lambda _, __: Scale(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        device=CPU, paths=paths, identity=IDENTITY,
        plan=Plan(paths, training=IDENTITY["training"], ranks=ranks),
        log=Log(paths, lines=lines, ranks=ranks), plan_of=lambda fold: Plan(paths, training=IDENTITY["training"]),
    )  # fmt: skip
    return replace(made, **changes)


def build() -> TinyNet:
    """The tiny network with weights from torch's seed."""
    return TinyNet()
