"""Read competition and experiment YAMLs, merge them, and report every problem at once.

YAML is read with 1.2 scalars: `3e-4` is a number, `no` and `on` are text, `012` is text. An experiment is
merged key by key over its baseline; a key set to `null` removes it; `train:` holds the defaults of every stage.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kbench import registry
from kbench.config import Competition, Stage, bind
from kbench.errors import ConfigError, Problem, nearest, raise_all
from kbench.workspace import Workspace


class _Loader(yaml.SafeLoader):
    """PyYAML with YAML 1.2 scalars and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)|[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_yaml(text: str, *, name: str) -> Any:
    """Parse one YAML document.

    Raises:
        ConfigError: it is not YAML, or a key stands twice; the message has line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ").replace("<unicode string>", name)
        raise ConfigError(
            f"'{name}' is not valid YAML: {reason}", "a YAML file", "correct that line; indent with spaces"
        ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing, not UTF-8, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"'{path}' does not exist", "a YAML file", f"`kbench list` shows what there is: {_siblings(path)}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}", "a UTF-8 text file", "save it again as UTF-8") from error
    content = parse_yaml(text, name=path.name)
    if not isinstance(content, dict):
        raise ConfigError(
            f"'{path}' holds {type(content).__name__}, not a mapping",
            "lines such as `task: single_label`",
            f"edit '{path}'",
        )
    return content


def _siblings(path: Path) -> str:
    return nearest(path.stem, [other.stem for other in path.parent.glob("*.yaml")])


def dump_yaml(content: Any) -> str:
    """Return YAML text, keys in the order given, that `parse_yaml` reads back unchanged."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the 1.2 resolver would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` merged over it, key by key; `null` removes a key.

    A component that changes its `name` drops the parameters of the one it replaces.
    """
    if not isinstance(base, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    if "name" in change and "name" in base and change["name"] != base["name"]:
        return copy.deepcopy(change)
    merged = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def override(content: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `--set a.b=value` assignments, later ones over earlier ones.

    Raises:
        ConfigError: one has no `=`, or its path runs through a value that is no section.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"--set '{assignment}' is not an assignment", "PATH=VALUE", "write it as `--set stages.head.lr=3e-4`"
            )
        value: Any = parse_yaml(text, name=f"--set {path}")
        for key in reversed(keys):
            value = {key: value}
        content = merge(content, value)
    return content


def with_stage_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Fold `train:` into every stage; a stage's own values win, component by component."""
    content = dict(content)
    defaults = content.pop("train", None) or {}
    stages = content.get("stages")
    if isinstance(defaults, dict) and isinstance(stages, dict):
        content["stages"] = {
            name: merge(defaults, stage or {}) if isinstance(stage, dict | None) else stage
            for name, stage in stages.items()
        }
    return content


def read_document(
    workspace: Workspace, name: str, experiment: str | None, assignments: Sequence[str]
) -> dict[str, Any]:
    """Return the merged mapping of a competition, its experiment and the overrides, before validation."""
    content = read_yaml(workspace.competition(name))
    chain: list[tuple[Path, dict[str, Any]]] = []
    while experiment:
        path = workspace.experiment(name, experiment)
        change = read_yaml(path)
        if path in [known for known, _ in chain]:
            raise ConfigError(f"'{path}' extends itself", "a chain of experiments that ends", "correct `extends:`")
        parent = change.pop("extends", None)
        chain.append((path, change))
        experiment = parent if parent not in (None, "baseline", name) else None
    for _, change in reversed(chain):
        content = merge(content, change)
    return override(content, assignments)


def validate(
    content: dict[str, Any], *, file: str, folder: Path, name: str, experiment: str = "baseline"
) -> Competition:
    """Turn a mapping into a `Competition`; load its plug-ins first.

    Args:
        content: the merged mapping.
        file: how messages call it.
        folder: where plug-ins are looked for.
        name: the competition's name.
        experiment: the experiment's name.

    Raises:
        ConfigError: one error with every problem, each with its path and the nearest valid name.
    """
    problems: list[Problem] = []
    unknown = sorted(
        set((content.get("train") or {}) if isinstance(content.get("train"), dict) else {}) - set(Stage.model_fields)
    )
    problems += [Problem(f"train.{key}", "unknown key", nearest(key, Stage.model_fields)) for key in unknown]
    content = with_stage_defaults(content)
    if problems and isinstance(content.get("stages"), dict):  # said once under `train`, not again per stage
        content["stages"] = {
            key: {k: v for k, v in stage.items() if k not in unknown} if isinstance(stage, dict) else stage
            for key, stage in content["stages"].items()
        }
    competition = None
    try:
        competition = Competition.model_validate({**content, "name": name, "experiment": experiment})
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors()]
    plugins = content.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else []:
        try:
            registry.load_plugin(folder / str(plugin))
        except ConfigError as error:
            problems.append(Problem("plugins", error.what, error.todo))
    if competition is not None:
        problems += bind(competition)
    raise_all(
        _distinct(problems), error=ConfigError, subject=f"'{file}'",
        expected="a YAML that follows competitions/schema.json",
        todo=f"correct the lines named above, then run `kbench check -c {name}`",
    )  # fmt: skip
    if competition is None:
        raise AssertionError("a validation error lists at least one problem")
    return competition


def _distinct(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _problem(item: Any) -> Problem:
    location = [str(part) for part in item["loc"] if not _is_union_branch(part)]
    where = ".".join(location) or "the file"
    if item["type"] == "extra_forbidden":
        return Problem(where, "unknown key", nearest(location[-1], _keys_at(location[:-1])))
    if item["type"] == "missing":
        return Problem(where, "this key is needed", "see CONTRIBUTING.md, a competition")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and where == "the file":
        where, _, message = message.partition(": ")
        return Problem(where, message)
    return Problem(where, f"{message}, got {item['input']!r:.80}")


def _is_union_branch(part: Any) -> bool:
    text = str(part)
    return any(mark in text for mark in ("[", "(", "-")) or text in {
        "int",
        "float",
        "str",
        "bool",
        "Split",
        "Component",
    }


def _keys_at(location: list[str]) -> list[str]:
    model: Any = Competition
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue  # a stage's name
        model = _section_of(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def load_competition(
    workspace: Workspace, name: str, *, experiment: str | None = None, assignments: Sequence[str] = ()
) -> Competition:
    """Read, merge and validate a competition's YAML.

    Args:
        workspace: where to look.
        name: the competition.
        experiment: an experiment of it; the baseline by default.
        assignments: `--set` overrides.

    Raises:
        ConfigError: a file is missing, or any problem of its content.
    """
    if not workspace.competition(name).is_file():
        raise ConfigError(
            f"there is no competition '{name}' in '{workspace.competitions}'",
            f"one of {', '.join(workspace.competition_names()) or 'none yet'}",
            f"{nearest(name, workspace.competition_names())} `kbench new {name}` drafts one",
        )
    content = read_document(workspace, name, experiment, assignments)
    file = workspace.experiment(name, experiment).name if experiment else workspace.competition(name).name
    return validate(content, file=file, folder=workspace.own(name), name=name, experiment=experiment or "baseline")
