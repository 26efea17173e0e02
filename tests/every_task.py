"""One small competition of every task, all about the same pictures: a bright box on a dark ground over a grey foot.

`truth_of` says what is true of a picture, `write` makes a workspace of all competitions with a solution for each. A
seventh one has several numbers per picture, some of them missing.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from drawn_images import write_png

TRAIN, TEST, SIZE = 14, 5, (12, 16)
TASKS = {
    "classes": "single_label", "tags": "multi_label", "number": "regression", "numbers": "regression",
    "masks": "segmentation", "layers": "multi_label_segmentation", "heights": "dense_regression",
}  # fmt: skip
MAPS = ("masks", "layers", "heights")
NAMES = {
    "classes": ("left", "right"), "tags": ("big", "left", "right"), "number": ("level",), "numbers": ("level", "width"),
    "masks": ("ground", "box", "foot"), "layers": ("box", "foot"), "heights": ("height", "depth"),
}  # fmt: skip
PARTS = {
    "classes": "metric: log_loss\nsubmission: {format: probabilities, sample: sample-classes.csv}",
    "tags": "metric: f2_samples\nsubmission: {format: tags, sample: sample-tags.csv}",
    "number": "metric: rmse\nsubmission: {format: value, sample: sample-number.csv}",
    "numbers": "metric: rmse\nsubmission: {format: value, sample: sample-numbers.csv}",
    "masks": "metric: mean_iou\nsubmission: {format: mask_zip, sample: sample-maps.csv}",
    "layers": "metric: mean_dice\n"
    "submission: {format: {name: mask_zip, file: '{class}/{id}.png'}, sample: sample-maps.csv}",
    "heights": "metric: rmse_per_image\n"
    "submission: {format: {name: number_zip, file: '{id}_{target}.tif'}, sample: sample-maps.csv}",
}
TARGETS = {
    "classes": "target: side", "tags": "target: tags", "number": "target: level", "numbers": "target: [level, width]",
    "masks": "classes: [ground, box, foot]\n  masks: {name: index, folder: masks, ignore: [255]}",
    "layers": "classes: [box, foot]\n  masks: {name: per_class, folder: 'layers/{class}'}",
    "heights": "classes: [height, depth]\n  masks: {name: values, folder: heights, suffix: .npy}",
}  # fmt: skip
YAML = """
title: Boxes, {name}
task: {task}
source: {{name: local, path: source, solution: answers/{name}.{ending}}}
data:
  train: {{csv: train.csv, images: train, suffix: .png}}
  test: {{images: test, suffix: .png}}
  metadata: [site]
  {target}
folds: {{strategy: kfold, n: 2, seed: 1}}
{parts}
plugins: [small.py]
input: {{size: [12, 16], cache: off}}
model: {{name: {model}}}
train: {{batch_size: 4, crop: {crop}, augment: {augment}, precision: fp32, lr: 0.01}}
stages:
  all: {{schedule: {{name: sgdr, cycles: 2, cycle_len: 2}}, keep: [cycles]}}
tta: flip
"""
MODELS = """
import torch
from torch import nn

from kbench.registry import register


class Rows(nn.Module):
    def __init__(self, n_outputs, channels):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(16, n_outputs)
        self.layer_prefixes = [["conv."], ["fc."]]

    def forward(self, images):
        return self.fc(nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))


class Maps(nn.Module):
    def __init__(self, n_outputs, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, n_outputs, 3, padding=1)
        self.layer_prefixes = [["conv."], ["last."]]

    def forward(self, images):
        return self.last(self.conv(images).relu())


@register("model", "rows_of_boxes")
def rows(n_outputs, in_channels):
    return Rows(n_outputs, in_channels)


@register("model", "maps_of_boxes")
def maps(n_outputs, in_channels):
    return Maps(n_outputs, in_channels)
"""


def id_of(number: int) -> str:
    return f"{number:03d}"


def box_of(number: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a picture's box; every other one is left, and small."""
    rng = np.random.default_rng(number)
    high, wide = (3, 4) if number % 2 else (4, 6)
    left = int(rng.integers(0, 3)) if number % 2 else int(rng.integers(8, 10))
    return int(rng.integers(1, 5)), left, high, wide


def picture_of(number: int) -> np.ndarray:
    """Return [H, W, 3] uint8."""
    rng = np.random.default_rng(1000 + number)
    top, left, high, wide = box_of(number)
    image = rng.integers(0, 60, (*SIZE, 3))
    image[-2:] += 90
    image[top : top + high, left : left + wide] += 130 + number
    return image.astype(np.uint8)


