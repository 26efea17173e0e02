"""Tables of run-length texts: which columns hold them, how pixels are numbered, and whose masks they are.

Columns are known by their cells, not by their names. How pixels are numbered is tried: in the right order the masks
hang together, in a wrong one they fall into stripes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from kbench.data.masks.run_lengths import CONVENTIONS, decode
from kbench.data.table.image_files import stem
from kbench.data.table.targets import sorted_labels
from kbench.drafting.mask_pixels import OBJECT, Masks
from kbench.errors import DataError, counted

NAMED = re.compile(r"(^|[^a-z])rle([^a-z]|$)|mask|encoded.?pixels|run.?length", re.IGNORECASE)
_CELL = re.compile(r"\[?\s*[0-9]+(?:[ ,]+[0-9]+)+\s*\]?")
_EMPTY = frozenset({"", "-1", "nan", "none", "null", "-"})
_TRIED = 60  # cells whose numbering is tried
_MOST = 254
_GENERIC = frozenset({"rle", "mask", "masks", "encoded", "pixels", "encodedpixels", "segmentation", "annotation", "id"})


@dataclass(frozen=True)
class Columns:
    """The columns of a table with run lengths.

    Attributes:
        texts: columns of run lengths.
        empty: what stands for an empty mask, beside an empty cell.
    """

    texts: tuple[str, ...]
    empty: tuple[str, ...]


def run_columns(frame: pd.DataFrame) -> Columns | None:
    """Return the columns with run lengths, known by their cells; None where there is none."""
    texts, empty = [], set[str]()
    for name in map(str, frame.columns[1:]):
        cells = frame[name].str.strip()
        known = cells[~cells.str.lower().isin(_EMPTY)]
        head = known.head(_TRIED)
        pairs = head.map(lambda cell: _CELL.fullmatch(cell) is not None and len(re.findall(r"[0-9]+", cell)) % 2 == 0)
        longest = max((len(re.findall(r"[0-9]+", cell)) for cell in head), default=0)
        if len(head) and pairs.all() and (longest >= 4 or NAMED.search(name)):
            texts.append(name)
            empty |= {cell for cell in cells[cells.str.lower().isin(_EMPTY)].unique() if cell}
    return Columns(tuple(texts), tuple(sorted(empty))) if texts else None


@dataclass(frozen=True)
class Cell:
    """A text of run lengths that is not empty.

    Attributes:
        text: the text.
        size: height and width of its image.
        truth: [H, W] bool, a mask file of the same image; None where there is none.
    """

    text: str
    size: tuple[int, int]
    truth: np.ndarray | None = None


def numbering(cells: Sequence[Cell]) -> tuple[str, str]:
    """Return the convention of run-length texts, and how it was told.

    The one whose masks are those of files beside the table, or else the one whose masks hang together.
    """
    edges, differing = dict[str, int](), dict[str, int]()
    for name, rule in CONVENTIONS.items():
        try:
            masks = [decode(cell.text, cell.size, rule) for cell in cells]
        except DataError:
            continue
        edges[name] = sum(_edges(mask) for mask in masks)
        differing[name] = sum(
            int(((mask == 1) != cell.truth).sum())
            for mask, cell in zip(masks, cells, strict=True)
            if cell.truth is not None and cell.truth.shape == mask.shape
        )
    if not edges or not cells:
        return "tgs", "guessed: no text shows how pixels are numbered" if not cells else "guessed: no numbering fits"
    from_1 = [name for name in edges if CONVENTIONS[name].first == 1] or list(edges)
    known = any(cell.truth is not None for cell in cells)
    judged = list(edges) if known else from_1
    best = min(judged, key=lambda name: (differing[name], edges[name], list(CONVENTIONS).index(name)))
    rule = CONVENTIONS[best]
    way = "down the columns" if rule.order == "columns" else "along the rows"
    others = [score for name, score in edges.items() if CONVENTIONS[name].order != rule.order]
    if known:
        told = "as in the mask files beside the table" if not differing[best] else "nearest to the mask files"
    elif not others:
        told = "no other numbering fits"
    else:
        told = "so masks hang together" if min(others) > edges[best] else (
            "guessed: the other way masks hang together as well; look at some, `kbench inspect`"
        )  # fmt: skip
    return best, f"pixels are numbered {way} from {rule.first}: {told}"


def _edges(mask: np.ndarray) -> int:
    """Return how many neighbours differ."""
    return int(np.count_nonzero(np.diff(mask, axis=0)) + np.count_nonzero(np.diff(mask, axis=1)))


def masks_of_runs(
    csv: str, frame: pd.DataFrame, columns: Columns, id_column: str, *, images: Sequence[str],
    size_of: Callable[[str], tuple[int, int] | None], truth_of: Callable[[str], np.ndarray | None] = lambda image: None,
) -> Masks:  # fmt: skip
    """Return `data.masks` of a table of run lengths.

    Args:
        csv: path of the table below the data folder.
        frame: its text cells.
        columns: those with run lengths.
        id_column: its ids.
        images: ids of the training images.
        size_of: id of an image, with or without its ending -> its height and width; None where it is not known.
        truth_of: id of an image -> [H, W] bool, the mask file that lies beside; asked where a table has one class.
    """
    ids = frame[id_column].tolist()
    key, labels = _cut(ids, images)
    images = [name if labels is None else _image(name, key, labels[row]) for row, name in enumerate(ids)]
    alone = len(columns.texts) == 1 and labels is None and len(set(images)) == len(images)
    cells = list(islice(_sized(frame, columns, images, size_of), _TRIED))
    convention, how = numbering([
        Cell(text, size, truth_of(image) if alone else None) for text, size, image in cells
    ])  # fmt: skip
    kind: dict[str, Any] = {"name": "rle", "convention": convention, "csv": csv}
    kind |= {"empty": list(columns.empty)} if columns.empty else {}
    kind |= {"id": id_column} if id_column != str(frame.columns[0]) else {}
    label = None if labels is not None else _label(frame, columns, id_column, images)
    if len(columns.texts) > 1:
        kind["columns"] = {name: name for name in columns.texts}
        return Masks("multi_label_segmentation", kind, columns.texts,
                     (how, "a column of run lengths for each class"), convention)  # fmt: skip
    kind["column"] = columns.texts[0]
    if labels is not None:
        kind["key"] = key
        classes = tuple(sorted_labels(set(labels)))
        return Masks("multi_label_segmentation", kind, classes, (how, f"ids are made of `{key}`"), convention, True)
    if label is not None:
        kind["label"] = label
        classes = tuple(sorted_labels(set(frame[label]) - {""}))
        return Masks("multi_label_segmentation", kind, classes,
                     (how, f"the column '{label}' has the class of each row"), convention, True)  # fmt: skip
    objects = len(set(images)) < len(images)
    name = _called(columns.texts[0])
    called = (
        f"its name is from the column '{columns.texts[0]}'"
        if name != OBJECT
        else "no file names it: call it as you like"
    )
    why = [how, f"one class; {called}"]
    if objects:
        why.append(
            f"{counted(len(images) - len(set(images)), 'image')} or more have several rows: objects, which are united"
        )
    return Masks("segmentation", kind, (name,), tuple(why), convention, objects)


def _sized(
    frame: pd.DataFrame, columns: Columns, images: Sequence[str], size_of: Callable[[str], tuple[int, int] | None]
) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Yield texts that are not empty with the size of their image, and its id."""
    for name in columns.texts:
        for text, image in zip(frame[name].str.strip().tolist(), images, strict=True):
            size = size_of(image) if text and text not in columns.empty else None
            if size is not None:
                yield text, size, image


