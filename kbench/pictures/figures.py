"""Figures without a screen: made, saved atomically, closed.

Every picture of the house is made here or with these helpers, so that they look alike: `RIGHT` and `WRONG` for what
a model got right and wrong, `tidy` for axes, one resolution. Nothing global of matplotlib is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kbench import files

DPI = 120
RIGHT, WRONG, MUTED = "#2e7d4f", "#c0392b", "#7f8c8d"
SERIES = ("#2f6db5", "#d9822b", "#2e7d4f", "#8e5ea2", "#c0392b", "#0f9b9b", "#8a6d3b", "#d45087", "#7f8c8d", "#4b4e9e")


def blank_figure(*, width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """Return a figure without axes; sizes in inches. No window system is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def new_figure(*, width: float = 7.0, height: float = 4.5) -> tuple[Any, Any]:
    """Return a figure and its axes; sizes in inches. No window system is touched."""
    figure = blank_figure(width=width, height=height)
    return figure, figure.add_subplot()


def tidy(axes: Any) -> None:
    """Leave out the frame's upper and right side and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters, an ellipsis in place of what is left out; shown as it is."""
    text = " ".join(str(text).split()).replace("$", r"\$")  # matplotlib would read formulas
    return text if len(text) <= limit else text[: max(1, limit - 1)] + "…"


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG; return the path."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
    return path
