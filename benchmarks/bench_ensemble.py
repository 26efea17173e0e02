"""Thresholds, weights and greedy selection on an ensemble of planet's size, each scored plain and nested.

python benchmarks/bench_ensemble.py [--rows 40479] [--labels 17] [--members 25]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from kbench import registry
from kbench.data.table.table import Table
from kbench.ensemble.average import Stack
from kbench.ensemble.nested import Recipe, evaluate
from kbench.metrics.metric import make_metric

WAYS = {
    "mean": ("mean", {}, None),
    "mean, one threshold": ("mean", {}, {}),
    "mean, a threshold per label": ("mean", {}, {"per_label": True}),
    "weights, one threshold": ("weights", {}, {}),
    "greedy of 20 draws, one threshold": ("greedy", {"draws": 20}, {}),
}


def drawn(rows: int, labels: int, members: int) -> Stack:
    """Return members that see the truth through noise, most of which they share."""
    rng = np.random.default_rng(0)
    targets = (rng.random((rows, labels)) < np.geomspace(0.003, 0.9, labels)).astype(np.float32)
    shared = targets * 4 - 3 + rng.normal(size=targets.shape)
    values = np.stack(
        [1 / (1 + np.exp(-shared - rng.normal(size=shared.shape) * (0.5 + 0.05 * one))) for one in range(members)]
    )
    ids = np.array([f"{row:06d}" for row in range(rows)])
    names = tuple(f"tag{label}" for label in range(labels))
    table = Table(ids, Path(), ((),) * rows, "multi_label", names, targets)
    return Stack(
        tuple(f"m{one}" for one in range(members)), values.astype(np.float32), np.full(members, 1 / members), table,
        np.arange(rows) % 5, make_metric("f2_samples"),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_479)
    parser.add_argument("--labels", type=int, default=17)
    parser.add_argument("--members", type=int, default=25)
    options = parser.parse_args()
    stack = drawn(options.rows, options.labels, options.members)
    print(f"{options.rows:,} rows x {options.labels} labels x {options.members} members, 5 folds, F2")
    for name, (combiner, params, decision) in WAYS.items():
        decide = None if decision is None else registry.build("decision", "threshold", decision)
        started = time.perf_counter()
        made = evaluate(stack, Recipe(registry.build("combiner", combiner, params), decide))
        seconds = time.perf_counter() - started
        print(f"  {name:34} {seconds:7.1f} s  plain {made.plain.value:.5f}  nested {made.nested}")


if __name__ == "__main__":
    main()
