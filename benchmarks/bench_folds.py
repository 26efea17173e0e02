"""Iterative stratification of a large multi-label table: seconds, and how evenly the labels fall.

python benchmarks/bench_folds.py [--rows 100000] [--labels 17] [--folds 5]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from kbench.data.folds.strategies import iterative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=17)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    shares = np.geomspace(0.001, 0.9, options.labels)  # as uneven as planet's tags: 100 rows to 90,000
    values = np.random.default_rng(0).random((options.rows, options.labels)) < shares
    rows, labels = np.nonzero(values)
    started = time.perf_counter()
    fold = iterative(rows, labels, count=options.labels, size=options.rows, n=options.folds, seed=0)
    seconds = time.perf_counter() - started
    counts = np.stack([values[fold == number].sum(axis=0) for number in range(options.folds)])  # [folds, labels]
    sizes = np.bincount(fold, minlength=options.folds)
    print(
        f"{options.rows:,} rows x {options.labels} labels into {options.folds} folds: {seconds:.2f} s (goal: seconds); "
        f"a label's counts differ by {np.ptp(counts, axis=0).max()} at most, sizes by {np.ptp(sizes)}"
    )


if __name__ == "__main__":
    main()
