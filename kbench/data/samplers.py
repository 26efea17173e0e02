"""Samplers: which training rows an epoch visits, and in which order.

To add one, write a factory here with `@register("sampler")`. It takes the targets of the training rows ([N] int64
classes, [N, K] float tags of 0 or 1, or None), their number, and its own keywords, and returns a function that draws
the row positions of one epoch from a generator; every epoch has the same length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kbench.errors import ConfigError, check_number
from kbench.registry import register

Sampler = Callable[[np.random.Generator], np.ndarray]
"""Called as `sampler(rng)`; returns int64 row positions of one epoch."""


@register("sampler")
def shuffle(targets: np.ndarray | None, n: int) -> Sampler:
    """Visit every row once, in random order."""
    return lambda rng: rng.permutation(n)


@register("sampler")
def sequential(targets: np.ndarray | None, n: int) -> Sampler:
    """Visit every row once, in the table's order."""
    return lambda rng: np.arange(n, dtype=np.int64)


@register("sampler")
def balanced(targets: np.ndarray | None, n: int, *, epoch_size: int | None = None) -> Sampler:
    """Draw rows with replacement so that every class is equally likely.

    With tags, a row is drawn in proportion to one over the number of rows that have its rarest tag; rows without a
    tag count as a tag of their own.

    Args:
        targets: classes or tags of the training rows.
        n: how many training rows there are.
        epoch_size: rows of an epoch; as many as there are training rows by default.

    Raises:
        ConfigError: a value is out of range, or the targets are neither classes nor tags.
    """
    if epoch_size is not None:
        check_number("epoch_size", epoch_size, "[1, inf)", whole=True)
    members, rarest = _labels(targets, n, sampler="balanced")
    counts = np.array([len(rows) for rows in members])
    edges = np.cumsum(1 / counts[rarest])
    size = n if epoch_size is None else epoch_size
    return lambda rng: np.searchsorted(edges / edges[-1], rng.random(size), side="right").astype(np.int64)


@register("sampler")
def oversample(targets: np.ndarray | None, n: int, *, to: float = 1.0) -> Sampler:
    """Repeat rows of rare classes, then shuffle (F-32).

    Every class comes to at least `to` times the rows of the largest; its rows are repeated as evenly as possible, the
    same ones in every epoch. With tags, from the rarest tag up, rows whose rarest tag it is are repeated; rows
    without a tag count as a tag of their own.

    Args:
        targets: classes or tags of the training rows.
        n: how many training rows there are.
        to: rows a class comes to, as a fraction of the largest class.

    Raises:
        ConfigError: a value is out of range, or the targets are neither classes nor tags.
    """
    check_number("to", to, "(0, 1]")
    members, rarest = _labels(targets, n, sampler="oversample")
    positions = np.repeat(np.arange(n, dtype=np.int64), _repeats(members, rarest, to))
    return lambda rng: rng.permutation(positions)


@register("sampler", patches=True)
def patches(
    targets: np.ndarray | None,
    n: int,
    *,
    per_image: int = 16,
    positive: float = 0.5,
    classes: list[str] | None = None,
) -> Sampler:
    """Visit every row `per_image` times an epoch, in random order: an epoch of a few scenes is many patches (D-05).

    With `classes`, the crop shows a pixel of one of them in `positive` of the patches, where the mask of the scene has
    one; how many patches did is logged with every epoch (`positive`).

    Args:
        targets: of the training rows; not looked at.
        n: how many training rows there are.
        per_image: patches of each image in an epoch.
        positive: share of the patches that are placed on a pixel of a class; others may have some by chance.
        classes: of dense tasks, the classes that are looked for; none: patches lie anywhere.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("per_image", per_image, "[1, 1000000]", whole=True)
    check_number("positive", positive, "[0, 1]")
    rows = np.repeat(np.arange(n, dtype=np.int64), per_image)
    return lambda rng: rng.permutation(rows)


def _repeats(members: list[np.ndarray], rarest: np.ndarray, to: float) -> np.ndarray:
    """Return [N] how often each row is visited."""
    repeats = np.ones(len(rarest), dtype=np.int64)
    counts = np.array([len(rows) for rows in members])
    goal = int(np.ceil(round(to * counts.max(), 6)))
    for label in np.argsort(counts, kind="stable"):
        rows = members[label]
        missing = goal - int(repeats[rows].sum())
        if missing > 0:
            own = rows[rarest[rows] == label]
            rows = own if len(own) else rows  # every row of this tag also has a rarer one
            repeats[rows] += missing // len(rows)
            repeats[rows[: missing % len(rows)]] += 1
    return repeats


def _labels(targets: np.ndarray | None, n: int, *, sampler: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the rows of each label that has some, and [N] the rarest label of each row."""
    if targets is not None and targets.ndim == 1 and targets.dtype.kind in "iu":
        _, rarest, counts = np.unique(targets, return_inverse=True, return_counts=True)
        return np.split(np.argsort(rarest, kind="stable"), np.cumsum(counts)[:-1]), rarest
    if targets is None or targets.ndim != 2 or not np.isin(targets[~np.isnan(targets)], (0, 1)).all():
        raise ConfigError(
            f"the sampler '{sampler}' is set and the targets are neither classes nor tags",
            "a single_label or multi_label competition",
            "write `sampler: shuffle`",
        )
    tags = [np.flatnonzero(targets[:, column] == 1) for column in range(targets.shape[1])]
    untagged = np.setdiff1d(np.arange(n), np.concatenate(tags))
    members = [rows for rows in (*tags, untagged) if len(rows)]
    rarest = np.empty(n, dtype=np.int64)
    for label in sorted(range(len(members)), key=lambda label: len(members[label]), reverse=True):
        rarest[members[label]] = label
    return members, rarest
