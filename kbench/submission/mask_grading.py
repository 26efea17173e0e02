"""Grading of masks on this machine: counts of pixels, image by image, then the competition's metric.

The solution is a file in the competition's own format. Where it holds all classes, and these exclude one another,
pixels of no class are ignored. `grading.py` decides what is graded here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kbench.data.tables import Table
from kbench.errors import SubmissionError, first_names
from kbench.inference.mask_set import MaskSet
from kbench.metrics import Metric
from kbench.metrics.pixels import image_counts


def mask_counts(masks: MaskSet, truth: MaskSet) -> np.ndarray:
    """Return [N, K, 3] int64 counts of the images of the truth; two masks are in memory at a time.

    Raises:
        SubmissionError: an image is not predicted, or the classes differ.
    """
    missing = np.setdiff1d(truth.ids, masks.ids)
    if len(missing) or masks.names != truth.names:
        raise SubmissionError(
            f"{len(missing):,} images of the solution are not predicted: {first_names(missing.tolist())}"
            if len(missing)
            else f"the classes {first_names(list(masks.names))} for a solution with {first_names(list(truth.names))}",
            "masks of the solution's images and classes",
            "correct the solution file, or submission.format in the YAML",
        )
    rows = np.searchsorted(masks.ids, truth.ids)
    counts = np.empty((len(truth), len(truth.names), 3), dtype=np.int64)
    for row, place in enumerate(rows.tolist()):
        real = truth[row]
        real = real[:, :, None] if real.ndim == 2 else real.transpose(1, 2, 0)
        counts[row] = image_counts(masks[place], real, n_classes=len(truth.names))
    return counts


def table_of(truth: MaskSet) -> Table:
    """Return the rows of a solution's masks, for a metric."""
    return Table(truth.ids, Path(), ((),) * len(truth), truth.task, truth.names)


def score_counts(metric: Metric, counts: np.ndarray, table: Table, rows: Iterable[bool]) -> float | None:
    """Return the score of some rows of [N, K, 3] counts; None when there are none."""
    chosen = np.fromiter(rows, dtype=bool, count=len(table))
    if not chosen.any():
        return None
    return metric(counts[chosen, :, 0] + counts[chosen, :, 2], counts[chosen], table.select(chosen))
