"""Read competition and experiment YAMLs, merge them, and report every problem at once.

An experiment is merged key by key over its baseline; a key set to `null` removes it; `train:` holds the defaults of
every stage; `recipe:` stands for a whole `train:`, `stages:` and `tta:`. Problems carry the path they have in the YAML.
To let a YAML say something new, see `competition.py`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kbench import registry
from kbench.config.competition import Competition, Task
from kbench.config.rules import called_default, contradictions, idle_problems, unused_problems
from kbench.config.section import UNFIT, Surroundings, as_component
from kbench.config.stage import Stage, switched
from kbench.config.yaml12 import parse_yaml
from kbench.errors import ConfigError, Problem, as_problems, nearest, raise_all
from kbench.workspace import Workspace

_RECIPE = ("train", "stages", "tta")  # what a recipe writes


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` merged over it, key by key; `null` removes a key.

    A component that changes its `name` drops the parameters of the one it replaces; one in the short form (`adamw`)
    keeps its name when only parameters are given. Numbers as keys change elements of a list that is there.
    """
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    if isinstance(base, list) and change and all(key in map(str, range(len(base))) for key in change):
        return [merge(item, change[str(place)]) if str(place) in change else item for place, item in enumerate(base)]
    base = {"name": base} if isinstance(base, str) else base
    if not isinstance(base, dict) or _renamed(base.get("name"), change.get("name")):
        base = {}
    merged = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _renamed(old: Any, new: Any) -> bool:
    return isinstance(old, str) and isinstance(new, str) and old != new


def with_stage_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Fold `train:` into every stage; a stage's own values win, component by component.

    `precompute: true` in `train:` counts where it can: see `switched`.
    """
    content = dict(content)
    defaults = content.pop("train", None) or {}
    stages = content.get("stages")
    if isinstance(defaults, dict) and isinstance(stages, dict):
        content["stages"] = {
            name: switched(merge(defaults, stage or {}), stage or {}) if isinstance(stage, dict | None) else stage
            for name, stage in stages.items()
        }
    return content


def assembled(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge a baseline and its experiments, and write out their recipe where it is named.

    A recipe takes the place of `train:`, `stages:` and `tta:` of the documents below the one that names it; later
    ones may change its parameters. What stands beside it, and above, is merged over it.
    """
    recipe, level = None, 0
    for place, document in enumerate(documents):
        if "recipe" in document:
            before = recipe
            recipe = None if document["recipe"] is None else merge(recipe, as_component(document["recipe"]))
            level = place if _renamed_recipe(before, recipe) else level
    content: dict[str, Any] = {}
    for place, document in enumerate(documents):
        if recipe is not None and place == level:
            content = merge({key: value for key, value in content.items() if key not in _RECIPE}, written_out(recipe))
        own = {key: value for key, value in document.items() if key != "recipe"}
        content = merge(content, own) if place or recipe is not None else copy.deepcopy(own)
    return content


def _renamed_recipe(before: Any, now: Any) -> bool:
    names = [item.get("name") if isinstance(item, dict) else item for item in (before, now)]
    return names[0] != names[1]


def written_out(recipe: Any) -> dict[str, Any]:
    """Return the sections a recipe stands for.

    Raises:
        ConfigError: there is no such recipe, or a parameter is wrong.
    """
    named = isinstance(recipe, dict) and isinstance(recipe.get("name"), str)
    params = {key: value for key, value in recipe.items() if key != "name"} if named else {}
    if named:
        problems = registry.bind("recipe", recipe["name"], params, where="recipe")
    else:
        problems = [Problem("recipe", f"should be a recipe's name, or a mapping with it, got {recipe!r:.80}")]
    raise_all(
        problems, error=ConfigError, subject="the YAML", expected="one of the recipes of `kbench list recipe`",
        todo="correct `recipe:`, then `kbench check`",
    )  # fmt: skip
    expanded: dict[str, Any] = registry.build("recipe", recipe["name"], params)
    return expanded


_OURS = ("name", "experiment")  # fields of `Competition` that come from file names


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
            f"'{path}' is empty" if content is None else f"'{path}' holds {type(content).__name__}, not a mapping",
            "lines such as `task: single_label`",
            f"edit '{path}'",
        )
    return content


def _siblings(path: Path) -> str:
    return nearest(path.stem, [other.stem for other in path.parent.glob("*.yaml")])


