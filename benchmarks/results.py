"""The scores of the README: every set that is at hand, trained, ensembled and graded by the commands of kbench.

    python benchmarks/results.py [SET ...] [--data FOLDER] [--jobs 2] [--again SET] [--list]

The recipes are the YAMLs of `benchmarks/competitions/`, and the embedded digits. FOLDER holds the sets, `solutions/`
and `weights/`; by default `../shared/data` beside the checkout. What is done is not done again: stopped, the same
command goes on. A recipe that changed is trained anew; after a change of the code say `--again SET`.
To add a set, write its YAML there and a line in `SETS`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RECIPES = HERE / "competitions"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        competition: name of its YAML.
        experiment: of that competition.
        metrics: further scores of the test set.
    """

    competition: str
    experiment: str = "baseline"
    metrics: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the command line and the table call it."""
        return self.competition if self.experiment == "baseline" else f"{self.competition}/{self.experiment}"


SETS = (
    Entry("digits", metrics=("accuracy",)),
    Entry("dogcat", metrics=("accuracy",)),
    Entry("dogcat", "best", metrics=("accuracy",)),
    Entry("dogbreed", metrics=("accuracy",)),
    Entry("camvid_multilabel"),
    Entry("camvid"),
    Entry("tgs_salt"),
)


def make_workspace(folder: Path, data: Path) -> Path:
    """Make a folder a workspace with the recipes in it and the data beside them, or bring it up to date."""
    environment = _environment()
    subprocess.run([sys.executable, "-m", "kbench", "init", str(folder)], check=True, env=environment,
                   stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    shutil.copytree(RECIPES, folder / "competitions", dirs_exist_ok=True)
    link = folder / "shared"
    if data.is_dir() and not link.is_symlink():
        link.symlink_to(data, target_is_directory=True)
    return folder


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KBENCH_", "KAGGLE_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])}


def run(workspace: Path, command: Sequence[str]) -> Any:
    """Run a program in the workspace; return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, *command], cwd=workspace, env=_environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}; the same command goes on")
    return json.loads(done.stdout)


class Diary:
    """What was done for an entry, kept on disk: step -> seconds and answer.

    Args:
        path: the JSON.
        key: of the recipe; another one begins a new diary.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.outdated = bool(known) and known["key"] != key
        self._content: dict[str, Any] = known if known and not self.outdated else {"key": key, "steps": {}}

    def step(self, name: str, workspace: Path, command: Sequence[str]) -> Any:
        """Run a program, or return what it answered before."""
        steps = self._content["steps"]
        if name not in steps:
            print(f"-- {self._path.stem}: {name}", file=sys.stderr, flush=True)
            started = time.perf_counter()
            answer = run(workspace, command)
            steps[name] = {"seconds": time.perf_counter() - started, "answer": answer}
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(self._content, indent=1))
            part.replace(self._path)
        return steps[name]["answer"]

    def seconds(self, *but: str) -> float:
        """Return how long all steps but some took."""
        return sum(one["seconds"] for name, one in self._content["steps"].items() if name not in but)


def recipe_key(workspace: Path, entry: Entry) -> str:
    """Return a digest of the YAMLs of an entry."""
    files = [workspace / "competitions" / f"{entry.competition}.yaml"]
    own = workspace / "competitions" / entry.competition
    files += sorted(own.glob("*.py")) + [own / f"{entry.experiment}.yaml"] * (entry.experiment != "baseline")
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def measure(workspace: Path, entry: Entry, *, jobs: int, again: bool) -> dict[str, Any]:
    """Do the whole job of an entry; return its row."""
    folder = workspace / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{entry.name.replace('/', '-')}.json"
    diary = Diary(path, recipe_key(workspace, entry))
    if again or diary.outdated:
        forget(workspace, entry)
        path.unlink(missing_ok=True)
        diary = Diary(path, recipe_key(workspace, entry))
    words = ["-c", entry.competition]
    choice = [*words, "-e", entry.experiment] if entry.experiment != "baseline" else words
    diary.step("download", workspace, kbench("download", *words))
    diary.step("train", workspace, kbench("train", *choice, "--fold", "all", "--jobs", str(jobs)))
    made = diary.step("ensemble", workspace, kbench("ensemble", *choice, "--require-all"))
    diary.step("submit", workspace, kbench("submit", made["file"], *words))
    command = [str(HERE / "gains.py"), entry.competition, entry.experiment, "--metrics", *entry.metrics]
    gains = diary.step("gains", workspace, command)
    return row(entry, gains, diary.seconds("gains", "download"))


def forget(workspace: Path, entry: Entry) -> None:
    """Remove an entry's runs and its competition's folds, which the recipe may now cut otherwise."""
    for run_folder in (workspace / "runs" / entry.competition).glob(f"{entry.experiment}-s*"):
        shutil.rmtree(run_folder)
    for file in (workspace / "folds").glob(f"{entry.competition}.*"):
        file.unlink()


def kbench(*words: str) -> list[str]:
    """Return the arguments that make Python run a command of kbench."""
    return ["-m", "kbench", *words, "--json"]


def row(entry: Entry, gains: dict[str, Any], seconds: float) -> dict[str, str]:
    """Return a row of the table."""
    shown = {name: f"{one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
             for name, one in gains["gains"].items()}  # fmt: skip
    oof = gains["oof"]
    return {
        "set": entry.name,
        "models x views": f"{gains['members']} x {gains['n_views']}",
        "metric": gains["metric"],
        "out of fold": f"{oof['value']:.4f} [{oof['low']:.4f}, {oof['high']:.4f}]",
        "snapshots add": shown.get("snapshots", "-"),
        "views add": shown.get("views", "-"),
        "folds add, on test": shown.get("folds", "-"),
        "test": ", ".join(f"{name} {value:.4f}" for name, value in gains.get("test", {}).items()) or "-",
        "seconds": f"{seconds:.0f}",
    }


def at_hand(entry: Entry, data: Path) -> str:
    """Return why an entry cannot be measured here; empty when it can."""
    if entry.competition == "digits":
        return ""
    for path in (data / entry.competition, data / "weights" / "mobilenetv2_100.safetensors"):
        if not path.exists():
            return f"'{path}' is not here"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="which; all by default")
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / "results", help="where everything is kept")
    parser.add_argument("--jobs", type=int, default=1, help="folds at once")
    parser.add_argument("--again", nargs="*", default=[], metavar="SET", help="train these anew")
    parser.add_argument("--list", action="store_true", help="name the sets and stop")
    chosen = parser.parse_args()
    data, known = chosen.data.resolve(), {entry.name: entry for entry in SETS}
    if unknown := set(chosen.sets + chosen.again) - set(known):
        parser.error(f"no set {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if chosen.list:
        print("\n".join(known))
        return
    workspace = make_workspace(chosen.workspace.absolute(), data)
    rows = []
    for name in chosen.sets or known:
        if why := at_hand(known[name], data):
            print(f"{name} is left out: {why}", file=sys.stderr)
            continue
        rows.append(measure(workspace, known[name], jobs=chosen.jobs, again=name in chosen.again))
    if rows:
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + "---|" * len(rows[0]))
    for one in rows:
        print("| " + " | ".join(one.values()) + " |")


if __name__ == "__main__":
    main()
