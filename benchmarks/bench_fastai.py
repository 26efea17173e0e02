"""fastai 2.8 against kbench on photographs of dogs and cats, taking turns epoch by epoch on the same cores.

    python benchmarks/bench_fastai.py --make-env       once: fastai's environment, .venv-fastai (about 6 GB)
    python benchmarks/bench_fastai.py                  the comparison; --quick tries everything on 64 images

Both have the backbone, weights, image size, batch size, rates, SGDR cycles, split, head, optimiser and augmentation in
common; everything else is as each does it by default. Epochs are timed by each side's own clock, training and
judging, without start-up; "whole job" is the wall time of everything. Test images are scored, never selected on.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from turns import Side

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GOALS = {"unfrozen epoch": 2.0, "five frozen folds": 50.0, "TTA of the test set": 4.0}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data", help="has dogcat/, weights/ ...")
    parser.add_argument("--fastai-env", type=Path, default=ROOT / ".venv-fastai", help="fastai's virtual environment")
    parser.add_argument("--make-env", action="store_true", help="make that environment and stop")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-fastai.json", help="all that was measured")
    parser.add_argument("--quick", action="store_true", help="a few images, one epoch, two folds: does it work?")
    parser.add_argument("--cycles", type=int, default=2, help="SGDR cycles of a stage, of 1, 2, 4 ... epochs")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-fold", action="store_true", help="fastai's five folds are five times its first one")
    parser.add_argument(
        "--fastai-options", nargs="*", default=[], choices=["channels_last", "frozen_bn"],
        help="what fastai can do, and does not by default",
    )  # fmt: skip
    parser.add_argument("--fastai-workers", type=int, default=None, help="loader processes; fastai's own default")
    return parser.parse_args()


def make_env(folder: Path) -> None:
    """Make fastai's environment with the pinned versions."""
    venv.create(folder, with_pip=True)
    pins = HERE / "requirements-fastai.txt"
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "-r", pins],
                   check=True)  # fmt: skip
    print(f"{folder} is ready: python benchmarks/bench_fastai.py")


def recipe(chosen: argparse.Namespace, data: Path, weights: Path, n_folds: int) -> dict[str, Any]:
    """Return the competition: three groups of layers learn at fastai's two rates, since it cuts the body nowhere."""
    return {
        "task": "single_label",
        "source": {"name": "local", "path": str(data)},
        "data": {"train": {"csv": "train.csv", "images": "train"}, "test": {"images": "test", "suffix": ".jpg"},
                 "target": "label"},
        "folds": {"strategy": "stratified", "n": n_folds, "seed": 42},
        "metric": "log_loss",
        "submission": {"format": "single_probability"},
        "seed": chosen.seed,
        "input": {"size": chosen.size},
        "model": {"backbone": "mobilenetv2_100", "weights": str(weights),
                  "options": {"head": "concat", "create": {"pad_type": "same"}}},
        "train": {"batch_size": chosen.batch, "optimizer": {"name": "adamw", "betas": [0.9, 0.99], "eps": 1e-5},
                  "weight_decay": 0.01, "augment": "side_on",
                  "schedule": {"name": "sgdr", "cycles": chosen.cycles, "cycle_mult": 2}},
        "stages": {"frozen": {"groups": "head", "lr": 3e-3},
                   "unfrozen": {"lr": [1e-4, 1e-4, 1e-3], "keep": ["last"]}},
        "tta": {"name": "random", "n": 4},
    }  # fmt: skip


def from_activations(baseline: dict[str, Any]) -> dict[str, Any]:
    """Return the competition whose head alone is trained, on what the frozen body makes of each image once."""
    train = {key: value for key, value in baseline["train"].items() if key != "augment"}
    stage = {"groups": "head", "lr": 3e-3, "precompute": True, "keep": ["last"]}
    return {**baseline, "train": train, "stages": {"frozen": stage}, "tta": "none"}


