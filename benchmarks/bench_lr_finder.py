"""How far the learning rate of a range test lies from a tenth of the rate where the loss is lowest.

Synthetic curves know where that is; noise is gamma distributed, the test ends where the loss diverges. Of real
networks it is the minimum of the mean of several tests with other seeds, at whose suggestions one looks one by one.

    python benchmarks/bench_lr_finder.py [--curves 1000] [--real] [--data FOLDER] [--seeds 6]

`--real` needs the sets of `results.py` and takes some minutes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from results import ROOT, kbench, make_workspace, run

from kbench.errors import TrainingError
from kbench.training.lr_finder import Smoother, judge, ramp, should_stop, track_best

Curve = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, float]]
STEPS, NOISES = (16, 32, 100, 400), (0.0, 0.1, 0.3)


def floor(lrs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A fall to a level floor, and from its end on a rise."""
    lowest = 10 ** rng.uniform(-3.3, -0.7)
    half = lowest * 10 ** rng.uniform(-2.2, -1.2)
    fall = rng.uniform(0.2, 1) + rng.uniform(0.3, 1.2) / (1 + (lrs / half) ** rng.uniform(1, 3))
    losses = fall + rng.uniform(0.2, 0.8) * np.maximum(lrs / lowest - 1, 0) ** rng.uniform(1, 1.4)
    return losses, float(lrs[np.argmin(losses)])


