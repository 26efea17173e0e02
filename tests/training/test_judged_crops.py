"""What is judged and predicted is shown as large as in training, whatever the crop (F-08)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import written

from kbench.data import seeds
from kbench.data.dataset import Show
from kbench.data.images.crops import native, whole
from kbench.inference.views import Load, window_of
from kbench.runs import parts
from kbench.runs.experiment import open_experiment
from kbench.training.fold_context import resize_before
from kbench.training.stage_plan import StagePlan
from kbench.workspace import Choice

HEIGHT, WIDTH, SIZE = 60, 96, 24
COVERED = HEIGHT / SIZE  # pixels of the image beside one another in what is shown


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Competitions whose YAML is read; nothing is trained."""
    return written(tmp_path_factory.mktemp("crops"))


def planned(workspace: Path, crop: str, *more: str) -> StagePlan:
    chosen = (f"input.size={SIZE}", f"train.crop={crop}", "train.augment=none", *more)
    return parts.build_stages(open_experiment(Choice("classes", assignments=chosen, workspace=workspace)).competition)[
        -1
    ]


def shown(show: Show, seed: int = 0) -> np.ndarray:
    """Return [24, 24, 2]: the row and the column of the image that each pixel shows."""
    ramp = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), axis=2).astype(np.float32)
    return np.asarray(show(resize_before(show)(ramp), seeds.generator(seed))[0])


def steps(view: np.ndarray) -> tuple[float, float]:
    """Return how far apart neighbours are in the image, in the middle of what is shown."""
    middle = view[6:-6, 6:-6]
    return float(np.diff(middle[:, :, 0], axis=0).mean()), float(np.diff(middle[:, :, 1], axis=1).mean())


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ("random", (COVERED, COVERED)),
        ("centre", (COVERED, COVERED)),
        ("squash", (COVERED, WIDTH / SIZE)),
        ("whole", (COVERED, WIDTH / SIZE)),
        ("native", (1.0, 1.0)),
        ("{name: native, scale: [0.5, 0.5]}", (2.0, 2.0)),
    ],
)
def test_training_and_judging_show_things_equally_large(workspace: Path, crop: str, expected: Any) -> None:
    plan = planned(workspace, crop)
    for show in (plan.show, plan.valid_show):
        assert steps(shown(show)) == pytest.approx(expected, rel=0.03)
    judged = shown(plan.valid_show)
    middle = judged.mean(axis=(0, 1))
    np.testing.assert_allclose(middle, [(HEIGHT - 1) / 2, (WIDTH - 1) / 2], atol=1.5)  # about the image's centre
    np.testing.assert_array_equal(judged, shown(plan.valid_show, seed=1))


def test_windows_of_any_size_are_judged_on_the_centre_as_in_fastai(workspace: Path) -> None:
    assert steps(shown(planned(workspace, "googlenet").valid_show)) == pytest.approx((COVERED, COVERED), rel=0.03)
    ranged = planned(workspace, "{name: native, scale: [0.5, 2.0]}").valid_show
    assert steps(shown(ranged)) == pytest.approx((1.0, 1.0))


def test_the_yaml_may_have_everything_judged_whole(workspace: Path) -> None:
    for crop in ("random", "native", "googlenet"):
        plan = planned(workspace, crop, "input.crop=squash")
        assert steps(shown(plan.valid_show)) == pytest.approx((COVERED, WIDTH / SIZE), rel=0.03)


@pytest.mark.parametrize("crop", ["random", "squash", "whole", "native", "{name: native, scale: [0.5, 0.5]}"])
def test_what_is_predicted_is_what_was_judged(workspace: Path, crop: str) -> None:
    judged = planned(workspace, crop).valid_show
    own = judged.crop if judged.crop.resize == "keep" else None
    window = window_of(Load(), own, judged.size)
    size = resize_before(judged)(np.zeros((HEIGHT, WIDTH, 1), np.uint8)).shape[:2]
    assert window(size, judged.size, seeds.generator(0)) == judged.crop.window(size, judged.size, seeds.generator(0))


def test_another_scale_shows_the_same_window_of_an_image_that_keeps_its_resolution(workspace: Path) -> None:
    judged = planned(workspace, "native").valid_show
    larger = window_of(Load(scale=2.0), judged.crop, judged.size)((HEIGHT, WIDTH), (48, 48), seeds.generator(0))
    assert (larger.height, larger.width) == (SIZE, SIZE)
    corner = window_of(Load("bottom_right"), judged.crop, judged.size)((HEIGHT, WIDTH), (24, 24), seeds.generator(0))
    assert (corner.top, corner.left) == (HEIGHT - SIZE, WIDTH - SIZE)


def test_an_image_of_the_size_is_shown_as_it_is_without_a_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for crop in (native(), whole()):  # CropType.NOOP
        np.testing.assert_array_equal(Show((SIZE, SIZE), crop)(image, seeds.generator(0))[0], image)
