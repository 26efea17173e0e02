"""`kbench predict --image`: what a few images are, in words (F-31)."""

from __future__ import annotations

from collections.abc import Mapping

_SHOWN = 3  # classes named of each image


def most_likely(values: Mapping[str, float], task: str) -> dict[str, str]:
    """Return the columns of a table row: the three likeliest classes, the likely tags, or the numbers themselves.

    Args:
        values: one probability per class or tag, or one number per target of a regression.
        task: the competition's task.
    """
    if task == "regression":
        return {name: f"{value:.5g}" for name, value in values.items()}
    ranked = sorted(values.items(), key=lambda item: -item[1])
    if task == "multi_label":
        likely = [f"{name} {value:.3f}" for name, value in ranked if value >= 0.5]
        return {"labels": ", ".join(likely) or f"none above one half; most: {ranked[0][0]} {ranked[0][1]:.3f}"}
    named = ("most likely", "then", "and then")
    return {word: f"{name} {value:.3f}" for word, (name, value) in zip(named, ranked[:_SHOWN], strict=False)}
