"""Names a YAML may use: models, losses, metrics, fold strategies and every other replaceable part.

A part is a function registered under a kind and a name (its own name unless another is given):

    @register("loss")
    def focal(*, gamma: float = 2.0) -> Loss: ...

`MODULES` says which modules hold the parts of a kind; they are imported when the kind is first asked for, so
that what does not need torch never loads it. Keyword-only parameters without `_` in front are what a YAML may
set; positional ones are given by kbench. A competition's plug-ins register their parts the same way; where two
competitions or runs bring a part of one name, the one loaded last counts. To add a kind, add a row to `MODULES`, and
the field that names it to a section of `kbench/config/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from kbench.errors import ConfigError, KbenchError, Problem, nearest

MODULES: dict[str, tuple[str, ...]] = {
    "source": ("kbench.sources.embedded", "kbench.sources.local", "kbench.sources.kaggle.client"),
    "layout": ("kbench.data.table.layouts",),
    "reader": ("kbench.data.images.readers", "kbench.data.images.rasters"),
    "index": ("kbench.data.images.indices",),
    "mask": (
        "kbench.data.masks.kinds",
        "kbench.data.masks.layers",
        "kbench.data.masks.run_length_csv",
        "kbench.data.masks.polygons",
    ),
    "fold strategy": ("kbench.data.folds.strategies", "kbench.data.folds.video_blocks"),
    "augmentation": ("kbench.data.images.augment",),
    "crop": ("kbench.data.images.crops",),
    "sampler": ("kbench.data.samplers",),
    "metric": ("kbench.metrics",),
    "model": (
        "kbench.models.classifier",
        "kbench.models.segmenter",
        "kbench.models.signate_unet",
        "kbench.models.plain_unets",
        "kbench.models.temporal",
        "kbench.models.pixels",
    ),
    "schedule": ("kbench.training.schedules",),
    "optimizer": ("kbench.training.optimizers",),
    "loss": (
        "kbench.training.losses.per_target",
        "kbench.training.losses.regression",
        "kbench.training.losses.regions",
    ),
    "recipe": ("kbench.config.recipes",),
    "step": ("kbench.training.update",),
    "mix": ("kbench.training.mix",),
    "views": ("kbench.inference.views",),
    "windows": ("kbench.inference.windows",),
    "combiner": ("kbench.ensemble.combiners",),
    "decision": ("kbench.ensemble.decisions",),
    "postprocess": ("kbench.ensemble.mask_rules",),
    "format": (
        "kbench.submission.formats.probabilities",
        "kbench.submission.formats.labels",
        "kbench.submission.formats.run_lengths",
        "kbench.submission.formats.runs_json",
        "kbench.submission.formats.mask_zip",
        "kbench.submission.formats.number_zip",
        "kbench.submission.formats.raster_zip",
        "kbench.submission.formats.wkt",
    ),
}


@dataclass(frozen=True)
class Part:
    """One registered function and what is known about it."""

    kind: str
    name: str
    function: Callable[..., Any]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters a YAML may set, by name."""
        return {
            name: parameter
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and not name.startswith("_")
        }

    def takes_any(self) -> bool:
        """Return whether the function accepts keywords it does not name (`**kwargs`)."""
        parameters = inspect.signature(self.function).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


_PLUGIN = "kbench_plugin_"
_parts: dict[str, dict[str, Part]] = {kind: {} for kind in MODULES}
_of_plugin: dict[str, list[Part]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def register(kind: str, name: str | None = None, **meta: Any) -> Callable[[_Function], _Function]:
    """Register the decorated function and return it unchanged.

    Args:
        kind: a row of `MODULES`.
        name: what a YAML calls it; the function's own name by default.
        meta: facts other modules read, such as `maximise=True` of a metric; `tasks` it is for; `parts`, which
            parameters list parts of its own kind, each with the keys such a list adds to a part's own.

    Raises:
        ConfigError: the kind is unknown, the name is taken by another function, or it has no signature.
    """
    if kind not in MODULES:
        raise ConfigError(f"unknown kind '{kind}'", f"one of {', '.join(MODULES)}", nearest(kind, MODULES))

    def add(function: _Function) -> _Function:
        part = Part(kind, name or function.__name__, function, meta)
        try:
            part.parameters()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the {kind} '{part.name}' has no parameters that can be read: {error}",
                "a Python function",
                "register a function that calls it",
            ) from error
        _add(part)
        if function.__module__.startswith(_PLUGIN):
            _of_plugin.setdefault(function.__module__, []).append(part)
        return function

    return add


def _add(part: Part) -> None:
    taken = _parts[part.kind].get(part.name)
    if taken and _origin(taken.function) != _origin(part.function) and not _elsewhere(taken.function, part.function):
        raise ConfigError(
            f"the {part.kind} '{part.name}' is registered twice: {_origin(taken.function)} and "
            f"{_origin(part.function)}",
            f"one {part.kind} of a name",
            "rename one of the two functions",
        )
    _parts[part.kind][part.name] = part


def stamp(kind: str, name: str) -> str:
    """Return what the text of the plug-in file that a part is written in is known by; empty for parts of kbench."""
    module = get(kind, name).function.__module__  # has the digest of its file in its name
    return module if module.startswith(_PLUGIN) else ""


def _origin(function: Callable[..., Any]) -> str:
    return f"{_file(function)}:{getattr(function, '__qualname__', function)}"


