"""Where everything of a workspace lies, and what the user chose of it; the only module that joins its paths.

A workspace is the nearest folder, upwards, that has `competitions/` in it. Data and runs may lie elsewhere
(`KBENCH_DATA`, `KBENCH_RUNS`). Nothing heavy is imported, so that `kbench list` stays quick. To give something a place,
add a property here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kbench import console
from kbench.errors import ConfigError
from kbench.files import read_json, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")


def check_name(name: str, *, of: str) -> str:
    """Return a name that is safe as a file's name.

    Raises:
        ConfigError: it is empty, hidden, or holds a separator or a space.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        better = re.sub(r"[^A-Za-z0-9._+-]+", "-", re.sub(r"\.\.+", ".", name)).strip("-._+")[:60]
        raise ConfigError(
            f"'{name}' cannot be the name of {of}",
            "up to 120 letters, digits, '.', '_', '+' and '-', beginning with a letter or digit, without '..'",
            f"choose another name, such as '{better or 'mine'}'",
        )
    return name


@dataclass(frozen=True)
class FoldPaths:
    """Files of one fold of a run; `kbench/runs/<competition>/<run>/fold-<k>/`.

    Attributes:
        root: the fold's folder.
        written: where predictions go instead; None: into the folder itself.
    """

    root: Path
    written: Path | None = None

    @property
    def log(self) -> Path:
        """One JSON line per epoch and event."""
        return self.root / "log.jsonl"

    @property
    def console(self) -> Path:
        """What the fold's own process printed when several folds ran at once."""
        return self.root / "console.log"

    @property
    def plan(self) -> Path:
        """Values found while training: learning rates, micro-batch, threads, precision."""
        return self.root / "plan.json"

    @property
    def status(self) -> Path:
        """State of the fold: done or failed, with the training hash."""
        return self.root / "status.json"

    @property
    def last(self) -> Path:
        """The resume point; its JSON names the tensors' file."""
        return self.root / "last.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the fold."""
        return self.root / ".lock"

    def lease(self, generation: int) -> Path:
        """Whose the fold is, in its nth generation; touched while its owner lives."""
        return self.root / f"lease-{generation}.json"

    def leases(self) -> list[int]:
        """The generations of leases that are there, sorted; the last one counts."""
        names = (path.name.removeprefix("lease-").removesuffix(".json") for path in self.root.glob("lease-*.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def locks(self) -> list[Path]:
        """The lock files of the fold: its own, and those of its predictions."""
        return [self.lock, *self.root.glob("*/.lock")]

    def clock(self, name: str) -> Path:
        """A file that is written to see what time the file system has."""
        return self.root / f".clock-{name}"

    def lr_find(self, stage: str) -> Path:
        """The learning-rate curve of a stage (CSV; a PNG lies beside it)."""
        return self.root / f"lr-find-{stage}.csv"

    def snapshot(self, stage: str, tag: str) -> Path:
        """The JSON of a snapshot; `tag` is a cycle's number, `best` or `last`."""
        return self.root / f"snapshot-{stage}-{tag}.json"

    def snapshots(self) -> list[Path]:
        """The JSON files of all snapshots, sorted by name."""
        return sorted(self.root.glob("snapshot-*.json"))

    def snapshot_named(self, name: str) -> Path:
        """The JSON file of a snapshot, by the name it has in the fold's state."""
        return self.root / name

    def end(self, stage: str) -> Path:
        """The weights a stage left, where a later one starts from them."""
        return self.root / f"end-{stage}.safetensors"

    def body(self, digest: str) -> Path:
        """The JSON of a frozen body; snapshots of all folds of the run share it."""
        return self.root.parent / "bodies" / f"{digest}.json"

    @property
    def losses(self) -> Path:
        """Plot of losses and scores."""
        return self.root / "losses.png"

    def predictions(self, part: str, member: str) -> Path:
        """The JSON of a member's predictions; `part` is `oof`, `test` or another split's name."""
        return (self.written or self.root) / part / f"{member}.json"


@dataclass(frozen=True)
class RunPaths:
    """Files of one run: one experiment with one seed.

    Attributes:
        root: the run's folder.
        written: where predictions go instead, of a run in a bundle that cannot be written; None: into the folder.
    """

    root: Path
    written: Path | None = None

    @property
    def name(self) -> str:
        """The run's name, such as `baseline-s0`."""
        return self.root.name

    @property
    def config(self) -> Path:
        """The resolved YAML the run is trained with."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Hashes and origin of the run."""
        return self.root / "run.json"

    @property
    def content(self) -> Path:
        """Size and checksum of each image and mask the run is trained on."""
        return self.root / "content.json"

    @property
    def foreign(self) -> Path:
        """There for runs made of somebody else's predictions."""
        return self.root / "foreign.json"

    @property
    def env(self) -> Path:
        """Versions, device and commit."""
        return self.root / "env.json"

    @property
    def score(self) -> Path:
        """Out-of-fold scores."""
        return self.root / "score.json"

    @property
    def plugins(self) -> Path:
        """Copies of the plug-ins the run is trained with."""
        return self.root / "plugins"

    @property
    def pictures(self) -> Path:
        """Plots and sheets of the run."""
        return self.root / "pictures"

    @property
    def report(self) -> Path:
        """The page that shows them."""
        return self.root / "report.html"

    def pseudo(self, name: str) -> Path:
        """The JSON of pseudo-labels made by the run; what it describes lies beside it."""
        return self.root / "pseudo" / check_name(name, of="pseudo-labels") / "labels.json"

    def trial(self, suffix: str) -> Path:
        """The submission of a smoke run."""
        return self.root / f"smoke{suffix}"

    def fold_locks(self) -> list[Path]:
        """The lock files of the folds that were ever trained."""
        return sorted(self.root.glob("*/.lock"))

    def stop(self, name: str) -> Path:
        """There once the folds that a command trains elsewhere are to stop."""
        return self.root / f".stop-{name}"

    def seen(self, name: str) -> Path:
        """What every worker of a cluster must see, or wrote to be seen."""
        return self.root / f".seen-{name}"

    def portable(self) -> list[Path]:
        """The files that are the run, wherever it lies: no locks, leases, and nothing half-written."""
        left_out = re.compile(r"\..*|lease-\d+\.json")
        return sorted(
            path for path in self.root.rglob("*")
            if path.is_file() and not any(left_out.fullmatch(part) for part in path.relative_to(self.root).parts)
        )  # fmt: skip

    def inside(self, name: str) -> Path:
        """A file of the run by its name in the folder, such as `fold-0/log.jsonl`."""
        return self.root / name

    def all_seen(self, name: str) -> list[Path]:
        """What begins with such a name."""
        return sorted(self.root.glob(f".seen-{name}*"))

    def fold_numbers(self) -> list[int]:
        """The folds that have a folder."""
        names = (path.name.removeprefix("fold-") for path in self.root.glob("fold-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def fold(self, fold: int | str) -> FoldPaths:
        """Files of one fold; `full` stands for all rows."""
        name = fold if isinstance(fold, str) else f"fold-{fold}"
        return FoldPaths(self.root / name, self.written and self.written / name)

    def predictions(self, part: str) -> Path:
        """The JSON of the run's merged predictions, such as `oof`."""
        return (self.written or self.root) / part / "merged.json"


@dataclass(frozen=True)
class BundlePaths:
    """Files of a bundle: an ensemble that predicts elsewhere."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the bundle says of itself."""
        return self.root / "bundle.json"

    @property
    def wheels(self) -> Path:
        """The folder of wheels that are installed from the bundle."""
        return self.root / "wheels"

    @property
    def notebook(self) -> Path:
        """The notebook that runs it."""
        return self.root / "notebook.ipynb"

    @property
    def push(self) -> Path:
        """What is known of the dataset and the notebook that were made of it."""
        return self.root.with_name(f"{self.root.name}.push.json")

    def run(self, name: str, *, written: Path | None = None) -> RunPaths:
        """Files of a run of the bundle; what it predicts goes to another folder, if one is named."""
        return RunPaths(self.root / "runs" / name, written and written / name)

    def file(self, path: str) -> Path:
        """A file by its path in the bundle, with `/`."""
        return self.root / path

    def engine(self, checksum: str) -> Path:
        """The network of a snapshot, by the checksum of its weights, as another engine reads it."""
        return self.root / "engine" / f"{checksum[:16]}.onnx"


@dataclass(frozen=True)
class WorkPaths:
    """Files of a bundle at work: what is kept between two starts."""

    root: Path

    @property
    def plan(self) -> Path:
        """Which rows are predicted, and how long they took."""
        return self.root / "plan.json"

    @property
    def bundle(self) -> Path:
        """The bundle with its folders, as links, where it was carried without them."""
        return self.root / "bundle"

    @property
    def predictions(self) -> Path:
        """The folder of what each model said."""
        return self.root / "predictions"


@dataclass(frozen=True)
class Workspace:
    """All paths of a workspace.

    Attributes:
        root: the folder that has `competitions/` in it.
        fixed: whether nothing lies elsewhere, whatever `KBENCH_DATA` and `KBENCH_RUNS` say.
    """

    root: Path
    fixed: bool = False

    @property
    def competitions(self) -> Path:
        """The folder of the competition YAMLs."""
        return self.root / "competitions"

    @property
    def schema(self) -> Path:
        """The JSON schema editors complete the YAMLs with."""
        return self.competitions / "schema.json"

    @property
    def choice(self) -> Path:
        """What `kbench use` chose."""
        return self.root / ".kbench"

    def competition(self, name: str) -> Path:
        """The YAML of a competition."""
        return self.competitions / f"{check_name(name, of='a competition')}.yaml"

    def own(self, competition: str) -> Path:
        """The folder of a competition's experiments and plug-ins."""
        return self.competitions / check_name(competition, of="a competition")

    def experiment(self, competition: str, name: str) -> Path:
        """The YAML of an experiment."""
        return self.own(competition) / f"{check_name(name, of='an experiment')}.yaml"

    def folds(self, competition: str) -> Path:
        """The fold table (CSV; its manifest is a JSON beside it)."""
        return self.root / "folds" / f"{competition}.csv"

    def submissions(self, competition: str) -> Path:
        """The folder of a competition's submissions."""
        return self.root / "submissions" / competition

    def data(self, competition: str) -> Path:
        """The folder of a competition's data."""
        return self._movable("KBENCH_DATA", "data") / competition

    def cache(self) -> Path:
        """The folder of decoded images and content hashes."""
        return self._movable("KBENCH_DATA", "data") / ".cache"

    def runs(self, competition: str) -> Path:
        """The folder of a competition's runs."""
        return self._movable("KBENCH_RUNS", "runs") / competition

    def run(self, competition: str, name: str) -> RunPaths:
        """Files of one run."""
        return RunPaths(self.runs(competition) / check_name(name, of="a run"))

    def inspection(self, competition: str) -> Path:
        """The folder of pictures made before training."""
        return self.runs(competition) / "inspect"

    def run_names(self, competition: str) -> list[str]:
        """The names of a competition's runs, sorted."""
        runs = (RunPaths(path) for path in self.runs(competition).glob("*"))
        return sorted(paths.name for paths in runs if paths.manifest.is_file())

    def own_file(self, text: str) -> Path:
        """A file of the user's own, relative to the workspace; `~` is the home folder."""
        return self.root / os.path.expanduser(text)

    def scratch(self, competition: str, what: str) -> RunPaths:
        """Files of a trial that is no run, such as `lr-find`."""
        return RunPaths(self.runs(competition) / f".{what}")

    def _movable(self, variable: str, default: str) -> Path:
        chosen = None if self.fixed else os.environ.get(variable)
        return Path(os.path.expanduser(chosen)).absolute() if chosen else self.root / default

    def competition_names(self) -> list[str]:
        """The names of the competitions that have a YAML, sorted."""
        return sorted(path.stem for path in self.competitions.glob("*.yaml"))

    def choose(self, competition: str) -> None:
        """Make a competition the current one."""
        write_json(self.choice, {"competition": competition})

    def chosen(self) -> str | None:
        """The competition chosen before, if it still exists."""
        if not self.choice.is_file():
            return None
        content = read_json(self.choice)
        if not isinstance(content, dict):
            raise ConfigError(f"'{self.choice}' is not what `kbench use` writes", "a JSON object", "`kbench use NAME`")
        name = content.get("competition")
        return name if name in self.competition_names() else None


def find_workspace(start: Path | None = None) -> Workspace:
    """Return the workspace of a folder: the nearest parent that has `competitions/`.

    Raises:
        ConfigError: there is none.
    """
    try:
        start = (start or Path.cwd()).absolute()
    except FileNotFoundError as error:
        raise ConfigError("the current folder was removed", "a folder that exists", "`cd` into a workspace") from error
    for folder in (start, *start.parents):
        if os.path.isdir(folder / "competitions"):
            return Workspace(folder)
    raise ConfigError(
        f"'{start}' is not in a kbench workspace",
        "a folder with `competitions/` in it, here or above",
        "`kbench init` makes this folder one; `kbench demo` shows the whole job",
    )


@dataclass(frozen=True)
class Choice:
    """What the user chose on the command line.

    Attributes:
        competition: `-c`, or None.
        experiment: `-e`, or None for the baseline.
        run: `--run`, or None.
        assignments: `--set` overrides.
        workspace: a folder in the workspace; the current one by default.
    """

    competition: str | None = None
    experiment: str | None = None
    run: str | None = None
    assignments: tuple[str, ...] = ()
    workspace: Path | None = None

    @property
    def of_a_part(self) -> bool:
        """Whether it may cover some of the targets alone, to be joined by other runs."""
        return self.experiment is not None or any(one.startswith("data.target=") for one in self.assignments)


def current(workspace: Workspace, name: str | None) -> str | None:
    """Return the competition given, named by `KBENCH_COMPETITION`, or chosen by `kbench use`; else None."""
    return name or os.environ.get("KBENCH_COMPETITION") or workspace.chosen()


def choose(workspace: Workspace, given: str | None) -> str:
    """Return the competition to work on: the current one, the only one, or `digits`.

    Raises:
        ConfigError: there are several and none was chosen.
    """
    names = workspace.competition_names()
    name = current(workspace, given)
    if name:
        return name
    if len(names) == 1:
        return names[0]
    if "digits" in names:
        console.note("no competition chosen: taking 'digits' (choose one with `kbench use NAME` or -c NAME)")
        return "digits"
    raise ConfigError(
        "no competition is chosen" if names else f"'{workspace.competitions}' has no competition",
        f"one of {', '.join(names)}" if names else "a YAML there",
        "`kbench use NAME`" if names else "`kbench new NAME` drafts one",
    )
