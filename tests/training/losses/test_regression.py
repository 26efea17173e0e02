"""Losses of numbers: values computed by hand and by scikit-image's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kbench import registry
from kbench.errors import ConfigError
from kbench.models.outputs import Units


def loss(name: str, **params):
    injected = {key: params.pop(key) for key in list(params) if key.startswith("_")}
    return registry.build("loss", name, params, **injected)


def maps(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_thresholded_rmse_leaves_out_what_lies_above() -> None:
    target, said = maps([[[[100.0, 500.0]]]]), maps([[[[110.0, 0.0]]]])
    assert float(loss("rmse", ignore_above=400.0)(said, target).mean()) == pytest.approx(10, abs=1e-6)
    assert float(loss("rmse")(said, target).mean()) == pytest.approx(353.624, abs=5e-4)


def test_the_threshold_is_in_target_units_where_targets_are_standardised() -> None:
    units = Units((80.0,), (50.0,))
    target, said = maps([[[[100.0, 500.0, 399.0]]]]), maps([[[[110.0, 0.0, 399.0]]]])
    learned = [units.standardised(values) for values in (said, target)]
    found = loss("rmse", ignore_above=400.0, _units=units)(*learned).mean()
    assert float(found) * 50 == pytest.approx(np.sqrt(100 / 2), rel=1e-5)


def test_rmse_is_the_mean_over_images_not_over_pixels_and_accumulates() -> None:
    target = torch.zeros(2, 1, 4, 4)
    said = torch.stack([torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), 3.0)])
    whole = loss("rmse")(said, target)
    assert float(whole.mean()) == pytest.approx(2.0, abs=1e-6)  # the pooled one is 2.236
    parts = [loss("rmse")(said[row : row + 1], target[row : row + 1]) for row in range(2)]
    assert float(sum(part.total for part in parts) / sum(part.count for part in parts)) == pytest.approx(2.0, abs=1e-6)


def test_rmse_has_a_gradient_where_it_is_right_and_none_of_what_is_unknown() -> None:
    target = torch.tensor([[[[1.0, float("nan")]]], [[[float("nan"), float("nan")]]]])
    said = torch.tensor([[[[1.0, 7.0]]], [[[3.0, 4.0]]]], requires_grad=True)
    found = loss("rmse")(said, target)
    assert float(found.count) == 1
    [gradient] = torch.autograd.grad(found.mean(), said)
    assert torch.equal(gradient, torch.zeros_like(said))


def test_rmse_of_nothing_known_is_nothing() -> None:
    said = torch.randn(2, 1, 3, 3, requires_grad=True)
    found = loss("rmse", ignore_above=0.5)(said, torch.ones(2, 1, 3, 3))
    assert (float(found.count), float(found.mean().detach())) == (0, 0)
    assert torch.equal(torch.autograd.grad(found.mean(), said)[0], torch.zeros_like(said))


def direct_ssim(one: np.ndarray, two: np.ndarray, span: float) -> float:
    """Return the mean SSIM of two float64 images, window by window."""
    hill = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(hill, hill) / hill.sum() ** 2
    values = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (one, two))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cab = (weights * (a - ma) * (b - mb)).sum()
            c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
            values.append((2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_is_the_formula_written_window_by_window() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(14, 17))
    said = real + rng.normal(size=(14, 17))
    expected = 1 - direct_ssim(said, real, 5.0)
    inputs = [torch.tensor(values, dtype=torch.float32)[None, None] for values in (said, real)]
    assert float(loss("ssim", range=5.0)(*inputs).mean()) == pytest.approx(expected, abs=1e-5)
    assert float(loss("ssim", range=5.0)(inputs[1], inputs[1]).mean()) == pytest.approx(0, abs=1e-5)
    scaled = loss("ssim", range=500.0, _units=Units((0.0,), (100.0,)))(*inputs)
    assert float(scaled.mean()) == pytest.approx(expected, abs=1e-5)


def test_ssim_looks_at_no_window_with_an_unknown_pixel() -> None:
    torch.manual_seed(0)
    real, said = torch.randn(1, 1, 11, 24), torch.randn(1, 1, 11, 24)
    right = loss("ssim", range=4.0)(said[..., 8:], real[..., 8:]).mean()
    real[..., 3, 7] = float("nan")
    said[..., 3, 7] = 1e9
    torch.testing.assert_close(loss("ssim", range=4.0)(said, real).mean(), right)
    real[..., :] = float("nan")
    assert float(loss("ssim", range=4.0)(said, real).count) == 0


def test_a_sum_of_mean_error_and_ssim_weighs_them() -> None:
    torch.manual_seed(0)
    said, real = torch.randn(2, 1, 12, 12), torch.randn(2, 1, 12, 12)
    parts = [loss("l1")(said, real).mean(), loss("ssim", range=4.0)(said, real).mean()]
    both = loss("sum", parts=["l1", {"name": "ssim", "range": 4.0, "weight": 0.2}])(said, real).mean()
    torch.testing.assert_close(both, parts[0] + 0.2 * parts[1])


@pytest.mark.parametrize(("name", "params"), [("rmse", {"eps": 0.0}), ("ssim", {"range": 0.0})])
def test_values_out_of_range_are_refused(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        loss(name, **params)
