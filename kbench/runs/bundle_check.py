"""A bundle held against the runs it was made of: the same rows of each fold, predicted by both and scored.

A sample of the rows that each fold did not train on is enough to see what half precision or another engine changes, and
how long an image takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench.errors import ConfigError
from kbench.inference.clock import Clock
from kbench.runs.blend import Blend
from kbench.runs.results import Rows, Share, metric_of
from kbench.runs.run import Run
from kbench.tasks import is_dense

_ROWS = {False: 64, True: 8}  # of each fold: of rows, of maps
TOLERANCE = 1e-3
"""How much of the metric another engine or precision may cost."""


@dataclass(frozen=True)
class Comparison:
    """What a bundle is worth beside its runs, on some rows that were not trained on.

    Attributes:
        rows: how many.
        torch: score of the runs as they are trained; None where the metric has no value on so few rows.
        bundle: score of the bundle.
        largest: largest difference of a probability or number; of maps, of what the metric counts.
        seconds: checksum in the bundle -> seconds of an image.
        torch_seconds: checksums in the runs, of models that run one body -> seconds of an image there.
    """

    rows: int
    torch: float | None
    bundle: float | None
    largest: float
    seconds: dict[str, float]
    torch_seconds: dict[tuple[str, ...], float]

    def record(self, engine: str) -> dict[str, Any]:
        """Return it as JSON."""
        return {"rows": self.rows, "torch": self.torch, engine: self.bundle, "largest": self.largest}


def compare(combined: Blend, opened: Blend, folder: Path, *, device: str) -> Comparison | None:
    """Return what a bundle is worth beside its runs; None where nothing is known of them out of fold.

    Args:
        combined: the ensemble of the runs.
        opened: the ensemble of the bundle.
        folder: where predictions go meanwhile.
        device: where models run.

    Raises:
        ConfigError: the score differs by more than 1e-3 of it.
    """
    parts = [
        _of_fold(share, other, fold, folder, device)
        for share, other in zip(combined.shares, opened.shares, strict=True)
        if share.run.on_these_folds
        for fold in share.places
        if isinstance(fold, int) and share.subset == "fold" and other.run.checkpoints(fold)
    ]
    if not parts:
        return None
    seconds: dict[str, float] = {}
    by_torch: dict[tuple[str, ...], float] = {}
    for part in parts:
        seconds |= part.seconds
        by_torch |= part.torch_seconds
    return Comparison(
        sum(part.rows for part in parts), _mean([part.torch for part in parts]), _mean([part.bundle for part in parts]),
        max(part.largest for part in parts), seconds, by_torch,
    )  # fmt: skip


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def _of_fold(share: Share, other: Share, fold: int, folder: Path, device: str) -> Comparison:
    """Compare the models of a fold of one run, on the first rows of the fold."""
    run, experiment = share.run, share.run.experiment
    chosen = np.flatnonzero(experiment.folds.valid(fold))[: _ROWS[is_dense(run.competition.task)]]
    table, clock, usual = experiment.train.select(chosen), Clock(), Clock()
    carried = {str(one.info["origin"]) for one in other.run.checkpoints(fold)}
    weightless = frozenset(one.checksum for one in run.checkpoints(fold) if one.checksum not in carried)
    own = Run(experiment, replace(run.paths, written=folder / "runs" / run.name), run.hashes, None, weightless)
    theirs = replace(other.run, experiment=replace(other.run.experiment, _train=experiment.train),
                     paths=replace(other.run.paths, written=folder / "bundle" / run.name))  # fmt: skip
    values = []
    for one, watch in ((own, usual), (theirs, clock)):
        rows = Rows(experiment.train, "sample", device, chosen=chosen, clock=watch)
        mean = run.competition.ensemble.mean
        result = run.results.predict([Share(one, places=(fold,))], rows, mean=mean)
        values.append(run.results.plain(result, table))
    (truth, mine), (_, its) = values
    metric = metric_of(experiment)
    seconds = {name: spent / len(names) / len(chosen) for names, spent in clock.seconds.items() for name in names}
    return Comparison(len(chosen), metric.or_none(truth, mine, table), metric.or_none(truth, its, table),
                      float(np.abs(mine.astype(np.float64) - its.astype(np.float64)).max()), seconds,
                      {names: spent / len(chosen) for names, spent in usual.seconds.items()})  # fmt: skip


def require_alike(comparison: Comparison, engine: str, *, half: bool) -> None:
    """Refuse a bundle that scores otherwise than its runs.

    Raises:
        ConfigError: the difference is above 1e-3 of the score.
    """
    if comparison.torch is None or comparison.bundle is None:
        return
    difference = abs(comparison.torch - comparison.bundle)
    if difference > TOLERANCE * max(abs(comparison.torch), TOLERANCE):
        way = " and ".join([*([f"the engine {engine}"] if engine != "torch" else []), *(["float16"] if half else [])])
        raise ConfigError(
            f"the bundle scores {comparison.bundle:.6g} on {comparison.rows} rows and its runs {comparison.torch:.6g}: "
            f"{way or 'the bundle'} changes more than {TOLERANCE:g} of it", "the same score",
            "`kbench export` without " + ("`--fp16`" if half else f"`--engine {engine}`"),
        )  # fmt: skip
