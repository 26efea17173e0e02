"""Estimators of pixels as arrays: they say what scikit-learn says, and come back from a file as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestRegressor

from kbench.errors import ConfigError
from kbench.models.outputs import probabilities
from kbench.models.pixels import PixelModel, pixels

SIZE = (12, 15)


def batch(seed: int = 0, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def trained(target: torch.Tensor, outputs: int, task: str, **options: Any) -> PixelModel:
    model = pixels(outputs, 3, _task=task, **options).train()
    model.collect(batch(), target)
    return model.eval()


def table(target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of a batch as rows, and their truth."""
    rows = batch().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    return rows, target.reshape(4, -1, *SIZE).permute(0, 2, 3, 1).reshape(len(rows), -1).double().numpy()


def drawn(count: int) -> np.ndarray:
    """Return the order in which all pixels of a first batch are fitted to."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64).argsort().numpy()


def said(model: PixelModel) -> np.ndarray:
    with torch.no_grad():
        found = model(batch())
    return found.permute(0, 2, 3, 1).reshape(-1, model.n_outputs).numpy()


def numbers() -> torch.Tensor:
    images = batch()
    return torch.stack([images[:, 0] * 3 - images[:, 1] + 5, images[:, 2].square()], 1)


def test_a_linear_one_is_a_plane() -> None:
    model = trained(numbers()[:, :1], 1, "dense_regression", estimator="linear")
    np.testing.assert_allclose(said(model), table(numbers()[:, :1])[1], atol=1e-2)


def test_boosting_says_what_scikit_learn_says() -> None:
    target = numbers()
    model = trained(target, 2, "dense_regression", estimator="boosting", trees=20)
    rows, real = table(target)
    for k in range(2):
        plain = HistGradientBoostingRegressor(max_iter=20, random_state=0, early_stopping=False)
        order = drawn(len(rows))
        expected = plain.fit(rows[order], real[order, k]).predict(rows)
        np.testing.assert_allclose(said(model)[:, k], expected, atol=1e-4)


def test_a_forest_says_what_scikit_learn_says() -> None:
    target = numbers()
    model = trained(target, 2, "dense_regression", estimator="forest", trees=7)
    rows, real = table(target)
    order = drawn(len(rows))
    plain = RandomForestRegressor(7, max_depth=12, min_samples_leaf=2, max_features=1 / 3, random_state=0)
    np.testing.assert_allclose(said(model), plain.fit(rows[order], real[order]).predict(rows), atol=1e-4)


@pytest.mark.parametrize("estimator", ["linear", "forest", "boosting"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_that_exclude_one_another_are_told_apart(estimator: str, classes: int) -> None:
    images = batch()
    target = (images[:, 0] > 0).long() + (images[:, 1] > 1).long() * (classes - 2)
    target = target.clamp_max(classes - 1)
    target[:, 0, 0] = -100
    model = trained(target, classes, "segmentation", estimator=estimator, trees=20)
    with torch.no_grad():
        shares = probabilities(model(images), "segmentation")
    torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[:, 0]))
    right = (shares.argmax(1) == target)[target >= 0].float().mean()
    assert right > (0.9 if classes == 2 else 0.8)  # the third class lies between two lines


def test_the_probabilities_of_boosting_are_those_of_scikit_learn() -> None:
    target = (batch()[:, 0] + batch()[:, 1] > 0).long()
    model = trained(target, 2, "segmentation", estimator="boosting", trees=10)
    rows, real = table(target[:, None])
    order = drawn(len(rows))
    plain = HistGradientBoostingClassifier(max_iter=10, random_state=0, early_stopping=False)
    expected = plain.fit(rows[order], real[order, 0]).predict_proba(rows)
    np.testing.assert_allclose(probabilities(torch.as_tensor(said(model)), "single_label").numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("estimator", ["linear", "forest", "boosting"])
def test_overlapping_classes_and_one_that_is_nowhere(estimator: str) -> None:
    images = batch()
    target = torch.stack([images[:, 0] > 0, images[:, 1] > 0, torch.zeros_like(images[:, 0]) > 1], 1).float()
    model = trained(target, 3, "multi_label_segmentation", estimator=estimator, trees=20)
    with torch.no_grad():
        shares = probabilities(model(images), "multi_label_segmentation")
    assert ((shares > 0.5) == target.bool()).float().mean() > 0.9
    assert float(shares[:, 2].max()) < 0.01


def test_means_around_a_pixel_are_features() -> None:
    model = pixels(1, 3, _task="dense_regression", features={"blur": [3]})
    found = model.features(batch())
    expected = batch()[0, 1, 3:6, 7:10].mean()
    torch.testing.assert_close(found[0, 3 + 1, 4, 8], expected)
    assert found.shape == (4, 6, *SIZE)


@pytest.mark.parametrize("estimator", ["linear", "forest", "boosting"])
def test_a_file_without_pickle_gives_it_back(estimator: str, tmp_path: Path) -> None:
    model = trained(numbers(), 2, "dense_regression", estimator=estimator, trees=5, features={"blur": [3, 5]})
    save_file({name: one.contiguous() for name, one in model.state_dict().items()}, tmp_path / "a.safetensors")
    again = pixels(2, 3, _task="dense_regression", estimator=estimator, features={"blur": [3, 5]})
    again.load_state_dict(load_file(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(said(again.eval()), said(model))


def test_what_was_collected_is_fitted_to_before_it_is_kept_and_is_never_too_much() -> None:
    model = pixels(1, 3, _task="dense_regression", estimator="linear", pixels=100).train()
    for _ in range(5):
        model.collect(batch(), numbers()[:, :1])
        assert sum(map(len, model._kept)) <= 200 + 4 * SIZE[0] * SIZE[1]
    assert float(model.state_dict()["weight"].abs().sum()) > 1
    assert model._kept == []


@pytest.mark.parametrize("options", [{"features": {"blur": [4]}}, {"trees": 0}, {"pixels": 1}, {"depth": 0}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        pixels(1, 3, **options)
