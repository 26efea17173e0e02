"""`kbench init`, `list`, `use`, `check`, `cache`: the workspace itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from kbench import console, files, registry
from kbench.commands.setup import Choice, Setup, open_setup
from kbench.config import Competition
from kbench.data.cache import cache_entries, clear_cache
from kbench.data.tables import Table
from kbench.data.verify import unreadable_images
from kbench.documents import load_competition
from kbench.errors import ConfigError, KbenchError, Problem, nearest, raise_all
from kbench.submission.check import read_sample
from kbench.workspace import Workspace, find_workspace


def init(folder: str) -> Path:
    """Make a folder a workspace with the `digits` competition; what is there stays."""
    workspace = Workspace(Path(folder).absolute())
    target = workspace.competition("digits")
    if not target.exists():
        files.write_text(target, shipped("digits"))
    write_schema(workspace)
    return workspace.root


def shipped(name: str) -> str:
    """Return the text of a competition YAML that comes with kbench.

    Raises:
        ConfigError: there is none of this name.
    """
    folder = resources.files("kbench") / "shipped"
    if not folder.is_dir():  # a checkout: the YAMLs lie beside the package
        folder = Path(__file__).parents[2] / "competitions"
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = [item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")]
        raise ConfigError(
            f"kbench ships no competition '{name}'", f"one of {', '.join(sorted(known))}", nearest(name, known)
        )
    return file.read_text(encoding="utf-8")


def schema() -> dict[str, Any]:
    """Return the JSON schema of a competition YAML as it is written, `train:` and short forms included."""
    content = Competition.model_json_schema()
    definitions = content["$defs"]
    definitions["Component"] = {
        "anyOf": [
            {"type": "string"},
            {key: value for key, value in definitions["Component"].items() if key != "title"},
        ],
        "title": "Component",
    }
    for key in ("name", "experiment"):
        content["properties"].pop(key)
    content["properties"]["train"] = {"$ref": "#/$defs/Stage", "description": "defaults of every stage"}
    content["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return content


def write_schema(workspace: Workspace) -> Path:
    """Write `competitions/schema.json`, for editors."""
    return files.write_text(workspace.schema, json.dumps(schema(), indent=2, sort_keys=True) + "\n")


def listing(kind: str | None, choice: Choice) -> dict[str, Any]:
    """Return competitions and runs, or the names of a kind of part with their parameters."""
    if kind is not None:
        real = kind.replace("-", " ")
        if real not in registry.kinds():
            known = [name.replace(" ", "-") for name in registry.kinds()]
            raise ConfigError(f"unknown kind '{kind}'", f"one of {', '.join(known)}", nearest(kind, known))
        rows = []
        for name in registry.names(real):
            part = registry.get(real, name)
            shown = ", ".join(
                key if value.default is value.empty else f"{key}={value.default}"
                for key, value in part.parameters().items()
            )
            says = (part.function.__doc__ or "").strip().splitlines()
            rows.append({real: name, "parameters": shown, "does": says[0] if says else ""})
        return {"rows": rows}
    workspace = find_workspace()
    current = choice.competition or workspace.chosen()
    rows = []
    for name in workspace.competition_names():
        runs = sorted(path.name for path in workspace.runs(name).glob("*") if (path / "run.json").is_file())
        experiments = sorted(path.stem for path in workspace.own(name).glob("*.yaml"))
        rows.append(
            {"competition": name, "current": "*" if name == current else "", "experiments": ", ".join(experiments),
             "data": "yes" if workspace.data(name).exists() else "no", "runs": ", ".join(runs)}
        )  # fmt: skip
    return {"rows": rows, "kinds": [name.replace(" ", "-") for name in registry.kinds()]}


def use(name: str) -> None:
    """Make a competition the current one.

    Raises:
        ConfigError: it does not exist.
    """
    workspace = find_workspace()
    if name not in workspace.competition_names():
        raise ConfigError(
            f"there is no competition '{name}'", f"one of {', '.join(workspace.competition_names())}",
            nearest(name, workspace.competition_names()),
        )  # fmt: skip
    workspace.choose(name)


def check(choice: Choice, *, images: bool, every: bool) -> dict[str, Any]:
    """Check YAML, data, folds and sample submission; report every problem at once.

    Args:
        choice: the competition.
        images: decode every image.
        every: check the YAMLs of all competitions and experiments instead.

    Raises:
        ConfigError: the YAML has problems.
        DataError: the data has.
    """
    if every:
        return _check_every(find_workspace())
    setup = open_setup(choice)
    found: dict[str, Any] = {
        "competition": setup.competition.name,
        "yaml": "ok",
        "stages": list(setup.competition.stages),
    }
    _model_problems(setup)
    if not setup.data.exists():
        console.warn(f"no data yet: `kbench download {setup.competition.name}`")
        return found | {"data": None}
    problems: list[Problem] = []
    with console.bar("checking images") as advance:
        found["rows"] = _gather(problems, "data.train", lambda: len(setup.train))
        if found["rows"]:
            problems += _unreadable(setup.train, images, advance)
            found["targets"] = len(setup.train.target_names)
            found["folds"] = _gather(problems, "folds", lambda: setup.folds.n)
        if setup.competition.data.test is not None:
            found["test"] = _gather(problems, "data.test", lambda: len(setup.test))
            if found["test"]:
                problems += _unreadable(setup.test, images, advance)
        found["sample"] = _gather(problems, "submission.sample", lambda: len(read_sample(setup.sample)))
    raise_all(
        problems, error=ConfigError, subject=f"'{setup.competition.name}'", expected="data that fits the YAML",
        todo="correct what is named above, then `kbench check` again",
    )  # fmt: skip
    return found


def _unreadable(table: Table, deep: bool, advance: console.Advance) -> list[Problem]:
    jobs = 2 * (os.cpu_count() or 1)
    return unreadable_images(table, jobs=jobs, progress=lambda what, done, total: advance(done, total), deep=deep)


def _gather(problems: list[Problem], where: str, look: Callable[[], int]) -> int | None:
    try:
        return look()
    except KbenchError as error:
        problems.append(Problem(where, error.what, error.todo))
        return None


def _model_problems(setup: Setup) -> None:
    from kbench.models.classifier import check_backbone

    weights = setup.weights()
    problems = []
    if setup.competition.model.name == "timm" and (text := check_backbone(setup.competition.model.backbone)):
        problems.append(Problem("model.backbone", text))
    if weights is not None and not weights.is_file():
        problems.append(
            Problem("model.weights", f"'{weights}' does not exist", "the path is relative to the workspace")
        )
    raise_all(
        problems, error=ConfigError, subject=f"'{setup.competition.name}'", expected="a model that can be built",
        todo="correct the lines named above",
    )  # fmt: skip


def _check_every(workspace: Workspace) -> dict[str, Any]:
    problems, checked = [], []
    for name in workspace.competition_names():
        experiments = [None, *sorted(path.stem for path in workspace.own(name).glob("*.yaml"))]
        for experiment in experiments:
            try:
                load_competition(workspace, name, experiment=experiment)
                checked.append(name if experiment is None else f"{name}/{experiment}")
            except KbenchError as error:
                problems.append(Problem(f"{name}/{experiment or 'baseline'}", error.what))
    raise_all(
        problems, error=ConfigError, subject="the workspace", expected="YAMLs without problems",
        todo="`kbench check -c NAME` after correcting one",
    )  # fmt: skip
    return {"checked": checked}


def cache(*, clear: bool) -> dict[str, Any]:
    """Return what the image cache holds, after clearing it if asked."""
    folder = find_workspace().cache()
    freed = clear_cache(folder) if clear else 0
    rows = [
        {"key": entry.key, "images": entry.rows, "size": " x ".join(map(str, entry.resize[1:])), "how": entry.resize[0],
         "MB": round(entry.bytes / 1e6, 1)}
        for entry in cache_entries(folder)
    ]  # fmt: skip
    return {"folder": str(folder), "rows": rows, "freed_mb": round(freed / 1e6, 1)}
