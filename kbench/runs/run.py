"""A run's identity: nothing trained is ever mixed with something trained otherwise."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

from kbench import console, files
from kbench.config.reading import read_document, read_yaml, validate, with_stage_defaults
from kbench.config.yaml12 import dump_yaml
from kbench.data.pseudo_rows import describe
from kbench.errors import ConfigError, raise_all
from kbench.runs.experiment import Setup
from kbench.runs.trial_build import part_problems
from kbench.workspace import Choice, RunPaths, Workspace, choose, find_workspace

FREE = (
    "tta",
    "ensemble",
    "maps",
    "submission",
    "loader",
    "metric",
    "source",
    "title",
)  # may change without retraining


def run_name(setup: Setup) -> str:
    """Return the run's name: `--run`, else `<experiment>-s<seed>`."""
    return setup.choice.run or f"{setup.competition.experiment}-s{setup.competition.seed}"


def run_paths(setup: Setup) -> RunPaths:
    """Return the files of the chosen run."""
    return setup.workspace.run(setup.competition.name, run_name(setup))


def identity(setup: Setup) -> dict[str, str]:
    """Return the hashes that go into every checkpoint: `training`, `contract` and `folds`."""
    competition = setup.competition
    plugins = [setup.plugins / name for name in competition.plugins]
    hashes = competition.hashes(plugins=plugins, weights=setup.weights(), pseudo=setup.pseudo())
    known = [hashes["training"], setup.folds.hash, setup.train.fingerprint()]
    if setup.folds.avoid is not None:  # earlier versions trained on what folds avoid
        known.append("avoided rows left out")
    training = files.digest(known)
    return {"training": training, "contract": hashes["contract"], "folds": setup.folds.hash}


def _view(setup: Setup) -> dict[str, Any]:
    view = setup.competition.training_view()
    view["order"] = [name for name, _ in view["stages"]]
    view["stages"] = dict(view["stages"])
    plugins = {name: files.sha256(setup.plugins / name)[:16] for name in setup.competition.plugins}
    weights = setup.weights()
    found = {"folds_file": setup.folds.hash, "table": setup.train.fingerprint(), "plugins": plugins}
    pseudo = pseudo_origin(setup)
    if pseudo is not None:
        found["pseudo"] = pseudo
    return _flat({**view, **found, "weights": files.sha256(weights)[:16] if weights else None})


def pseudo_origin(setup: Setup) -> dict[str, Any] | None:
    """Return where the pseudo-labels of a training come from and what was chosen of them, or None."""
    path = setup.pseudo()
    if path is None:
        return None
    said = describe(path)
    return {"labels": setup.competition.pseudo, "checksum": files.sha256(path)[:16], "sure": said["sure"],
            "origin": said["origin"]}  # fmt: skip


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: item for name, part in value.items() for key, item in _flat(part, f"{path}.{name}").items()}
    return {path.lstrip("."): value}


def prepare_run(setup: Setup, *, force: bool) -> tuple[RunPaths, dict[str, str]]:
    """Create the run, or hold it against the YAML; return its files and identity.

    Raises:
        ConfigError: a part cannot be built, or the run was trained otherwise; the message shows the difference.
    """
    paths, known = run_paths(setup), identity(setup)
    raise_all(
        part_problems(setup.competition, setup.train), error=ConfigError, subject=f"'{setup.competition.name}'",
        expected="parts that can be built", todo="correct what is named above, then `kbench check`",
    )  # fmt: skip
    if paths.manifest.is_file():
        before = read_manifest(paths)
        if before["training"] != known["training"]:
            if not force:
                raise _trained_otherwise(setup, paths, before)
            for lock in paths.fold_locks():
                with files.lock(lock, waiting="wait until the run is trained, or stop it, then type this again"):
                    pass
            console.warn(f"training '{paths.name}' anew: what it held is removed")
            files.remove(paths.root)
    if not paths.manifest.is_file():
        for name in setup.competition.plugins:
            files.copy(setup.plugins / name, paths.plugins / name)
        content = setup.competition.model_dump(mode="json")
        files.write_text(paths.config, dump_yaml(content))
        files.write_json(paths.env, environment())
        files.write_json(
            paths.manifest,
            {"competition": setup.competition.name, "experiment": setup.competition.experiment,
             "seed": setup.competition.seed, "set": list(setup.choice.assignments), **known,
             "pseudo": pseudo_origin(setup), "view": _view(setup)},
        )  # fmt: skip
    return paths, known


