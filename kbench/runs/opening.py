"""Open runs that exist, and make those to train: nothing trained is ever mixed with something trained otherwise."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

from kbench import console, files, records
from kbench.config.competition import SCHEMA
from kbench.config.reading import read_document, validate, with_stage_defaults
from kbench.data.pseudo_rows import describe
from kbench.data.table.content import changed
from kbench.errors import ConfigError, raise_all
from kbench.runs import leases
from kbench.runs.experiment import Experiment
from kbench.runs.run import Run
from kbench.runs.trained_config import flat, read_config, write_config
from kbench.runs.trial_build import part_problems
from kbench.workspace import Choice, FoldPaths, RunPaths, Workspace, choose, find_workspace

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


def run_name(experiment: Experiment) -> str:
    """Return the run's name: `--run`, else `<experiment>-s<seed>`."""
    return experiment.choice.run or f"{experiment.competition.experiment}-s{experiment.competition.seed}"


def run_paths(experiment: Experiment) -> RunPaths:
    """Return the files of the run an experiment trains."""
    return experiment.workspace.run(experiment.competition.name, run_name(experiment))


def run_of(experiment: Experiment, paths: RunPaths | None = None) -> Run:
    """Return the run an experiment trains, whether it exists or not, with the hashes that training has now.

    Args:
        experiment: the experiment.
        paths: other files than those of the run, of a trial.
    """
    return Run(experiment, paths or run_paths(experiment), identity(experiment))


def identity(experiment: Experiment) -> dict[str, str]:
    """Return the hashes that go into every checkpoint: `training`, `contract` and `folds`."""
    competition = experiment.competition
    plugins = [experiment.plugins / name for name in competition.plugins]
    hashes = competition.hashes(plugins=plugins, weights=experiment.weights(), pseudo=experiment.pseudo())
    training = files.digest([hashes["training"], experiment.folds.hash, experiment.train.fingerprint()])
    return {"training": training, "contract": hashes["contract"], "folds": experiment.folds.hash}


def _view(experiment: Experiment) -> dict[str, Any]:
    view = experiment.competition.training_view()
    view["order"] = [name for name, _ in view["stages"]]
    view["stages"] = dict(view["stages"])
    plugins = {name: files.sha256(experiment.plugins / name)[:16] for name in experiment.competition.plugins}
    weights = experiment.weights()
    origins = {"folds_file": experiment.folds.hash, "table": experiment.train.fingerprint(), "plugins": plugins}
    pseudo = pseudo_origin(experiment)
    if pseudo is not None:
        origins["pseudo"] = pseudo
    return flat({**view, **origins, "weights": files.sha256(weights)[:16] if weights else None})


def pseudo_origin(experiment: Experiment) -> dict[str, Any] | None:
    """Return where the pseudo-labels of a training come from and what was chosen of them, or None."""
    path = experiment.pseudo()
    if path is None:
        return None
    said = describe(path)
    return {"labels": experiment.competition.pseudo, "checksum": files.sha256(path)[:16], "sure": said["sure"],
            "origin": said["origin"]}  # fmt: skip


