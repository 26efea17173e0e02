"""What speaks against members and mask rules, each with what to type: worse than a constant, or than without them.

The constant is what the training rows say of a row without its image: class or tag shares, means of numbers, the
commonest class of a mask. A member below it makes any mean worse. To doubt something else, add a function that yields
lines, and call it in `doubts` or `blend_doubts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kbench.data.table.table import Table, training_share
from kbench.ensemble.average import Stack
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.mask_tuning import neutral
from kbench.ensemble.nested import Recipe, evaluate
from kbench.errors import DataError, first_names
from kbench.metrics.metric import Metric
from kbench.runs.experiment import Experiment
from kbench.runs.map_scores import MEAN
from kbench.runs.results import Judged, decision_of, fold_of, metric_of
from kbench.tasks import SEGMENTATION, exclusive, is_dense


def doubts(experiment: Experiment, judged: Judged, table: Table, score: Mapping[str, Any]) -> list[str]:
    """Return what speaks against a run as it is scored: one line each, for people.

    Args:
        experiment: the competition.
        judged: what was decided of the run's out-of-fold predictions.
        table: their rows.
        score: what `score.json` holds.
    """
    constant, alone = constant_score(experiment, judged, table), scores_alone(score)
    metric = metric_of(experiment)
    return [*_rule_doubts(experiment, score), *_constant_doubts(metric, constant, score["score"], alone, one_run=True)]


def blend_doubts(
    experiment: Experiment, judged: Judged, table: Table, score: Mapping[str, Any], gains: Sequence[Mapping[str, Any]],
    *, only: Mapping[str, Any] | None,
) -> list[str]:  # fmt: skip
    """Return what speaks against an ensemble as it is scored; see `doubts`.

    Args:
        experiment: the competition.
        judged: what was decided of the ensemble's out-of-fold predictions.
        table: their rows.
        score: as of `score_record`.
        gains: what each member adds.
        only: the score of the only run, or None where there are several.
    """
    one_run = only is not None
    alone = {_short(one["member"], one_run): one["alone"] for one in gains if one["weight"] > 0}
    if only is not None and not gains:  # of one member, or of maps
        alone = scores_alone(only)
    constant, metric = constant_score(experiment, judged, table), metric_of(experiment)
    return [
        *_rule_doubts(experiment, score),
        *_constant_doubts(metric, constant, score["score"], alone, one_run=one_run),
        *_member_doubts(gains, one_run=one_run),
    ]


def _short(member: str, one_run: bool) -> str:
    return member.partition("/")[2] or member if one_run else member


def constant_score(experiment: Experiment, judged: Judged, table: Table) -> float | None:
    """Return the score of saying of every row what the training rows say without its image; None where it has none.

    Args:
        experiment: the competition.
        judged: of masks, its targets are the truth.
        table: the rows that are scored.
    """
    metric = metric_of(experiment)
    try:
        if is_dense(table.task):
            return _constant_masks(metric, judged.targets, table) if table.task in SEGMENTATION else None
        train = experiment.train
        places = [train.target_names.index(name) for name in table.target_names]
        share = training_share(train)[places].astype(np.float32)
        values = np.ascontiguousarray(np.broadcast_to(share, (len(table), len(share))))
        decision = decision_of(experiment)
        if decision is None:
            return metric.or_none(table.targets, values, table)
        numbers, groups = fold_of(experiment, table), experiment.groups(table)
        stack = Stack(("constant",), values[None], np.ones(1), table, numbers, metric, groups=groups)
        return evaluate(stack, Recipe(plain_mean(), decision), draws=1).nested.value
    except (ArithmeticError, DataError, ValueError):  # a metric need not be able to score a constant
        return None


def _constant_masks(metric: Metric, truth: np.ndarray, table: Table) -> float | None:
    """Return the score of the commonest class everywhere, or of no class where classes may overlap."""
    counts = np.zeros((*truth.shape, 3), dtype=truth.dtype)
    counts[..., 2] = truth
    if exclusive(table.task, truth.shape[1]):
        common = int(truth.sum(axis=0).argmax())
        counts[:, common, 2] = 0
        counts[:, common, 0] = truth[:, common]
        counts[:, common, 1] = truth.sum(axis=1) - truth[:, common]
    return metric.or_none(truth, counts, table)


def scores_alone(score: Mapping[str, Any]) -> dict[str, float | None]:
    """Return snapshot -> score alone, as a score's tables have it: the mean over folds, or of masks over all rows."""
    if "growth" in score:
        every = {str(one["ensemble"]): one["score"] for one in score["growth"]}
        return {name: one for name, one in every.items() if name.partition(",")[0] != MEAN and "," not in name}
    return {name: one for name, one in score.get("cv_mean", {}).items() if name not in (MEAN, "threshold", "at_best")}


def _constant_doubts(
    metric: Metric, constant: float | None, score: float, alone: Mapping[str, float | None], *, one_run: bool
) -> Iterator[str]:
    """Yield which members, or the whole, a constant is better than."""
    if constant is None:
        return
    than = f"than saying of every row what the training rows say without it ({metric.name} {constant:.5g})"
    worse = {name: one for name, one in alone.items() if one is not None and metric.better(constant, one)}
    if worse and len(worse) < len(alone):
        names = first_names([f"{name} {one:.5g}" for name, one in worse.items()])
        kept = ", ".join(name for name in alone if name not in worse)
        todo = (
            f"`ensemble: {{members: [{kept}]}}` in the YAML leaves" if one_run else "`kbench ensemble --prune` leaves"
        )
        yield f"alone these members are worse {than}: {names}; {todo} them out"
    if metric.better(constant, score) or (worse and len(worse) == len(alone)):
        what = "the score is worse" if metric.better(constant, score) else "every member alone is worse"
        yield f"{what} {than}: a lower `lr` (`kbench lr-find`) or more epochs may help"


def _rule_doubts(experiment: Experiment, score: Mapping[str, Any]) -> Iterator[str]:
    """Yield that a tuned post-process clearly loses."""
    record = score.get("postprocess") or {}
    gain = record.get("gain")
    if gain is None or gain["high"] >= 0 or record.get("pruned"):
        return
    part = experiment.competition.maps.postprocess
    without = {key: value for key, value in neutral(part.params).items() if part.params.get(key) == value}
    text = ", ".join([f"name: {part.name}", *(f"{key}: {value}" for key, value in without.items())])
    yield (
        f"the tuned post-process makes the score worse by {-gain['value']:.5f} [{-gain['high']:.5f}, "
        f"{-gain['low']:.5f}] on rows it was not tuned on: write `maps: {{postprocess: "
        f"{'{' + text + '}' if without else 'none'}}}`, or `kbench ensemble --prune`"
    )


def _member_doubts(gains: Sequence[Mapping[str, Any]], *, one_run: bool) -> Iterator[str]:
    """Yield which members clearly make the mean worse."""
    bad = [one for one in gains if one["high"] is not None and one["high"] < 0]
    if not bad:
        return
    names = first_names([
        f"{_short(one['member'], one_run)} by {-one['adds']:.5f} [{-one['high']:.5f}, {-one['low']:.5f}]" for one in bad
    ])  # fmt: skip
    kept = [_short(one["member"], one_run) for one in gains if one not in bad and one["weight"] > 0]
    todo = f", or `ensemble: {{members: [{', '.join(kept)}]}}` in the YAML" if one_run and kept else ""
    yield f"these members make the mean worse: {names}; `kbench ensemble --prune` leaves them out{todo}"
