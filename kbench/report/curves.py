"""Curves of a fold, from its log: losses, scores, learning rates, and the learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench.report.figures import new_figure, save_figure
from kbench.report.folds import read_curve, read_epochs
from kbench.training.lr_curve import shown
from kbench.workspace import FoldPaths


def draw_fold(paths: FoldPaths) -> list[Path]:
    """Draw everything there is to draw of a fold; return the pictures."""
    drawn = draw_lr_finds(paths)
    epochs = read_epochs(paths)
    if epochs:
        drawn.append(draw_losses(epochs, paths.losses))
    return drawn


def draw_lr_finds(paths: FoldPaths) -> list[Path]:
    """Draw every learning-rate range test of a fold; return the pictures."""
    return [draw_lr_find(path) for path in sorted(paths.root.glob("lr-find-*.csv"))]


def draw_lr_find(csv: Path) -> Path:
    """Draw a learning-rate range test: smoothed loss over the rate, with the suggestion if there is one."""
    curve = read_curve(csv)
    part = shown(len(curve.lrs))
    figure, axes = new_figure()
    axes.plot(curve.lrs[part], curve.losses[part], color="0.8", label="training loss" if curve.valid else "loss")
    if curve.valid:
        axes.plot(curve.lrs[part], curve.valid[part], color="0.6", label="validation loss")
    axes.plot(curve.lrs[part], curve.smoothed[part], label="smoothed")
    if curve.suggested is not None:
        axes.axvline(curve.suggested, color="C3", linestyle="--", label=f"suggested {curve.suggested:.2e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    return save_figure(figure, csv.with_suffix(".png"))


def draw_losses(epochs: list[dict[str, Any]], path: Path) -> Path:
    """Draw training and validation loss, score and rate over the epochs of all stages."""
    figure, axes = new_figure()
    places = range(1, len(epochs) + 1)
    axes.plot(places, [epoch["train_loss"] for epoch in epochs], marker=".", label="training loss")
    if any(epoch["valid_loss"] is not None for epoch in epochs):
        axes.plot(places, [epoch["valid_loss"] for epoch in epochs], marker=".", label="validation loss")
    starts = [place for place, epoch in zip(places, epochs, strict=True) if epoch["epoch"] == 0]
    for place in starts[1:]:
        axes.axvline(place - 0.5, color="0.7", linewidth=0.8)
    other = axes.twinx()
    other.plot(places, [epoch["lr"] for epoch in epochs], color="C2", alpha=0.5, label="learning rate")
    other.set(yscale="log", ylabel="learning rate")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()
    return save_figure(figure, path)