def prepare_run(experiment: Experiment, *, force: bool) -> Run:
    """Return the run an experiment trains, created or held against the YAML.

    Raises:
        ConfigError: a part cannot be built, or the run was trained otherwise; the message shows the difference.
    """
    run = run_of(experiment)
    competition, paths, known = run.competition, run.paths, run.trained_as
    raise_all(
        part_problems(competition, experiment.train), error=ConfigError, subject=f"'{competition.name}'",
        expected="parts that can be built", todo="correct what is named above, then `kbench check`",
    )  # fmt: skip
    content = experiment.content
    if paths.manifest.is_file():
        before = read_manifest(paths)
        changes = [] if experiment.trial else content.changes(before.get("content"), paths.content)
        if before["training"] != known["training"] or changes:
            if not force:
                otherwise = before["training"] != known["training"]
                raise _trained_otherwise(experiment, paths, before) if otherwise else changed(paths.name, changes)
            for lock in paths.fold_locks():
                todo = "wait until the run is trained, or stop it, then type this again"
                with leases.holding(FoldPaths(lock.parent), todo=todo):
                    pass
            console.warn(f"training '{paths.name}' anew: what it held is removed")
            files.remove(paths.root)
        elif not experiment.trial and before.get("content") is None:  # of an earlier version
            files.write_json(paths.manifest, {**before, "content": content.keep(paths.content)})
        if paths.manifest.is_file() and not paths.config.is_file():
            console.note(f"'{paths.config}' was gone: written anew, as the competition's YAML says the same")
            files.write_json(paths.manifest, {**read_manifest(paths), "config": write_config(paths, competition)})
        elif paths.manifest.is_file():
            read_config(paths, before)
    if not paths.manifest.is_file():
        for name in competition.plugins:
            files.copy(experiment.plugins / name, paths.plugins / name)
        checksum = write_config(paths, competition)
        files.write_json(paths.env, environment())
        files.write_json(
            paths.manifest,
            {"competition": competition.name, "experiment": competition.experiment,
             "seed": competition.seed, "set": list(experiment.choice.assignments), **known,
             "pseudo": pseudo_origin(experiment), "view": _view(experiment), "config": checksum,
             "content": None if experiment.trial else content.keep(paths.content)},
        )  # fmt: skip
    return run


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
    return records.read_record(paths.manifest, keys=keys, todo=todo)


def _trained_otherwise(experiment: Experiment, paths: RunPaths, before: dict[str, Any]) -> ConfigError:
    old, new = before.get("view", {}), _view(experiment)
    if old.get("schema", 1) != SCHEMA:
        return ConfigError(
            f"the run '{paths.name}' was trained by {'an earlier' if old.get('schema', 1) < SCHEMA else 'a later'} "
            f"version of kbench, which says otherwise how a model is trained",
            f"a run of this version (schema {SCHEMA}); this one can be scored, sent and averaged with others",
            f"train what it lacks as a run of its own with `--run {paths.name}-{SCHEMA}`, or all folds anew with "
            "`kbench train --force`",
        )
    lines = [
        f"  {key}: {old.get(key, 'not set')!r} -> {new.get(key, 'not set')!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    return ConfigError(
        f"the run '{paths.name}' was trained otherwise:\n" + "\n".join(lines or ["  (another version of kbench)"]),
        "one run, one way of training",
        f"write the change as an experiment, '{experiment.workspace.own(experiment.competition.name)}/NAME.yaml', "
        "and train it with `-e NAME`; or give it a name with `--run NAME`; or train all its folds anew with "
        "`kbench train --force`",
    )


def open_run(choice: Choice, *, other_folds: bool = False) -> Run:
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
    manifest = read_manifest(paths)
    trained = read_config(paths, manifest)
    baseline = manifest["experiment"] == "baseline"
    current = _current(workspace, name, None if baseline else manifest["experiment"], manifest, choice)
    content = {**{key: value for key, value in trained.items() if key not in FREE},
               **{key: current[key] for key in FREE if key in current}}  # fmt: skip
    competition = validate(
        content, file=str(paths.config), folder=paths.plugins, name=name, experiment=manifest["experiment"],
        record=True,
    )  # fmt: skip
    experiment = Experiment(workspace, competition, choice, paths.plugins)
    known = {key: manifest[key] for key in ("training", "contract", "folds")}
    if experiment.folds.hash != known["folds"] and not other_folds:
        raise ConfigError(
            f"the run '{paths.name}' was trained on other folds than '{workspace.folds(name)}' holds now",
            f"folds with the hash {known['folds']}",
            "bring the fold file back, or train the run anew with `kbench train --force`; "
            "`kbench ensemble --mixed-folds` averages it with others, without a score",
        )
    return Run(experiment, paths, known)


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
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
