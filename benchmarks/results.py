"""The scores of the README: digits, and dogs against cats where the data is at hand.

    python benchmarks/results.py [--data FOLDER]

FOLDER holds `dogcat/` (train.csv, train/, test/, sample_submission.csv), `solutions/dogcat.csv` and
`weights/mobilenetv2_100.safetensors`; by default `../shared/data` beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOGCAT = """
title: Dogs against cats, 2,400 photographs
task: single_label
source: {{name: local, path: {data}/dogcat, solution: {data}/solutions/dogcat.csv}}
data:
  train: {{csv: train.csv, images: train}}
  test: {{images: test, suffix: .jpg}}
  target: label
folds: {{strategy: stratified, n: 5, seed: 42}}
metric: log_loss
submission: {{format: single_probability}}
input: {{size: 160}}
model:
  backbone: mobilenetv2_100
  weights: {data}/weights/mobilenetv2_100.safetensors
  options: {{create: {{pad_type: same}}}}
train: {{batch_size: 32, optimizer: adamw, weight_decay: 0.01, augment: side_on}}
stages:
  head: {{groups: head, lr: 3e-3, schedule: {{name: sgdr, cycles: 2, cycle_len: 1}}, keep: [cycles]}}
  all: {{lr: 1e-4, lr_decay: 3, schedule: {{name: sgdr, cycles: 1, cycle_len: 1}}, keep: [cycles]}}
tta: flip
"""


def kbench(workspace: Path, *words: str) -> Any:
    """Run a command in a workspace; return what it printed as JSON."""
    command = [sys.executable, "-m", "kbench", *words, "--json"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("KBENCH_")}
    return json.loads(subprocess.run(command, cwd=workspace, env=env, check=True, stdout=subprocess.PIPE).stdout)


def digits(workspace: Path) -> dict[str, Any]:
    """Run the demo."""
    found = kbench(workspace, "demo")
    return {
        "competition": "digits", "models": found["members"], "CV": f"{found['score']:.4f}",
        "interval": f"[{found['low']:.4f}, {found['high']:.4f}]", "test log loss": f"{found['test']['log_loss']:.4f}",
        "test accuracy": f"{found['test']['accuracy']:.4f}", "seconds": round(found["seconds"]),
    }  # fmt: skip


def dogcat(workspace: Path, data: Path) -> dict[str, Any]:
    """Train two folds of a short recipe, ensemble them and grade the checked submission."""
    (workspace / "competitions" / "dogcat.yaml").write_text(DOGCAT.format(data=data))
    started = time.perf_counter()
    kbench(workspace, "download", "dogcat")
    for fold in ("0", "1"):
        kbench(workspace, "train", "--fold", fold)
    made = kbench(workspace, "ensemble")
    graded = kbench(workspace, "submit")
    seconds = time.perf_counter() - started
    accuracy = grade_accuracy(workspace, made["file"], data)
    return {
        "competition": "dogcat, folds 0 and 1", "models": made["members"], "CV": f"{made['score']:.4f}",
        "interval": f"[{made['low']:.4f}, {made['high']:.4f}]", "test log loss": f"{graded['all_rows']:.4f}",
        "test accuracy": f"{accuracy:.4f}", "seconds": round(seconds),
    }  # fmt: skip


def grade_accuracy(workspace: Path, file: str, data: Path) -> float:
    """Return the accuracy of a two-class submission."""
    import pandas as pd

    given = pd.read_csv(file).set_index("id")["label"]
    truth = pd.read_csv(data / "solutions" / "dogcat.csv").set_index("id")["label"]
    return float(((given > 0.5) == (truth.reindex(given.index) > 0.5)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / ".." / "shared" / "data")
    data = parser.parse_args().data.resolve()
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        subprocess.run([sys.executable, "-m", "kbench", "init", name], check=True)
        rows = [digits(workspace)]
        if (data / "dogcat").is_dir():
            rows.append(dogcat(workspace, data))
        else:
            print(f"no data in {data}: dogs against cats is left out", file=sys.stderr)
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
