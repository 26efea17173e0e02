"""Pseudo-labels: what a run is sure of about unlabelled rows, to train with (row S-23).

Each fold has its own labels, made by its own snapshots alone, which never saw the fold's validation rows: a model
that trains with them is validated as cleanly as one that does not. `full` has those of all snapshots, for models of
all rows. Labels lie in a CSV per place, masks beside it in a zip of PNGs, and a JSON with checksums and origin is
written last; `kbench/data/pseudo_rows.py` reads them.

To choose by something other than probability, write another `sure_...` function and use it in `chosen_rows`.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench import files, records
from kbench.data.pseudo_rows import ZIP_TIME, label_columns, labels_file, masks_file, stacked
from kbench.errors import ConfigError, DataError, check_number
from kbench.inference.predictions import Predictions
from kbench.tasks import IGNORED, exclusive, is_dense


@dataclass(frozen=True)
class Sure:
    """What counts as sure.

    Attributes:
        threshold: a class is taken at this probability or above; classes that may overlap are also taken as not there
            at one minus this, or below.
        least: share of a row's pixels or labels that must be sure, or the row is left out.
        most: rows at most, the surest first; of single labels per class.
    """

    threshold: float = 0.9
    least: float = 0.5
    most: int | None = None

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, "(0.5, 1]")
        check_number("least", self.least, "[0, 1]")
        if self.most is not None:
            check_number("most", self.most, "[1, inf)", whole=True)


@dataclass(frozen=True)
class Chosen:
    """One row that is taken.

    Attributes:
        id: the row's.
        sure: how sure: the probability of its class, or the share of its labels or pixels that are sure.
        label: class index, [K] float32 labels (NaN where unsure), or a mask as a `MaskKind` reads it (255 where
            unsure).
    """

    id: str
    sure: float
    label: int | np.ndarray


def check_task(task: str) -> None:
    """Refuse a task whose predictions are no probabilities.

    Raises:
        ConfigError: it is a regression.
    """
    if "regression" in task:
        raise ConfigError(
            f"pseudo-labels for the task '{task}'",
            "a task with classes: a predicted number does not say how sure it is", "train without them",
        )  # fmt: skip


def chosen_rows(predictions: Predictions, sure: Sure) -> list[Chosen]:
    """Return the rows of a classification that are sure enough, sorted by id."""
    check_task(predictions.task)
    values = np.asarray(predictions.values, dtype=np.float32)
    if predictions.task == "single_label":
        labels, shares = values.argmax(1), values.max(1)
        taken = np.flatnonzero(shares >= sure.threshold)
        chosen = [Chosen(str(predictions.ids[row]), float(shares[row]), int(labels[row])) for row in taken]
        by_class = ([one for one in chosen if one.label == k] for k in range(len(predictions.names)))
        return sorted((one for group in by_class for one in surest(group, sure.most)), key=lambda one: one.id)
    known = np.where(values >= sure.threshold, 1, np.where(values <= 1 - sure.threshold, 0, np.nan)).astype(np.float32)
    shares = (~np.isnan(known)).mean(1)
    taken = np.flatnonzero((shares >= sure.least) & (shares > 0))
    return surest([Chosen(str(predictions.ids[row]), float(shares[row]), known[row]) for row in taken], sure.most)


def surest(rows: Iterable[Chosen], most: int | None) -> list[Chosen]:
    """Return the surest rows, sorted by id."""
    ordered = sorted(rows, key=lambda one: (-one.sure, one.id))
    return sorted(ordered[:most], key=lambda one: one.id)


def sure_mask(maps: np.ndarray, sure: Sure, *, task: str) -> tuple[np.ndarray, float]:
    """Return a mask as a `MaskKind` reads it, 255 where unsure, and the share of its pixels that are sure.

    Args:
        maps: [K, H, W] probabilities.
        sure: what counts as sure.
        task: a segmentation.
    """
    if exclusive(task, len(maps)):
        mask = np.where(maps.max(0) >= sure.threshold, maps.argmax(0), IGNORED).astype(np.uint8)[:, :, None]
    else:
        mask = np.where(maps >= sure.threshold, 1, np.where(maps <= 1 - sure.threshold, 0, IGNORED))
        mask = np.ascontiguousarray(mask.astype(np.uint8).transpose(1, 2, 0))
    return mask, float((mask != IGNORED).mean())


def chosen_masks(maps: Iterable[tuple[str, np.ndarray]], sure: Sure, *, task: str) -> Iterator[Chosen]:
    """Yield the images of a segmentation that are sure enough; `most` is not held here.

    Args:
        maps: (id, [K, H, W] probabilities), read one at a time.
        sure: what counts as sure.
        task: a segmentation.
    """
    check_task(task)
    for name, values in maps:
        mask, share = sure_mask(values, sure, task=task)
        if share >= sure.least and share > 0:
            yield Chosen(name, share, mask)


def write_pseudo(
    path: Path,
    places: Mapping[str, Iterable[Chosen]],
    *,
    names: tuple[str, ...],
    task: str,
    sure: Sure,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the labels of every place; return what the JSON says.

    Args:
        path: the JSON; the files lie beside it.
        places: `fold-0`, `fold-1` ... `full` -> rows; masks are written as they come.
        names: K class names.
        task: the competition's task.
        sure: what counted as sure.
        origin: where they come from, JSON-like: competition, run, hashes, members.

    Raises:
        DataError: a place has no row that is sure enough.
    """
    check_task(task)
    masks = is_dense(task)
    draft = path.parent / f".tmp-{os.getpid()}-labels" / path.name  # what lies there counts until all is written
    try:
        counts = _drafted(draft, places, names=names, task=task, sure=sure)
        files.remove(path)
        written: dict[str, Path] = {}
        for place in places:
            written[place] = labels_file(path, place)
            files.move(labels_file(draft, place), written[place])
            if masks:
                written[f"{place}-masks"] = masks_file(path, place)
                files.move(masks_file(draft, place), written[f"{place}-masks"])
    finally:
        files.remove(draft.parent)
    description = {"task": task, "names": list(names), "sure": asdict(sure), "places": counts, "origin": dict(origin)}
    records.seal(path, description, parts=written, timed=False)
    return description


