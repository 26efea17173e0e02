"""Where a run errs: the confusion, class by class, slice by slice, and the images themselves.

Each function draws into the run's pictures and returns a section of the page. To add a chapter, write such a
function here and name it in `commands/report.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kbench.pictures import confusion, picks, tables
from kbench.pictures.sheets import Group, Tile, draw_sheet
from kbench.report.page import Grid, Picture, Section
from kbench.report.subject import Look
from kbench.runs.shown_images import file_images

_GROUPS = 20  # classes that get a line of their own in a sheet, unless every class is asked for
_MOST_GROUPS = 120


def confusions(look: Look) -> Section:
    """Draw what is taken for what: a confusion matrix, one of each label, or predicted over true numbers."""
    table, names = look.oof.table, look.oof.table.target_names
    if table.task == "regression":
        path = confusion.draw_scatter(look.targets, look.values, names, look.place("scatter.png"))
        return Section("Predicted and true", "On the line a prediction is exact.", [look.picture(path)])
    if table.task == "multi_label":
        counts = confusion.label_confusion(look.targets, look.values, threshold=look.threshold)
        rows = [
            {"label": name, "found": int(one[1, 1]), "missed": int(one[1, 0]), "extra": int(one[0, 1]),
             "rightly_left_out": int(one[0, 0])}
            for name, one in zip(names, counts, strict=True)
        ]  # fmt: skip
        path = confusion.draw_label_confusion(counts, names, look.place("labels.png"))
        grid = look.grid(rows, "confusion.csv", "confusion of each label")
        return Section("Confusion", f"Labels are predicted above {look.threshold}.", [look.picture(path), grid])
    matrix = confusion.confusion_matrix(look.targets, look.values)
    rows = [{"true": name, **dict(zip(names, map(int, line), strict=True))}
            for name, line in zip(names, matrix, strict=True)]  # fmt: skip
    look.grid(rows, "confusion.csv", "")
    counts_path = confusion.draw_confusion(matrix, names, look.place("confusion.png"))
    shares_path = confusion.draw_confusion(matrix, names, look.place("confusion-shares.png"), normalise=True)
    pairs = look.grid(confusion.confused_pairs(matrix, names), "confused.csv", "the commonest mistakes")
    shown_parts: list[Picture | Grid] = [
        pairs,
        look.picture(counts_path, "rows"),
        look.picture(shares_path, "per cent of the true class"),
    ]
    text = "Rows are the truth, columns what the model says; the stronger the red, the larger the share of the class."
    return Section("Confusion", text, shown_parts)


def classes(look: Look, summary: dict[str, Any]) -> Section:
    """Write the table of classes, labels or targets; it is kept as `classes`."""
    summary["classes"] = tables.class_table(look.oof.table, look.values, threshold=look.threshold)
    grid = look.grid(summary["classes"], "classes.csv", "out of fold")
    word = {"single_label": "class", "multi_label": "label"}.get(look.oof.table.task, "target")
    return Section(f"Each {word}", "", [grid])


def slices(look: Look, summary: dict[str, Any]) -> Section:
    """Write a table per metadata column; they are kept as `slices`."""
    summary["slices"] = {}
    shown_parts: list[Picture | Grid] = []
    for column in look.options.slices or _telling_columns(look):
        rows = tables.slice_table(look.metric, look.oof.table, look.oof.values, column, groups=look.groups)
        summary["slices"][column] = rows
        name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in column)
        shown_parts.append(look.grid(rows, f"slices-{name}.csv", f"by {column}"))
    text = "Scores with bootstrap intervals: slices whose intervals do not meet differ by more than chance."
    return Section("Slices", text if shown_parts else "", shown_parts)


def _telling_columns(look: Look) -> list[str]:
    """Return the metadata columns whose slices are neither one nor mostly single rows."""
    meta = look.oof.table.meta
    if meta is None:
        return []
    columns = [str(name) for name in meta.columns]
    return [name for name in columns if len(tables.slices_of(look.oof.table, name)[1]) > 1]


def sheets(look: Look) -> Section:
    """Draw sheets of the most and least correct images (F-27)."""
    kinds = picks.REGRESSION_KINDS if look.oof.table.task == "regression" else picks.KINDS
    shown_parts: list[Picture | Grid] = []
    listed: list[dict[str, Any]] = []
    for kind, says in kinds.items():
        groups = _groups(look, kind)
        listed += _listed(kind, groups)
        title = f"{kind.replace('_', ' ').capitalize()}: {says}"
        path = draw_sheet(groups, look.place(f"{kind.replace('_', '-')}.png"), title=title)
        shown_parts.append(look.picture(path))
    look.grid(listed, "picks.csv", "")
    return Section("Images", "The mistakes a person would make too are the labels to look at.", shown_parts)


def _listed(kind: str, groups: list[Group]) -> list[dict[str, Any]]:
    """Return the images of a sheet as records: `kind`, `of` (the class), `place`, `id`, `right`, and what is said."""
    return [
        {"kind": kind, "of": group.title, "place": place, "id": tile.lines[-1].removeprefix("id "), "right": tile.right,
         "says": "; ".join(tile.lines[:-1])}
        for group in groups
        for place, tile in enumerate(group.tiles)
    ]  # fmt: skip


def _groups(look: Look, kind: str) -> list[Group]:
    names, options = look.oof.table.target_names, look.options
    per_class = len(names) <= _GROUPS if options.by_class is None else options.by_class
    if not per_class:
        rows, _ = _picked(look, kind, None, 6 * options.k)
        return [Group("", _tiles(look, rows, None))]
    groups = []
    for target in _worst_first(look)[:_MOST_GROUPS]:
        rows, count = _picked(look, kind, target, options.k)
        groups.append(Group(f"{names[target]}{count}", _tiles(look, rows, target)))
    return groups


def _worst_first(look: Look) -> list[int]:
    """Return the targets in their order, or, when there are more than are shown, the worst ones first."""
    count = len(look.oof.table.target_names)
    if count <= _MOST_GROUPS:
        return list(range(count))
    rows = tables.class_table(look.oof.table, look.values, threshold=look.threshold)
    return sorted(range(count), key=lambda k: (rows[k].get("recall") is None, rows[k].get("recall") or 0.0))


def _picked(look: Look, kind: str, target: int | None, k: int) -> tuple[np.ndarray, str]:
    threshold = look.threshold
    if target is not None and not isinstance(threshold, int | float):
        threshold = threshold[target]
    judged = picks.judge(look.oof.table.task, look.targets, look.values, target=target, threshold=threshold)
    count = ""
    if judged.right is not None and kind.endswith("_incorrect"):
        count = f": {int((~judged.right & judged.among).sum()):,} wrong of {int(judged.among.sum()):,}"
    return picks.pick(judged, kind, k=k), count


def _tiles(look: Look, rows: np.ndarray, target: int | None) -> list[Tile]:
    table, focus = look.oof.table, None if look.oof.table.task == "single_label" else target
    images = file_images(look.experiment.competition, table, rows)
    tiles = []
    for place, row in enumerate(rows):
        prediction = np.asarray(look.values[row])
        judged = picks.judge(
            table.task, look.targets[row : row + 1], prediction[None], target=focus, threshold=_one(look, focus)
        )
        lines = picks.captions(
            table.task, look.targets[row], prediction, table.target_names, focus=focus, threshold=look.threshold
        )
        right = None if judged.right is None else bool(judged.right[0])
        tiles.append(Tile(images[place], (*lines, f"id {table.ids[row]}"), right))
    return tiles


def _one(look: Look, focus: int | None) -> Any:
    single = focus is None or isinstance(look.threshold, int | float)
    return look.threshold if single else look.threshold[focus]
