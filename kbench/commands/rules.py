"""The post-process of a dense task: built from the YAML, its tuned numbers found on out-of-fold maps, scored nested."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kbench import console, files, registry
from kbench.commands import parts
from kbench.commands.score import OutOfFold, out_of_fold, require_folds
from kbench.commands.score_maps import (
    MapsOutOfFold,
    OofMaps,
    groups_of,
    maps_out_of_fold,
    ruled,
    score_worth,
    truth_masks,
)
from kbench.commands.setup import Setup
from kbench.ensemble.postprocess import Rule
from kbench.ensemble.tuning import neutral, tune, tunes
from kbench.tasks import is_dense
from kbench.workspace import RunPaths


@dataclass(frozen=True)
class Ruled:
    """A rule and what it is worth.

    Attributes:
        rule: for what is sent.
        params: its parameters, numbers only.
        score: metric, score and interval out of fold; with tuned numbers the nested ones, and beside them `plain` (on
            the rows they were found on), `optimism` and `postprocess` (what was found and gained).
    """

    rule: Rule
    params: dict[str, Any]
    score: dict[str, Any]


def is_plain(setup: Setup) -> bool:
    """Return whether masks are taken from maps as they are."""
    return setup.competition.maps.postprocess.name == "none"


def untuned_rule(setup: Setup) -> Rule:
    """Return the rule with what is to be tuned changing nothing, for trials before there are out-of-fold maps."""
    return _built(setup, neutral(setup.competition.maps.postprocess.params))


def apply_rule(setup: Setup, oof: OofMaps) -> Ruled:
    """Return the post-process of the YAML, tuned where it says so, with its out-of-fold score."""
    params = setup.competition.maps.postprocess.params
    if not tunes(params):
        rule = _built(setup, params)
        return Ruled(rule, params, score_worth(setup, oof.table, ruled(setup, oof, lambda fold: rule)))
    with console.bar("tuning the post-process") as advance:
        outcome = tune(
            oof.read, truth_masks(setup, oof.table), fold_of=oof.fold_of, metric=parts.build_metric(setup.competition),
            table=oof.table, params=params, groups=groups_of(setup, oof.table), advance=advance,
        )  # fmt: skip
    rule = _built(setup, outcome.params)
    found: dict[str, Any] = {"postprocess": outcome.as_json()}
    if outcome.nested is None:  # one fold: there is no honest score of what was found on it
        worth = ruled(setup, oof, lambda fold: rule)
        return Ruled(rule, outcome.params, {**score_worth(setup, oof.table, worth), **found})
    by_fold = {fold: _built(setup, chosen) for fold, chosen in outcome.by_fold.items()}
    worth = ruled(setup, oof, lambda fold: by_fold[fold])
    sign = 1 if parts.build_metric(setup.competition).maximise else -1
    found |= {"plain": asdict(outcome.chosen), "optimism": sign * (outcome.chosen.value - outcome.nested)}
    return Ruled(rule, outcome.params, {**score_worth(setup, oof.table, worth), **found})


def any_out_of_fold(
    setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto"
) -> OutOfFold | MapsOutOfFold:
    """Return the out-of-fold rows or maps of a run's trained folds, whatever its task; predicts what is missing."""
    if not is_dense(setup.competition.task):
        return out_of_fold(setup, paths, identity, device=device)
    return maps_out_of_fold(setup, paths, identity, require_folds(setup, paths, identity), device=device)


def score_run(setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto") -> dict[str, Any]:
    """Return the out-of-fold score of a run of any task, as `score.json` holds it."""
    oof = any_out_of_fold(setup, paths, identity, device=device)
    if isinstance(oof, OutOfFold) or is_plain(setup):
        return oof.score
    score = {**oof.score, **apply_rule(setup, oof.maps()).score}
    files.write_json(paths.score, score)
    return score


def _built(setup: Setup, params: dict[str, Any]) -> Rule:
    part = setup.competition.maps.postprocess
    rule: Rule = registry.build(
        "postprocess", part.name, {key: value for key, value in params.items() if key != "grid"},
        _names=setup.train.target_names, _task=setup.competition.task,
    )  # fmt: skip
    return rule