def _drafted(
    path: Path, places: Mapping[str, Iterable[Chosen]], *, names: tuple[str, ...], task: str, sure: Sure
) -> dict[str, Any]:
    """Write the files of every place; return what is counted in each."""
    masks, counts = is_dense(task), {}
    for place, rows in places.items():
        kept = surest(_stored(masks_file(path, place), rows, names=names), sure.most) if masks else list(rows)
        if not kept:
            raise DataError(
                f"no row of '{place}' is sure enough for a pseudo-label",
                f"a probability of {sure.threshold} (of at least {sure.least:.0%} of the pixels or labels)",
                "lower --threshold or --least, or train the run better first",
            )
        files.write_text(labels_file(path, place), _csv(kept, names, task, masks=masks))
        counts[place] = _counts(kept, names, task)
    return counts


def _stored(path: Path, rows: Iterable[Chosen], *, names: tuple[str, ...]) -> Iterator[Chosen]:
    """Write masks into a zip and yield their rows with only the pixels of each class."""
    files.make_folder(path.parent)
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row in rows:
            assert isinstance(row.label, np.ndarray), "masks are arrays"
            done, content = cv2.imencode(".png", stacked(row.label))
            assert done, "OpenCV writes PNG"
            archive.writestr(zipfile.ZipInfo(f"{row.id}.png", ZIP_TIME), content.tobytes())
            yield Chosen(row.id, row.sure, _pixels(row.label, len(names)))


def _pixels(mask: np.ndarray, n_classes: int) -> np.ndarray:
    """Return [K] pixels of each class."""
    if mask.shape[2] == n_classes:
        return np.asarray((mask == 1).sum((0, 1)))
    return np.bincount(mask.ravel(), minlength=IGNORED + 1)[:n_classes]


def _counts(rows: list[Chosen], names: tuple[str, ...], task: str) -> dict[str, Any]:
    """Return how many rows there are, and how many rows, labels or pixels of each class."""
    if task == "single_label":
        per_class = np.bincount(np.array([row.label for row in rows], dtype=np.int64), minlength=len(names))
    else:
        per_class = np.nansum(np.stack([np.asarray(row.label) for row in rows]), axis=0)
    return {"rows": len(rows), "classes": {name: int(count) for name, count in zip(names, per_class, strict=True)}}


def _csv(rows: list[Chosen], names: tuple[str, ...], task: str, *, masks: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "fold", "sure", *label_columns(names, task)])
    for row in rows:
        if masks:
            cells = [f"{row.id}.png"]
        elif isinstance(row.label, int):
            cells = [names[row.label]]
        else:
            cells = ["" if np.isnan(value) else str(int(value)) for value in row.label]
        writer.writerow([row.id, -1, f"{row.sure:.6g}", *cells])
    return text.getvalue()
