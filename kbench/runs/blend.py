"""How runs and their members become one prediction, whatever they predict, and what that is worth out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kbench import console
from kbench.data.table.table import Table
from kbench.ensemble.nested import Recipe, evaluate, gains
from kbench.errors import ConfigError, PredictionError, first_names
from kbench.runs.doubts import blend_doubts
from kbench.runs.experiment import Experiment
from kbench.runs.out_of_fold import out_of_fold
from kbench.runs.results import Rows, Share, is_plain, recipe_of, score_record
from kbench.submission.check import write_submission

if TYPE_CHECKING:
    from kbench.runs.run import Run

MIXED = "mixed folds: a plain mean without a score"


@dataclass(frozen=True)
class EnsembleOptions:
    """How an ensemble is made.

    Attributes:
        full: send models trained on all rows.
        require_all: untrained folds are an error.
        mixed_folds: runs on other folds may join the plain mean.
        name: of the submission.
        device: where models run.
        weights: one number per run.
        combine: another combiner than the YAML's, with its defaults.
        prune: leave out members whose gain is inside the noise, though the YAML does not say so.
    """

    full: bool = False
    require_all: bool = False
    mixed_folds: bool = False
    name: str | None = None
    device: str = "auto"
    weights: tuple[float, ...] | None = None
    combine: str | None = None
    prune: bool = False


@dataclass(frozen=True)
class Blend:
    """How members become one prediction, and what that is worth.

    Attributes:
        experiment: the first run's, with the targets of all runs.
        shares: the runs.
        combiner: its name.
        recipe: combiner, decision, pruning.
        weights: member (`run/stage-cycle`, or a foreign run) -> weight; None: the plain mean of all.
        fit: what is applied to the mean: thresholds, cut points, a mask rule; or None.
        thresholds: what a lineage says of it.
        score: as of `score_record`, or None where nothing can be scored.
        gains: what each member adds.
        doubts: what speaks against members or the rule, a line each.
    """

    experiment: Experiment
    shares: tuple[Share, ...]
    combiner: str
    recipe: Recipe
    weights: dict[str, float] | None
    fit: Any
    thresholds: dict[str, Any]
    score: dict[str, Any] | None
    gains: list[dict[str, Any]]
    doubts: list[str] = field(default_factory=list)

    @property
    def results(self) -> Any:
        """How the runs' predictions are made, averaged and sent."""
        return self.shares[0].run.results

    def predict(self, rows: Rows) -> Any:
        """Return rows as the members that have a weight predict them, combined as they were scored."""
        mean = self.experiment.competition.ensemble.mean
        return self.results.predict(
            self.shares, rows, mean=mean, weights=self.weights, ranks=self.recipe.combiner.ranks
        )

    def sent(self, result: Any) -> Any:
        """Return predictions as a format takes them, decided."""
        return self.results.sent(self.experiment, result, self.fit)

    def submission(self, result: Any, *, unseen: Experiment | None = None, data: Path | None = None) -> Submission:
        """Return the rows of a submission.

        Args:
            result: of `predict`.
            unseen: the experiment with other rows for the test set.
            data: folder with the sample submission of those rows.
        """
        experiment = unseen or self.experiment
        sample = experiment.read_sample(data)
        return Submission(experiment, sample, experiment.format.build(self.sent(result), sample))


@dataclass(frozen=True)
class Submission:
    """The rows of a submission, to be written.

    Attributes:
        experiment: says how.
        sample: what was asked for.
        frame: the rows.
    """

    experiment: Experiment
    sample: pd.DataFrame
    frame: pd.DataFrame

    def write(self, path: Path) -> Path:
        """Check the rows, write them, read them back and check again; return the file."""
        return write_submission(
            path, self.frame, sample=self.sample, format=self.experiment.format,
            gzip=self.experiment.competition.submission.gzip,
        )  # fmt: skip


