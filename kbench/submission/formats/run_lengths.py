"""Run-length texts: `id,rle_mask`, one row per image, or one per image and class.

To add another format, see `formats.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kbench.data.masks import run_lengths
from kbench.data.table.csv_files import texts
from kbench.errors import ConfigError, DataError, Problem, first_names
from kbench.inference.map_store import MaskSet
from kbench.registry import register
from kbench.submission.formats.base import Format, check_task, framed, id_column, one_column
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
from kbench.tasks import SEGMENTATION, exclusive

_FIELDS = re.compile(r"\{(id|class|class_index)\}")


@dataclass(frozen=True)
class _Asked:
    """What the rows of a sample ask for.

    Attributes:
        rows: image id -> class number among the competition's -> row number.
        problems: rows that ask for nothing that is known.
    """

    rows: dict[str, dict[int, int]]
    problems: list[Problem]

    def written(self) -> list[int]:
        """Return the numbers of all classes that are asked for."""
        return sorted({k for classes in self.rows.values() for k in classes})


@register("format")
def rle(
    *, convention: str = "tgs", id: str = "{id}", first_class: int = 0, classes: list[str] | None = None,
    empty: str = "", _names: tuple[str, ...], _task: str, _sizes: Sizes | None = None,
) -> Format:  # fmt: skip
    """Return the format with the run lengths of a mask in the sample's one target column.

    Args:
        convention: how pixels are numbered and what numbers say, such as `tgs` (down the columns from 1), `carvana`
            (along the rows from 1) or `coco`; a wrong name is answered with all of them.
        id: what the first column is made of: `{id}` of the image, `{class}` and `{class_index}`, such as
            `{id}_{class_index}`.
        first_class: number of the first class in `{class_index}`.
        classes: names of the classes that may be written; all by default. The sample says which are.
        empty: what stands for an empty mask.
        _names: the competition's classes.
        _task: its task.
        _sizes: image id -> its height and width.

    Raises:
        ConfigError: the task has no masks, or the ids leave open which class a row is of.
    """
    check_task(_task, SEGMENTATION, format="rle")
    rule, allowed = run_lengths.convention(convention), chosen_names(classes, _names)
    fields = _FIELDS.findall(id)
    if "id" not in fields or (len(fields) == 1 and len(allowed) > 1):
        raise ConfigError(
            f"the submission format 'rle' with the id '{id}' for {len(allowed)} classes",
            "`{id}`, and `{class}` or `{class_index}` where there are several",
            "set submission.format.id, such as '{id}_{class_index}', or submission.format.classes to one of them",
        )
    size_of, alone = _sizes or no_sizes, _names.index(allowed[0])
    pattern = _pattern(id, _names)

    def asked(sample: pd.DataFrame) -> _Asked:
        rows: dict[str, dict[int, int]] = {}
        strange, absent = [], []
        for row, name in enumerate(texts(sample, id_column(sample)).tolist()):
            found = pattern.fullmatch(name)
            k = None if found is None else _class_of(found, _names, first_class, alone)
            if found is None or k is None:
                strange.append(name)
            elif not 0 <= k < len(_names) or _names[k] not in allowed:
                absent.append(name)
            else:
                rows.setdefault(found["id"], {})[k] = row
        column = id_column(sample)
        problems = []
        if strange:
            problems.append(Problem(column, f"{len(strange):,} ids are not '{id}': {first_names(strange)}"))
        if absent:
            what = f"{len(absent):,} rows ask for a class that is not there: {first_names(absent)}"
            problems.append(Problem(column, what, f"there are {first_names(list(allowed), 30)}"))
        return _Asked(rows, problems)

    def build(masks: MaskSet, sample: pd.DataFrame) -> pd.DataFrame:
        wanted = asked(sample)
        absent = [_names[k] for k in wanted.written() if _names[k] not in masks.names]
        problems = [*wanted.problems, *lacking(list(wanted.rows), masks, where=id_column(sample))]
        problems += [Problem("classes", f"the masks have no class {first_names(absent)}")] if absent else []
        refuse_maps(problems)
        cells = np.full(len(sample), empty, dtype=object)
        for image, slots in sorted(wanted.rows.items()):
            order = sorted(slots)
            numbers = [masks.names.index(_names[k]) for k in order]
            mask = shown(masks, int(np.searchsorted(masks.ids, image)), numbers)
            made = _encoded(mask, len(order), rule)
            check_written(image, mask, _decoded(made, mask.shape[-2:], rule, index=mask.ndim == 2))
            for k, text in zip(order, made, strict=True):
                cells[slots[k]] = text or empty
        return framed(sample, {one_column(sample, format="rle"): cells})

    def cells_of(frame: pd.DataFrame, sample: pd.DataFrame) -> list[str]:
        return ["" if cell == empty else cell for cell in texts(frame, one_column(sample, format="rle")).tolist()]

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> MaskSet:
        cells, wanted = cells_of(frame, sample), asked(frame)
        written = wanted.written()

        def read(image: str) -> np.ndarray:
            slots = wanted.rows[image]
            made = [cells[slots[k]] if k in slots else "" for k in written]
            return _decoded(made, size_of(image), rule, index=exclusive(_task, len(_names)))

        return read_masks(list(wanted.rows), [_names[k] for k in written], read, names=_names, task=_task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        cells, wanted = cells_of(frame, sample), asked(frame)
        found = list(wanted.problems)
        for image, slots in wanted.rows.items():
            try:
                _parsed([cells[row] for row in slots.values()], size_of(image), rule,
                        apart=exclusive(_task, len(_names)))  # fmt: skip
            except DataError as error:
                found.append(Problem(image, error.what))
        return found[:20]

    def image_of(name: str) -> str:
        found = pattern.fullmatch(name)
        return name if found is None else found["id"]

    return Format(".csv", build, parse, problems, text=True, exact=True, image_of=image_of)


def _pattern(template: str, names: tuple[str, ...]) -> re.Pattern[str]:
    """Return what ids look like."""
    by_length = sorted(names, key=len, reverse=True)
    known = {"id": "(?P<id>.+)", "class": f"(?P<name>{'|'.join(map(re.escape, by_length))})",
             "class_index": r"(?P<number>\d+)"}  # fmt: skip
    pieces = _FIELDS.split(template)
    return re.compile(
        "".join(known[piece] if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)), re.DOTALL
    )


def _class_of(found: re.Match[str], names: tuple[str, ...], first: int, alone: int) -> int | None:
    """Return the class a row's id asks for; None where its two ways of saying it contradict each other."""
    given = found.groupdict()
    answers = set()
    if given.get("name") is not None:
        answers.add(names.index(given["name"]))
    if given.get("number") is not None:
        answers.add(int(given["number"]) - first)
    return (answers or {alone}).pop() if len(answers) < 2 else None


