"""`check` says where a dense network is trained at another scale than it predicts at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kbench.config.reading import validate
from kbench.runs.scales import scale_warnings

SIZES = {(100, 200, 3): 9, (400, 400, 3): 1}


def said(
    folder: Path, *, crop: Any = "random", windows: Any = "full", size: Any = 50, task: str = "segmentation"
) -> str:
    content = {
        "task": task, "metric": "mean_iou" if task == "segmentation" else "log_loss",
        "source": {"name": "local", "path": "files"}, "input": {"size": size}, "model": {"name": "smp"},
        "data": {"classes": ["blob"]}, "stages": {"all": {"lr": 0.01, "crop": crop, "keep": ["last"]}},
        **({"maps": {"windows": windows}} if task == "segmentation" else {"model": {"backbone": "test_resnet"}}),
    }  # fmt: skip
    if task == "segmentation":
        content["data"]["masks"] = {"name": "index", "folder": "masks"}
    return "\n".join(scale_warnings(validate(content, file="x", folder=folder, name="x"), SIZES))


def test_another_scale_is_said_and_its_remedies_are_silent(tmp_path: Path) -> None:
    text = said(tmp_path)  # 50 px cover an image of 100 x 200 at half its size
    assert "at 0.5 times their size" in text
    assert "predicted at 1 times" in text
    assert "scale: 0.5}}`" in text
    assert said(tmp_path, windows={"name": "resized", "scale": 0.5}) == ""
    assert said(tmp_path, crop="native") == ""


@pytest.mark.parametrize(("crop", "size", "expected"), [
    ("random", 100, ""), ("random", 110, ""), ("random", 200, "at 2 times"),
    ("squash", [50, 100], "at 0.5 times"), ("squash", [100, 200], ""),
    ({"name": "native", "scale": [0.5, 2.0]}, 50, ""), ({"name": "native", "scale": [2.0, 2.0]}, 50, "at 2 times"),
])  # fmt: skip
def test_scales_of_crops(tmp_path: Path, crop: Any, size: Any, expected: str) -> None:
    text = said(tmp_path, crop=crop, size=size)
    assert expected in text
    assert bool(text) == bool(expected)


def test_windows_of_a_size_have_a_scale(tmp_path: Path) -> None:
    assert said(tmp_path, windows={"name": "resized", "size": [50, 100]}) == ""
    assert "predicted at 0.25 times" in said(tmp_path, windows={"name": "resized", "size": [25, 50]})


def test_rows_are_predicted_as_they_are_judged(tmp_path: Path) -> None:
    assert said(tmp_path, task="single_label") == ""