def blend(runs: Sequence[Run], options: EnsembleOptions) -> Blend:
    """Return how runs are combined, and the out-of-fold score of that; what is missing is predicted.

    Args:
        runs: one or several.
        options: how.

    Raises:
        PredictionError: nothing is trained, or the runs do not fit together.
        ConfigError: there is no such combiner, or it finds weights itself.
    """
    weights = options.weights
    shares = [
        open_share(run, options, weight=weight) for run, weight in zip(runs, weights or [1.0] * len(runs), strict=True)
    ]
    experiment = experiment_of_all([run.experiment for run in runs])
    recipe = recipe_of(experiment, combine=options.combine, prune=options.prune)
    name = options.combine or experiment.competition.ensemble.combine.name
    if weights is not None and recipe.combiner.fitted:
        raise ConfigError(
            f"--weight beside --combine {name}, which finds weights itself", "one of the two",
            "remove --weight, or write `--combine mean`",
        )  # fmt: skip
    mixed = _mixed_folds(runs, options)
    without = [share.run.name for share in shares if share.oof is None]
    if mixed or without:
        return _unscored(experiment, shares, recipe, name, mixed=mixed, without=without, full=options.full)
    table, results = _shared_rows(experiment, shares), runs[0].results
    if is_plain(recipe):
        judged = results.judge(experiment, results.joined(shares, table, experiment.competition.ensemble.mean), table)
        stack = results.run_stack(experiment, shares, table)
        alone = stack is None or len(stack.names) < 2
        adds = [] if stack is None or alone else gains(stack, recipe, evaluate(stack, recipe))
        member_weights = None
    else:
        stack = results.member_stack(experiment, shares, table)
        weighed = results.weigh(experiment, shares, table, stack, recipe)
        judged, member_weights = weighed.judged, weighed.weights
        adds = gains(stack, replace(recipe, decision=None) if weighed.outcome.fit.decided is None else recipe,
                     weighed.outcome)  # fmt: skip
    score = score_record(experiment, judged, table)
    only = shares[0].oof.score if len(shares) == 1 else None
    said = blend_doubts(experiment, judged, table, score, adds, only=only)
    return Blend(
        experiment, tuple(shares), name, recipe, member_weights, judged.fit, judged.thresholds, score, adds, said
    )


def _unscored(
    experiment: Experiment,
    shares: Sequence[Share],
    recipe: Recipe,
    combiner: str,
    *,
    mixed: bool,
    without: Sequence[str],
    full: bool,
) -> Blend:
    """Return a plain mean of runs that have no out-of-fold rows in common."""
    if recipe.fitted or recipe.combiner.ranks:
        reason = "runs on other folds" if mixed else f"'{without[0]}' without out-of-fold predictions"
        raise PredictionError(
            f"{reason}: weights and thresholds cannot be found there", "runs on the same folds, all out of fold",
            "leave out one of them, or set ensemble.combine: mean, no ensemble.prune and no ensemble.decision",
        )  # fmt: skip
    why = "runs on different folds" if mixed else "models of all rows" if full else f"'{without[0]}'"
    fit = shares[0].run.results.undecided(experiment, why)
    return Blend(experiment, tuple(shares), combiner, recipe, None, fit, {}, None, [])


def open_share(run: Run, options: EnsembleOptions, *, weight: float = 1.0) -> Share:
    """Return a run's share with its out-of-fold predictions, made where they are missing.

    Raises:
        PredictionError: nothing is trained, or not all that was asked for.
    """
    known = run.on_these_folds
    if run.foreign:
        return Share(run, weight, out_of_fold(run) if known else None)
    places, missing = _places(run, options)
    scored = known and (not options.full or any(run.checkpoints(fold) for fold in range(run.experiment.folds.n)))
    oof = out_of_fold(run, device=options.device) if scored else None
    return Share(run, weight, oof, tuple(places), "full" if options.full else "fold", tuple(missing))