def truth_of(name: str, number: int) -> np.ndarray:
    """Return what is true of a picture.

    [] class number; [K] 0 or 1; [K] numbers; [H, W] class numbers, 255 where ignored; [K, H, W] 0 or 1, or numbers,
    NaN where unknown.
    """
    top, left, high, wide = box_of(number)
    box = np.zeros(SIZE, dtype=bool)
    box[top : top + high, left : left + wide] = True
    if name == "classes":
        return np.array(left > 5, dtype=np.int64)
    if name == "tags":
        return np.array([wide > 4, left <= 5, left > 5], dtype=np.float32)
    if name in ("number", "numbers"):
        level = np.float32(round(float(picture_of(number).mean()) / 25, 3))
        width = np.float32("nan") if number % 5 == 2 else np.float32(wide)
        return np.array([level, width][: len(NAMES[name])], dtype=np.float32)
    foot = np.zeros(SIZE, dtype=bool)
    foot[-2:] = True
    if name == "masks":
        mask = np.where(box, 1, np.where(foot, 2, 0)).astype(np.uint8)
        mask[:, -1] = 255
        return mask
    if name == "layers":
        return np.stack([box, foot]).astype(np.uint8)
    return _heights(number, box)


def _heights(number: int, box: np.ndarray) -> np.ndarray:
    height = picture_of(number).mean(2) / np.float32(25)
    depth = np.tile(np.arange(SIZE[1], dtype=np.float32) / 4, (SIZE[0], 1)) + box
    numbers = np.stack([height, depth]).astype(np.float32)
    numbers[:, :3, :3] = np.nan
    if number % 6 == 4:
        numbers[1] = np.nan
    return numbers


def write(root: Path, names: Iterable[str] = tuple(TASKS)) -> Path:
    """Write the workspace: competitions, data and solutions; return it."""
    source = root / "source"
    for number in range(TRAIN + TEST):
        _write_picture(source, number)
    _write_rows(source / "train.csv", ["id", "side", "tags", "level", "width", "site"],
                [[id_of(number), *_cells(number), "ns"[number % 2]] for number in range(TRAIN)])  # fmt: skip
    tests = range(TRAIN, TRAIN + TEST)
    for name in names:
        own = root / "competitions" / name
        own.mkdir(parents=True)
        (own / "small.py").write_text(MODELS)
        _write_answers(root / "answers", source, name, tests)
        dense = name in MAPS
        (root / "competitions" / f"{name}.yaml").write_text(YAML.format(
            name=name, task=TASKS[name], ending="zip" if dense else "csv", target=TARGETS[name], parts=PARTS[name],
            model="maps_of_boxes" if dense else "rows_of_boxes", crop="native" if dense else "random",
            augment="strong" if name == "heights" else "side_on",
        ))  # fmt: skip
        (root / "data").mkdir(exist_ok=True)
        (root / "data" / name).symlink_to(source, target_is_directory=True)
    return root


