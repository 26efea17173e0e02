"""Merge the mappings of a baseline, its experiments and their recipe into one, before anything is validated.

An experiment is merged key by key over its baseline; a key set to `null` removes it; `train:` holds the defaults of
every stage; `recipe:` stands for a whole `train:`, `stages:` and `tta:`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from kbench import registry
from kbench.config import as_component
from kbench.errors import ConfigError, Problem, raise_all

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

    `precompute: true` in `train:` counts where it can: a stage that trains more than the head, or mixes or (without
    `draws`) augments by its own words, switches it off by itself (F-22).
    """
    content = dict(content)
    defaults = content.pop("train", None) or {}
    stages = content.get("stages")
    if isinstance(defaults, dict) and isinstance(stages, dict):
        content["stages"] = {
            name: _switched(merge(defaults, stage or {}), stage or {}) if isinstance(stage, dict | None) else stage
            for name, stage in stages.items()
        }
    return content


def _switched(merged: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    if merged.get("precompute") is not True or "precompute" in own:
        return merged
    once = ("augment", "mix") if merged.get("draws", 1) == 1 else ("mix",)
    changes_images = any(own.get(key) not in (None, "none", {"name": "none"}) for key in once)
    return {**merged, "precompute": False} if merged.get("groups") != "head" or changes_images else merged


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
    made: dict[str, Any] = registry.build("recipe", recipe["name"], params)
    return made
