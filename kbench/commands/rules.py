"""The post-process of a dense task: built from the YAML, its tuned numbers found on out-of-fold maps, scored nested."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kbench import console, files, registry
from kbench.commands import parts
from kbench.commands.score import OutOfFold, out_of_fold, require_folds
from kbench.commands.score_maps import (
    MapsOutOfFold,
    OofMaps,
    Ruled,
    fold_scores,
    growth,
    maps_out_of_fold,
    readings_of,
    ruled,
    score_worth,
    truth_masks,
)
from kbench.commands.setup import Setup
from kbench.ensemble.postprocess import Rule
from kbench.ensemble.tuning import neutral, tune, tunes
from kbench.tasks import is_dense
from kbench.workspace import RunPaths


def is_plain(setup: Setup) -> bool:
    """Return whether masks are taken from maps as they are."""
    return setup.competition.maps.postprocess.name == "none"


def untuned_rule(setup: Setup) -> Rule:
    """Return the rule with what is to be tuned changing nothing, for trials before there are out-of-fold maps."""
    return _built(setup, neutral(setup.competition.maps.postprocess.params))


def apply_rule(setup: Setup, oof: OofMaps) -> Ruled:
    """Return the post-process of the YAML, tuned where it says so, with its out-of-fold score."""
    params = setup.competition.maps.postprocess.params
    folds = np.unique(oof.fold_of).tolist()
    if not tunes(params):
        rule = _built(setup, params)
        worth = ruled(setup, oof, rule)
        return Ruled(rule, params, score_worth(setup, oof.table, worth), worth, dict.fromkeys(folds, rule))
    metric = parts.build_metric(setup.competition)
    with console.bar("tuning the post-process") as advance:
        outcome = tune(
            oof.read, truth_masks(setup, oof.table), fold_of=oof.fold_of, metric=metric, table=oof.table,
            params=params, groups=setup.groups(oof.table), advance=advance,
        )  # fmt: skip
    by_fold = {fold: _built(setup, outcome.by_fold.get(fold, outcome.params)) for fold in folds}
    score = {**score_worth(setup, oof.table, outcome.counts), "postprocess": outcome.as_json()}
    if outcome.nested is not None:  # with one fold there is no honest score of what was found on it
        sign = 1 if metric.maximise else -1
        score |= {"plain": asdict(outcome.chosen), "optimism": sign * (outcome.chosen.value - outcome.nested)}
    return Ruled(_built(setup, outcome.params), outcome.params, score, outcome.counts, by_fold)


def any_out_of_fold(
    setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto"
) -> OutOfFold | MapsOutOfFold:
    """Return the out-of-fold rows or maps of a run's trained folds, whatever its task; predicts what is missing.

    What is worth and scored is what is sent: after the post-process where there is one. `score.json` is written.
    """
    if not is_dense(setup.competition.task):
        return out_of_fold(setup, paths, identity, device=device)
    oof = maps_out_of_fold(setup, paths, identity, require_folds(paths, identity), device=device)
    if not is_plain(setup):
        oof = _after_rule(setup, oof)
    files.write_json(paths.score, oof.score)
    return oof


def _after_rule(setup: Setup, oof: MapsOutOfFold) -> MapsOutOfFold:
    """Return the same maps, worth what the post-process makes of them."""
    found = apply_rule(setup, oof.maps())
    assert found.worth is not None, "there are out-of-fold maps"
    score = oof.score | fold_scores(setup, oof.table, oof.fold_of, found.worth) | found.score
    score["growth"] = growth(setup, oof.table, {**readings_of(oof), "mean, post-processed": found.worth})
    return replace(oof, worth=found.worth, score=score, ruled=found)


def score_run(setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto") -> dict[str, Any]:
    """Return the out-of-fold score of a run of any task, as `score.json` holds it."""
    return any_out_of_fold(setup, paths, identity, device=device).score


def _built(setup: Setup, params: dict[str, Any]) -> Rule:
    part = setup.competition.maps.postprocess
    rule: Rule = registry.build(
        "postprocess", part.name, {key: value for key, value in params.items() if key != "grid"},
        _names=setup.train.target_names, _task=setup.competition.task,
    )  # fmt: skip
    return replace(rule, source={"name": part.name, "params": params})
