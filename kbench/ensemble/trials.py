"""What many rules make of out-of-fold maps, counted image by image; what picks alike picks once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kbench import registry
from kbench.data.tables import Table
from kbench.ensemble.postprocess import PICKING, Rule
from kbench.metrics.pixels import image_counts

Params = dict[str, Any]
Maps = Callable[[np.ndarray], Iterable[tuple[int, np.ndarray]]]
"""Row numbers -> each with its [K, H, W] float32 probabilities, in any order."""
Alike = list[tuple[Rule, list[int]]]
"""Rules that pick alike, each with the numbers of the candidates it stands for."""


def area(truth: Callable[[int], np.ndarray], n_rows: int) -> int:
    """Return the pixels of an image, the mean of a few evenly drawn."""
    drawn = np.unique(np.linspace(0, n_rows - 1, 16).astype(int)).tolist()
    return max(1, int(np.mean([truth(row)[:, :, 0].size for row in drawn])))


def alike(candidates: Sequence[Params], table: Table) -> list[Alike]:
    """Return the rules of candidates, those that pick alike together."""
    found: dict[str, dict[str, list[int]]] = {}
    for number, one in enumerate(candidates):
        picking = repr([one.get(key) for key in PICKING])
        found.setdefault(picking, {}).setdefault(repr(one), []).append(number)
    return [[(_rule(candidates[numbers[0]], table), numbers) for numbers in rules.values()] for rules in found.values()]


def count(
    alike_of: Callable[[int], list[Alike]],
    n_candidates: int,
    rows: np.ndarray,
    *,
    maps: Maps,
    truth: Callable[[int], np.ndarray],
    table: Table,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Return [C, N, K, 3] int32 counts of candidates on some rows; one image is in memory at a time.

    Args:
        alike_of: row -> the rules of its candidates.
        n_candidates: C.
        rows: N row numbers.
        maps: yields the maps of rows.
        truth: row -> the true mask as a `MaskKind` reads it.
        table: of the rows.
        advance: is told how many images are done.
    """
    k = len(table.target_names)
    place_of = {row: place for place, row in enumerate(rows.tolist())}
    counts = np.zeros((n_candidates, len(rows), k, 3), dtype=np.int32)
    done = 0
    for row, values in maps(rows):
        real = truth(row)
        for together in alike_of(row):
            picked = together[0][0].pick(values)
            for rule, numbers in together:
                counts[numbers, place_of[row]] = image_counts(rule.clean(picked), real, n_classes=k)
        done += 1
        advance(done)
    assert done == len(rows), f"{done} maps for {len(rows)} rows"
    return counts


def _rule(params: Params, table: Table) -> Rule:
    rule: Rule = registry.build("postprocess", "standard", params, _names=table.target_names, _task=table.task)
    return rule