def _encoded(mask: np.ndarray, n_classes: int, rule: run_lengths.Convention) -> list[str]:
    if mask.ndim == 3:
        return [run_lengths.encode(layer, rule) for layer in mask]
    found = run_lengths.runs_of(mask, rule)
    return [run_lengths.as_text(*found.of(k), rule, pixels=mask.size) for k in range(n_classes)]


def _parsed(cells: list[str], size: Size, rule: run_lengths.Convention, *, apart: bool) -> run_lengths.Runs:
    """Return the runs of all cells of an image; `apart`: none may share a pixel."""
    pairs = [run_lengths.parse(cell, size, rule) for cell in cells]
    found = run_lengths.Runs(
        np.concatenate([starts for starts, _ in pairs]), np.concatenate([lengths for _, lengths in pairs]),
        np.repeat(np.arange(len(pairs), dtype=np.uint8), [len(starts) for starts, _ in pairs]),
    )  # fmt: skip
    if apart:
        found.check_apart()
    return found


def _decoded(cells: list[str], size: Size, rule: run_lengths.Convention, *, index: bool) -> np.ndarray:
    """Return [H, W] class numbers, 255 for none, or [k, H, W] layers of 0 and 1."""
    if index:
        return run_lengths.fill(_parsed(cells, size, rule, apart=True), size, rule)
    return np.stack([run_lengths.decode(cell, size, rule) for cell in cells])
