"""Data sets that look like real ones: street frames with colour masks, and salt bodies with run-length texts.

Frames of a drive follow one another slowly, so that neighbours resemble each other as those of a video do; routes,
times of day and the 20 colours are the street contest's, and the numbers of frames of each cell keep their proportions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kbench.data.masks.run_lengths import CONVENTIONS, encode

Size = tuple[int, int]

SIGNATE = {
    "car": (0, 0, 255), "pedestrian": (255, 0, 0), "lane": (69, 47, 142), "bus": (193, 214, 0),
    "truck": (180, 0, 129), "svehicle": (255, 121, 166), "motorbike": (65, 166, 1), "bicycle": (208, 149, 1),
    "signal": (255, 255, 0), "signs": (255, 134, 0), "sky": (0, 152, 225), "building": (0, 203, 151),
    "natural": (85, 255, 50), "wall": (92, 136, 125), "ground": (136, 45, 66), "sidewalk": (0, 255, 255),
    "roadshoulder": (215, 0, 255), "obstacle": (180, 131, 135), "others": (81, 99, 0), "own": (86, 62, 67),
}  # fmt: skip
NAMES = tuple(SIGNATE)
CELLS = {
    ("Tokyo1", "morning"): 749, ("Tokyo1", "night"): 646, ("Tokyo1", "day"): 587, ("Saitama", "morning"): 216,
    ("Tokyo2", "day"): 45,
}  # fmt: skip
LIGHT = {"morning": 0.85, "day": 1.0, "night": 0.35}


def cells(rows: int) -> dict[tuple[str, str], int]:
    """Return about as many frames in the proportions of the contest; each cell has one at least."""
    total = sum(CELLS.values())
    return {cell: max(1, round(rows * count / total)) for cell, count in CELLS.items()}


def _painted(mask: np.ndarray, name: str, box: tuple[float, float, float, float]) -> None:
    """Paint a rectangle given in shares of the size: top, left, bottom, right."""
    height, width = mask.shape
    top, bottom = (int(np.clip(share, 0, 1) * height) for share in (box[0], box[2]))
    left, right = (int(np.clip(share, 0, 1) * width) for share in (box[1], box[3]))
    mask[top:bottom, left:right] = NAMES.index(name)


def scene(route: int, frame: int, size: Size) -> np.ndarray:
    """Return [H, W] uint8 class numbers of a frame; what moves, moves slowly with the frame."""
    rng = np.random.default_rng(route)  # the same street for all frames of a route
    height, width = size
    mask = np.full(size, NAMES.index("sky"), dtype=np.uint8)
    for place, (start, top) in enumerate(zip(rng.random(8) * 1.6, rng.random(8) * 0.3, strict=True)):
        left = start - frame * 0.004 * (1 + place % 3)
        name = ("building", "natural", "wall", "building")[place % 4]
        _painted(mask, name, (0.1 + top, left % 1.6 - 0.4, 0.55, left % 1.6))
    _painted(mask, "ground", (0.5, 0.0, 1.0, 1.0))
    road = np.array([[0.45, 0.5], [0.55, 0.5], [1.0, 1.0], [0.0, 1.0]]) * (width, height)
    cv2.fillConvexPoly(mask, road.astype(np.int32), NAMES.index("lane"))
    _painted(mask, "sidewalk", (0.8, 0.0, 1.0, 0.12))
    _painted(mask, "roadshoulder", (0.8, 0.9, 1.0, 1.0))
    kinds = ("car", "pedestrian", "truck", "bus", "bicycle", "motorbike", "svehicle", "obstacle", "signs", "others")
    for place, name in enumerate(kinds):
        phase = (rng.random() + frame * 0.013 * (1 + place % 2)) % 1.4
        if place > 1 and phase > 0.7:  # cars and pedestrians are common, the others are not
            continue
        wide, high = (0.16, 0.12) if name in ("car", "truck", "bus", "svehicle") else (0.04, 0.16)
        _painted(mask, name, (0.62 - high / 2, phase - 0.2, 0.62 + high / 2, phase - 0.2 + wide))
    _painted(mask, "signal", (0.15, 0.6, 0.25, 0.64) if frame // 20 % 2 else (0.2, 0.3, 0.26, 0.34))
    _painted(mask, "own", (0.94, 0.2, 1.0, 0.8))
    return mask


def photograph(mask: np.ndarray, light: float, seed: int) -> np.ndarray:
    """Return [H, W, 3] uint8 of a class mask: a colour and a grain per class, lit."""
    rng = np.random.default_rng(seed)
    paint = np.random.default_rng(7).integers(40, 215, (len(NAMES), 3))
    grain = rng.normal(0, 9, (*mask.shape, 1)) + rng.normal(0, 3, (*mask.shape, 3))
    blurred = cv2.GaussianBlur(paint[mask].astype(np.float32), (3, 3), 0)
    return np.asarray(np.clip(blurred * light + grain, 0, 255)).astype(np.uint8)


def write_street(
    root: Path, *, size: Size = (61, 97), train: Mapping[tuple[str, str], int] | None = None, test: int = 4
) -> Path:
    """Write street frames as the contest has them.

    `seg_train_images/train_0000.jpg`, `seg_train_annotations/train_0000.png` (colours) and `.json` (attributes and
    frame number), `seg_test_images/test_000.jpg`. Frames of a cell are one drive, in order.

    Args:
        root: the data folder.
        size: height and width of a frame.
        train: frames of each (route, time of day); 40 in the contest's proportions by default.
        test: number of test frames.
    """
    folders = [root / f"seg_{name}" for name in ("train_images", "train_annotations", "test_images")]
    for folder in folders:
        folder.mkdir(parents=True)
    palette = np.array(list(SIGNATE.values()), dtype=np.uint8)
    number = 0
    for drive, ((route, time), count) in enumerate((train or cells(40)).items()):
        for frame in range(count):
            name = f"train_{number:04d}"
            mask = scene(drive, frame, size)
            cv2.imwrite(str(folders[0] / f"{name}.jpg"), photograph(mask, LIGHT[time], number)[:, :, ::-1])
            cv2.imwrite(str(folders[1] / f"{name}.png"), palette[mask][:, :, ::-1])
            about = {"attributes": {"route": route, "timeofday": time}, "frameIndex": frame, "labels": []}
            (folders[1] / f"{name}.json").write_text(json.dumps(about))
            number += 1
    for row in range(test):
        image = photograph(scene(row % 3, 500 + row, size), 1.0, 10_000 + row)
        cv2.imwrite(str(folders[2] / f"test_{row:03d}.jpg"), image[:, :, ::-1])
    return root


def salt(row: int, size: Size = (101, 101)) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey [H, W] uint8 image and its [H, W] uint8 mask of 0 and 1; about two of five are empty."""
    rng = np.random.default_rng(1000 + row)
    noise = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), size[0] / 7)
    level = float(np.quantile(noise, rng.uniform(0.2, 0.95)))
    mask = np.zeros(size, dtype=np.uint8) if row % 5 in (1, 3) else (noise > level).astype(np.uint8)
    layers = cv2.GaussianBlur(rng.standard_normal((size[0], 1)).astype(np.float32), (1, 5), 0) * 40
    image = 110 + layers + rng.normal(0, 8, size) + mask * 45
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_salt(root: Path, *, train: int = 20, test: int = 6) -> Path:
    """Write salt bodies as Kaggle has them.

    `train/images`, `train/masks` (16 bits, 0 and 65535), `train.csv` (id, rle_mask), `depths.csv` (id, z, train and
    test), `test/images`, `sample_submission.csv`. All images are of 101 x 101 pixels.
    """
    for folder in ("train/images", "train/masks", "test/images"):
        (root / folder).mkdir(parents=True)
    ids = [f"{np.random.default_rng(row).integers(16**10):010x}" for row in range(train + test)]
    texts = []
    for row, name in enumerate(ids):
        image, mask = salt(row)
        split = "train" if row < train else "test"
        cv2.imwrite(str(root / split / "images" / f"{name}.png"), np.repeat(image[:, :, None], 3, axis=2))
        if split == "train":
            cv2.imwrite(str(root / "train" / "masks" / f"{name}.png"), mask.astype(np.uint16) * 65535)
            texts.append(encode(mask, CONVENTIONS["tgs"]))
    pd.DataFrame({"id": ids[:train], "rle_mask": texts}).to_csv(root / "train.csv", index=False)
    depths = np.random.default_rng(0).integers(50, 960, len(ids))
    pd.DataFrame({"id": ids, "z": depths}).to_csv(root / "depths.csv", index=False)
    pd.DataFrame({"id": ids[train:], "rle_mask": "1 1"}).to_csv(root / "sample_submission.csv", index=False)
    return root
