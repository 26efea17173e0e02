"""Kill training at random moments, type the same command again, and compare with a run that was never killed.

    python benchmarks/soak.py [--runs 30] [--seed 0]

One fold of the real digits is trained by `kbench train --fold 0` in processes of its own: two stages, a range test,
dropout, batch norm, mixup, a moving average, accumulated batches. Each of the runs is killed with SIGKILL one to three
times. Weights, out-of-fold arrays, the plan, and the log but for its times must be the same to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

YAML = """
task: single_label
source: {name: embedded, dataset: digits}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
folds: {strategy: stratified, n: 4, seed: 1}
metric: log_loss
submission: {format: probabilities}
input: {size: 16, channels: 1}
model: {backbone: test_resnet, options: {head: concat, hidden: [32], dropout: 0.2}}
train: {batch_size: 80, augment: {name: basic, rotate: 12}}
stages:
  head: {groups: head, lr: find, range_test: {steps: 24}, schedule: {name: constant, epochs: 1}}
  all:
    lr: 0.05
    lr_decay: 3
    optimizer: {name: sgd, momentum: 0.9}
    schedule: {name: sgdr, cycles: 2, cycle_len: 1}
    mix: mixup
    accumulate: 2
    clip: 1.0
    ema: 0.8
    keep: [cycles, best]
tta: {name: random, n: 2}
loader: {checkpoint_minutes: 0.002}
"""
TIMES = ("seconds", "images_per_s", "waiting", "verdict", "at")
COMMAND = ("train", "-c", "soak", "--fold", "0", "--device", "cpu")


def make_workspace(root: Path) -> Path:
    """Write the competition and fetch its data."""
    (root / "competitions").mkdir(parents=True)
    (root / "competitions" / "soak.yaml").write_text(YAML)
    kbench(root, root / "runs", "download", "soak").wait()
    return root


def kbench(root: Path, runs: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a command in a workspace, its runs in a folder of their own; what it says goes to a file."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KBENCH_")}
    runs.mkdir(exist_ok=True)
    with open(runs / "said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "kbench", *words], cwd=root,
            env={**kept, "KBENCH_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def train(root: Path, runs: Path, *, kill_after: float | None = None) -> bool:
    """Train the fold, or be killed after some seconds; return whether it was trained to its end."""
    process = kbench(root, runs, *COMMAND)
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if code:
        sys.exit(f"kbench {' '.join(COMMAND)} -> {code}\n{(runs / 'said.txt').read_text()}")
    return True


def outcome(runs: Path) -> dict[str, str]:
    """Return everything a fold leaves, as hashes by file; the log without its times."""
    fold = runs / "soak" / "baseline-s0" / "fold-0"
    found = {}
    for path in sorted(fold.rglob("*")):
        name = str(path.relative_to(fold))
        if path.suffix in (".safetensors", ".npy", ".ids", ".csv") or path.name in ("plan.json", "status.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name.startswith((".tmp", "last")):
            found[name] = "should not be there"
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    found["log.jsonl"] = json.dumps([{key: line[key] for key in line if key not in TIMES} for line in lines])
    return found


def killed_run(root: Path, runs: Path, *, seconds: float, draw: random.Random) -> list[float]:
    """Train the fold, killed one to three times at random moments; return the moments."""
    moments = []
    for _ in range(draw.randint(1, 3)):
        moments.append(draw.uniform(0.2, 1.0) * seconds)
        if train(root, runs, kill_after=moments[-1]):
            break
    train(root, runs)
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kbench-soak-") as folder:
        root = make_workspace(Path(folder) / "workspace")
        train(root, root / "warm")  # cuts the folds, fills the cache
        started = time.perf_counter()
        train(root, root / "never-killed")
        seconds = time.perf_counter() - started
        expected = outcome(root / "never-killed")
        print(f"never killed: {seconds:.1f} s, {len(expected)} files", flush=True)
        if outcome(root / "warm") != expected:
            sys.exit("two runs that were never killed differ")
        same = 0
        for number in range(options.runs):
            runs = root / f"killed-{number}"
            moments = killed_run(root, runs, seconds=seconds, draw=draw)
            found = outcome(runs)
            differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            same += not differ
            when = ", ".join(f"{moment:.1f} s" for moment in moments)
            verdict = f"differs: {', '.join(differ)}" if differ else "same"
            print(f"run {number + 1}: killed after {when}: {verdict}", flush=True)
    print(f"{same} of {options.runs} killed and resumed runs are identical to the one never killed")
    sys.exit(0 if same == options.runs else 1)


if __name__ == "__main__":
    main()