def _file(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return str(code.co_filename) if code else function.__module__


def _elsewhere(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    """Return whether two functions come from plug-ins of different competitions or runs."""
    plugins = all(function.__module__.startswith(_PLUGIN) for function in (first, second))
    return plugins and Path(_file(first)).parent != Path(_file(second)).parent


def kinds() -> list[str]:
    """Return the kinds of parts there are."""
    return list(MODULES)


def names(kind: str) -> list[str]:
    """Return the sorted names of a kind; loads its modules."""
    _load(kind)
    return sorted(_parts[kind])


def get(kind: str, name: str) -> Part:
    """Return a registered part; loads the modules of its kind.

    Raises:
        ConfigError: no part of this kind has this name.
    """
    _load(kind)
    if name not in _parts[kind]:
        raise ConfigError(
            f"unknown {kind} '{name}'",
            f"one of {', '.join(sorted(_parts[kind]))}",
            f"{nearest(name, _parts[kind])} See `kbench list {kind.replace(' ', '-')}`",
        )
    return _parts[kind][name]


def _load(kind: str) -> None:
    for module in MODULES[kind]:
        importlib.import_module(module)


def bind(
    kind: str, name: str, params: Mapping[str, Any], *, where: str, options: str | None = None, task: str | None = None
) -> list[Problem]:
    """Hold a name and its parameters against the registered function's signature.

    Args:
        kind: a row of `MODULES`.
        name: the part's name in the YAML.
        params: its parameters in the YAML.
        where: path of the component in the YAML, for the messages.
        options: path of its parameters; `where` by default.
        task: the competition's task; a part that says its `tasks` is held against it.

    Returns:
        Every problem: unknown name, another task, unknown or missing parameters, values of a wrong type.
    """
    _load(kind)
    if name not in _parts[kind]:
        return [Problem(where, f"unknown {kind} '{name}'", nearest(name, _parts[kind]))]
    part, options = _parts[kind][name], options or where
    known = part.parameters()
    problems = []
    tasks = part.meta.get("tasks")
    if task and tasks and task not in tasks:
        problems.append(Problem(where, f"the {kind} '{name}' is not for the task '{task}'", f"for {', '.join(tasks)}"))
    try:
        hints = typing.get_type_hints(part.function)
    except Exception as error:  # an annotation of a user's file can be anything
        return [*problems, Problem(where, f"the annotations of the {kind} '{name}' cannot be read: {error}")]
    for key, value in params.items():
        if key in known:
            message = _type_problem(value, hints.get(key, Any))
            if message:
                problems.append(Problem(f"{options}.{key}", message))
        elif not part.takes_any():
            problems.append(
                Problem(f"{options}.{key}", f"the {kind} '{name}' has no such parameter", nearest(key, known))
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in params:
            problems.append(Problem(f"{options}.{key}", f"the {kind} '{name}' needs this parameter"))
    return problems + _nested_problems(part, params, options, task)


def _nested_problems(part: Part, params: Mapping[str, Any], options: str, task: str | None) -> list[Problem]:
    """Return the problems of the parts that a part is made of: its meta `parts` names the parameters that hold them."""
    problems = []
    for key, own in part.meta.get("parts", {}).items():
        listed = params.get(key)
        for place, item in enumerate(listed if isinstance(listed, list) else ()):
            where = f"{options}.{key}.{place}"
            written = {"name": item} if isinstance(item, str) else item
            if not isinstance(written, dict) or not isinstance(written.get("name"), str):
                problems.append(Problem(where, f"a {part.kind} is meant, got {item!r:.80}", "write `{name: ...}`"))
                continue
            rest = {name: value for name, value in written.items() if name not in ("name", *own)}
            problems += bind(part.kind, written["name"], rest, where=where, task=task)
    return problems


def _type_problem(value: Any, annotation: Any) -> str:
    """Return why a YAML's value is not of a type; strict, but a list will do for a tuple and 1 for 1.0."""
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return type_message([item["msg"] for item in error.errors()], value)
    except (PydanticUserError, PydanticUndefinedAnnotation):
        return ""  # a type only the function itself can check
    return ""


def type_message(messages: Sequence[str], value: Any) -> str:
    """Return one text of pydantic's messages about a value, one per type it could have had."""
    wanted = dict.fromkeys(
        message.removeprefix("Value error, ").removeprefix("Input should be ") for message in messages
    )
    should = "should be " if all(message.startswith("Input should be ") for message in messages) else ""
    return f"{should}{' or '.join(wanted)}, got {value!r:.80}".replace("a valid boolean", "true or false")


def build(kind: str, name: str, params: Mapping[str, Any], *given: Any, **injected: Any) -> Any:
    """Call a registered function with positional arguments, a YAML's parameters and injected `_` keywords."""
    function = get(kind, name).function
    accepted = {key: value for key, value in injected.items() if key in inspect.signature(function).parameters}
    return function(*given, **params, **accepted)


def load_plugin(path: Path) -> None:
    """Import a competition's own Python file, which registers its parts; a second call does nothing.

    Raises:
        ConfigError: the file is missing or fails on import.
    """
    if not path.is_file():
        raise ConfigError(
            f"the plug-in '{path}' does not exist",
            "a Python file beside the YAML",
            "create it or remove it from plugins",
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error}", "a readable file", "look at its permissions") from error
    module_name = f"{_PLUGIN}{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if module_name in sys.modules:
        for part in _of_plugin.get(module_name, []):
            _add(part)
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the plug-in '{path}' cannot be loaded", "a file ending in .py", "rename it")
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        for part in _of_plugin.pop(module_name, []):
            _parts[part.kind].pop(part.name, None)
        if isinstance(error, KbenchError) or not isinstance(error, Exception | SystemExit):
            raise
        raise ConfigError(  # a user's file can fail in any way
            f"the plug-in '{path}' fails on import: {type(error).__name__}: {error}",
            "a file that imports without an error",
            f"run `python {path}` to see the traceback",
        ) from error
