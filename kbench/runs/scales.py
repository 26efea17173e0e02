"""Whether a dense network is trained at the scale it predicts at: its layers know how large things are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kbench.config.competition import Competition
from kbench.config.stage import Stage
from kbench.runs.parts import size_of
from kbench.tasks import is_dense

_APART = 1.15  # factors between the scales that are told


def scale_warnings(competition: Competition, sizes: Mapping[tuple[int, int, int], int]) -> list[str]:
    """Return one line per stage of a dense task that shows images much larger or smaller than they are predicted.

    Args:
        competition: the YAML.
        sizes: (height, width, channels) of training images -> number of files.
    """
    sizes = {size: count for size, count in sizes.items() if size[0]}  # not of files that a reader alone opens
    if not is_dense(competition.task) or not sizes:
        return []
    warnings = []
    for name, stage in competition.stages.items():
        size = size_of(stage.size or competition.input.size)
        shown = _middle({one: _shown(stage, size, one) for one in sizes}, sizes)
        predicted = _middle({one: _predicted(competition, one) for one in sizes}, sizes)
        if shown is None or predicted is None or max(shown / predicted, predicted / shown) < _APART:
            continue
        warnings.append(
            f"stage '{name}' shows images at {shown:.2g} times their size (`crop: {stage.crop.name}` to "
            f"{size[0]} x {size[1]}), and they are predicted at {predicted:.2g} times: write `crop: native` in the "
            f"stage, or `maps: {{windows: {{name: resized, scale: {shown:.2g}}}}}`"
        )
    return warnings


def _middle(
    scales: Mapping[tuple[int, int, int], float | None], counts: Mapping[tuple[int, int, int], int]
) -> float | None:
    """Return the median over files, or None where no scale is known."""
    known = [np.full(counts[one], scale) for one, scale in scales.items() if scale is not None]
    return float(np.median(np.concatenate(known))) if known else None


def _shown(stage: Stage, size: tuple[int, int], image: tuple[int, int, int]) -> float | None:
    """Return how much larger than in its file a training image is shown; None where the crop draws it anew."""
    height, width = size[0] / image[0], size[1] / image[1]
    if stage.crop.name in ("random", "centre"):
        return max(height, width)
    if stage.crop.name in ("squash", "whole"):
        return float(np.sqrt(height * width))
    if stage.crop.name == "native":
        low, high = stage.crop.params.get("scale", (1.0, 1.0))
        return float(np.sqrt(low * high))
    return None


def _predicted(competition: Competition, image: tuple[int, int, int]) -> float | None:
    """Return how much larger than in its file an image is predicted; None for windows of a plug-in."""
    windows = competition.maps.windows
    if windows.name == "resized":
        if windows.params.get("scale") is not None:
            return float(windows.params["scale"])
        height, width = size_of(windows.params["size"])
        return float(np.sqrt(height / image[0] * (width / image[1])))
    return 1.0 if windows.name in ("full", "grid", "overlap") else None
