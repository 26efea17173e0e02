"""Recipes that come with kbench: whole `train:`, `stages:` and `tta:` sections under one name.

`recipe: lesson`, or `recipe: {name: lesson, images: satellite}`, stands for what the function returns; what the YAML
says itself is merged over it, so one stage or one value can be changed, and `stages: {augmented: null}` leaves a stage
out. Hashes are those of the written-out YAML. To add a recipe, write a function here with `@register("recipe")`; they
are written out before plug-ins are loaded, so a plug-in cannot bring one.
"""

from __future__ import annotations

from typing import Any, Literal

from kbench.errors import ConfigError, check_number
from kbench.registry import register

_AUGMENT = {"photographs": {"name": "side_on", "zoom": 1.1}, "satellite": {"name": "top_down", "zoom": 1.05}}
_APART = {"photographs": 10, "satellite": 3}  # an ImageNet body fits photographs; it has more to learn elsewhere
Images = Literal["photographs", "satellite"]


@register("recipe")
def lesson(
    *,
    images: Images = "photographs",
    head_epochs: int = 2,
    augmented_epochs: int = 3,
    cycles: int = 3,
    precompute: bool = True,
    batch_size: int = 64,
    weight_decay: float = 0.01,
    views: int = 4,
) -> dict[str, Any]:
    """The eight steps of fast.ai's lesson: rate, head from activations, head augmented, rate, all layers, cycles, TTA.

    Args:
        images: `photographs` (flipped; earlier layers learn 10 times slower) or `satellite` (turned, 3 times).
        head_epochs: cycles of one epoch of the head on precomputed activations.
        augmented_epochs: cycles of one epoch of the head on augmented images.
        cycles: of all layers, each twice as long as the one before; their ends are the ensemble's snapshots.
        precompute: whether the first stage trains on activations.
        batch_size: images per batch.
        weight_decay: of all layer groups.
        views: random views beside the plain one when predicting.
    """
    start = {**_head(head_epochs), "augment": "none", "precompute": precompute}
    return {
        "train": _train(images, batch_size, weight_decay),
        "stages": {
            "head": start,
            "augmented": {**_head(augmented_epochs), "lr_from_stage": "head"},
            "all": _all(images, cycles),
        },
        "tta": {"name": "random", "n": views},
    }


@register("recipe")
def progressive(
    *,
    sizes: list[int],
    images: Images = "photographs",
    head_epochs: int = 1,
    all_epochs: int = 3,
    cycles: int = 3,
    batch_size: int = 64,
    weight_decay: float = 0.01,
    views: int = 4,
) -> dict[str, Any]:
    """Small images first, larger ones later, such as 64, 128, 256: at each size the head, then all layers (F-23).

    Args:
        sizes: sides in pixels, rising; the last one is predicted at.
        images: `photographs` (flipped; earlier layers learn 10 times slower) or `satellite` (turned, 3 times).
        head_epochs: cycles of one epoch of the head, at each size.
        all_epochs: cycles of one epoch of all layers, at each size but the last.
        cycles: of all layers at the last size, each twice as long as the one before; their ends are the snapshots.
        batch_size: images per batch.
        weight_decay: of all layer groups.
        views: random views beside the plain one when predicting.

    Raises:
        ConfigError: the sizes do not rise.
    """
    if not sizes or sorted(set(sizes)) != list(sizes):
        raise ConfigError(f"recipe.sizes is {sizes}", "different sizes, rising", "write `sizes: [64, 128, 256]`")
    stages: dict[str, Any] = {}
    for size in sizes:
        stages[f"head-{size}"] = {**_head(head_epochs), "size": size}
        last = size == sizes[-1]
        stages[f"all-{size}"] = {**_all(images, cycles if last else all_epochs, grow=last, keep=last), "size": size}
    return {
        "train": _train(images, batch_size, weight_decay),
        "stages": stages,
        "tta": {"name": "random", "n": views},
    }


@register("recipe")
def frozen(
    *, lr: float = 2e-3, cycles: int = 3, cycle_len: int = 2, batch_size: int = 64, weight_decay: float = 0.01
) -> dict[str, Any]:
    """The head alone, on activations the frozen body computes once: seconds, not hours, and a mark to beat.

    Args:
        lr: highest rate.
        cycles: their ends are the ensemble's snapshots.
        cycle_len: epochs of a cycle.
        batch_size: images per batch.
        weight_decay: of the head.
    """
    check_number("recipe.lr", lr, "(0, inf)")
    schedule = {"name": "sgdr", "cycles": cycles, "cycle_len": cycle_len}
    return {
        "train": {"batch_size": batch_size, "optimizer": "adamw", "weight_decay": weight_decay},
        "stages": {"head": {"groups": "head", "precompute": True, "lr": lr, "schedule": schedule, "keep": ["cycles"]}},
        "tta": "flip",
    }


def _train(images: Images, batch_size: int, weight_decay: float) -> dict[str, Any]:
    return {"batch_size": batch_size, "optimizer": "adamw", "weight_decay": weight_decay, "augment": _AUGMENT[images]}


def _head(epochs: int) -> dict[str, Any]:
    return {"groups": "head", "lr": "find", "schedule": {"name": "sgdr", "cycles": epochs}}


def _all(images: Images, cycles: int, *, grow: bool = True, keep: bool = True) -> dict[str, Any]:
    schedule = {"name": "sgdr", "cycles": cycles, "cycle_mult": 2 if grow else 1, "warmup": 0.05}
    stage = {"groups": "all", "lr": "find", "lr_decay": _APART[images], "schedule": schedule}
    return {**stage, "keep": ["cycles"]} if keep else stage