def _write_rows(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([header, *rows])


def _write_picture(source: Path, number: int) -> None:
    name, train = id_of(number), number < TRAIN
    write_png(source / ("train" if train else "test") / f"{name}.png", picture_of(number))
    if not train:
        return
    write_png(source / "masks" / f"{name}.png", truth_of("masks", number)[:, :, None])
    for layer, label in zip(truth_of("layers", number), NAMES["layers"], strict=True):
        write_png(source / "layers" / label / f"{name}.png", layer[:, :, None] * 255)
    (source / "heights").mkdir(exist_ok=True)
    np.save(source / "heights" / f"{name}.npy", truth_of("heights", number).transpose(1, 2, 0))


def _cells(number: int) -> list[str]:
    """Return the cells of a row of the CSV: side, tags, level and width."""
    level, width = truth_of("numbers", number).tolist()
    tags = [label for label, has in zip(NAMES["tags"], truth_of("tags", number), strict=True) if has]
    side = NAMES["classes"][int(truth_of("classes", number))]
    return [side, " ".join(tags), f"{level:.3f}", "" if np.isnan(width) else str(int(width))]


def _write_answers(folder: Path, source: Path, name: str, tests: Iterable[int]) -> None:
    """Write the sample of a competition, in an order of its own, and the solution."""
    order = sorted(tests, key=lambda number: (number * 7) % 5)
    folder.mkdir(exist_ok=True)
    if name in MAPS:
        _write_rows(source / "sample-maps.csv", ["id", "what"], [[id_of(number), "x"] for number in order])
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as answers:
            for number in order:
                for part, content in files_of(name, number):
                    answers.writestr(part, content)
        return
    columns = {"classes": ["side"], "tags": ["tags"]}.get(name, list(NAMES[name]))
    asked = list(NAMES[name]) if name == "classes" else columns
    place = {"classes": slice(0, 1), "tags": slice(1, 2), "number": slice(2, 3), "numbers": slice(2, 4)}[name]
    half = [[id_of(number), *[0.5] * len(asked)] for number in order]
    _write_rows(source / f"sample-{name}.csv", ["id", *asked], half)
    _write_rows(folder / f"{name}.csv", ["id", *columns], [[id_of(number), *_cells(number)[place]] for number in order])


def files_of(name: str, number: int) -> list[tuple[str, bytes]]:
    """Return the files of a picture in a zip of maps, with the truth in them, as another program writes them."""
    truth, one = truth_of(name, number), id_of(number)
    if name == "masks":  # the first grey value that is no class means of no class
        return [(f"{one}.png", _encoded(".png", np.where(truth == 255, 3, truth).astype(np.uint8)))]
    if name == "layers":
        return [(f"{label}/{one}.png", _encoded(".png", layer * 255))
                for label, layer in zip(NAMES[name], truth, strict=True)]  # fmt: skip
    return [(f"{one}_{label}.tif", _encoded(".tif", layer)) for label, layer in zip(NAMES[name], truth, strict=True)]


def _encoded(ending: str, pixels: np.ndarray) -> bytes:
    done, content = cv2.imencode(ending, pixels)
    assert done
    return content.tobytes()


def sent(name: str, file: Path) -> np.ndarray:
    """Return what a submission's file says of the test pictures, in the order of their ids; read without kbench.

    [N, K] probabilities, 0 or 1 per tag, or numbers; [N, H, W] class numbers; [N, K, H, W] 0 or 1, or numbers.
    """
    ids = [id_of(number) for number in range(TRAIN, TRAIN + TEST)]
    if name not in MAPS:
        rows = {row["id"]: row for row in csv.DictReader(io.StringIO(file.read_text()))}
        assert sorted(rows) == ids
        if name == "tags":
            return np.array([[tag in rows[one]["tags"].split() for tag in NAMES[name]] for one in ids], dtype=float)
        return np.array([[float(rows[one][label]) for label in NAMES[name]] for one in ids])
    with zipfile.ZipFile(file) as archive:
        found = {part: cv2.imdecode(np.frombuffer(archive.read(part), np.uint8), cv2.IMREAD_UNCHANGED)
                 for part in archive.namelist()}  # fmt: skip
    if name == "masks":
        return np.stack([found.pop(f"{one}.png") for one in ids])
    place = "{label}/{one}.png" if name == "layers" else "{one}_{label}.tif"
    maps = [[found.pop(place.format(one=one, label=label)) for label in NAMES[name]] for one in ids]
    assert not found, "files of no picture"
    return np.array(maps) / 255 if name == "layers" else np.array(maps)


def score(name: str, said: np.ndarray, numbers: Iterable[int]) -> float:
    """Return the competition's metric of predictions of some pictures, in a few lines of numpy.

    Args:
        name: the competition.
        said: [N, ...] as `sent` has it; tags are above 0.2.
        numbers: N pictures.
    """
    truth = np.stack([truth_of(name, number) for number in numbers])
    if name == "classes":
        return float(-np.log(said[np.arange(len(said)), truth]).mean())
    if name == "tags":
        hits, chosen = ((said > 0.2) * truth).sum(1), (said > 0.2).sum(1)
        return float((5 * hits / (4 * truth.sum(1) + chosen)).mean())
    if name in ("number", "numbers"):
        return float(np.sqrt(np.nanmean((said - truth) ** 2, axis=0)).mean())
    if name == "masks":
        ious = [((said == k) & (truth == k)).sum() / (((said == k) | (truth == k)) & (truth != 255)).sum()
                for k in range(3)]  # fmt: skip
        return float(np.mean(ious))
    if name == "layers":
        both, each = (said * truth).sum((0, 2, 3)), (said + truth).sum((0, 2, 3))
        return float((2 * both / each).mean())
    known = ~np.isnan(truth)
    squares = np.where(known, (said.astype(np.float64) - np.nan_to_num(truth)) ** 2, 0).sum((2, 3))
    counts = known.sum((2, 3))
    roots = np.sqrt(squares / np.maximum(counts, 1))  # [N, K]
    return float((roots.sum(1) / (counts > 0).sum(1)).mean())
