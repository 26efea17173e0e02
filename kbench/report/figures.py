"""Figures without a screen: made, saved atomically, closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import files


def new_figure(*, width: float = 7.0, height: float = 4.5) -> tuple[Any, Any]:
    """Return a figure and its axes; sizes in inches. No window system is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG; return the path."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
    return path
