"""Run-length texts: `id,rle_mask`, one row per image, or one per image and class.

To add another format, see `base.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from kbench.data.masks import run_lengths
from kbench.data.table.csv_files import texts
from kbench.data.table.names import cuts
from kbench.errors import ConfigError, DataError, Problem, SubmissionError, first_names, nearest
from kbench.inference.map_store import MaskSet
from kbench.registry import register
from kbench.submission.formats.base import Format, asking, check_task, framed, id_column, named_class, target_columns
from kbench.submission.formats.mask_cells import (
    Size,
    Sizes,
    check_written,
    chosen_names,
    lacking,
    no_sizes,
    read_masks,
    refuse_maps,
    shown,
)
from kbench.tasks import IGNORED, SEGMENTATION, exclusive

_FIELDS = re.compile(r"\{(id|class|class_index)\}")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class _Asked:
    """What the rows of a sample ask for.

    Attributes:
        rows: image id -> class number among the competition's -> row numbers, several where each is an object's.
        problems: rows that ask for nothing that is known.
    """

    rows: dict[str, dict[int, list[int]]]
    problems: list[Problem]

    def written(self) -> list[int]:
        """Return the numbers of all classes that are asked for."""
        return sorted({k for classes in self.rows.values() for k in classes})


@register("format")
def rle(
    *, convention: str = "tgs", id: str = "{id}", first_class: int = 0, classes: list[str] | None = None,
    label: str | None = None, objects: bool = False, empty: str = "", _names: tuple[str, ...], _task: str,
    _sizes: Sizes | None = None, _images: Callable[[], Container[str]] | None = None,
) -> Format:  # fmt: skip
    """Return the format with the run lengths of a mask in the sample's one target column.

    An id that can be cut into image and class in more than one way is that of the image there is.

    Args:
        convention: how pixels are numbered and what numbers say, such as `tgs` (down the columns from 1), `carvana`
            (along the rows from 1) or `coco`; a wrong name is answered with all of them.
        id: what the first column is made of: `{id}` of the image, `{class}` and `{class_index}`, such as
            `{id}_{class_index}`.
        first_class: number of the first class in `{class_index}`.
        classes: names of the classes that may be written; all by default. The sample says which are.
        label: column with the class of each row, where an image has one row per class: `id,class,predicted`.
        objects: write one row per object, which is a connected region; an image without one has one empty row.
        empty: what stands for an empty mask.
        _names: the competition's classes.
        _task: its task.
        _sizes: image id -> its height and width.
        _images: gives the ids of the images that there are.

    Raises:
        ConfigError: the task has no masks, or the ids leave open which class a row is of.
    """
    check_task(_task, SEGMENTATION, format="rle")
    rule, allowed = run_lengths.convention(convention), chosen_names(classes, _names)
    fields = _FIELDS.findall(id)
    if "id" not in fields or len(set(fields)) < len(fields):
        raise ConfigError(f"the submission format 'rle' with the id '{id}'", "`{id}` once", "set submission.format.id")
    if (len(fields) == 1) == (label is None) and len(allowed) > 1:
        raise ConfigError(
            f"the submission format 'rle' with the id '{id}' and the label '{label or ''}' for {len(allowed)} classes",
            "`{id}`, and `{class}`, `{class_index}` or a column `label` where there are several",
            "set submission.format.id, such as '{id}_{class_index}', or submission.format.classes to one of them",
        )
    size_of, alone = _sizes or no_sizes, _names.index(allowed[0])

    def read_id(name: str, images: Container[str] | None) -> list[tuple[str, int]]:
        """Return image and class a row's id may mean: those whose image is known, or else the longest class."""
        words = {"class": _names, "class_index": _numbers_in(name)} if len(fields) > 1 else {}
        ways = cuts(id, name, words)
        fits = [(way["id"], k) for way in ways if (k := _class_of(way, _names, first_class, alone)) is not None]
        known = [] if images is None else [way for way in fits if way[0] in images]
        return known or sorted(fits, key=lambda way: len(way[0]))[:1]

    def asked(sample: pd.DataFrame, images: Container[str] | None = None) -> _Asked:
        images = _images() if _images is not None else images
        rows: dict[str, dict[int, list[int]]] = {}
        strange, absent, unclear = [], [], []
        column = id_column(sample)
        labels = texts(sample, label).tolist() if label is not None and label in sample.columns else None
        for row, name in enumerate(texts(sample, column).tolist()):
            ways = read_id(name, images)
            image, k = ways[0] if ways else ("", -1)
            if labels is not None:
                called = named_class(labels[row], _names)
                k = -1 if called is None else _names.index(called)
            if not ways:
                strange.append(name)
            elif len(ways) > 1:
                unclear.append(name)
            elif not 0 <= k < len(_names) or _names[k] not in allowed:
                absent.append(name if labels is None else f"{name}, {labels[row]}")
            else:
                rows.setdefault(image, {}).setdefault(k, []).append(row)
        problems = []
        if label is not None and labels is None:
            problems.append(Problem(label, "no such column", nearest(label, target_columns(sample))))
        if strange:
            problems.append(Problem(column, f"{len(strange):,} ids are not '{id}': {first_names(strange)}"))
        if unclear:
            what = f"{len(unclear):,} ids that several images and classes fit: {first_names(unclear)}"
            problems.append(Problem(column, what, "rename the images or the classes"))
        if absent:
            what = f"{len(absent):,} rows ask for a class that is not there: {first_names(absent)}"
            problems.append(Problem(column, what, f"there are {first_names(list(allowed), 30)}"))
        return _Asked(rows, problems)

    def column_of(sample: pd.DataFrame) -> str:
        columns = [name for name in target_columns(sample) if name != label]
        if len(columns) == 1:
            return columns[0]
        of_class = [name for name in columns if all(named_class(cell, _names) for cell in set(texts(sample, name)))]
        todo = 'write the other columns with a format of your own (a plug-in with `@register("format")`)'
        if label is None and of_class:
            todo = f"`submission: {{format: {{name: rle, label: {of_class[0]}}}}}` writes one row per image and class"
        raise SubmissionError(
            f"the sample has {len(columns)} target columns: {first_names(columns)}",
            "one column of run lengths beside the id and, perhaps, one with the class", todo,
        )  # fmt: skip

    def build(masks: MaskSet, sample: pd.DataFrame) -> pd.DataFrame:
        wanted = asked(sample, set(masks.ids.tolist()))
        absent = [_names[k] for k in wanted.written() if _names[k] not in masks.names]
        problems = [*wanted.problems, *lacking(list(wanted.rows), masks, where=id_column(sample))]
        problems += [Problem("classes", f"the masks have no class {first_names(absent)}")] if absent else []
        refuse_maps(problems)
        cells: list[list[str]] = [[] for _ in range(len(sample))]
        for image, slots in sorted(wanted.rows.items()):
            order = sorted(slots)
            numbers = [masks.names.index(_names[k]) for k in order]
            mask = shown(masks, int(np.searchsorted(masks.ids, image)), numbers)
            runs = _encoded(mask, len(order), rule)
            check_written(image, mask, _decoded(runs, mask.shape[-2:], rule, index=mask.ndim == 2))
            for place, k in enumerate(order):
                one = [runs[place]] if not objects else _objects(mask == place if mask.ndim == 2 else mask[place], rule)
                cells[slots[k][0]] = [text or empty for text in one]
        counts = [len(several) for several in cells]
        rows = sample.iloc[np.repeat(np.arange(len(sample)), counts)].reset_index(drop=True)
        made_cells = np.array([text for several in cells for text in several], dtype=object)
        others = {} if label is None else {label: texts(rows, label)}
        frame = framed(rows, {**others, column_of(sample): made_cells})
        return frame[[str(name) for name in sample.columns]]

    def cells_of(frame: pd.DataFrame, sample: pd.DataFrame) -> list[str]:
        return ["" if cell == empty else cell for cell in texts(frame, column_of(sample)).tolist()]

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> MaskSet:
        cells, wanted = cells_of(frame, sample), asked(frame)
        written = wanted.written()

        def read(image: str) -> np.ndarray:
            slots, size = wanted.rows[image], size_of(image)
            merged = [_one_text([cells[row] for row in slots.get(k, [])], size, rule) for k in written]
            return _decoded(merged, size, rule, index=exclusive(_task, len(_names)))

        return read_masks(list(wanted.rows), [_names[k] for k in written], read, names=_names, task=_task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        cells, wanted = cells_of(frame, sample), asked(frame)
        faults = list(wanted.problems)
        for image, slots in wanted.rows.items():
            try:
                size = size_of(image)
                merged = [_one_text([cells[row] for row in several], size, rule) for several in slots.values()]
                _parsed(merged, size, rule, apart=exclusive(_task, len(_names)))
            except DataError as error:
                faults.append(Problem(image, error.what))
        return faults[:20]

    def own_sample(images: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        each = list(allowed) if label is not None or len(fields) > 1 else [allowed[0]]
        rows = [(image, k) for image in images for k in each]
        ids = [_written(id, image, k, _names.index(k) + first_class) for image, k in rows]
        known = [name for name in columns if name != label]
        sample = asking(ids, known, ["rle"])
        return sample if label is None else sample.assign(**{label: [k for _, k in rows]})

    def image_of(name: str) -> str:
        ways = read_id(name, _images() if _images is not None else None)
        return ways[0][0] if ways else name

    return Format(
        ".csv", build, parse, problems, text=True, exact=True, image_of=image_of,
        key=() if label is None else (label,), several=objects, own_sample=own_sample,
    )  # fmt: skip


def _written(template: str, image: str, name: str, number: int) -> str:
    """Return the id of a row."""
    words = {"{id}": image, "{class}": name, "{class_index}": str(number)}
    return re.sub(r"\{(id|class|class_index)\}", lambda match: words[match[0]], template)


def _numbers_in(name: str) -> set[str]:
    """Return every number that stands somewhere in a name, whole or as a part of a longer one."""
    runs = _DIGITS.findall(name)
    return {run[a:b] for run in runs for a in range(len(run)) for b in range(a + 1, len(run) + 1)}


def _class_of(fields: Mapping[str, str], names: tuple[str, ...], first: int, alone: int) -> int | None:
    """Return the class a row's id asks for; None where its two ways of saying it contradict each other."""
    answers = set()
    if "class" in fields:
        answers.add(names.index(fields["class"]))
    if "class_index" in fields:
        answers.add(int(fields["class_index"]) - first)
    return (answers or {alone}).pop() if len(answers) < 2 else None


def _encoded(mask: np.ndarray, n_classes: int, rule: run_lengths.Convention) -> list[str]:
    if mask.ndim == 3:
        return [run_lengths.encode(layer, rule) for layer in mask]
    runs = run_lengths.runs_of(mask, rule)
    return [run_lengths.as_text(*runs.of(k), rule, pixels=mask.size) for k in range(n_classes)]


def _objects(layer: np.ndarray, rule: run_lengths.Convention) -> list[str]:
    """Return one text per connected region of an [H, W] layer, those that touch at a corner in one; an empty one."""
    count, numbers = cv2.connectedComponents(layer.astype(np.uint8), connectivity=8)
    return [run_lengths.encode(numbers == number, rule) for number in range(1, count)] or [""]


def _one_text(cells: Sequence[str], size: Size, rule: run_lengths.Convention) -> str:
    """Return the text of all objects of a class together.

    Raises:
        DataError: a text is wrong, or two objects share a pixel.
    """
    if len(cells) < 2:
        return cells[0] if cells else ""
    runs = _parsed([cell for cell in cells if cell] or [""], size, rule, apart=True)
    return run_lengths.encode(run_lengths.fill(runs, size, rule) != IGNORED, rule)


def _parsed(cells: list[str], size: Size, rule: run_lengths.Convention, *, apart: bool) -> run_lengths.Runs:
    """Return the runs of all cells of an image; `apart`: none may share a pixel."""
    pairs = [run_lengths.parse(cell, size, rule) for cell in cells]
    runs = run_lengths.Runs(
        np.concatenate([starts for starts, _ in pairs]), np.concatenate([lengths for _, lengths in pairs]),
        np.repeat(np.arange(len(pairs), dtype=np.uint8), [len(starts) for starts, _ in pairs]),
    )  # fmt: skip
    if apart:
        runs.check_apart()
    return runs


def _decoded(cells: list[str], size: Size, rule: run_lengths.Convention, *, index: bool) -> np.ndarray:
    """Return [H, W] class numbers, 255 for none, or [k, H, W] layers of 0 and 1."""
    if index:
        return run_lengths.fill(_parsed(cells, size, rule, apart=True), size, rule)
    return np.stack([run_lengths.decode(cell, size, rule) for cell in cells])
