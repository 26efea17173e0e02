"""`kbench report`: what a run learned and where it errs, as pictures, CSVs and one page.

The page is a list of sections, each made by one function that draws its pictures. To add a chapter, write such a
function, here or in `report/chapters_rows.py`, and name it in `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from kbench import files
from kbench.config.section import Component
from kbench.ensemble.average import with_every_member
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.nested import Recipe, decided_by_part, evaluate, gains
from kbench.errors import ConfigError
from kbench.pictures import curves
from kbench.pictures.curves import draw_range_tests, draw_training, read_epochs
from kbench.report import chapters_maps, chapters_rows
from kbench.report.page import Fact, Grid, Page, Picture, Section, render, shown
from kbench.report.subject import Look, ReportOptions, grader
from kbench.runs.experiment import Experiment
from kbench.runs.opening import open_run
from kbench.runs.rates import found_rates
from kbench.runs.results import Rows, Share, decision_of
from kbench.runs.row_parts import member_predictions
from kbench.runs.row_results import out_of_fold_members
from kbench.workspace import Choice


def report(choice: Choice, options: ReportOptions) -> dict[str, Any]:
    """Draw everything there is to see of a run and write its page.

    Args:
        choice: competition, experiment and run.
        options: what is shown.

    Returns:
        `run`, `page`, `files` written, the `score`, the `rates` that folds found, and the records of `members`,
        `growth`, `classes` and `slices`.

    Raises:
        ConfigError: there is no such run, or a column that is no metadata.
        PredictionError: no fold is trained.
    """
    run = open_run(choice)
    _check_columns(run.experiment, options.slices)
    oof = run.out_of_fold(device=options.device)
    look = Look(run, oof, options, [])
    summary: dict[str, Any] = {"run": run.name, "score": oof.score}
    if run.table.masks is not None:
        first, *others = chapters_maps.sections(look, summary)
    else:
        first, *others = [
            _members(look, summary),
            chapters_rows.confusions(look),
            chapters_rows.classes(look, summary),
            chapters_rows.slices(look, summary),
            chapters_rows.sheets(look),
        ]
    page = files.write_text(run.paths.report, render(_page(look, [first, _training(look, summary), *others])))
    return {**summary, "page": str(page), "files": look.written}


def _check_columns(experiment: Experiment, columns: Sequence[str]) -> None:
    meta = experiment.train.meta
    known = ["id"] if meta is None else ["id", *map(str, meta.columns)]
    for name in columns:
        if name not in [*known, "target"]:
            raise ConfigError(
                f"--slice '{name}' is no metadata column", f"one of {', '.join(known)}",
                f"add '{name}' to data.metadata in the YAML if the CSV has it",
            )  # fmt: skip


def _page(look: Look, sections: list[Section]) -> Page:
    score, competition = look.oof.score, look.experiment.competition
    low, high = shown(score["low"]), shown(score["high"])
    facts = [
        Fact(
            f"{score['metric']}, out of fold", shown(score["score"]), f"{score['level']:.0%} interval {low} to {high}"
        ),
        Fact("spread of folds", shown(score["spread"]), f"{len(score['folds'])} of {look.experiment.folds.n} folds"),
        Fact("members", str(score["members"]), f"{competition.ensemble.mean} mean, views: {competition.tta.name}"),
        Fact("rows", f"{score['rows']:,}", f"{len(look.oof.table.target_names):,} targets"),
    ]
    missing = score["missing"]
    warnings = (
        [f"Folds {', '.join(map(str, missing))} are not trained; every number is of the others."] if missing else []
    )
    warnings += [f"{text[:1].upper()}{text[1:]}." for text in score["doubts"]]
    title = f"{competition.title or competition.name}: {look.run.name}"
    better = "larger is better" if score["maximise"] else "smaller is better"
    return Page(title, f"{competition.experiment}, {score['metric']} ({better})", facts, sections, warnings)


# -- what the ensemble is made of ----------------------------------------------------------------------------------


def _members(look: Look, summary: dict[str, Any]) -> Section:
    shown_parts: list[Picture | Grid] = []
    if look.run.foreign:
        summary["members"] = [{"fold": int(fold), "mean": value} for fold, value in look.oof.score["folds"].items()]
        shown_parts.append(look.grid(summary["members"], "members.csv", "score per fold"))
        return Section(
            "Folds", "Made of somebody else's predictions: there are no snapshots to look into.", shown_parts
        )
    mean = look.experiment.competition.ensemble.mean
    members = with_every_member(look.oof.result.by_fold, mean=mean)
    judge = curves.Judge(look.metric, look.oof.table, look.groups, mean, partial(_decided, look))
    summary["members"] = look.oof.score["table"]
    summary["growth"] = curves.growing(judge, members)
    summary["adds"] = _adds(look)
    caption = "score of each snapshot alone and of their mean"
    if look.experiment.competition.ensemble.decision is not None:
        caption += ", decided by what the other folds found; at_best: by what the fold itself would like best"
    shown_parts.append(look.grid(summary["members"], "members.csv", caption))
    if summary["growth"]:
        path = curves.draw_growth(summary["growth"], look.metric, look.place("growth.png"))
        shown_parts.append(look.picture(path, "the ensemble growing from its last snapshot"))
        shown_parts.append(look.grid(summary["growth"], "growth.csv", "the same as numbers"))
    if summary["adds"]:
        shown_parts.append(look.grid(summary["adds"], "adds.csv", "what each snapshot adds to the mean of the others"))
    if look.options.views and summary["growth"]:
        plain = out_of_fold_members(
            look.run, look.folds, device=look.options.device, part="oof-plain", views=Component(name="none")
        )  # fmt: skip
        summary["views"] = curves.view_gains(judge, with_every_member(plain, mean=mean), members)
        shown_parts.append(look.grid(summary["views"], "views.csv", "what snapshots and views add, step by step"))
    if look.options.solution:
        summary["test"] = _graded(look)
        shown_parts.append(look.grid(summary["test"], "test.csv", "folds added one by one, graded on the solution"))
    text = (
        "Out of fold: every row is predicted by models that did not train on it. A member whose gain has an interval "
        "around 0 may as well be left out. What more folds add shows only on test rows."
    )
    return Section("Folds and members", text, shown_parts)


def _decided(look: Look, values: np.ndarray) -> np.ndarray:
    """Return predictions of all rows, decided as the score's are."""
    recipe = Recipe(plain_mean(), decision_of(look.experiment))
    return decided_by_part(recipe, look.oof.judged.outcome, values, np.arange(len(look.oof.table)))


