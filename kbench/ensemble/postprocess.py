"""From probability maps to masks: thresholds, small objects and holes, empty images.

A post-process is a registered factory that returns a `Rule`. To add one, write a factory here with
`@register("postprocess")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kbench.registry import register
from kbench.tasks import exclusive


@dataclass(frozen=True)
class Rule:
    """A way from probabilities to a mask.

    Attributes:
        apply: [K, H, W] float32 probabilities -> [H, W] uint8 class index where classes exclude one another, else
            [K, H, W] uint8 0 or 1.
    """

    apply: Callable[[np.ndarray], np.ndarray]


@register("postprocess")
def none(*, _names: tuple[str, ...], _task: str) -> Rule:
    """Take the most probable class, or, where classes may overlap, those above one half."""
    if exclusive(_task, len(_names)):
        return Rule(lambda maps: np.asarray(maps.argmax(0)).astype(np.uint8))
    return Rule(lambda maps: (maps > 0.5).astype(np.uint8))
