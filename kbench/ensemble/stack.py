"""The members of an ensemble, side by side: what combiners weigh and nested scores are made of.

A member is a run's snapshot (run, stage, cycle) over all folds, or somebody else's predictions. All members predict
the same rows out of fold, so their mixtures can be scored on them. To mix members in another way, write it into
`Stack.mixed`, and into `average.average` for the rows that are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kbench.data.tables import Table
from kbench.ensemble.average import Mean, aligned
from kbench.errors import PredictionError, first_names
from kbench.inference.predictions import Predictions
from kbench.metrics import Metric, ranks

_EPS = 1e-7  # as in `average`


@dataclass(frozen=True)
class Stack:
    """Out-of-fold predictions of M members of the same N rows.

    Attributes:
        names: M names, such as `baseline-s0/cycles-2`.
        values: [M, N, K] float32 in the order of the table and its target names.
        base: [M] weights of the plain mean, which sum to 1.
        table: the rows, with targets.
        fold: [N] int, the fold of each row.
        metric: the competition's.
        mean: how members are averaged.
        groups: [N] labels that intervals draw, or None.
        covers: [M, K] bool, which targets a member predicts; None: every member predicts all.
    """

    names: tuple[str, ...]
    values: np.ndarray
    base: np.ndarray
    table: Table
    fold: np.ndarray
    metric: Metric
    mean: Mean = "arithmetic"
    groups: np.ndarray | None = None
    covers: np.ndarray | None = None

    @property
    def targets(self) -> np.ndarray:
        """Targets of the rows."""
        assert self.table.targets is not None, "training rows have targets"
        return self.table.targets

    def select(self, rows: np.ndarray) -> Stack:
        """Return the stack of some rows; [N] bool."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(
            self, values=self.values[:, rows], table=self.table.select(rows), fold=self.fold[rows], groups=groups
        )

    def mixed(self, weights: np.ndarray) -> np.ndarray:
        """Return [N, K] float32, the weighted mean of the members; [M] weights, at least one positive.

        A target is averaged over the members that predict it; `complete` says whether there is one for each.
        """
        used = np.flatnonzero(weights > 0)
        shares = weights[used] / weights[used].sum()
        if self.covers is not None:
            parts = shares[:, None] * self.covers[used]  # [m, K]
            shares = parts / parts.sum(axis=0)
            total = sum(share * self.into(int(member)) for share, member in zip(shares, used, strict=True))
            return self.back(np.asarray(total))
        if len(used) == 1:
            return np.asarray(self.values[used[0]])
        total = np.zeros(self.values.shape[1:])
        for share, member in zip(shares, used, strict=True):
            total += share * self.into(int(member))
        return self.back(total)

    def complete(self, weights: np.ndarray) -> bool:
        """Return whether the members with a weight predict every target between them."""
        used = weights > 0
        return bool(used.any()) and (self.covers is None or bool(self.covers[used].any(axis=0).all()))

    def into(self, member: int) -> np.ndarray:
        """Return [N, K] float64 values of a member in the space where members are added: logarithms, if geometric."""
        values = self.values[member].astype(np.float64)
        return values if self.mean == "arithmetic" else np.asarray(np.log(np.maximum(values, _EPS)))

    def back(self, mean: np.ndarray) -> np.ndarray:
        """Return [N, K] float32 predictions of a weighted mean in the space of `into`."""
        if self.mean == "geometric":
            mean = np.exp(mean)
            if self.table.task == "single_label":
                mean = mean / mean.sum(axis=1, keepdims=True)
        return np.asarray(mean, dtype=np.float32)

    def score(self, values: np.ndarray) -> float:
        """Return the metric of [N, K] values of the rows."""
        return self.metric(self.targets, values, self.table)


def stack_members(
    members: Mapping[str, Predictions],
    table: Table,
    *,
    fold: np.ndarray,
    metric: Metric,
    mean: Mean,
    base: Sequence[float] | None = None,
    groups: np.ndarray | None = None,
) -> Stack:
    """Return members aligned with a table.

    Args:
        members: name -> out-of-fold predictions that hold the table's ids.
        table: the rows.
        fold: [N] int folds of the rows.
        metric: the competition's.
        mean: how members are averaged.
        base: weights of the plain mean; equal ones by default.
        groups: [N] labels that intervals draw.

    Raises:
        PredictionError: a member lacks rows, or no member predicts a target.
    """
    names, shape = table.target_names, (len(members), len(table), len(table.target_names))
    values, covers = np.zeros(shape, dtype=np.float32), np.ones((shape[0], shape[2]), dtype=bool)
    for place, one in enumerate(members.values()):
        known = [name for name in names if name in one.names]
        covers[place] = np.isin(names, known)
        values[place][:, covers[place]] = aligned(one, ids=table.ids, names=known)
    missing = [name for place, name in enumerate(names) if not covers[:, place].any()]
    if missing:
        raise PredictionError(
            f"targets are not predicted: {first_names(missing)}", f"members of all {len(names)} targets between them",
            "add a member that predicts them",
        )  # fmt: skip
    weights = np.ones(len(members)) if base is None else np.asarray(base, dtype=np.float64)
    partial = None if covers.all() else covers
    return Stack(tuple(members), values, weights / weights.sum(), table, fold, metric, mean, groups, partial)


def ranked(values: np.ndarray) -> np.ndarray:
    """Return [N, K] ranks of each column between 0 and 1; equal values share their mean rank.

    With (rank - 1/2) / N, the ranks of p and of 1 - p sum to 1.
    """
    return np.stack([(ranks(column) - 0.5) / len(column) for column in values.T], axis=1).astype(np.float32)


def ranked_by_fold(stack: Stack) -> Stack:
    """Return the stack with each member's values replaced by their ranks among the rows of one fold.

    Each fold is predicted by a model of its own, and only its own predictions can be compared; test rows are ranked
    the same way, one fold's model after the other.
    """
    values = np.empty_like(stack.values)
    for fold in np.unique(stack.fold):
        rows = stack.fold == fold
        for member in range(len(stack.names)):
            values[member, rows] = ranked(stack.values[member, rows])
    return replace(stack, values=values)
