"""Runs of each row of each class in one JSON: `{image.jpg: {category: {row: [[x1, x2], ...]}}}` (row S-14).

To add another format, see `base.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import texts
from kbench.errors import Problem, first_names
from kbench.files import compact_json
from kbench.inference.map_store import MaskSet
from kbench.registry import register
from kbench.submission.formats.base import Format, asking, check_task, id_column
from kbench.submission.formats.mask_cells import (
    CELL,
    Size,
    Sizes,
    build_cells,
    chosen_names,
    members,
    no_sizes,
    read_masks,
)
from kbench.tasks import IGNORED, SEGMENTATION, exclusive


@register("format")
def runs_json(
    *, suffix: str = ".jpg", classes: list[str] | None = None, _names: tuple[str, ...], _task: str,
    _sizes: Sizes | None = None,
) -> Format:  # fmt: skip
    """Return the format with the first and last column of every run, both inclusive, by image, class and row.

    A class that an image does not show is left out. Keys are sorted, nothing stands between signs.

    Args:
        suffix: what an image's key has after its id, unless the sample's ids carry it.
        classes: names of the classes that are written; all by default.
        _names: the competition's classes.
        _task: its task.
        _sizes: image id -> its height and width.
    """
    check_task(_task, SEGMENTATION, format="runs_json")
    written, size_of = chosen_names(classes, _names), _sizes or no_sizes
    apart = exclusive(_task, len(_names))

    def image_of(name: str) -> str:
        return name.removesuffix(suffix)

    def build(masks: MaskSet, sample: pd.DataFrame) -> pd.DataFrame:
        return build_cells(
            masks, sample, written, image_of=image_of, encode=lambda mask: compact_json(_encoded(mask, written)),
            decode=lambda cell, mask: _decoded(json.loads(cell), written, mask.shape[-2:], index=mask.ndim == 2),
        )  # fmt: skip

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> MaskSet:
        names = [image_of(name) for name in texts(frame, str(frame.columns[0])).tolist()]
        cells = dict(zip(names, frame[CELL].tolist(), strict=True))

        def read(image: str) -> np.ndarray:
            return _decoded(json.loads(cells[image]), written, size_of(image), index=apart)

        return read_masks(names, written, read, names=_names, task=_task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        faults = []
        for name, cell in zip(texts(frame, str(frame.columns[0])).tolist(), frame[CELL].tolist(), strict=True):
            what = _fault(json.loads(cell), written, size_of(image_of(name)), apart=apart)
            faults += [Problem(name, what)] if what else []
        return faults[:20]

    def encode(frame: pd.DataFrame) -> Iterator[bytes]:
        keys = [f"{image_of(name)}{suffix}" for name in texts(frame, str(frame.columns[0])).tolist()]
        yield b"{"
        for place, (key, cell) in enumerate(sorted(zip(keys, frame[CELL].tolist(), strict=True))):
            yield f"{',' if place else ''}{json.dumps(key, ensure_ascii=False)}:{cell}".encode()
        yield b"}"

    def decode(path: Path, sample: pd.DataFrame) -> pd.DataFrame:
        ids = texts(sample, id_column(sample)).tolist()
        known = {f"{image_of(name)}{suffix}": name for name in ids}
        cells = {known.get(key, key): compact_json(value) for key, value in members(path)}
        order = [name for name in ids if name in cells] + sorted(set(cells) - set(ids))  # keys have no order
        return pd.DataFrame({id_column(sample): order, CELL: [cells[name] for name in order]}, dtype=object)

    return Format(
        ".json",
        build,
        parse,
        problems,
        exact=True,
        columns=(CELL,),
        encode=encode,
        decode=decode,
        image_of=image_of,
        own_sample=partial(asking, wanted=()),
    )


def _encoded(mask: np.ndarray, written: tuple[str, ...]) -> dict[str, dict[str, list[list[int]]]]:
    """Return the runs of an [H, W] index mask or of [k, H, W] layers."""
    content = {}
    for k, name in enumerate(written):
        rows = _rows((mask == k) if mask.ndim == 2 else mask[k] != 0)
        if rows:
            content[name] = rows
    return content


def _rows(layer: np.ndarray) -> dict[str, list[list[int]]]:
    """Return row -> its runs of an [H, W] bool layer; rows without any are left out."""
    padded = np.zeros((layer.shape[0], layer.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = layer
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    runs_of_row: dict[str, list[list[int]]] = {}
    for row, start, end in zip(rows.tolist(), starts.tolist(), (ends - 1).tolist(), strict=True):
        runs_of_row.setdefault(str(row), []).append([start, end])
    return runs_of_row


def _spans(rows: dict[str, list[list[int]]]) -> np.ndarray:
    """Return [R, 3] int64 row, first and last column."""
    spans = [(int(row), start, end) for row, runs in rows.items() for start, end in runs]
    return np.array(spans, dtype=np.int64).reshape(-1, 3)


def _decoded(content: dict[str, Any], written: tuple[str, ...], size: Size, *, index: bool) -> np.ndarray:
    """Return [H, W] class numbers, 255 for none, or [k, H, W] layers of 0 and 1."""
    layers = [_layer(content.get(name, {}), size) for name in written]
    if not index:
        return np.stack(layers).astype(np.uint8)
    mask = np.full(size, IGNORED, dtype=np.uint8)
    for k, layer in enumerate(layers):
        mask[layer] = k
    return mask


def _layer(rows: dict[str, list[list[int]]], size: Size) -> np.ndarray:
    steps = np.zeros((size[0], size[1] + 1), dtype=np.int32)
    spans = _spans(rows)
    np.add.at(steps, (spans[:, 0], spans[:, 1]), 1)
    np.add.at(steps, (spans[:, 0], spans[:, 2] + 1), -1)
    return np.asarray(np.cumsum(steps, axis=1)[:, :-1] > 0)


def _fault(content: Any, written: tuple[str, ...], size: Size, *, apart: bool) -> str:
    """Return what is wrong with an image's runs, or nothing."""
    if not isinstance(content, dict):
        return "no object of categories"
    strange = [name for name in content if name not in written]
    if strange:
        return f"categories that are not written here: {first_names(strange)}"
    every = []
    for name, rows in content.items():
        try:
            spans = _spans(rows)
        except (TypeError, ValueError, AttributeError, OverflowError):
            return f"'{name}' is not {{row: [[first, last], ...]}} with whole numbers"
        if not len(spans):
            return f"'{name}' has no runs; a category that is not there is left out"
        if what := _span_fault(spans, size):
            return f"'{name}' {what}"
        every.append(spans)
    if every and apart and _shared(np.concatenate(every)):
        return "two categories share a pixel"
    return ""


def _span_fault(spans: np.ndarray, size: Size) -> str:
    rows, starts, ends = spans.T
    if rows.min() < 0 or rows.max() >= size[0] or starts.min() < 0 or ends.max() >= size[1]:
        return f"has pixels outside of an image of {size[0]} x {size[1]}"
    if (ends < starts).any():
        return "has runs that end before they start"
    return "has runs that share a pixel" if _shared(spans) else ""


def _shared(spans: np.ndarray) -> bool:
    """Return whether two of [R, 3] runs share a pixel."""
    rows, starts, ends = spans[np.lexsort((spans[:, 1], spans[:, 0]))].T
    return bool(((rows[1:] == rows[:-1]) & (starts[1:] <= ends[:-1])).any())