def override(content: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `--set a.b=value` assignments, later ones over earlier ones.

    Raises:
        ConfigError: one has no `=`, or names a stage that is not there.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.split(".")
        if not equals or not all(keys) or len(keys) > 20:
            raise ConfigError(
                f"--set '{assignment}' is not an assignment", "PATH=VALUE", "write it as `--set stages.head.lr=3e-4`"
            )
        stages = content.get("stages")
        if keys[0] == "stages" and len(keys) > 1 and isinstance(stages, dict) and keys[1] not in stages:
            raise ConfigError(
                f"--set '{assignment}': there is no stage '{keys[1]}'",
                f"one of {', '.join(stages)}",
                nearest(keys[1], stages),
            )
        value: Any = parse_yaml(text, name=f"--set {path}")
        for key in reversed(keys):
            value = {key: value}
        content = merge(content, value)
    return content


def read_document(
    workspace: Workspace, name: str, experiment: str | None, assignments: Sequence[str]
) -> dict[str, Any]:
    """Return the merged mapping of a competition, its experiment and the overrides, before validation.

    Raises:
        ConfigError: a file is missing or is no mapping, or `extends:` names no experiment or goes round in a circle.
    """
    content = read_yaml(workspace.competition(name))
    chain: dict[Path, dict[str, Any]] = {}
    experiment = None if experiment == "baseline" else experiment
    while experiment is not None:
        path = workspace.experiment(name, experiment)
        if path in chain:
            circle = " -> ".join([*(known.stem for known in chain), path.stem])
            raise ConfigError(f"'{path}' extends itself: {circle}", "a chain of experiments that ends at the baseline",
                              "correct one `extends:`")  # fmt: skip
        chain[path] = read_yaml(path)
        parent = chain[path].pop("extends", None)
        if not isinstance(parent, str | None):
            raise ConfigError(f"'{path}' extends {parent!r:.80}", "the name of an experiment", "correct `extends:`")
        experiment = None if parent in ("baseline", name) else parent
    recipe = [text for text in assignments if text.partition("=")[0].split(".")[0] == "recipe"]
    documents = [content, *reversed(chain.values()), *([override({}, recipe)] if recipe else [])]
    return override(assembled(documents), [text for text in assignments if text not in recipe])


def validate(
    content: dict[str, Any], *, file: str, folder: Path, name: str, experiment: str = "baseline", record: bool = False
) -> Competition:
    """Turn a mapping into a `Competition`; load its plug-ins first.

    Args:
        content: the merged mapping.
        file: how messages call it.
        folder: where plug-ins are looked for.
        name: the competition's name.
        experiment: the experiment's name.
        record: whether it is what a run was trained with, every value written out, used or not.

    Raises:
        ConfigError: one error with every problem, each with its path and the nearest valid name.
    """
    problems = [
        Problem(key, "unknown key", nearest(key, _keys(Competition) - set(_OURS))) for key in _OURS if key in content
    ]
    content = {key: value for key, value in content.items() if key not in _OURS}
    content, more = _without_bad_defaults(content)
    problems += more
    written, content = content.get("stages"), with_stage_defaults(content)
    unloadable = _load_plugins(content.get("plugins"), folder)
    competition, more = _read(content, name, experiment)
    problems += more
    if competition is not None:
        between = [called_default(problem, competition) for problem in contradictions(competition)]
        problems += between
        if not record and not between:
            problems += unused_problems(competition.stages, written or {}, competition.folds)
            problems += idle_problems(competition)
    problems += unloadable
    raise_all(
        list(dict.fromkeys(problems)), error=ConfigError, subject=f"'{file}'",
        expected="a YAML that follows competitions/schema.json",
        todo="correct the lines named above, then run `kbench check -c "
        + (name if experiment == "baseline" else f"{name} -e {experiment}") + "`",
    )  # fmt: skip
    if competition is None:
        raise AssertionError("a validation error lists at least one problem")
    return competition


def _read(content: Mapping[str, Any], name: str, experiment: str) -> tuple[Competition | None, list[Problem]]:
    """Return a mapping as an object, if all of it has the shape of one, and what is wrong in it."""
    text = json.dumps({**content, "name": name, "experiment": experiment})
    task, metric = content.get("task"), as_component(content.get("metric"))
    known = Surroundings(
        task=task if task in get_args(Task) else None, metric=metric.get("name") if isinstance(metric, dict) else None
    )
    try:
        return Competition.model_validate_json(text, context=known), []
    except ValidationError as error:
        fits = all(item["type"] == UNFIT for item in error.errors())
        competition = Competition.model_validate_json(text) if fits else None  # parts may be wrong: nothing is built
        return competition, _problems(error, content, Competition)


def _without_bad_defaults(content: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the mapping without what is wrong in `train:`, and what that is; every stage would repeat it."""
    defaults = content.get("train")
    if defaults is None:
        return content, []
    if not isinstance(defaults, dict):
        problem = Problem("train", f"should be a mapping of stage settings, got {defaults!r:.80}")
        return {key: value for key, value in content.items() if key != "train"}, [problem]
    try:
        Stage.model_validate_json(json.dumps(defaults))
    except ValidationError as error:
        bad = {item["loc"][0] for item in error.errors()}
        kept = {key: value for key, value in defaults.items() if key not in bad}
        return {**content, "train": kept}, _problems(error, defaults, Stage, prefix=("train",))
    return content, []


def _load_plugins(names: Any, folder: Path) -> list[Problem]:
    problems = []
    for position, plugin in enumerate(names if isinstance(names, list) else []):
        try:
            if isinstance(plugin, str) and "/" not in plugin:  # said already
                registry.load_plugin(folder / plugin)
        except ConfigError as error:
            problems += as_problems(f"plugins.{position}", error)
    return problems


def _problems(
    error: ValidationError, content: Mapping[str, Any], model: type[BaseModel], *, prefix: tuple[str, ...] = ()
) -> list[Problem]:
    """Return pydantic's findings with the paths of the YAML, one per place, then the registry's."""
    messages: dict[tuple[str, ...], list[str]] = {}
    values: dict[tuple[str, ...], Any] = {}
    unfit: list[Problem] = []
    for item in error.errors():
        if item["type"] == UNFIT:
            section, of = "".join(f"{key}." for key in item["loc"][:-1]), item["ctx"]
            unfit.append(Problem(f"{section}{of['where']}", of["what"], of["hint"]))
            continue
        path = _path(item["loc"], content, missing=item["type"] == "missing")
        said = item["type"] if item["type"] in _SHORT and isinstance(item["loc"][-1], str) else item["msg"]
        messages.setdefault(path, []).append(said.replace("Field required", "Input should be longer"))
        values[path] = item["input"]
    problems = []
    for path, texts in messages.items():
        if any(other[: len(path)] == path for other in messages if len(other) > len(path)):
            continue  # one of several types did not fit; the deeper finding says more
        where = ".".join((*prefix, *path))
        if texts[0] in _SHORT:
            hint = nearest(path[-1], _keys(model, path[:-1])) if texts[0] == "extra_forbidden" else f"`{path[-1]}: ...`"
            problems.append(Problem(where, _SHORT[texts[0]], hint))
        else:
            problems.append(Problem(where, registry.type_message(texts, values[path])))
    return problems + unfit


_SHORT = {"extra_forbidden": "unknown key", "missing": "this key is needed"}


def _path(location: Sequence[int | str], content: Any, *, missing: bool) -> tuple[str, ...]:
    """Return the keys of a location that the YAML has; pydantic puts names of types between them."""
    path: list[str] = []
    for position, part in enumerate(location):
        inside = isinstance(content, dict) and part in content
        if inside or (isinstance(content, list) and isinstance(part, int) and part < len(content)):
            path.append(str(part))
            content = content[part]
        elif missing and isinstance(part, str) and position == len(location) - 1:
            path.append(str(part))
    return tuple(path)


def _keys(model: Any, path: Sequence[str] = ()) -> set[str]:
    """Return the keys a section of the YAML may have."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:  # else a stage's name
            model = _section_of(field.annotation)
    return set(getattr(model, "model_fields", {})) | ({"train", "recipe"} if model is Competition else set())


def _section_of(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    sections = (_section_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in sections if section is not None), None)


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
    experiment = None if experiment == "baseline" else experiment
    content = read_document(workspace, name, experiment, assignments)
    file = workspace.experiment(name, experiment).name if experiment else workspace.competition(name).name
    return validate(content, file=file, folder=workspace.own(name), name=name, experiment=experiment or "baseline")
