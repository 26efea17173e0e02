"""`kbench inspect`: what there is to know before training: rows, balance, sizes, folds, rates, augmented images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from kbench import console, files
from kbench.data.dataset import Draw, cut
from kbench.data.folds.folds import describe
from kbench.data.table.table import Table
from kbench.data.table.verify import ImageReport, dtype_problems, look_at_images
from kbench.data.whole_images import class_pixels
from kbench.machine import cores
from kbench.pictures import balance, number_maps
from kbench.pictures.curves import StageRates, draw_stages
from kbench.pictures.segments import as_mask, class_colours, paint
from kbench.pictures.sheets import Group, Tile, draw_sheet
from kbench.report.page import Fact, Grid, Page, Picture, Section, render
from kbench.runs import parts
from kbench.runs.experiment import Experiment, open_experiment, opening_of
from kbench.runs.shown_images import epoch_draws, epoch_rows, file_images, label_text, shown_images, stage_named
from kbench.tasks import DENSE, SEGMENTATION, exclusive
from kbench.training.fold_context import KEEP
from kbench.training.schedules import curve
from kbench.training.stage_plan import StagePlan
from kbench.workspace import Choice

_AUGMENTED = 5  # draws shown of each sample
_TRIED = 1000  # rows among which one of every class is looked for


def inspect(choice: Choice, *, fold: int = 0, samples: int = 6) -> dict[str, Any]:
    """Look at a competition's data and recipe before training; write pictures and a page of them.

    Args:
        choice: competition and experiment.
        fold: whose training rows the learning rates and augmented images are shown for.
        samples: images per sheet of augmentations.

    Returns:
        `folder`, `page`, `files` written, and records: `rows` (of each split), `balance`, `sizes`, `missing`, `folds`
        and `stages`; `warnings` are texts.

    Raises:
        FoldError: there is no such fold.
    """
    experiment = open_experiment(choice)
    folder = experiment.workspace.inspection(experiment.competition.name)
    experiment.folds.valid(fold)  # says so when there is no such fold
    summary: dict[str, Any] = {
        "competition": experiment.competition.name,
        "folder": str(folder),
        "files": [],
        "warnings": [],
    }
    sections = [
        _rows(experiment, summary),
        _dense(experiment, folder, summary)
        if experiment.competition.task in DENSE
        else _targets(experiment.train, folder, summary),
        _folds(experiment, summary),
        _rates(experiment, fold, folder, summary),
        _augmentations(experiment, fold, samples, folder, summary),
    ]
    page = _page(experiment, sections, summary)
    summary["page"] = str(files.write_text(folder / "inspect.html", render(page)))
    return summary


def _drawn(summary: dict[str, Any], path: Path, caption: str = "") -> Picture:
    summary["files"].append(str(path))
    return Picture(path.name, caption)


def _tables(experiment: Experiment) -> dict[str, Table]:
    """Return the splits there are."""
    tables = {"train": experiment.train}
    if experiment.competition.data.test is not None:
        tables["test"] = experiment.test
    return tables


def _rows(experiment: Experiment, summary: dict[str, Any]) -> Section:
    tables = _tables(experiment)
    looks = {split: _look(experiment, table, split) for split, table in tables.items()}
    summary["rows"] = [
        {"split": split, "rows": len(table), "images": sum(map(len, table.images)),
         "sizes": len(looks[split].sizes), "unreadable": len(looks[split].rows),
         "targets": len(table.target_names) if split == "train" else None}
        for split, table in tables.items()
    ]  # fmt: skip
    sizes = {split: look.sizes for split, look in looks.items() if look.sizes}
    summary["sizes"] = balance.size_table(sizes)
    summary["missing"] = [
        {"split": split, **row} for split, table in tables.items() for row in balance.missing_table(table)
    ]
    for split, look in looks.items():
        for reason, paths in look.reasons.items():
            summary["warnings"].append(
                f"{split}: {len(paths):,} {reason}, such as '{paths[0]}'; `kbench check --images`"
            )
        summary["warnings"] += [f"{split}: {text}" for text in look.warnings()]
    summary["warnings"] += [str(problem) for problem in dtype_problems(looks)]
    summary["warnings"] += _size_warnings(sizes)
    shown: list[Picture | Grid] = [Grid(summary["rows"], "rows")]
    if summary["missing"]:
        shown.append(Grid(summary["missing"], "missing values"))
    if sizes:
        path = balance.draw_sizes(sizes, experiment.workspace.inspection(experiment.competition.name) / "sizes.png")
        shown += [_drawn(summary, path, "image sizes"), Grid(summary["sizes"], "the commonest sizes")]
    return Section("Rows and images", "Training and test images should look alike.", shown)


def _look(experiment: Experiment, table: Table, split: str) -> ImageReport:
    with console.bar(f"looking at {split} images") as advance:
        return look_at_images(
            table, jobs=2 * cores(), opening=opening_of(experiment.competition),
            progress=lambda what, done, total: advance(done, total),
        )  # fmt: skip


def _size_warnings(sizes: dict[str, Counter[tuple[int, int, int]]]) -> list[str]:
    """Return what differs between training and test images."""
    if len(sizes) < 2:
        return []
    channels = {split: sorted({size[2] for size in of_split}) for split, of_split in sizes.items()}
    if channels["train"] != channels["test"]:
        return [f"training images have {channels['train']} channels, test images {channels['test']}"]
    return []


def _targets(table: Table, folder: Path, summary: dict[str, Any]) -> Section:
    summary["balance"] = balance.balance_table(table)
    shown: list[Picture | Grid] = []
    if table.targets is not None:
        shown.append(_drawn(summary, balance.draw_balance(table, folder / "balance.png")))
        if table.task == "multi_label":
            matrix = balance.cooccurrence(table.targets)
            shown.append(
                _drawn(summary, balance.draw_cooccurrence(matrix, table.target_names, folder / "together.png"))
            )
    if summary["balance"]:
        shown.append(Grid(summary["balance"], "targets"))
    return Section("Targets", "What is rare is learned last: a sampler or class weights may help.", shown)


def _masks(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> Section:
    summary["balance"] = _mask_balance(experiment)
    picture = _drawn(summary, _draw_masks(experiment, folder / "masks.png"))
    text = "A class of few pixels is learned last: class weights, a loss of regions or crops around it may help."
    return Section(
        "Masks", text, [picture, Grid(summary["balance"], "classes: images that have them, share of pixels")]
    )


def _dense(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> Section:
    masked = experiment.competition.task in SEGMENTATION
    return (_masks if masked else _numbers)(experiment, folder, summary)


def _numbers(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> Section:
    """Draw some images beside their targets; the record per target is kept as `balance`."""
    table, cache = experiment.train, experiment.workspace.cache()
    masks = parts.masks_of(experiment.competition, table, cache, what="training")
    assert masks is not None, "a dense task has masks"
    images, truth = parts.opened_images(experiment.competition, table, cache, what="training")(KEEP), masks(KEEP)
    summary["balance"] = number_maps.truth_rows(truth.__getitem__, _even(table, _COUNTED), table.target_names)
    path = number_maps.draw_numbers(
        _even(table, _SHOWN), folder / "targets.png", images=images.__getitem__, truth=truth.__getitem__, table=table,
        title="images and their targets; grey is unknown",
    )  # fmt: skip
    text = "Targets that few pixels know, or whose ends lie far from the mean, are learned last."
    return Section("Targets", text, [_drawn(summary, path), Grid(summary["balance"], "targets of up to 500 images")])


def _even(table: Table, count: int) -> list[int]:
    """Return the numbers of some rows, evenly chosen."""
    return sorted({int(row) for row in np.linspace(0, len(table) - 1, min(count, len(table)))})


def _folds(experiment: Experiment, summary: dict[str, Any]) -> Section:
    records = describe(experiment.folds, experiment.train)
    summary["folds"] = records
    summary["warnings"] += experiment.folds.manifest.get("warnings", [])
    plain = [{key: value for key, value in record.items() if not isinstance(value, dict)} for record in records]
    shown: list[Picture | Grid] = [
        Grid(plain, f"strategy {experiment.folds.manifest['strategy']}, hash {experiment.folds.hash}")
    ]
    for key in ("strata", "targets"):
        if any(key in record for record in records) and len(records[0].get(key, {})) <= 30:
            rows = [{"fold": record["fold"], **record.get(key, {})} for record in records]
            shown.append(Grid(rows, f"{key} per fold"))
    return Section("Folds", "Every fold should hold the same mixture; otherwise scores of folds differ by it.", shown)


def _rates(experiment: Experiment, fold: int, folder: Path, summary: dict[str, Any]) -> Section:
    plans = parts.build_stages(experiment.competition)
    images = [len(epoch_rows(experiment, plan, fold)) for plan in plans]
    rates = [_stage_rates(plan, count) for plan, count in zip(plans, images, strict=True)]
    summary["stages"] = [
        _stage_row(plan, drawn, count) for plan, drawn, count in zip(plans, rates, images, strict=True)
    ]
    picture = _drawn(summary, draw_stages(rates, folder / "plan.png"), f"learning rates of fold {fold}")
    text = "Schedules are known before training; a rate that is still to be found is drawn relative to itself."
    return Section("Recipe", text, [picture, Grid(summary["stages"], "stages")])


def _stage_rates(plan: StagePlan, images: int) -> StageRates:
    stage = plan.stage
    schedule = plan.schedule(updates_per_epoch(images, stage.batch_size, stage.accumulate))
    tops = [1.0] if isinstance(stage.lr, str) else [float(value) for value in reversed(_values(stage.lr))]
    notes = ["follows the validation scores"] if plan.adaptive else []
    if stage.lr_decay > 1:
        notes.append(f"each earlier layer group: 1/{stage.lr_decay:g}")
    return StageRates(
        name=plan.name, rates=[curve(schedule, top) for top in tops], epochs=schedule.epochs,
        relative=stage.lr == "find", cycle_ends=[cycle.last for cycle in schedule.cycles],
        kept="cycles" in plan.keep, note=", ".join(notes),
    )  # fmt: skip


def updates_per_epoch(images: int, batch_size: int, accumulate: int) -> int:
    """Return the updates of an epoch, its batches cut as training cuts them."""
    return -(-len(cut(images, batch_size, Draw, lone=False)) // accumulate)


def _stage_row(plan: StagePlan, rates: StageRates, images: int) -> dict[str, Any]:
    stage = plan.stage
    lr = stage.lr if isinstance(stage.lr, str) else " ".join(f"{value:g}" for value in _values(stage.lr))
    return {
        "stage": plan.name, "size": f"{plan.size[0]} x {plan.size[1]}", "groups": str(stage.groups), "lr": lr,
        "schedule": stage.schedule.name, "epochs": rates.epochs, "updates": rates.updates, "images_per_epoch": images,
        "batch": stage.batch_size * stage.accumulate, "augment": stage.augment.name, "rows": stage.subset,
        "members": len(rates.cycle_ends) * rates.kept + len(plan.keep - {"cycles"}),
    }  # fmt: skip


def _values(lr: Any) -> list[float]:
    return [lr] if isinstance(lr, int | float) else list(lr)


def _augmentations(experiment: Experiment, fold: int, samples: int, folder: Path, summary: dict[str, Any]) -> Section:
    """Draw one sheet per stage that shows images differently: the file, how it is judged, and a few draws."""
    shown: list[Picture | Grid] = []
    known: list[Any] = []
    for name, stage in experiment.competition.stages.items():
        looks = (stage.size, stage.crop, stage.augment)
        if looks in known:
            continue
        known.append(looks)
        path = folder / f"samples-{name}.png"
        groups = _before_and_after(experiment, stage_named(experiment.competition, name), fold, samples)
        title = f"stage {name}: the file, how it is judged, how it is trained on"
        draw_sheet(groups, path, title=title, across=2 + _AUGMENTED, side=110)
        shown.append(_drawn(summary, path, f"stage {name}"))
    return Section("Augmentation", "A person should still name every image; mixup and cutmix are not shown.", shown)


def _before_and_after(experiment: Experiment, plan: StagePlan, fold: int, samples: int) -> list[Group]:
    table, competition = experiment.train, experiment.competition
    draws = _spread(epoch_draws(experiment, plan, fold, _TRIED), table, samples)
    whole = file_images(competition, table, np.array([draw.row for draw in draws]))
    judged = shown_images(competition, table, [Draw(draw.row) for draw in draws], plan.valid_show)
    groups = []
    for place, draw in enumerate(draws):
        again = [Draw(draw.row, (*draw.key, number)) for number in range(_AUGMENTED)]
        image = whole[place]
        lines: tuple[str, ...] = (str(table.ids[draw.row]), f"{image.shape[0]} x {image.shape[1]}")
        if label := label_text(table, draw.row):
            lines = (*lines, label)
        tiles = [Tile(image, lines), Tile(judged[place], ("judged",))]
        tiles += [Tile(shown, (f"draw {number + 1}",))
                  for number, shown in enumerate(shown_images(competition, table, again, plan.show))]  # fmt: skip
        groups.append(Group("", tiles))
    return groups


def _spread(draws: list[Draw], table: Table, count: int) -> list[Draw]:
    """Return the first draws, one of every class before a second of any."""
    targets = table.targets
    if targets is None or targets.ndim != 1:
        return draws[:count]
    seen: Counter[int] = Counter()
    turns = []
    for place, draw in enumerate(draws):
        turns.append((seen[int(targets[draw.row])], place))
        seen[int(targets[draw.row])] += 1
    return [draws[place] for _, place in sorted(turns)[:count]]


def _page(experiment: Experiment, sections: list[Section], summary: dict[str, Any]) -> Page:
    competition = experiment.competition
    facts = [
        *(Fact(f"{row['split']} rows", f"{row['rows']:,}", f"{row['images']:,} images") for row in summary["rows"]),
        Fact("task", competition.task.replace("_", " "), f"{len(experiment.train.target_names):,} targets"),
        Fact("folds", str(experiment.folds.n), experiment.folds.manifest["strategy"]),
        Fact("model", competition.model.backbone or competition.model.name, f"{len(competition.stages)} stages"),
        Fact("metric", competition.metric.name),
    ]
    subtitle = f"{competition.experiment} before training"
    return Page(competition.title or competition.name, subtitle, facts, sections, summary["warnings"])


_COUNTED = 500  # masks at most
_SHOWN = 8


def _mask_balance(experiment: Experiment) -> list[dict[str, Any]]:
    """Return one record per class: `class`, `images` that have it and their `share`, `pixels` (share of what is known).

    Up to 500 masks, evenly chosen, are counted.
    """
    table, cache = experiment.train, experiment.workspace.cache()
    masks = parts.masks_of(experiment.competition, table, cache, what="training")
    assert masks is not None, "a segmentation has masks"
    names, opened = table.target_names, masks(KEEP)
    rows = np.array(_even(table, _COUNTED))
    counted = [class_pixels(opened, rows[place : place + 1], len(names), table.task) for place in range(len(rows))]
    pixels = np.stack([counts for counts, _ in counted])  # [n, K]
    known = sum(total for _, total in counted)
    return [
        {"class": name, "images": int((pixels[:, k] > 0).sum()), "share": float((pixels[:, k] > 0).mean()),
         "pixels": float(pixels[:, k].sum() / max(known, 1))}
        for k, name in enumerate(names)
    ]  # fmt: skip


def _draw_masks(experiment: Experiment, path: Path) -> Path:
    """Draw images beside their masks, evenly chosen; return the picture."""
    table, cache, competition = experiment.train, experiment.workspace.cache(), experiment.competition
    masks = parts.masks_of(competition, table, cache, what="training")
    assert masks is not None, "a segmentation has masks"
    images, truth = parts.opened_images(competition, table, cache, what="training")(KEEP), masks(KEEP)
    colours, index = class_colours(len(table.target_names)), exclusive(table.task, len(table.target_names))
    groups = []
    for row in _even(table, _SHOWN):
        image, mask = images[row], as_mask(truth[row], index=index)
        tiles = [Tile(image, (str(table.ids[row]),)), Tile(paint(mask, colours, image), ("mask",))]
        groups.append(Group("", tiles))
    return draw_sheet(groups, path, title="images and their masks; grey is ignored", across=2, side=220)
