"""`kbench init`, `list`, `use`: the workspace itself; imports nothing heavy."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from kbench import files, registry
from kbench.config.competition import Competition
from kbench.errors import ConfigError, nearest
from kbench.workspace import Choice, Workspace, current, find_workspace


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
    """Return the JSON schema of a competition or experiment YAML as it is written."""
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
    content["properties"]["recipe"] = {
        "$ref": "#/$defs/Component", "description": "stages, their defaults and views by a name of `kbench list recipe`"
    }  # fmt: skip
    content["properties"]["extends"] = {"type": "string", "description": "of an experiment: another one; the baseline"}
    content.pop("required")  # an experiment says only what differs; `kbench check` names what is missing
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
    chosen = current(workspace, choice.competition)
    rows = []
    for name in workspace.competition_names():
        runs = workspace.run_names(name)
        experiments = sorted(path.stem for path in workspace.own(name).glob("*.yaml"))
        rows.append(
            {"competition": name, "current": "*" if name == chosen else "", "experiments": ", ".join(experiments),
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
