"""The chapters of `kbench report` for segmentations: masks beside their truth, and where they err."""

from __future__ import annotations

from typing import Any

import numpy as np

from kbench import files
from kbench.data.images.cache import Images
from kbench.ensemble.mask_rules import Rule
from kbench.inference import map_store
from kbench.inference.map_store import MaskSet, Writing
from kbench.report import segments
from kbench.report.confusion import confused_pairs, draw_confusion
from kbench.report.page import Grid, Picture, Section
from kbench.report.subject import Look, grader
from kbench.report.tables import slices_of
from kbench.runs import parts
from kbench.runs.blend import untuned_rule
from kbench.runs.out_of_fold import MapsOutOfFold, masks_out_of_fold, truth_masks
from kbench.runs.predict import rows_of_test
from kbench.tasks import exclusive
from kbench.training.fold_context import KEEP

_PANELS = 8  # images of a sheet
_PIXELS = 200  # images whose pixels a confusion matrix counts at most


def sections(look: Look, oof: MapsOutOfFold, found: dict[str, Any]) -> list[Section]:
    """Return the chapters of a segmentation.

    Args:
        look: the run.
        oof: its out-of-fold maps.
        found: what the command returns; `growth`, `classes` and `slices` are added, and `test` with a solution.
    """
    masks = masks_out_of_fold(oof)
    return [
        _growth(look, oof, found),
        _classes(look, oof, masks, found),
        _slices(look, oof, found),
        _panels(look, oof, masks),
    ]


def _growth(look: Look, oof: MapsOutOfFold, found: dict[str, Any]) -> Section:
    found["growth"] = look.oof.score["growth"]
    grid = look.grid(found["growth"], "growth.csv", "gain: what the last one adds to this one, out of fold")
    text = (
        "A snapshot alone and its plain view, the mean of snapshots, the mean over views, and what the post-process "
        "makes of it, where there is one. Folds show on test rows only."
    )
    if not look.options.solution:
        return Section("Snapshots and views", text, [grid])
    rule = untuned_rule(look.setup) if oof.ruled is None else oof.ruled.rule
    found["test"] = _graded(look, rule)
    folds = look.grid(found["test"], "test.csv", "folds added one by one, graded on the solution")
    return Section("Snapshots, views and folds", text, [grid, folds])


def _graded(look: Look, rule: Rule) -> list[dict[str, Any]]:
    """Return the test score of one fold, two folds, and so on; each is predicted anew and not kept."""
    score, records = grader(look.setup, look.metric), []
    for count in range(1, len(look.folds) + 1):
        part = rows_of_test(look.setup, look.paths, look.identity, look.folds[:count], look.options.device)
        with files.scratch_folder() as folder:
            names, source = look.setup.train.target_names, part.source()
            writing = Writing(folder / "masks.json", part.ids, names, look.setup.competition.task, source, (), False,
                              rule.apply)  # fmt: skip
            test = score(map_store.write(writing, part.rows_again()).masks())
        name = f"fold {look.folds[0]}" if count == 1 else f"{count} folds"
        records.append({"ensemble": name, "members": len(part.members), "test": test})
    return records


def _classes(look: Look, oof: MapsOutOfFold, masks: MaskSet, found: dict[str, Any]) -> Section:
    names, truth = oof.table.target_names, truth_masks(look.setup, oof.table)
    found["classes"] = segments.class_rows(oof.worth, names)
    shown: list[Picture | Grid] = [look.grid(found["classes"], "classes.csv", "pixels of all images together")]
    if exclusive(oof.table.task, len(names)):
        rows = segments.random_rows(len(oof.table), _PIXELS)
        matrix = segments.pixel_confusion(masks, truth, oof.table, rows.tolist())
        path = draw_confusion(matrix, names, look.place("confusion.png"), normalise=True, unit="pixels")
        shown.append(look.picture(path, f"pixels of {len(rows)} images by true and predicted class"))
        shown.append(look.grid(confused_pairs(matrix, names), "confused.csv", "which classes are taken for which"))
    return Section(
        "Classes", "A class with few pixels costs as much as a large one where the score is their mean.", shown
    )


def _slices(look: Look, oof: MapsOutOfFold, found: dict[str, Any]) -> Section:
    meta = oof.table.meta
    columns = look.options.slices or (() if meta is None else tuple(map(str, meta.columns)))
    found["slices"], shown = {}, []
    for column in columns:
        if len(slices_of(oof.table, column)[1]) < 2:
            continue
        rows = segments.slice_rows(look.metric, oof.worth, oof.table, column, groups=look.groups)
        found["slices"][column] = rows
        shown.append(look.grid(rows, f"slices-{column}.csv", f"by {column}"))
    return Section("Slices", "A slice whose interval lies below the others is where to look first.", shown)


def _panels(look: Look, oof: MapsOutOfFold, masks: MaskSet) -> Section:
    setup = look.setup
    images: Images = parts.opened_images(setup.competition, setup.train, setup.workspace.cache(), what="training")(KEEP)
    places, truth = np.searchsorted(setup.train.ids, oof.table.ids), truth_masks(setup, oof.table)
    scores = segments.image_scores(look.metric, oof.worth, oof.table)
    shown: list[Picture | Grid] = []
    for name, rows in (
        ("worst", segments.worst_rows(scores, _PANELS, maximise=look.metric.maximise)),
        ("random", segments.random_rows(len(oof.table), _PANELS)),
    ):
        path = segments.draw_triplets(
            rows.tolist(), look.place(f"{name}.png"), images=lambda row: images[int(places[row])], truth=truth,
            masks=masks, table=oof.table, scores=scores, title=f"{name} images: image, truth, prediction",
        )  # fmt: skip
        shown.append(look.picture(path, f"{name} images"))
    return Section("Images", "Image, truth and prediction; grey is ignored.", shown)
