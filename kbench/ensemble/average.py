"""Averages of predictions: members of a fold, folds of a run, runs of an ensemble, and members side by side.

    OOF  = concat over folds of (mean over snapshots)
    TEST = mean over folds of   (mean over snapshots)            `ensemble_run`

Members are aligned by id and by target name; what covers only some targets counts for those. Everything goes block by
block, so that neither members nor the result need fit in memory (`out` names the result's JSON on disk). How values are
averaged is in `inference/mean.py`.

A `Stack` holds members of the same out-of-fold rows side by side: what combiners weigh and nested scores are made of.
Of maps it holds some pixels of each row, and `measure` makes of them what the metric takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench.data.table.table import Table
from kbench.errors import PredictionError, first_names, nearest
from kbench.inference.mean import Mean, MeanKind, mean_of_task, normalised
from kbench.inference.predictions import Predictions, array_path, blocks, create_array, save
from kbench.metrics.maps import truth_of
from kbench.metrics.metric import Metric, ranks


def average(
    members: Sequence[Predictions],
    *,
    mean: MeanKind = "arithmetic",
    weights: Sequence[float] | None = None,
    out: Path | None = None,
) -> Predictions:
    """Return the mean of members that predict the same ids.

    Args:
        members: predictions of the same ids; targets are matched by name, in the order they are first seen.
        mean: `arithmetic` or `geometric`.
        weights: one number per member, not negative; normalised for each target over the members that have it.
        out: the JSON of the result; its values then lie on disk.

    Raises:
        PredictionError: the members do not fit together, the weights are wrong, or the geometric mean of a
            regression is asked for.
    """
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(shares) != len(members) or not bool(np.all(np.isfinite(shares) & (shares >= 0))):
        raise PredictionError(
            f"the weights {shares.tolist()} for {len(members)} members",
            "one finite weight per member, none negative",
            "correct the weights",
        )
    names = _check_members(members, mean)
    return _combine(members, names, _covers(members, names) * shares[:, None], mean=mean, out=out)


def ensemble_run(
    by_fold: Mapping[int, Sequence[Predictions]], *, mean: MeanKind = "arithmetic", out: Path | None = None
) -> Predictions:
    """Return the mean over folds of the mean over each fold's snapshots.

    A fold counts the same however many snapshots it has. The geometric mean of geometric means is taken in one
    step, with these weights.

    Args:
        by_fold: fold -> predictions of its snapshots.
        mean: `arithmetic` or `geometric`, for both means.
        out: the JSON of the result; its values then lie on disk.

    Raises:
        PredictionError: a fold has no member, or the members do not fit together.
    """
    empty = [str(fold) for fold, members in by_fold.items() if not members]
    if empty:
        raise PredictionError(
            f"fold {first_names(empty)} has no predictions", "one member or more of every fold", "`kbench predict`"
        )
    members = [member for fold in sorted(by_fold) for member in by_fold[fold]]
    fold_of = np.array([fold for fold in sorted(by_fold) for _ in by_fold[fold]])
    names = _check_members(members, mean)
    weights = _covers(members, names)
    for fold in by_fold:
        of_fold = fold_of == fold
        weights[of_fold] /= np.maximum(weights[of_fold].sum(axis=0), 1)
    return _combine(members, names, weights, mean=mean, out=out)


def member_names(by_fold: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Return the members that any fold has, in the order of the folds and of their training."""
    return list(dict.fromkeys(name for of_fold in by_fold.values() for name in of_fold))


def with_every_member(
    by_fold: Mapping[Any, Mapping[str, Predictions]], *, mean: MeanKind
) -> dict[Any, dict[str, Predictions]]:
    """Return members of which every fold has all: one that a fold lacks says there what the mean of its others says.

    A fold that stopped early has fewer snapshots than others. With equal weights the mean of what is returned is the
    mean over each fold's own snapshots, which is what is sent (`ensemble_run`); a weight is shared by the others alike.

    Args:
        by_fold: fold -> name -> predictions of the fold's rows, or of the same rows by each fold.
        mean: how the others are averaged.
    """
    names = member_names(by_fold)
    whole: dict[Any, dict[str, Predictions]] = {}
    for fold, own in by_fold.items():
        lacking = [name for name in names if name not in own]
        others = [average(list(own.values()), mean=mean)] * len(lacking) if lacking else []
        filled = {**own, **dict(zip(lacking, others, strict=True))}
        whole[fold] = {name: filled[name] for name in names}
    return whole