def subset(data: Path, target: Path, n_train: int, n_test: int) -> Path:
    """Link a few images of each class, and of the test set, into a folder of the same layout."""
    lines = (data / "train.csv").read_text().splitlines()
    classes = [[line for line in lines[1:] if line.endswith(f",{label}")][: n_train // 2] for label in (0, 1)]
    sample = (data / "sample_submission.csv").read_text().splitlines()[: n_test + 1]
    for part, names in (("train", [line.split(",")[0] for line in classes[0] + classes[1]]),
                        ("test", [f"{line.split(',')[0]}.jpg" for line in sample[1:]])):  # fmt: skip
        (target / part).mkdir(parents=True)
        for name in names:
            (target / part / name).symlink_to(data / part / name)
    (target / "train.csv").write_text("\n".join([lines[0], *classes[0], *classes[1]]) + "\n")
    (target / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    return target


def make_workspace(folder: Path, competition: dict[str, Any], env: dict[str, str]) -> list[list[str]]:
    """Make a workspace with one competition, its data and its folds; return the ids of each fold."""
    (folder / "competitions").mkdir(parents=True)
    (folder / "competitions" / "dogcat.yaml").write_text(json.dumps(competition))
    for words in (["download", "dogcat"], ["check"], ["folds"]):
        done = subprocess.run([sys.executable, "-m", "kbench", *words], cwd=folder, env=env, capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"kbench {' '.join(words)} failed:\n{done.stderr}")
    with (folder / "folds" / "dogcat.csv").open(newline="") as stream:
        rows = [(row["id"], int(row["fold"])) for row in csv.DictReader(stream)]
    return [[name for name, fold in rows if fold == number] for number in range(competition["folds"]["n"])]


def grade(file: Path, solution: Path) -> dict[str, float]:
    """Return accuracy and log loss of the probabilities of label 1."""
    with file.open(newline="") as stream:
        given = {row["id"]: float(row["label"]) for row in csv.DictReader(stream)}
    with solution.open(newline="") as stream:
        truth = {row["id"]: int(row["label"]) for row in csv.DictReader(stream)}
    right = [(given[name] > 0.5) == (truth[name] == 1) for name in given]
    sure = [min(max(given[name] if truth[name] else 1 - given[name], 1e-15), 1.0) for name in given]
    return {"accuracy": statistics.mean(right), "log_loss": -statistics.mean(map(math.log, sure)), "images": len(given)}


def machine(threads: int) -> dict[str, Any]:
    """Return what the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": threads,
            "load": os.getloadavg()[0], "python": platform.python_version()}  # fmt: skip


@contextlib.contextmanager
def started(commands: dict[str, list[str]], folder: Path, env: dict[str, str]) -> Iterator[list[Side]]:
    """Start both sides; end them whatever happens."""
    sides: list[Side] = []
    try:
        for name, command in commands.items():
            own = env if name == "kbench" else {key: value for key, value in env.items() if key != "PYTHONPATH"}
            sides.append(Side(name, command, log=folder / f"{name}.log", env=own, cwd=HERE))
        yield sides
    finally:
        for side in sides:
            side.close()


def play(sides: Sequence[Side], units: Sequence[str]) -> None:
    """Give both sides their turns, unit by unit; who begins changes every time."""
    begun = time.perf_counter()
    for number, unit in enumerate(units):
        said = []
        for side in sides if number % 2 == 0 else sides[::-1]:
            record = side.turn()
            if record["unit"] != unit:
                raise SystemExit(f"{side.name} did '{record['unit']}' when it was to do '{unit}'")
            said.append(f"{side.name} {record.get('seconds', record['turn_s']):.1f} s")
        elapsed = time.perf_counter() - begun
        print(f"{elapsed:7.0f} s  {number + 1}/{len(units)} {unit}: {', '.join(said)}", file=sys.stderr, flush=True)


def summary(side: Side, folds: int) -> dict[str, Any]:
    """Return the numbers of the table."""
    of = {unit: [record for record in side.records if record["unit"] == unit] for unit in
          ("start", "frozen", "unfrozen", "tta", "file", "folds")}  # fmt: skip
    five = of["folds"][0]
    frozen_s = sum(record["seconds"] for record in of["frozen"])
    found = {
        "frozen epoch": statistics.median(record["seconds"] for record in of["frozen"]),
        "unfrozen epoch": statistics.median(record["seconds"] for record in of["unfrozen"]),
        "TTA of the test set": of["tta"][0]["seconds"],
        "whole job, one fold": sum(record["turn_s"] for record in side.records if record["unit"] != "folds"),
        "valid log loss, one fold, no TTA": of["unfrozen"][-1]["valid_loss"],
    }
    if side.name == "kbench":
        found["five frozen folds"] = five["seconds"]
        found["valid log loss, frozen folds"] = five["score"]["score"]
    else:
        done = 1 + len(five["folds"])  # the first is that of the whole job
        found["five frozen folds"] = (frozen_s + five["seconds"]) * folds / done
        losses = [of["frozen"][-1]["valid_loss"], *five["valid_losses"]]
        found["valid log loss, frozen folds"] = statistics.mean(losses)
    return found


def table(fastai: dict[str, Any], kbench: dict[str, Any]) -> str:
    """Return the table as Markdown; times in seconds, the ratio is fastai's over kbench's."""
    timed = ("frozen epoch", "unfrozen epoch", "TTA of the test set", "five frozen folds", "whole job, one fold")
    lines = ["| | fastai | kbench | ratio | goal |", "|---|---|---|---|---|"]
    for name in timed:
        goal = f"{GOALS[name]:g}" if name in GOALS else ""
        ratio = fastai[name] / kbench[name]
        lines.append(f"| {name}, s | {fastai[name]:.1f} | {kbench[name]:.1f} | {ratio:.1f} | {goal} |")
    for name in fastai:
        if name not in timed:
            lines.append(f"| {name} | {fastai[name]:.4f} | {kbench[name]:.4f} | | |")
    return "\n".join(lines)


def main() -> None:
    chosen = options()
    if chosen.make_env:
        make_env(chosen.fastai_env)
        return
    python, data = chosen.fastai_env.absolute() / "bin" / "python", chosen.data.resolve()
    weights = data / "weights" / "mobilenetv2_100.safetensors"
    if not python.is_file():
        raise SystemExit(f"no fastai in {chosen.fastai_env}: python benchmarks/bench_fastai.py --make-env")
    if not weights.is_file() or not (data / "dogcat").is_dir():
        raise SystemExit(f"no dogcat/ and weights/ in {data}: give their folder with --data")
    if chosen.quick:
        chosen.cycles, chosen.size, chosen.batch = 1, 96, 16
    begun, folds, host = time.perf_counter(), 2 if chosen.quick else 5, machine(chosen.threads)
    epochs = 2**chosen.cycles - 1
    env = {key: value for key, value in os.environ.items() if not key.startswith("KBENCH_")}
    env |= {"OMP_NUM_THREADS": str(chosen.threads), "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = subset(data / "dogcat", folder / "images", 64, 32) if chosen.quick else data / "dogcat"
        competition = recipe(chosen, images, weights, folds)
        split = make_workspace(folder / "one", competition, env)
        make_workspace(folder / "five", from_activations(competition), env)
        job = {
            "data": str(images), "weights": str(weights), "size": chosen.size, "batch": chosen.batch,
            "cycles": chosen.cycles, "threads": chosen.threads, "seed": chosen.seed, "lr_frozen": 3e-3, "lr_all": 1e-3,
            "weight_decay": 0.01, "workers": chosen.fastai_workers, "fastai_options": chosen.fastai_options,
            "folds": split, "fastai_folds": 1 if chosen.one_fold else folds, "out": name,
            "workspace": str(folder / "one"), "folds_workspace": str(folder / "five"),
        }  # fmt: skip
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        commands = {"fastai": [str(python), str(HERE / "fastai_side.py"), str(path)],
                    "kbench": [sys.executable, str(HERE / "kbench_side.py"), str(path)]}  # fmt: skip
        units = ["start", *["frozen"] * epochs, *["unfrozen"] * epochs, "tta", "file", "folds"]
        with started(commands, folder, env) as sides:
            play(sides, units)
        results = {side.name: summary(side, folds) for side in sides}
        for side in sides:
            file = next(record["file"] for record in side.records if record["unit"] == "file")
            graded = grade(Path(file), data / "solutions" / "dogcat.csv")
            results[side.name] |= {"test accuracy, TTA": graded["accuracy"], "test log loss, TTA": graded["log_loss"]}
        records = {side.name: side.records for side in sides}
    seconds = time.perf_counter() - begun
    shown = {key: value for key, value in job.items() if key not in ("folds", "data", "weights", "out", "workspace",
                                                                     "folds_workspace")}  # fmt: skip
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"machine": host, "job": shown, "quick": chosen.quick, "seconds": seconds,
                                      "results": results, "records": records}, indent=1))  # fmt: skip
    starts = {name: found[0] for name, found in records.items()}
    print(table(results["fastai"], results["kbench"]))
    print(f"\n{host['cpu']}, {host['cores']} cores, {chosen.threads} threads, load at the start {host['load']:.1f}; "
          f"fastai {starts['fastai']['fastai']}, torch {starts['fastai']['torch']} and {starts['kbench']['torch']}; "
          f"{chosen.size} px, batch {chosen.batch}, {epochs} + {epochs} epochs, {len(split)} folds"
          + (f"; fastai with {', '.join(chosen.fastai_options)}" if chosen.fastai_options else "")
          + ("; fastai's five folds are five times its first" if chosen.one_fold else ""))  # fmt: skip
    if host["load"] > 0.5:
        print("The machine was not quiet: another load than the two sides' own makes these numbers worth little.")
    print(f"{seconds:.0f} s in all; everything measured: {chosen.out}")


if __name__ == "__main__":
    main()