def bowl(lrs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A round valley."""
    place, width = np.log10(lrs) - rng.uniform(-3.3, -0.9), rng.uniform(0.6, 1.5)
    height = rng.uniform(0.7, 3)
    fall = height - height * rng.uniform(0.3, 0.9) * np.exp(-(np.minimum(place, 0) ** 2) / 2 / width**2)
    losses = fall + height * rng.uniform(0.05, 0.4) * (10 ** np.maximum(place, 0) - 1) ** 1.2
    return losses, float(lrs[np.argmin(losses)])


def steep(lrs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A fall within a decade, right before the rise."""
    place, height = np.log10(lrs) - rng.uniform(-2.5, -0.9), rng.uniform(0.7, 4.8)
    fall = height * rng.uniform(0.2, 0.8) / (1 + np.exp(-rng.uniform(6, 14) * (place + rng.uniform(0.3, 0.6))))
    losses = height - fall + height * rng.uniform(0.5, 3) * (10 ** np.maximum(place, 0) - 1)
    return losses, float(lrs[np.argmin(losses)])


def level(lrs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A trained network: level, then a rise; what counts as lowest is the last level rate."""
    end, height = 10 ** rng.uniform(-3.3, -0.9), rng.uniform(0.5, 1)
    losses = height * (1 + rng.uniform(0.3, 3) * np.maximum(lrs / end - 1, 0) ** rng.uniform(1, 1.3))
    return losses, float(lrs[np.flatnonzero(lrs <= end)[-1]])


SHAPES: dict[str, Curve] = {"floor": floor, "bowl": bowl, "steep": steep, "level": level}


def until_diverged(losses: np.ndarray) -> int:
    """Return how many updates a range test makes of such losses."""
    smoother, best = Smoother(), math.inf
    for step, loss in enumerate(losses):
        smoothed = smoother.add(float(loss))
        if should_stop(smoothed, best, step):
            return step + 1
        best = track_best(smoothed, best, step)
    return len(losses)


def decades_off(shape: Curve, steps: int, noise: float, rng: np.random.Generator) -> float:
    """Return by how many decades a suggestion is above a tenth of the true minimum; NaN where it is refused."""
    lrs = np.array([ramp(step, steps, 1e-5, 10) for step in range(steps)])
    truth, lowest = shape(lrs, rng)
    form = rng.uniform(1.5, 3)
    losses = np.maximum(truth + noise * (rng.gamma(form, form**-0.5, steps) - form**0.5), 1e-3)
    count = until_diverged(losses)
    return off(lrs[:count], losses[:count], lowest)


def off(lrs: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray, lowest: float) -> float:
    """Return by how many decades a suggestion is above a tenth of the rate `lowest`; NaN where it is refused."""
    try:
        return math.log10(judge(list(lrs), list(losses)).rate / lowest * 10)
    except TrainingError:
        return math.nan


def line(name: str, values: Sequence[float]) -> str:
    """Return a row of the table: within a factor of 3, above 0.3 x the minimum, below, refused, and quantiles."""
    known = np.array([value for value in values if not math.isnan(value)])
    third = math.log10(3)
    shares = [(abs(known) <= third).sum(), (known > third).sum(), (known < -third).sum(), len(values) - len(known)]
    parts = " | ".join(f"{100 * share / len(values):.1f} %" for share in shares)
    spread = ", ".join(f"{10**value:.2f}" for value in np.quantile(known, (0.05, 0.5, 0.95)))
    return f"| {name} | {parts} | {spread} |"


HEAD = (
    "| curves | within a factor of 3 | above | below | refused | rate over a tenth of the minimum's: 5, 50, 95 % |\n"
    "|---|---|---|---|---|---|"
)

REAL = {
    "digits, 64 images, 32 steps": ("digits", "start", []),
    "digits, 8 images": ("digits", "start", ["train.batch_size=8", "stages.start.range_test.steps=100"]),
    "dogcat, all layers, 8 images": (
        "dogcat", "head",
        ["train.batch_size=8", "stages.head.groups=all", "stages.head.precompute=false", "stages.head.lr=find"],
    ),
    "dogbreed, head, 64 images": ("dogbreed", "head", ["stages.head.lr=find"]),
    "tgs_salt, U-Net, 4 images": ("tgs_salt", "all", ["train.batch_size=4", "stages.all.lr=find"]),
}  # fmt: skip
"""What is trained: competition, stage, and what is set beyond its YAML."""


def real_curves(workspace: Path, seeds: int) -> dict[str, list[pd.DataFrame]]:
    """Run every range test with some seeds; return the tables of its curves."""
    curves: dict[str, list[pd.DataFrame]] = {}
    for name, (competition, stage, settings) in REAL.items():
        run(workspace, kbench("download", "-c", competition))
        curves[name] = []
        for seed in range(seeds):
            words = [word for setting in (*settings, f"seed={seed}") for word in ("--set", setting)]
            told = run(workspace, ["-c", TRY, competition, stage, *words])
            curves[name].append(pd.read_csv(told["csv"]))
    return curves


TRY = """
import json, sys
from kbench.commands.lr_find import lr_find
from kbench.errors import TrainingError
from kbench.workspace import Choice
competition, stage, *words = sys.argv[1:]
try:
    told = lr_find(Choice(competition, assignments=tuple(words[1::2])), fold=0, stage=stage, device="auto")
except TrainingError:  # refused: the curve is there anyway
    from kbench.workspace import find_workspace
    told = {"csv": str(find_workspace(None).scratch(competition, "lr-find").fold(0).lr_find(stage))}
print(json.dumps(told))
"""
"""A program: the range test of a stage, also where it is refused."""


def lowest_of(curves: Sequence[pd.DataFrame]) -> float:
    """Return the rate at which the mean of some curves is lowest, over three neighbours each."""
    count = min(len(curve) for curve in curves)
    mean = np.mean([curve["loss"].to_numpy()[:count] for curve in curves], axis=0)
    smooth = np.convolve(np.pad(mean, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    return float(curves[0]["lr"].to_numpy()[np.argmin(np.where(np.isfinite(smooth), smooth, np.inf))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=1000, help="synthetic ones")
    parser.add_argument("--real", action="store_true", help="range tests of real networks too")
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=6, help="tests of each real network")
    chosen = parser.parse_args()
    cases = [(shape, steps, noise) for shape in SHAPES for steps in STEPS for noise in NOISES]
    rng = np.random.default_rng(0)
    values: dict[tuple[str, int, float], list[float]] = {case: [] for case in cases}
    for number in range(chosen.curves):
        shape, steps, noise = case = cases[number % len(cases)]
        values[case].append(decades_off(SHAPES[shape], steps, noise, rng))
    print(HEAD)
    print(line("all", [value for some in values.values() for value in some]))
    for place, names in enumerate((list(SHAPES), STEPS, NOISES)):
        for name in names:
            some = [value for case, drawn in values.items() if case[place] == name for value in drawn]
            print(line(f"{name} {('', 'steps', 'noise')[place]}".strip(), some))
    if not chosen.real:
        return
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), chosen.data.resolve())
        print("\n| range test | mean curve lowest at | each suggestion over a tenth of that |\n|---|---|---|")
        for name, curves in real_curves(workspace, chosen.seeds).items():
            lowest = lowest_of(curves)
            ratios = sorted(10 ** off(curve["lr"], curve["loss"], lowest) for curve in curves)
            print(f"| {name} | {lowest:.2g} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
