"""Table layouts: from the files of a split to a `Table`.

A layout is a registered function that reads one split (`train` or `test`) of a competition's folder. To add one,
write a function here, or in a competition's plug-in, with `@register("layout")`, a `Request` as its first
parameter and keyword-only parameters for what the YAML may set under `data: {layout: {name: ...}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from kbench import registry
from kbench.data.table.csv_files import Dialect
from kbench.data.table.image_files import list_folders, list_images
from kbench.data.table.reading import (
    MaskRows,
    Request,
    Rows,
    id_problems,
    is_filled,
    marked,
    metadata,
    metadata_notes,
    raise_problems,
    read_rows,
    with_metadata,
    without,
)
from kbench.data.table.rows_of_files import find_images, ids_of_files
from kbench.data.table.spellings import counts_of, tidied
from kbench.data.table.table import Table
from kbench.data.table.targets import Targets, read_targets, split_tags
from kbench.errors import Problem, counted, first_names, nearest
from kbench.registry import register
from kbench.tasks import is_dense

__all__ = ["Request", "csv", "folders", "pattern", "read_table", "without"]


def read_table(layout: str, params: Mapping[str, Any], request: Request) -> Table:
    """Read a split through a registered layout.

    Args:
        layout: its name.
        params: its parameters in the YAML.
        request: which rows.

    Raises:
        DataError: one error with every problem of the rows.
    """
    table: Table = registry.build("layout", layout, params, request)
    return table


@register("layout")
def csv(
    request: Request,
    *,
    separator: str = " ",
    empty_tags: bool = False,
    tidy: bool = False,
    delimiter: str | None = None,
    decimal: Literal[".", ","] | None = None,
    join: Sequence[str] = (),
    annotations: str | None = None,
) -> Table:
    """Read ids, targets and metadata from a CSV, and find each id's image; a folder alone will do without targets.

    Masks are found as `data.masks` says.

    Args:
        request: which rows.
        separator: between the tags of one cell (`multi_label`).
        empty_tags: whether an empty cell means no tag rather than a missing target.
        tidy: take labels, tags and metadata that differ only by spaces, Unicode form, invisible signs or case for one.
        delimiter: between the cells of the CSV, such as `;`; what its first lines show by default.
        decimal: `,` where numbers are written `1,5`; looked for by default where commas do not separate cells.
        join: other CSVs with metadata columns; their first column is the id.
        annotations: path of a JSON file per image with further metadata, such as `labels/{id}.json`; a key of an
            object in it is written after a dot: `attributes.route`.

    Raises:
        DataError: one error with every problem: columns that are not there, repeated or unusable ids, missing
            images, empty, unknown or non-numeric targets.

    Source: F-02.
    """
    if request.csv is None:
        return _images_alone(request, join=join, annotations=annotations)
    dialect = None if delimiter is None and decimal is None else Dialect(delimiter or "", decimal or "")
    rows = read_rows(request, join=join, annotations=annotations, dialect=dialect)
    frame, id_column, target = rows.frame, rows.id, rows.target
    if tidy:
        frame = _tidied(request, rows, separator=separator)
    ids = np.array(frame[id_column].tolist(), dtype=str)
    problems = id_problems(id_column, ids)
    targets, masks = _without_targets(request), _find_masks(request, frame, ids)
    images = find_images(request, ids)
    if request.split == "train" and not is_dense(request.task):
        problems += _target_problems(request, target)
        if target:
            targets = read_targets(
                frame, target, task=request.task, ids=ids, classes=request.classes,
                separator=separator, empty_tags=empty_tags,
            )  # fmt: skip
    lacking, blank = images.lacking, _blank(targets, len(ids))
    problems += _lacking(request, targets)
    raise_problems(request, [*problems, *targets.problems, *masks.problems, *images.problems])
    table = Table(
        ids=ids,
        root=request.root,
        images=images.paths,
        task=request.task,
        target_names=targets.names,
        targets=targets.values,
        masks=masks.cells or None,
        encoded=request.mask is not None and request.mask.encoded,
        meta=metadata(request, frame),
        notes=(*rows.notes, *targets.notes, *masks.notes, *images.notes, *metadata_notes(request, frame)),
    )
    why = "without an image or a mask" if masks.cells else "without an image"
    if is_filled(request.split, request.on_problem, request.task):
        return marked(table, lacking | images.dropped, why)
    gone = lacking | masks.lacking | images.dropped
    kept = without(table, blank & ~lacking, "without a target")
    return without(kept, gone[lacking | ~blank], "without all of its files" if images.dropped.any() else why)


def _tidied(request: Request, rows: Rows, *, separator: str) -> pd.DataFrame:
    """Return the rows with targets and metadata that are one to a reader written alike."""
    frame = rows.frame.copy()
    for name in dict.fromkeys([*(rows.target if request.split == "train" else ()), *request.metadata]):
        if name not in frame.columns:
            continue
        cells = frame[name].tolist()
        if request.task == "multi_label" and len(rows.target) == 1 and name == rows.target[0]:
            tags = [split_tags(cell, separator) for cell in cells]
            counts = counts_of(tag for cell in tags for tag in cell)
            frame[name] = [(separator or " ").join(tidied(cell, counts)) for cell in tags]
        else:
            frame[name] = tidied(cells, counts_of(cells))
    return frame


def _without_targets(request: Request) -> Targets:
    """Return the targets of a test split, or of rows whose targets are masks: names alone."""
    return Targets(request.mask.names if request.mask else request.classes or (), None)


def _find_masks(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
    """Return the masks of the training rows of dense tasks, or none."""
    nothing = MaskRows((), np.zeros(len(ids), dtype=bool), [])
    if request.split != "train" or not is_dense(request.task):
        return nothing
    if request.target:
        nothing.problems.append(
            Problem("data.target", f"the targets of '{request.task}' are its masks", "remove data.target")
        )
    if request.mask is None:
        hint = "say how they are written: `data: {masks: {name: index, folder: FOLDER}}`, see `kbench list mask`"
        nothing.problems.append(Problem("data.masks", f"'{request.task}' needs masks", hint))
        return nothing
    mask_rows = request.mask.find(request, frame, ids)
    return replace(mask_rows, problems=[*nothing.problems, *mask_rows.problems])


def _target_problems(request: Request, target: Sequence[str]) -> list[Problem]:
    if not target:
        return [Problem("data.target", f"'{request.csv}' has no column beside the id", "name the CSV with the targets")]
    if request.classes and (request.task == "regression" or len(target) > 1):
        return [Problem("data.classes", "the target columns name the targets already", "remove data.classes")]
    return []


def _images_alone(request: Request, *, join: Sequence[str] = (), annotations: str | None = None) -> Table:
    """Return a split that is a folder of images: the ids are the paths in it, without suffix."""
    where = f"data.{request.split}"
    if request.split == "train" and not is_dense(request.task):
        hint = "name the CSV with ids and targets, or use the layout 'folders'"
        raise_problems(request, [Problem(f"{where}.csv", "the layout 'csv' needs a CSV", hint)])
    if not request.images or request.where or request.id:
        hint = "name `images:` alone, without id and where"
        raise_problems(request, [Problem(where, "a split without a CSV is a folder of images", hint)])
    if request.files:
        names, columns, others = ids_of_files(request), list[list[str]](), 0
        ids = np.array(names, dtype=str)
    else:
        names, paths, others = list_images(request.root, request.images[0], suffix=request.suffix)
        order = np.argsort(np.array(names, dtype=str), kind="stable") if names else np.empty(0, dtype=int)
        ids = np.array([names[row] for row in order], dtype=str)
        columns = [[paths[row] for row in order]]
    problems = id_problems("id", ids)
    if not names:
        problems.append(Problem(f"{where}.images", f"'{request.images[0]}' has no images", "`kbench download`"))
    frame = pd.DataFrame({"id": ids}, dtype=object)
    frame = with_metadata(request, frame, ids.tolist(), join=join, annotations=annotations)
    problems += [
        Problem("data.metadata", f"no file has a column '{name}'", nearest(name, map(str, frame.columns)))
        for name in request.metadata
        if request.split == "train" and name not in frame.columns
    ]
    masks = _find_masks(request, frame, ids)
    images = find_images(request, ids, known=columns)
    raise_problems(request, [*problems, *masks.problems, *images.problems])
    note = f"left out {counted(others, 'file')} in '{request.images[0]}', no image by name"
    table = Table(
        ids=ids,
        root=request.root,
        images=images.paths,
        task=request.task,
        target_names=_without_targets(request).names,
        masks=masks.cells or None,
        encoded=request.mask is not None and request.mask.encoded,
        meta=metadata(request, frame),
        notes=(*((note,) if others else ()), *masks.notes, *images.notes),
    )
    gone = images.lacking | masks.lacking | images.dropped
    return without(table, gone, "without an image or a mask" if masks.cells else "without an image")


@register("layout")
def folders(request: Request, *, valid: str | None = None) -> Table:
    """Read a tree with one folder per class: `<images>/<class>/<file>`; a test split is one folder of images.

    The id is the path below `<images>` without suffix: `cats/cat.0`. With `valid`, ids begin with the name of
    their folder (`train/cats/cat.0`), since both may use the same names.

    Args:
        request: which rows; classes are the sorted names of the sub-folders by default.
        valid: a second folder of the same shape, held out by whoever made the data; rows get a metadata column
            `split`: 0 for its rows and -1 for the others, ready for `folds: {strategy: predefined, ...}`.

    Raises:
        DataError: one error with every problem: files outside a class, classes without files, unknown classes.

    Source: F-01.
    """
    problems = _no_csv_problems(request, "folders", {"split"} if valid else set())
    if request.task != "single_label":
        problems.append(Problem("task", f"folders give one class per image, not '{request.task}'", "single_label"))
    raise_problems(request, problems)
    if request.split == "test":
        return _images_alone(request)
    return _classes(request, valid)


def _classes(request: Request, valid: str | None) -> Table:
    trees = [(request.images[0] if request.images else "train", "-1"), *([(valid, "0")] if valid else [])]
    rows: list[tuple[str, str, str, str]] = []
    empty, others = set(), 0
    for folder, split in trees:
        names, paths, left = list_images(request.root, folder, suffix=request.suffix)
        others += left
        prefix = f"{folder.rstrip('/')}/" if valid else ""
        labels = [name.partition("/")[0] if "/" in name else "" for name in names]
        rows += [(prefix + name, path, label, split) for name, path, label in zip(names, paths, labels, strict=True)]
        empty |= set(list_folders(request.root, folder)) - set(labels)
    frame = pd.DataFrame(sorted(rows), columns=["id", "path", "class", "split"], dtype=object)
    ids = np.array(frame["id"].tolist(), dtype=str)
    problems = id_problems("id", ids)
    if empty:
        problems.append(Problem("data.train.images", f"class folders without an image: {first_names(sorted(empty))}"))
    targets = read_targets(frame, ["class"], task="single_label", ids=ids, classes=request.classes)
    raise_problems(request, [*problems, *targets.problems, *_lacking(request, targets)])
    table = Table(
        ids=ids,
        root=request.root,
        images=tuple((path,) for path in frame["path"]),
        task=request.task,
        target_names=targets.names,
        targets=targets.values,
        meta=frame[["split"]] if valid else None,
        notes=(*((f"left out {counted(others, 'file')}, no image by name",) if others else ()), *targets.notes),
    )
    return without(table, _blank(targets, len(ids)), "without a target")


def _lacking(request: Request, targets: Targets) -> Sequence[Problem]:
    """Return what is wrong with rows without a target, where they are not left out."""
    return targets.lacking if request.on_problem == "error" else ()


def _blank(targets: Targets, count: int) -> np.ndarray:
    """Return [N] bool, which rows have no target."""
    return np.zeros(count, dtype=bool) if targets.blank is None else targets.blank


@register("layout")
def pattern(request: Request, *, regex: str) -> Table:
    r"""Read the target of each image from its name: `cat.0.jpg` by `(?P<label>[a-z]+)\.\d+`.

    The id is the path below the image folder without suffix: `cat.0`. Other named groups are columns for
    `data.metadata`, such as `(?P<patient>\d+)`. A test split is a folder of images.

    Args:
        request: which rows.
        regex: matches a whole id, with the target in the group `label`.

    Raises:
        DataError: one error with every problem: a wrong expression, names it does not match, unusable targets.

    Source: the Kaggle layout of dogs vs cats (F-30).
    """
    compiled, problems = _compiled(regex)
    problems += _no_csv_problems(request, "pattern", set(compiled.groupindex) - {"label"})
    if is_dense(request.task):
        problems.append(Problem("task", f"a name says no '{request.task}'", "the layout 'csv' with `data.masks`"))
    raise_problems(request, problems)
    if request.split == "test":
        return _images_alone(request)
    folder = request.images[0] if request.images else "train"
    names, paths, others = list_images(request.root, folder, suffix=request.suffix)
    order = np.argsort(np.array(names, dtype=str), kind="stable") if names else np.empty(0, dtype=int)
    matches = [(names[row], paths[row], compiled.fullmatch(names[row])) for row in order]
    strange = [name for name, _, match in matches if match is None]
    rows = [(name, path, match.groupdict(default="")) for name, path, match in matches if match is not None]
    frame = pd.DataFrame([groups for *_, groups in rows], columns=list(compiled.groupindex), dtype=object)
    ids = np.array([name for name, *_ in rows], dtype=str)
    problems = id_problems("id", ids)
    if not rows:
        problems.append(Problem("data.train.images", f"no image of '{folder}' has a name the pattern matches"))
    elif strange and request.on_problem == "error":
        what = f"{counted(len(strange), 'name')} the pattern does not match: {first_names(strange)}"
        problems.append(Problem("data.layout.regex", what, "correct it, or `data: {on_problem: drop}`"))
    raise_problems(request, problems)
    targets = read_targets(frame, ["label"], task=request.task, ids=ids, classes=request.classes)
    raise_problems(request, [*targets.problems, *_lacking(request, targets)])
    left_out = [(others, "no image by name"), (len(strange), "not matched by the pattern")]
    table = Table(
        ids=ids,
        root=request.root,
        images=tuple((path,) for _, path, _ in rows),
        task=request.task,
        target_names=targets.names,
        targets=targets.values,
        meta=metadata(request, frame),
        notes=(*(f"left out {counted(count, 'file')}, {why}" for count, why in left_out if count), *targets.notes),
    )
    return without(table, _blank(targets, len(ids)), "without a target")


def _compiled(regex: str) -> tuple[re.Pattern[str], list[Problem]]:
    try:
        compiled = re.compile(regex)
    except re.error as error:
        return re.compile(""), [Problem("data.layout.regex", f"'{regex}' is no regular expression: {error}")]
    if "label" in compiled.groupindex:
        return compiled, []
    return compiled, [Problem("data.layout.regex", f"'{regex}' has no group 'label'", "such as `(?P<label>[a-z]+)`")]


def _no_csv_problems(request: Request, layout: str, columns: set[str]) -> list[Problem]:
    """Return what a layout without a CSV cannot use; `columns` are those it has for metadata."""
    problems = []
    if request.csv is not None or request.where or request.target or request.id:
        problems.append(Problem("data", f"the layout '{layout}' reads no CSV", "remove csv, id, where and target"))
    if len(request.images) > 1:
        problems.append(Problem("data.images", f"the layout '{layout}' reads one image folder", "name one"))
    return problems + [
        Problem("data.metadata", f"the layout '{layout}' has no column '{name}'", nearest(name, columns))
        for name in request.metadata
        if name not in columns
    ]
