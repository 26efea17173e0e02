"""`kbench ensemble` of a dense task: all folds, snapshots and views in one pass, a rule, one checked submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kbench.commands.predict_maps import MapPart, masks_of, rows_of_test
from kbench.commands.rules import apply_rule, is_plain, untuned_rule
from kbench.commands.score_maps import (
    MapsOutOfFold,
    Ruled,
    maps_out_of_fold,
    mean_maps,
    mean_of,
    score_worth,
    shares_of,
)
from kbench.commands.setup import Setup
from kbench.ensemble.postprocess import Rule
from kbench.ensemble.tuning import tunes
from kbench.errors import PredictionError
from kbench.inference.map_store import MapStore
from kbench.inference.mask_set import MaskSet
from kbench.workspace import RunPaths


@dataclass(frozen=True)
class MapRun:
    """One run's share of an ensemble of maps.

    Attributes:
        setup: the run's own configuration.
        paths: its files.
        identity: its hashes.
        folds: whose snapshots are sent.
        subset: `fold`, or `full` for models of all rows.
        oof: its out-of-fold maps, or None where there are none.
        device: where models run.
    """

    setup: Setup
    paths: RunPaths
    identity: dict[str, str]
    folds: Sequence[int | str]
    subset: str
    oof: MapsOutOfFold | None
    device: str

    def test(self) -> MapPart:
        """Return the test set as this run predicts it."""
        return rows_of_test(self.setup, self.paths, self.identity, self.folds, self.device, subset=self.subset)


def open_map_run(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    folds: Sequence[int | str],
    subset: str,
    device: str,
    *,
    scored: bool,
) -> MapRun:
    """Return a run with its out-of-fold maps, made where they are missing.

    Args:
        setup: the run's configuration.
        paths: its files.
        identity: its hashes.
        folds: whose snapshots are sent.
        subset: `fold`, or `full`.
        device: where models run.
        scored: whether each of the folds has rows that its models did not see.
    """
    oof = maps_out_of_fold(setup, paths, identity, [int(fold) for fold in folds], device=device) if scored else None
    return MapRun(setup, paths, identity, folds, subset, oof, device)


def rule_of_runs(runs: Sequence[MapRun], *, weights: Sequence[float] | None, mixed: bool = False) -> Ruled:
    """Return the post-process of the runs' mean maps with the out-of-fold score of what is sent.

    Args:
        runs: the runs.
        weights: one number per run.
        mixed: whether they were trained on different folds; their mean then has no score.

    Raises:
        PredictionError: something is to be tuned and a run has no out-of-fold maps.
    """
    setup = runs[0].setup
    found = [run.oof for run in runs if run.oof is not None and not mixed]
    if len(found) == len(runs) == 1 and is_plain(setup):
        return Ruled(untuned_rule(setup), {}, score_worth(setup, found[0].table, found[0].worth))
    if len(found) == len(runs):
        return apply_rule(setup, mean_maps(found, weights, mean=setup.competition.ensemble.mean))
    params = setup.competition.maps.postprocess.params
    if tunes(params):
        raise PredictionError(
            f"{'runs on different folds' if mixed else 'models of all rows'} have no out-of-fold maps to tune the "
            "post-process on",
            "numbers in place of `tuned`",
            "`kbench ensemble` on the folds says them; write them under `maps: {postprocess: ...}`",
        )  # fmt: skip
    empty = {"metric": setup.competition.metric.name, "score": None, "low": None, "high": None}
    return Ruled(untuned_rule(setup), params, empty)


def masks_of_runs(runs: Sequence[MapRun], rule: Rule, *, weights: Sequence[float] | None) -> MaskSet:
    """Return the test masks of the runs' mean maps after the rule."""
    tests = [run.test() for run in runs]
    if len(tests) == 1:
        return masks_of(tests[0], rule)
    mean = runs[0].setup.competition.ensemble.mean
    return averaged([one.stored() for one in tests], rule, weights=weights, mean=mean)


def averaged(
    stores: Sequence[MapStore], rule: Rule, *, weights: Sequence[float] | None, mean: str = "arithmetic"
) -> MaskSet:
    """Return the masks a rule makes of the weighted mean of kept maps, a row at a time.

    Raises:
        PredictionError: the stores are of other rows or classes, or did not keep their maps.
    """
    first = stores[0]
    for other in stores[1:]:
        if not np.array_equal(other.ids, first.ids) or other.names != first.names:
            raise PredictionError(
                f"'{other.path}' holds other rows or classes than '{first.path}'",
                "runs of one competition, with the same classes", "leave one of them out",
            )  # fmt: skip
    shares = shares_of(weights, len(stores))

    def read(row: int) -> np.ndarray:
        return rule.apply(mean_of([store.maps(row) for store in stores], shares, task=first.task, mean=mean))

    return MaskSet(first.ids, first.names, first.task, first.source, read)