def concat(parts: Sequence[Predictions], *, out: Path | None = None) -> Predictions:
    """Return the rows of all parts, sorted by id: the out-of-fold predictions of a run from those of its folds.

    Args:
        parts: predictions of different ids and the same targets.
        out: the JSON of the result; its values then lie on disk.

    Raises:
        PredictionError: an id stands in two parts, or the parts do not fit together.
    """
    _check_kind(parts)
    names = parts[0].names
    for part in parts[1:]:
        if set(part.names) != set(names):
            odd = sorted(set(part.names) ^ set(names))
            raise PredictionError(
                f"targets of only some parts: {first_names(odd)}", "the same targets in every part",
                "`kbench predict --force` makes them all again",
            )  # fmt: skip
    ids, counts = np.unique(np.concatenate([part.ids for part in parts]), return_counts=True)
    if (counts > 1).any():
        raise PredictionError(
            f"{int((counts > 1).sum()):,} ids are predicted by two parts: {first_names(ids[counts > 1].tolist())}",
            "parts that share no id",
            "use folds of one fold file; `kbench predict --force` makes the parts again",
        )
    values = _create((len(ids), *parts[0].values.shape[1:]), out)
    for part in parts:
        rows, columns = np.searchsorted(ids, part.ids), _columns(part.names, names)
        for block in blocks(part.values.shape):
            values[rows[block]] = part.values[block][:, columns]
    source = {**_shared([part.source for part in parts]), "parts": [part.source for part in parts]}
    return _finish(Predictions(ids, names, values, parts[0].task, source), out)


def aligned(predictions: Predictions, *, ids: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return [N, K, ...] values in the order of a table's ids and target names, as metrics take them.

    Raises:
        PredictionError: an id or a target is not predicted.
    """
    missing = [name for name in names if name not in predictions.names]
    if missing:
        raise PredictionError(
            f"targets are not predicted: {first_names(missing)}",
            f"predictions of all {len(names)} targets",
            f"add a member that predicts them ({nearest(missing[0], predictions.names)})",
        )
    rows = predictions.rows_of(ids)
    if len(rows) == len(predictions) and tuple(names) == predictions.names and bool(np.all(rows[1:] > rows[:-1])):
        return predictions.values
    return np.asarray(predictions.values[rows][:, _columns(predictions.names, tuple(names))])


def _check_kind(members: Sequence[Predictions]) -> None:
    if not members:
        raise PredictionError("there are no predictions to combine", "one member or more", "`kbench predict`")
    first = members[0]
    for member in members[1:]:
        if member.task != first.task or member.values.shape[2:] != first.values.shape[2:]:
            raise PredictionError(
                f"a member of task '{member.task}' and shape {member.values.shape} "
                f"beside one of task '{first.task}' and shape {first.values.shape}",
                "members of one task and size",
                "combine runs of one competition",
            )


def _check_members(members: Sequence[Predictions], mean: str) -> tuple[str, ...]:
    """Check that the members can be averaged; return the union of their target names as first seen."""
    _check_kind(members)
    mean_of_task(mean, members[0].task, len(members[0].names))  # says so where there is no such mean
    ids = members[0].ids
    for number, member in enumerate(members[1:], start=2):
        if not np.array_equal(member.ids, ids):
            lacking = np.setdiff1d(ids, member.ids)
            place = f"member {number} of {len(members)}"
            if not len(lacking):
                lacking, place = np.setdiff1d(member.ids, ids), f"member 1 of {len(members)}"
            raise PredictionError(
                f"{place} lacks {len(lacking):,} ids: {first_names(lacking.tolist())}",
                "members that predict the same ids",
                "`kbench predict --force`, or leave that member out",
            )
    return tuple(dict.fromkeys(name for member in members for name in member.names))


def _covers(members: Sequence[Predictions], names: tuple[str, ...]) -> np.ndarray:
    """Return [M, K] 1.0 where a member predicts a target."""
    return np.array([[float(name in set(member.names)) for name in names] for member in members])


def _columns(have: tuple[str, ...], want: tuple[str, ...]) -> slice | list[int]:
    return slice(None) if have == want else [have.index(name) for name in want]


def _combine(
    members: Sequence[Predictions], names: tuple[str, ...], weights: np.ndarray, *, mean: str, out: Path | None
) -> Predictions:
    """Average members with [M, K] weights, zero where a member lacks a target."""
    totals = weights.sum(axis=0)
    if (totals <= 0).any():
        left = [name for name, total in zip(names, totals, strict=True) if total <= 0]
        raise PredictionError(
            f"all weights are zero for {first_names(left)}", "a positive weight for every target", "correct the weights"
        )
    weights = weights / totals
    first = members[0]
    how = mean_of_task(mean, first.task, len(names))
    partial = ((weights == 0) & (weights.sum(axis=1, keepdims=True) > 0)).any()  # a member without some targets
    rescale = first.task == "single_label" and bool(partial)
    values = _create((len(first), len(names), *first.values.shape[2:]), out)
    for rows in blocks((*values.shape, 8)):  # 16 MB of float64 at a time
        block = how.back(_weighted_sum(members, names, weights, rows, how))
        values[rows] = normalised(block) if rescale else block
    sources = [member.source for member in members]
    source = {**_shared(sources), "mean": mean, "members": sources, "weights": weights.mean(axis=1).tolist()}
    return _finish(Predictions(first.ids, names, values, first.task, source), out)


def _weighted_sum(
    members: Sequence[Predictions],
    names: tuple[str, ...],
    weights: np.ndarray,
    rows: slice,
    mean: Mean,
) -> np.ndarray:
    shape = (rows.stop - rows.start, len(names), *members[0].values.shape[2:])
    total = np.zeros(shape)
    for member, weight in zip(members, weights, strict=True):
        columns = [names.index(name) for name in member.names]
        values = mean.into(np.asarray(member.values[rows], dtype=np.float64))
        scale = weight[columns].reshape(-1, *[1] * (len(shape) - 2))
        total[:, slice(None) if columns == list(range(len(names))) else columns] += values * scale
    return np.asarray(total)


def _create(shape: tuple[int, ...], out: Path | None) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32) if out is None else create_array(array_path(out), shape)


def _finish(predictions: Predictions, out: Path | None) -> Predictions:
    if out is not None:
        save(out, predictions)
    return predictions


def _shared(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what all sources agree on, such as the run and the folds' hash."""
    first, *others = sources
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}