def read_manifest(paths: RunPaths) -> dict[str, Any]:
    """Return what `run.json` says of a run.

    Raises:
        DataError: it is damaged.
    """
    keys = {"training": str, "contract": str, "folds": str, "experiment": str, "set": list}
    todo = (
        f"bring '{paths.manifest}' back, or remove the run's folder '{paths.root}' and type `kbench train`; without it "
        "nothing says how the weights were trained"
    )
    return files.read_record(paths.manifest, keys=keys, todo=todo)


def _trained_otherwise(setup: Setup, paths: RunPaths, before: dict[str, Any]) -> ConfigError:
    old, new = before.get("view", {}), _view(setup)
    lines = [
        f"  {key}: {old.get(key, 'not set')!r} -> {new.get(key, 'not set')!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    return ConfigError(
        f"the run '{paths.name}' was trained otherwise:\n" + "\n".join(lines or ["  (another version of kbench)"]),
        "one run, one way of training",
        f"write the change as an experiment, '{setup.workspace.own(setup.competition.name)}/NAME.yaml', and train it "
        "with `-e NAME`; or give it a name with `--run NAME`; or train this run anew with `--force`",
    )


def open_run_setup(choice: Choice, *, other_folds: bool = False) -> tuple[Setup, RunPaths, dict[str, str]]:
    """Open a run that exists, for scoring, predicting and ensembling.

    What weights depend on comes from the run; views, ensembling and submission come from the YAML as it is now.

    Args:
        choice: the run.
        other_folds: whether it may be trained on other folds than the competition has now; what it says of rows then
            means nothing, and it can only predict others.

    Raises:
        ConfigError: there is no such run, or it is trained on other folds.
    """
    workspace = find_workspace(choice.workspace)
    name = choose(workspace, choice.competition)
    paths = _existing_run(workspace, name, choice)
    trained = read_yaml(paths.config)
    manifest = read_manifest(paths)
    experiment = manifest["experiment"]
    current = _current(workspace, name, None if experiment == "baseline" else experiment, manifest, choice)
    content = {**{key: value for key, value in trained.items() if key not in FREE},
               **{key: current[key] for key in FREE if key in current}}  # fmt: skip
    competition = validate(
        content, file=str(paths.config), folder=paths.plugins, name=name, experiment=experiment, record=True
    )
    setup = Setup(workspace, competition, choice, paths.plugins)
    known = {key: manifest[key] for key in ("training", "contract", "folds")}
    if setup.folds.hash != known["folds"] and not other_folds:
        raise ConfigError(
            f"the run '{paths.name}' was trained on other folds than '{workspace.folds(name)}' holds now",
            f"folds with the hash {known['folds']}",
            "bring the fold file back, or train the run anew with `kbench train --force`; "
            "`kbench ensemble --mixed-folds` averages it with others, without a score",
        )
    return setup, paths, known


def _current(
    workspace: Workspace, name: str, experiment: str | None, manifest: dict[str, Any], choice: Choice
) -> dict[str, Any]:
    free = [text for text in manifest["set"] if text.partition("=")[0].partition(".")[0] in FREE]
    assignments = [*free, *choice.assignments]
    return with_stage_defaults(read_document(workspace, name, experiment, assignments))


def _existing_run(workspace: Workspace, name: str, choice: Choice) -> RunPaths:
    if choice.run:
        paths = workspace.run(name, choice.run)
    else:
        document = read_document(workspace, name, choice.experiment, choice.assignments)
        paths = workspace.run(name, f"{choice.experiment or 'baseline'}-s{document.get('seed', 0)}")
    if not paths.manifest.is_file():
        known = workspace.run_names(name)
        raise ConfigError(
            f"there is no run '{paths.name}' of '{name}'",
            f"one of {', '.join(known)}" if known else "a trained run",
            "`kbench train`" if not known else "`--run NAME` names one; `kbench train` makes one",
        )
    return paths


def environment() -> dict[str, Any]:
    """Return versions, machine and commit."""
    import torch

    return {
        "python": platform.python_version(), "machine": platform.machine(), "system": platform.system(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit(),
    }  # fmt: skip


def commit() -> str | None:
    """Return the git commit of the current folder, or None outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