def _places(run: Run, options: EnsembleOptions) -> tuple[Sequence[int | str], list[int]]:
    """Return the folds whose models are sent, and those that are not trained."""
    if options.full:
        return _full_places(run), []
    folds = run.required_folds()
    if not run.on_these_folds:
        return folds, []
    n = run.experiment.folds.n
    missing = [fold for fold in range(n) if fold not in folds]
    if missing:
        names = ", ".join(map(str, missing))
        if options.require_all:
            raise PredictionError(
                f"folds {names} of '{run.name}' are not trained", f"all {n} folds (--require-all)",
                f"`kbench train --fold {missing[0]}`, or leave out --require-all",
            )  # fmt: skip
        console.warn(f"folds {names} of '{run.name}' are not trained; the ensemble uses the others")
    return folds, missing


def _full_places(run: Run) -> list[int | str]:
    places: list[int | str] = ["full", *range(run.experiment.folds.n)]
    trained = [place for place in places if run.checkpoints(place, subset="full")]
    if not trained:
        raise PredictionError(
            f"'{run.name}' has no model of all rows", "a stage with `subset: full`, or a run of all rows",
            "`kbench train --full`",
        )  # fmt: skip
    return trained


def _mixed_folds(runs: Sequence[Run], options: EnsembleOptions) -> bool:
    """Return whether runs were trained on different folds.

    Raises:
        PredictionError: they were, and may not be.
    """
    folds = {run.name: run.trained_as["folds"] for run in runs}
    mixed = len(set(folds.values())) > 1
    if mixed and not options.mixed_folds:
        raise PredictionError(
            "the runs were trained on different folds: " + ", ".join(f"{run} ({of})" for run, of in folds.items()),
            "runs on the same folds: only then is the ensemble's score honest",
            "leave out one of them, or `--mixed-folds` for a plain mean without a score",
        )
    return mixed


def _shared_rows(experiment: Experiment, shares: Sequence[Share]) -> Table:
    """Return the training rows that all runs have out of fold.

    Raises:
        PredictionError: they share none.
    """
    shared = shares[0].oof.table.ids
    for share in shares[1:]:
        shared = np.intersect1d(shared, share.oof.table.ids)
    if not len(shared):
        raise PredictionError(
            f"the runs {first_names([share.run.name for share in shares])} share no out-of-fold row",
            "runs with a trained fold in common", "`kbench train` trains the other folds",
        )  # fmt: skip
    return experiment.train.select(np.isin(experiment.train.ids, shared))


def experiment_of_all(experiments: Sequence[Experiment]) -> Experiment:
    """Return the first one, its training table with the targets of all of them.

    Runs may cover different targets, such as those whose `data.target` names some of the sample's columns each.

    Raises:
        PredictionError: their training tables have other rows, or classes that exclude one another.
    """
    first, joined = experiments[0], experiments[0].train
    for other in (experiment.train for experiment in experiments[1:]):
        more = [place for place, name in enumerate(other.target_names) if name not in joined.target_names]
        if not more:
            continue
        if joined.targets is None or other.targets is None or joined.targets.ndim == 1 or joined.task != other.task:
            raise PredictionError(
                f"the runs have different targets: {first_names(joined.target_names)}; "
                f"{first_names(other.target_names)}",
                "runs of the same targets, or of a task with a number for each", "leave one of them out",
            )  # fmt: skip
        if not np.array_equal(joined.ids, other.ids):
            raise PredictionError(
                f"runs of different targets have {len(joined):,} and {len(other):,} training rows, not the same ones",
                "one training table", "`data: {on_problem: error}` in both YAMLs says which rows are left out",
            )  # fmt: skip
        names = (*joined.target_names, *(other.target_names[place] for place in more))
        targets = np.concatenate([joined.targets, other.targets[:, more]], axis=1)
        joined = replace(joined, target_names=names, targets=targets)
    return first if joined is first.train else first.with_train(joined)