@dataclass(frozen=True)
class Stack:
    """Out-of-fold predictions of M members of the same N rows.

    Attributes:
        names: M names, such as `baseline-s0/cycles-2`.
        values: [M, N, K] float32 in the order of the table and its target names; [M, N, K, P] of P pixels of maps.
        base: [M] weights of the plain mean, which sum to 1.
        table: the rows, with targets.
        fold: [N] int, the fold of each row.
        metric: the competition's.
        mean: how members are averaged.
        groups: [N] labels that intervals draw, or None.
        covers: [M, K] bool, which targets a member predicts; None: every member predicts all.
        truth: [N, P] or [N, K, P] truth of the pixels of maps; None where the table holds the targets.
        measure: (values [N, K, P], rows) -> [N, K, 3], what the metric takes of maps; None where it takes the values.
        lent: [M, N] bool, rows whose fold lacks a member: it says there what the mean of its run's others says; None:
            every fold has every member.
    """

    names: tuple[str, ...]
    values: np.ndarray
    base: np.ndarray
    table: Table
    fold: np.ndarray
    metric: Metric
    mean: MeanKind = "arithmetic"
    groups: np.ndarray | None = None
    covers: np.ndarray | None = None
    truth: np.ndarray | None = None
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    lent: np.ndarray | None = None

    @property
    def targets(self) -> np.ndarray:
        """What the metric takes as the truth of the rows."""
        if self.truth is not None:
            return truth_of(self.measured(self.values[0]), self.table.task)
        assert self.table.targets is not None, "training rows have targets"
        return self.table.targets

    def measured(self, values: np.ndarray) -> np.ndarray:
        """Return what the metric takes of [N, K, ...] values of the rows."""
        if self.measure is None:
            return values
        assert self.truth is not None, "pixels are measured against their truth"
        return self.measure(values, self.truth)

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Return [M, n, K] values and their truth, [n] class numbers or [n, K] with NaN where unknown.

        Of maps every pixel that counts is an entry.
        """
        if self.truth is None:
            return self.values, self.targets
        values = np.moveaxis(self.values, 3, 2).reshape(len(self.values), -1, self.values.shape[2])
        if self.truth.ndim == 3:
            return values, np.moveaxis(self.truth, 2, 1).reshape(-1, self.truth.shape[1])
        known = self.truth.ravel() >= 0
        return values[:, known], self.truth.ravel()[known]

    def select(self, rows: np.ndarray) -> Stack:
        """Return the stack of some rows; [N] bool."""
        groups, truth = (None if part is None else part[rows] for part in (self.groups, self.truth))
        return replace(
            self, values=self.values[:, rows], table=self.table.select(rows), fold=self.fold[rows], groups=groups,
            truth=truth, lent=None if self.lent is None else self.lent[:, rows],
        )  # fmt: skip

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
        """Return [N, K, ...] float64 values of a member in the space where members are added."""
        return np.asarray(self._how.into(self.values[member].astype(np.float64)))

    def back(self, mean: np.ndarray) -> np.ndarray:
        """Return [N, K, ...] float32 predictions of a weighted mean in the space of `into`."""
        return np.asarray(self._how.back(mean), dtype=np.float32)

    @property
    def _how(self) -> Mean:
        return mean_of_task(self.mean, self.table.task, len(self.table.target_names))

    def score(self, values: np.ndarray, metric: Metric | None = None) -> float:
        """Return the metric, or another one, of [N, K, ...] values of the rows."""
        return (metric or self.metric)(self.targets, self.measured(values), self.table)


def stack_members(
    members: Mapping[str, Predictions],
    table: Table,
    *,
    fold: np.ndarray,
    metric: Metric,
    mean: MeanKind,
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
        _lend(values, stack, rows)
    return replace(stack, values=values)


def _lend(values: np.ndarray, stack: Stack, rows: np.ndarray) -> None:
    """Give members that a fold lacks the mean rank of their run's others there, as its models rank test rows."""
    if stack.lent is None:
        return
    runs = [name.partition("/")[0] for name in stack.names]
    borrows = [bool(own[rows].any()) for own in stack.lent]
    for member in (place for place, one in enumerate(borrows) if one):
        others = [one for one, run in enumerate(runs) if run == runs[member] and not borrows[one]]
        values[member, rows] = values[others][:, rows].mean(axis=0)
