"""Learning rates of a run: what the folds found, how far apart they are, and when a rate has become stale."""

from __future__ import annotations

import math
from typing import Any

from kbench.config.competition import Competition
from kbench.config.reading import load_competition
from kbench.config.stage import Stage
from kbench.errors import KbenchError
from kbench.registry import build
from kbench.runs.experiment import Experiment
from kbench.runs.run import Run

_APART = 3.0  # folds whose rates differ by more than this factor deserve a word


def on_activations(competition: Competition) -> bool:
    """Return whether every stage trains on precomputed activations: folds take seconds, processes would cost more."""
    return all(stage.precompute for stage in competition.stages.values())


def plan_rows(competition: Competition) -> list[dict[str, Any]]:
    """Return the recipe as it stands after every default, one record per stage, for a table."""
    rows = []
    for name, stage in competition.stages.items():
        schedule = build("schedule", stage.schedule.name, stage.schedule.params, 1)
        rate = stage.lr if stage.lr_from_stage is None else f"of {stage.lr_from_stage}"
        rows.append({
            "stage": name, "learns": stage.groups, "on": "activations" if stage.precompute else "images",
            "size": stage.size or competition.input.size, "epochs": schedule.epochs, "cycles": len(schedule.cycles),
            "lr": rate, "apart": stage.lr_decay, "batch": stage.batch_size * stage.accumulate,
            "augment": stage.augment.name, "keeps": ", ".join(stage.keep),
        })  # fmt: skip
    return rows


def found_rates(run: Run) -> dict[str, dict[str, Any]]:
    """Return the rates the folds found, by stage: `folds`, `mean` (geometric) and `spread`, largest over smallest."""
    plans = {
        fold: run.plan(fold) for fold in range(run.experiment.folds.n) if run.paths.fold(fold).plan.is_file()
    }  # fmt: skip
    by_stage = {}
    for name, stage in run.competition.stages.items():
        rates = {str(fold): float(plan.get(f"lr/{name}")) for fold, plan in plans.items() if plan.get(f"lr/{name}")}
        if stage.lr == "find" and rates:
            mean = math.exp(sum(map(math.log, rates.values())) / len(rates))
            by_stage[name] = {"folds": rates, "mean": mean, "spread": max(rates.values()) / min(rates.values())}
    return by_stage


def rate_notes(rates_by_stage: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line per stage of `found_rates` whose rate two folds or more know."""
    notes = []
    for name, known in rates_by_stage.items():
        rates = list(known["folds"].values())
        if len(rates) > 1:
            hint = f"; `lr_from_fold: 0` shares one, `lr: {known['mean']:.2g}` fixes it"
            notes.append(
                f"stage {name}: the folds found rates from {min(rates):.3g} to {max(rates):.3g}, {known['spread']:.1f} "
                f"times apart, geometric mean {known['mean']:.3g}{hint if known['spread'] > _APART else ''}"
            )
    return notes


def batch_warnings(experiment: Experiment) -> list[str]:
    """Return where a rate was chosen for another batch size than it is used with (F-33)."""
    return [*_between_stages(experiment.competition), *_against_baseline(experiment)]


def _between_stages(competition: Competition) -> list[str]:
    stages = competition.stages
    return [
        f"stages.{name} takes the rate stage {stage.lr_from_stage} found with {_batch(stages[stage.lr_from_stage])} "
        f"images per update, and makes updates of {_batch(stage)}: `kbench lr-find --stage {name}` tells its own"
        for name, stage in stages.items()
        if stage.lr_from_stage is not None and _batch(stage) != _batch(stages[stage.lr_from_stage])
    ]


def _against_baseline(experiment: Experiment) -> list[str]:
    competition, choice = experiment.competition, experiment.choice
    if not choice.experiment and not choice.assignments:
        return []
    try:
        baseline = load_competition(experiment.workspace, competition.name)
    except KbenchError:
        return []  # an experiment may mend what is wrong in its baseline; there is nothing to compare with
    return [
        f"stages.{name} makes updates of {_batch(stage)} images, {_batch(baseline.stages[name])} in the baseline, with "
        f"the same `lr: {stage.lr}`: run `kbench lr-find --stage {name}` again"
        for name, stage in competition.stages.items()
        if name in baseline.stages
        and stage.lr != "find"
        and stage.lr == baseline.stages[name].lr
        and _batch(stage) != _batch(baseline.stages[name])
    ]


def _batch(stage: Stage) -> int:
    return stage.batch_size * stage.accumulate
