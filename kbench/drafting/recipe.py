"""The first experiment of a draft: a network and a recipe by the task, the size of images and the number of rows.

From scratch for thumbnails, from ImageNet weights for photographs. Few rows make few updates of an epoch, and a range
test of them sees too little: they get a plain rate and more epochs.
"""

from __future__ import annotations

import math

from kbench.drafting.files_of_rows import SeveralFiles
from kbench.drafting.known import Facts
from kbench.tasks import DENSE

_TODO = "TODO"
_FEW = 200  # rows; a range test of fewer sees too little to find a rate
_THUMBNAIL = 64  # pixels of the shorter side
_CROP = 224
_PLENTY = 10  # most times the epochs of a recipe for many rows
_HELD = 0.8  # share of the rows that a fold trains on


def experiment(facts: Facts) -> list[str]:
    """Return the lines of an experiment."""
    height, width, channels = facts.size or (_CROP, _CROP, 3)
    shorter = min(height, width)
    dense, small = facts.task in DENSE, shorter <= _THUMBNAIL
    side = next((step for step in (32, 64, 128, 160) if shorter <= step), _CROP)
    side = min(shorter, _CROP) if dense else side
    lines = [f"input: {{size: {side}, channels: {channels}}}"]
    if not facts.size:
        lines[-1] += f"  # {_TODO} no image was found to look at"
    if facts.several is not None:
        lines = _several(facts.several, side)
    if dense:
        lines[-1] += "  # whole images" if max(height, width) == side else f"  # crops of images of {height} x {width}"
    lines.append(f"model: {_model(dense=dense, small=small)}")
    few = facts.rows is not None and facts.rows < _FEW
    if few:
        lines.append(
            f"# {facts.rows} rows are too few to find a rate on, so it is a plain one, and there are more epochs; "
            "`lr: find` looks for it"
        )
    batch = _batch(facts.rows, most=8 if dense and not small else 64 if small else 32)
    lines += _stages(facts, batch, dense=dense, small=small, few=few)
    return [*lines, "ensemble: {decision: threshold}"] if facts.format == "tags" else lines


def _several(files: SeveralFiles, side: int) -> list[str]:
    """Return the lines of an image of several files."""
    patterns = ", ".join(f'{name}: "{pattern}"' for name, pattern in files.files.items())
    dates = ", ".join(f'"{date}"' for date in files.dates)
    bands = ", ".join(f"{name}: {{count: {count}}}" for name, count in files.bands.items())
    return [
        "input:",
        f"  size: {side}",
        "  reader: raster",
        f"  files: {{{patterns}}}",
        *([f"  dates: [{dates}]"] if dates else []),
        "  missing: mask  # a file that is not there is unknown",
        f"  bands: {{{bands}}}",
    ]


def _model(*, dense: bool, small: bool) -> str:
    if dense:
        backbone = "resnet18" if small else "resnet34, pretrained: true"
        return f"{{name: smp, backbone: {backbone}, options: {{decoder: unet}}}}"
    return "{backbone: resnet10t}" if small else "{backbone: resnet34, pretrained: true}"


def _stages(facts: Facts, batch: int, *, dense: bool, small: bool, few: bool) -> list[str]:
    """Return what trains: rate, epochs and augmentation."""
    augment = "basic" if small or facts.task == "dense_regression" else "side_on"
    crop = ", crop: native" if dense else ""
    train = f"train: {{optimizer: adamw, batch_size: {batch}, weight_decay: 0.01, augment: {augment}{crop}}}"
    rate = "find" if not few else "1e-3" if small or dense else "5e-4"
    if small:
        length = _length(facts, batch, least=2, updates=22)
        cycles = f"{{name: sgdr, cycles: 3, cycle_len: {length}, cycle_mult: 2}}"
        return [train, "stages:", f"  all: {{lr: {rate}, schedule: {cycles}, keep: [cycles]}}", "tta: none"]
    length = _length(facts, batch, least=2 if dense else 1, updates=40 if dense else 20)
    cycles = f"{{name: sgdr, cycles: 2{'' if length == 1 else f', cycle_len: {length}'}, cycle_mult: 2}}"
    head = [] if dense else [
        f"  head: {{groups: head, lr: {'2e-3' if few else 'find'}, schedule: {{name: one_cycle, epochs: {length}}}}}"
    ]  # fmt: skip
    return [
        train, "stages:", *head,
        f"  all: {{lr: {rate}, lr_decay: 3, schedule: {cycles}, keep: [cycles]}}",
        "tta: flip",
    ]  # fmt: skip


def _length(facts: Facts, batch: int, *, least: int, updates: int) -> int:
    """Return the epochs of the first cycle: at least so many updates, where rows are few."""
    if facts.rows is None or facts.rows >= _FEW:
        return least
    return min(max(least, math.ceil(updates / max(1, facts.rows * _HELD // batch))), _PLENTY * least)


def _batch(rows: int | None, *, most: int) -> int:
    """Return a batch size, a power of two from 8 on, that makes some dozen updates of an epoch."""
    return next((size for size in (64, 32, 16) if size <= most and (rows is None or rows >= 20 * size)), 8)
