"""Peak memory of `kbench folds`, `score` and `ensemble` by the number of rows: kB a row, told from two numbers of rows.

python benchmarks/bench_memory.py [--rows 20000 200000] [--folder FOLDER]

A table of 10 classes and a group column with an image of 8 x 8 pixels per row, as many test rows; the run is imported
predictions. With FOLDER the data are kept and used again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

CLASSES = 10
YAML = """task: single_label
source: {name: local, path: source}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
  metadata: [site]
folds: {strategy: stratified, n: 5, seed: 42}
metric: log_loss
submission: {format: probabilities, sample: sample_submission.csv}
input: {size: 8}
model: {backbone: resnet10t}
train: {batch_size: 64}
stages: {all: {lr: 1e-3, keep: [last]}}
"""


def written(root: Path, rows: int) -> Path:
    """Write a workspace with rows of noise, an own image each, and predictions of all of them."""
    if (root / "whole").exists():
        return root
    rng, data = np.random.default_rng(0), root / "data" / "many"
    names = [f"{row:07d}" for row in range(rows)]
    for part in ("train", "test"):
        (data / part).mkdir(parents=True)
        for name in names:
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            (data / part / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    labels = rng.integers(0, CLASSES, rows)
    (data / "train.csv").write_text(
        "id,label,site\n"
        + "".join(
            f"{name},c{label},s{row % 1000}\n" for row, (name, label) in enumerate(zip(names, labels, strict=True))
        )
    )
    header = "id," + ",".join(f"c{number}" for number in range(CLASSES)) + "\n"
    for path in (data / "sample_submission.csv", root / "predictions.csv"):
        values = rng.dirichlet(np.ones(CLASSES), rows)
        lines = (
            f"{name},{','.join(f'{value:.6f}' for value in row)}\n" for name, row in zip(names, values, strict=True)
        )
        path.write_text(header + "".join(lines))
    (root / "competitions").mkdir()
    (root / "competitions" / "many.yaml").write_text(YAML)
    (root / "whole").touch()
    return root


def peak(root: Path, *words: str) -> float:
    """Run a command of kbench in a workspace; return the most memory it took, in kB."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "kbench", *words], cwd=root, env=environment, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"kbench {' '.join(words)}: {said.read()[-2000:]}")
    return float(usage.ru_maxrss)


def commands(root: Path) -> dict[str, float]:
    """Return the peak memory of every command on one workspace, in kB."""
    choice = ("-c", "many")
    peaks = {"folds": peak(root, "folds", "--force", *choice)}
    both = ("--oof", "predictions.csv", "--test", "predictions.csv")
    peaks["import"] = peak(root, "import", "theirs", *both, "--force", *choice)
    peaks["score"] = peak(root, "score", *choice, "--run", "theirs")
    peaks["ensemble"] = peak(
        root, "ensemble", "theirs", *choice, "--name", f"e{len(list(root.glob('submissions/*/*')))}"
    )
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 200_000])
    parser.add_argument("--folder", type=Path, help="where the data are kept; a temporary folder by default")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        few, many = (commands(written(folder / str(rows), rows)) for rows in options.rows)
    for name, most in many.items():
        each = (most - few[name]) / (options.rows[1] - options.rows[0])
        print(f"{name:9} {few[name] / 1024:6.0f} MB of {options.rows[0]:,} rows, {most / 1024:6.0f} MB of "
              f"{options.rows[1]:,}: {each:.2f} kB a row")  # fmt: skip


if __name__ == "__main__":
    main()
