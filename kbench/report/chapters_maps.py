"""The chapters of `kbench report` for dense tasks: masks or numbers beside their truth, and where they err."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from kbench import files
from kbench.data.images.cache import Images
from kbench.ensemble.mask_rules import Rule
from kbench.inference import map_store
from kbench.inference.map_store import MaskSet, NumberSet, Writing
from kbench.pictures import number_maps, segments
from kbench.pictures.confusion import confused_pairs, draw_confusion
from kbench.pictures.tables import slices_of
from kbench.report.page import Grid, Picture, Section
from kbench.report.subject import Look, grader
from kbench.runs import parts
from kbench.runs.map_parts import table_part
from kbench.runs.map_results import truth_masks
from kbench.runs.results import Rows, Sendable
from kbench.tasks import SEGMENTATION, exclusive
from kbench.training.fold_context import KEEP

_PANELS = 8  # images of a sheet
_PIXELS = 200  # images whose pixels a confusion matrix counts at most


def sections(look: Look, summary: dict[str, Any]) -> list[Section]:
    """Return the chapters of a dense task.

    Args:
        look: the run.
        summary: what the command returns; `growth`, `classes` (of masks) or `targets` and `deciles` (of numbers) and
            `slices` are added, and `test` with a solution.
    """
    sent = look.oof.sent()
    where = (
        _numbers(look, sent, summary) if isinstance(sent, NumberSet) else _classes(look, cast(MaskSet, sent), summary)
    )
    return [_growth(look, summary), where, _slices(look, summary), _panels(look, sent)]


def _growth(look: Look, summary: dict[str, Any]) -> Section:
    summary["growth"] = look.oof.score["growth"]
    grid = look.grid(summary["growth"], "growth.csv", "gain: what the last one adds to this one, out of fold")
    text = (
        "A snapshot alone and its plain view, the mean of snapshots, the mean over views, and what the post-process "
        "makes of it, where there is one. Folds show on test rows only."
    )
    if not look.options.solution:
        return Section("Snapshots and views", text, [grid])
    summary["test"] = _graded(look, look.oof.judged.fit)
    folds = look.grid(summary["test"], "test.csv", "folds added one by one, graded on the solution")
    return Section("Snapshots, views and folds", text, [grid, folds])


def _graded(look: Look, rule: Rule) -> list[dict[str, Any]]:
    """Return the test score of one fold, two folds, and so on; each is predicted anew and not kept."""
    score, records = grader(look.experiment, look.metric), []
    test = Rows(look.experiment.test, device=look.options.device)
    for count in range(1, len(look.folds) + 1):
        part = table_part(look.run, test, look.folds[:count])
        with files.scratch_folder() as folder:
            names, task = look.experiment.train.target_names, look.run.competition.task
            masks = task in SEGMENTATION
            writing = Writing(folder / "maps.json", part.ids, names, task, part.source(), (), not masks,
                              rule.apply if masks else None)  # fmt: skip
            store = map_store.write(writing, part.rows_again())
            numbers = NumberSet(store.ids, names, task, store.source, store.maps)
            graded = score(store.masks() if masks else numbers)
        name = f"fold {look.folds[0]}" if count == 1 else f"{count} folds"
        records.append({"ensemble": name, "members": len(part.snapshots), "test": graded})
    return records


def _classes(look: Look, masks: MaskSet, summary: dict[str, Any]) -> Section:
    oof = look.oof
    names, truth = oof.table.target_names, truth_masks(look.experiment, oof.table)
    summary["classes"] = segments.class_rows(oof.values, names)
    shown: list[Picture | Grid] = [look.grid(summary["classes"], "classes.csv", "pixels of all images together")]
    if exclusive(oof.table.task, len(names)):
        rows = segments.random_rows(len(oof.table), _PIXELS)
        matrix = segments.pixel_confusion(masks, truth, oof.table, rows.tolist())
        path = draw_confusion(matrix, names, look.place("confusion.png"), normalise=True, unit="pixels")
        shown.append(look.picture(path, f"pixels of {len(rows)} images by true and predicted class"))
        shown.append(look.grid(confused_pairs(matrix, names), "confused.csv", "which classes are taken for which"))
    return Section(
        "Classes", "A class with few pixels costs as much as a large one where the score is their mean.", shown
    )


def _slices(look: Look, summary: dict[str, Any]) -> Section:
    oof = look.oof
    meta = oof.table.meta
    columns = look.options.slices or (() if meta is None else tuple(map(str, meta.columns)))
    summary["slices"], shown = {}, []
    for column in columns:
        if len(slices_of(oof.table, column)[1]) < 2:
            continue
        rows = segments.slice_rows(look.metric, oof.values, oof.table, column, groups=look.groups)
        summary["slices"][column] = rows
        shown.append(look.grid(rows, f"slices-{column}.csv", f"by {column}"))
    return Section("Slices", "A slice whose interval lies below the others is where to look first.", shown)


def _numbers(look: Look, numbers: NumberSet, summary: dict[str, Any]) -> Section:
    oof, truth = look.oof, truth_masks(look.experiment, look.oof.table)
    summary["targets"] = number_maps.target_rows(oof.values, oof.table.target_names)
    rows = segments.random_rows(len(oof.table), _PIXELS).tolist()
    summary["deciles"] = number_maps.decile_rows(numbers, truth, oof.table, rows)
    shown: list[Picture | Grid] = [
        look.grid(summary["targets"], "targets.csv", "pixels of all images together"),
        look.grid(summary["deciles"], "deciles.csv", f"errors by tenth of the truth, of {len(rows)} images"),
    ]
    return Section("Numbers", "Where the bias changes its sign, large values are taken for smaller ones.", shown)


def _panels(look: Look, sent: Sendable) -> Section:
    oof, experiment = look.oof, look.experiment
    cache = experiment.workspace.cache()
    images: Images = parts.opened_images(experiment.competition, experiment.train, cache, what="training")(KEEP)
    places, truth = np.searchsorted(experiment.train.ids, oof.table.ids), truth_masks(experiment, oof.table)
    scores = segments.image_scores(look.metric, oof.values, oof.table)
    shown: list[Picture | Grid] = []
    for name, rows in (
        ("worst", segments.worst_rows(scores, _PANELS, maximise=look.metric.maximise)),
        ("random", segments.random_rows(len(oof.table), _PANELS)),
    ):
        draw: Any = segments.draw_triplets
        what: dict[str, Any] = {"masks": sent, "title": f"{name} images: image, truth, prediction"}
        if isinstance(sent, NumberSet):
            draw = number_maps.draw_numbers
            what = {"numbers": sent, "title": f"{name} images: image, truth, prediction, error"}
        path = draw(
            rows.tolist(), look.place(f"{name}.png"), images=lambda row: images[int(places[row])], truth=truth,
            table=oof.table, scores=scores, **what,
        )  # fmt: skip
        shown.append(look.picture(path, f"{name} images"))
    return Section("Images", "Image, truth and prediction; grey is ignored or unknown.", shown)
