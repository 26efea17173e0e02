"""Names a YAML may use: models, losses, metrics, fold strategies and every other replaceable part.

A part is a function registered under a kind and a name (its own name unless another is given):

    @register("loss")
    def focal(*, gamma: float = 2.0) -> Loss: ...

`MODULES` says which modules hold the parts of a kind; they are imported when the kind is first asked for, so
that what does not need torch never loads it. Keyword-only parameters without `_` in front are what a YAML may
set; positional ones are given by kbench. To add a kind, add a row to `MODULES`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from kbench.errors import ConfigError, KbenchError, Problem, nearest

MODULES: dict[str, tuple[str, ...]] = {
    "source": ("kbench.sources.embedded", "kbench.sources.local", "kbench.sources.kaggle"),
    "layout": ("kbench.data.layouts",),
    "reader": ("kbench.data.images",),
    "fold strategy": ("kbench.data.fold_strategies",),
    "augmentation": ("kbench.data.augment",),
    "crop": ("kbench.data.crops",),
    "sampler": ("kbench.data.samplers",),
    "metric": ("kbench.metrics",),
    "model": ("kbench.models.classifier",),
    "schedule": ("kbench.training.schedules",),
    "optimizer": ("kbench.training.optimizers",),
    "loss": ("kbench.training.losses",),
    "step": ("kbench.training.step",),
    "mix": ("kbench.training.mix",),
    "views": ("kbench.inference.views",),
    "format": (
        "kbench.submission.probabilities",
        "kbench.submission.label",
        "kbench.submission.single_probability",
        "kbench.submission.value",
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


_parts: dict[str, dict[str, Part]] = {kind: {} for kind in MODULES}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def register(kind: str, name: str | None = None, **meta: Any) -> Callable[[_Function], _Function]:
    """Register the decorated function and return it unchanged.

    Args:
        kind: a row of `MODULES`.
        name: what a YAML calls it; the function's own name by default.
        meta: facts other modules read, such as `maximise=True` of a metric.

    Raises:
        ConfigError: the kind is unknown or the name is taken by another function.
    """
    if kind not in MODULES:
        raise ConfigError(f"unknown kind '{kind}'", f"one of {', '.join(MODULES)}", nearest(kind, MODULES))

    def add(function: _Function) -> _Function:
        part = Part(kind, name or function.__name__, function, meta)
        taken = _parts[kind].get(part.name)
        if taken and _origin(taken.function) != _origin(function):
            raise ConfigError(
                f"the {kind} '{part.name}' is registered twice: {_origin(taken.function)} and {_origin(function)}",
                f"one {kind} of a name",
                "rename one of the two functions",
            )
        _parts[kind][part.name] = part
        return function

    return add


def _origin(function: Callable[..., Any]) -> str:
    return f"{inspect.getsourcefile(function)}:{function.__qualname__}"


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


def bind(kind: str, name: str, params: Mapping[str, Any], *, where: str) -> list[Problem]:
    """Hold a name and its parameters against the registered function's signature.

    Args:
        kind: a row of `MODULES`.
        name: the part's name in the YAML.
        params: its parameters in the YAML.
        where: path of the component in the YAML, for the messages.

    Returns:
        Every problem: unknown name, unknown or missing parameters, values of a wrong type.
    """
    _load(kind)
    if name not in _parts[kind]:
        return [Problem(where, f"unknown {kind} '{name}'", nearest(name, _parts[kind]))]
    part = _parts[kind][name]
    known = part.parameters()
    hints = typing.get_type_hints(part.function)
    problems = []
    for key, value in params.items():
        if key in known:
            message = _type_problem(value, hints.get(key, Any))
            if message:
                problems.append(Problem(f"{where}.{key}", message))
        elif not part.takes_any():
            problems.append(
                Problem(f"{where}.{key}", f"the {kind} '{name}' has no such parameter", nearest(key, known))
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in params:
            problems.append(Problem(f"{where}.{key}", f"the {kind} '{name}' needs this parameter"))
    return problems


def _type_problem(value: Any, annotation: Any) -> str:
    """Return why a YAML's value is not of a type; strict, but a list will do for a tuple and 1 for 1.0."""
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return "; ".join(f"{item['msg']}, got {value!r}" for item in error.errors()[:1])
    except PydanticSchemaGenerationError:
        return ""  # a type only the function itself can check
    return ""


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
    content = path.read_bytes()
    module_name = f"kbench_plugin_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the plug-in '{path}' cannot be loaded", "a file ending in .py", "rename it")
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except KbenchError:
        del sys.modules[module_name]
        raise
    except Exception as error:  # a user's file can fail in any way
        del sys.modules[module_name]
        raise ConfigError(
            f"the plug-in '{path}' fails on import: {type(error).__name__}: {error}",
            "a file that imports without an error",
            f"run `python {path}` to see the traceback",
        ) from error
