"""Hold a YAML's names and parameters against the registered functions, before anything is built.

To let a YAML name one more kind of part, add a row to `_PARTS`, or to `_STAGE_PARTS` for what a stage may say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from kbench import registry
from kbench.config import Competition, Task, as_component
from kbench.errors import Problem

_PARTS = (  # kind, where its name stands, where its parameters stand
    ("source", ("source",), ("source",)),
    ("layout", ("data", "layout"), ("data", "layout")),
    ("mask", ("data", "masks"), ("data", "masks")),
    ("fold strategy", ("folds", "strategy"), ("folds", "options")),
    ("metric", ("metric",), ("metric",)),
    ("format", ("submission", "format"), ("submission", "format")),
    ("reader", ("input", "reader"), ("input", "reader")),
    ("model", ("model", "name"), ("model", "options")),
    ("views", ("tta",), ("tta",)),
    ("combiner", ("ensemble", "combine"), ("ensemble", "combine")),
    ("decision", ("ensemble", "decision"), ("ensemble", "decision")),
    ("windows", ("maps", "windows"), ("maps", "windows")),
    ("postprocess", ("maps", "postprocess"), ("maps", "postprocess")),
)
_STAGE_PARTS = {"schedule": "schedule", "optimizer": "optimizer", "loss": "loss", "augment": "augmentation",
                "crop": "crop", "mix": "mix", "sampler": "sampler", "step": "step"}  # fmt: skip
_DEFAULTS = {
    name: field.default.model_dump()
    for name, field in Competition.model_fields.items()
    if isinstance(field.default, BaseModel)
}


def bind(content: Mapping[str, Any]) -> list[Problem]:
    """Hold every registered name and its parameters against the function's signature; return all problems.

    Args:
        content: the YAML's mapping with its stage defaults, or a dumped `Competition`. What has not the shape of a
            part is left out: validation reports it.
    """
    task = content.get("task") if content.get("task") in get_args(Task) else None
    problems: list[Problem] = []
    for kind, where, options in [*_PARTS, *_stage_parts(content)]:
        written = _at(content, where)
        found = as_component(_at(_DEFAULTS, where) if written is None else written)
        given = found if options == where else _at(content, options) or {}
        if isinstance(found, dict) and isinstance(found.get("name"), str) and isinstance(given, dict):
            params = {key: value for key, value in given.items() if key != "name" or options != where}
            problems += registry.bind(
                kind, found["name"], params, where=".".join(where), options=".".join(options), task=task
            )
    return problems


def _stage_parts(content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    stages = content.get("stages")
    metric = as_component(content.get("metric"))
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        for key, kind in _STAGE_PARTS.items():
            yield kind, ("stages", name, key), ("stages", name, key)
        monitor = stage.get("monitor") if isinstance(stage, dict) else None
        if isinstance(monitor, str) and monitor not in ("loss", isinstance(metric, dict) and metric.get("name")):
            yield "metric", ("stages", name, "monitor"), ("stages", name, "monitor")


def _at(content: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path, or None."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content