def _called(column: str) -> str:
    """Return the class a column of run lengths is named by."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", column) if word and word.lower() not in _GENERIC]
    return "_".join(words) or OBJECT


def _cut(ids: Sequence[str], images: Sequence[str]) -> tuple[str, list[str] | None]:
    """Return what ids are made of and the class of each; no classes where ids are images."""
    known = {stem(name) for name in images} | set(images)
    if not known or sum(name in known or stem(name) in known for name in ids[:200]) * 2 > len(ids[:200]):
        return "{id}", None
    for pattern, key in (
        (r"(.+)([_ -])([^_ -]+)", "{{id}}{0}{{class}}"),
        (r"([^_ -]+)([_ -])(.+)", "{{class}}{0}{{id}}"),
    ):
        cuts = [re.fullmatch(pattern, name) for name in ids]
        if not all(cuts):
            continue
        image, label = (1, 3) if key.startswith("{{id}") else (3, 1)
        labels = [match[label] for match in cuts if match is not None]
        fits = sum(match is not None and match[image] in known for match in cuts[:200])
        if fits * 2 > len(ids[:200]) and 1 < len(set(labels)) <= _MOST:
            return key.format(next(match[2] for match in cuts if match is not None)), labels
    return _cut_by_image(ids, known)


def _cut_by_image(ids: Sequence[str], known: set[str]) -> tuple[str, list[str] | None]:
    """Cut ids that begin with an image's name, where classes have the separator in them."""
    longest = sorted(known, key=len, reverse=True)
    rests = [next((name[len(image) :] for image in longest if name.startswith(image)), "") for name in ids]
    signs = {rest[:1] for rest in rests}
    if len(signs) == 1 and all(len(rest) > 1 for rest in rests) and 1 < len(set(rests)) <= _MOST:
        sign = signs.pop()
        return f"{{id}}{sign}{{class}}", [rest[1:] for rest in rests]
    return "{id}", None


def _image(name: str, key: str, label: str) -> str:
    sign = key.replace("{id}", "").replace("{class}", "")
    return name.removesuffix(f"{sign}{label}") if key.startswith("{id}") else name.removeprefix(f"{label}{sign}")


def _label(frame: pd.DataFrame, columns: Columns, id_column: str, images: Sequence[str]) -> str | None:
    """Return the column that tells the rows of an image apart by class; None where images have one row or objects."""
    if len(set(images)) == len(images):
        return None
    for name in map(str, frame.columns):
        values = frame[name]
        if name in (id_column, *columns.texts) or not 1 < values.nunique() <= min(_MOST, len(frame) / 2):
            continue
        if len(set(zip(images, values, strict=True))) == len(images) or re.search("class|label|categor", name, re.I):
            return name
    return None