def _adds(look: Look) -> list[dict[str, Any]]:
    """Return what each snapshot adds to the mean of a run's snapshots, as `gains` does; nothing for a single one."""
    share, recipe = Share(look.run, oof=look.oof), Recipe(plain_mean(), decision_of(look.experiment))
    stack = look.run.results.run_stack(look.experiment, [share], look.oof.table)
    if stack is None or len(stack.names) < 2:
        return []
    records = gains(stack, recipe, evaluate(stack, recipe))
    return [{**record, "member": record["member"].rpartition("/")[2]} for record in records]


def _graded(look: Look) -> list[dict[str, Any]]:
    """Return the test score of one fold, two folds, and so on, from the competition's local solution."""
    score, experiment = grader(look.experiment, look.metric), look.experiment
    test = Rows(experiment.test, device=look.options.device)
    first = member_predictions(look.run, test, look.folds)[look.folds[0]]
    steps = [(f"last snapshot of fold {look.folds[0]}", look.folds[:1], {list(first)[-1]: 1.0})]
    for count in range(1, len(look.folds) + 1):
        steps.append((f"fold {look.folds[0]}" if count == 1 else f"{count} folds", look.folds[:count], {}))
    records = []
    for name, folds, only in steps:
        share = Share(look.run, places=tuple(folds))
        weights = {f"{look.run.name}/{member}": weight for member, weight in only.items()} or None
        result = look.run.results.predict([share], test, mean=experiment.competition.ensemble.mean, weights=weights)
        graded = score(look.run.results.sent(experiment, result, look.oof.judged.fit))
        records.append({"ensemble": name, "members": len(result.members), "test": graded})
    return records


# -- how it was trained --------------------------------------------------------------------------------------------


def _training(look: Look, summary: dict[str, Any]) -> Section:
    places = {f"fold {fold}": look.run.paths.fold(fold) for fold in look.folds}
    shown_parts: list[Picture | Grid] = []
    epochs = {name: logged for name, place in places.items() if (logged := read_epochs(place))}
    if epochs:
        path = draw_training(epochs, look.place("training.png"), metric=look.metric.name)
        shown_parts.append(look.picture(path))
    for stage in look.experiment.competition.stages:
        curves = {name: place.lr_find(stage) for name, place in places.items() if place.lr_find(stage).is_file()}
        if curves:
            path = draw_range_tests(curves, look.place(f"lr-find-{stage}.png"))
            shown_parts.append(look.picture(path, f"stage {stage}: learning-rate range test"))
    summary["rates"] = rates = found_rates(look.run)
    if rates:
        rows = [
            {"stage": name, **{f"fold {fold}": rate for fold, rate in known["folds"].items()}, "mean": known["mean"],
             "spread": known["spread"]}
            for name, known in rates.items()
        ]  # fmt: skip
        caption = "learning rates the folds found, their geometric mean, and the largest over the smallest"
        shown_parts.append(look.grid(rows, "rates.csv", caption))
    text = "Folds that learn alike can be trusted alike; one that stands out has odd rows or a bad rate."
    return Section("Training", text, shown_parts)
