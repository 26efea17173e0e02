"""The one mean: of views, snapshots, folds and runs; of batches on a device, arrays, stacks and maps.

Arithmetic: of probabilities or target units. Geometric: exp of the mean of log(max(p, floor)), divided by its sums
where classes exclude one another (the two averages of fast.ai's `TTA` before and after 2018). Values are summed in the
space of `into`, with weights that sum to 1, and come back by `back`; both take numpy arrays and torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kbench.errors import PredictionError, nearest
from kbench.tasks import exclusive

MeanKind = Literal["arithmetic", "geometric"]
FLOOR = 1e-7  # smallest probability a geometric mean sees: about float32's resolution next to 1


@dataclass(frozen=True)
class Mean:
    """How values are averaged.

    Attributes:
        kind: `arithmetic` or `geometric`.
        exclusive: whether a geometric mean is divided by its sums over classes.
        floor: smallest value before a logarithm; half a step where values were rounded.
    """

    kind: MeanKind = "arithmetic"
    exclusive: bool = False
    floor: float = FLOOR

    def into(self, values: Any) -> Any:
        """Return what is summed: the values, or their logarithms."""
        if self.kind == "arithmetic":
            return values
        raised = values.clip(self.floor)
        return np.log(raised) if isinstance(raised, np.ndarray) else raised.log()

    def add(self, total: Any, values: Any, weight: Any) -> Any:
        """Add a part to a running total, in place, and return it; begin with None.

        Args:
            total: what this returned before, or None.
            values: the part.
            weight: a number, or an array that is broadcast.
        """
        part = self.into(values) * weight
        if total is None:
            return part
        total += part
        return total

    def back(self, total: Any, axis: int = 1) -> Any:
        """Return the mean of a total of weights that sum to 1; classes lie along an axis."""
        if self.kind == "arithmetic":
            return total
        values = np.exp(total) if isinstance(total, np.ndarray) else total.exp()
        return normalised(values, axis) if self.exclusive else values


ARITHMETIC = Mean()


def mean_of_task(kind: str, task: str, n_outputs: int, *, floor: float = FLOOR) -> Mean:
    """Return the mean of a task's predictions.

    Raises:
        PredictionError: there is no such mean, or it is the geometric one of numbers.
    """
    if kind not in ("arithmetic", "geometric"):
        raise PredictionError(
            f"unknown mean '{kind}'", "arithmetic or geometric", nearest(kind, ["arithmetic", "geometric"])
        )
    if kind == "geometric" and "regression" in task:
        raise PredictionError(
            "the geometric mean of a regression", "probabilities", "set ensemble.mean: arithmetic in the YAML"
        )
    return Mean("geometric" if kind == "geometric" else "arithmetic", exclusive(task, n_outputs), floor)


def normalised(values: Any, axis: int = 1) -> Any:
    """Return values divided by their sums along an axis; zeros where a sum is zero."""
    if isinstance(values, np.ndarray):
        sums = values.sum(axis=axis, keepdims=True)
        return np.divide(values, sums, out=np.zeros_like(values), where=sums > 0)
    return values / values.sum(axis, keepdim=True)
