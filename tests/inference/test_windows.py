"""Windows cover the image, blend without seams, and give back what one look would give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench import registry
from kbench.errors import ConfigError
from kbench.inference import windows as windows_module
from kbench.inference.windows import starts

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def softened(batch: torch.Tensor) -> torch.Tensor:
    """Return probabilities that depend on each pixel alone: what windows show changes nothing."""
    return torch.stack([batch[:, 0].sigmoid(), 1 - batch[:, 0].sigmoid()], 1)


@given(length=st.integers(1, 200), window=st.integers(1, 60), data=st.data())
def test_starts_leave_no_pixel_out(length: int, window: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, window))
    found = starts(length, window, step)
    assert found == sorted(set(found))
    assert {place for start in found for place in range(start, start + window)} >= set(range(length))
    assert window >= length or found[-1] + window == length


@given(shape=SHAPES, size=SHAPES, data=st.data())
def test_a_pixelwise_model_is_the_same_through_any_windows(
    shape: tuple[int, int], size: tuple[int, int], data: st.DataObject
) -> None:
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    stride = tuple(data.draw(st.integers(1, side)) for side in size)
    for name, params in (
        ("full", {}),
        ("grid", {"size": size}),
        ("overlap", {"size": size, "stride": stride}),
        ("overlap", {"size": size, "stride": stride, "smooth": False}),
    ):
        made = registry.build("windows", name, params).predict(softened, images)
        torch.testing.assert_close(made, softened(images), rtol=1e-4, atol=1e-5)


def test_votes_count_the_most_probable_class() -> None:
    images = torch.randn(1, 3, 30, 20)
    windows = registry.build("windows", "overlap", {"size": 8, "vote": True})
    made = windows.predict(softened, images)
    assert torch.equal(made.argmax(1), softened(images).argmax(1))
    torch.testing.assert_close(made.amax(1), torch.ones(1, 30, 20))


def test_classes_that_may_overlap_are_voted_for_one_by_one() -> None:
    images = torch.randn(1, 3, 30, 20)
    task = "multi_label_segmentation"
    windows = registry.build("windows", "overlap", {"size": 8, "vote": True}, _task=task)
    made = windows.predict(lambda cut: torch.full_like(cut[:, :2], 0.7), images)
    assert torch.equal(made, torch.ones(1, 2, 30, 20))
    with pytest.raises(ConfigError, match="of numbers"):
        registry.build("windows", "overlap", {"size": 8, "vote": True}, _task="dense_regression")


def test_probabilities_are_resized_not_classes() -> None:
    images = torch.zeros(1, 3, 4, 8)
    images[..., 4:] = 4.0
    made = registry.build("windows", "resized", {"scale": 0.5}).predict(softened, images)
    assert made.shape == (1, 2, 4, 8)
    torch.testing.assert_close(made.sum(1), torch.ones(1, 4, 8))
    assert len(made[0, 0, 0].unique()) > 2  # between the two sides lie values that neither has


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resized", {}),
        ("resized", {"size": 32, "scale": 0.5}),
        ("resized", {"scale": 0}),
        ("overlap", {"size": 8, "stride": 9}),
        ("grid", {"size": 0}),
    ],
)
def test_what_cannot_be_is_said(name: str, params: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        registry.build("windows", name, params)


# -- borders and memory -------------------------------------------------------------------------------------------


def told(batch: torch.Tensor) -> torch.Tensor:
    """Return what a network with a wrong border of 3 pixels says: 9 there, else the image's own values."""
    wrong = torch.full_like(batch[:, :1], 9.0)
    wrong[..., 3:-3, 3:-3] = batch[:, :1, 3:-3, 3:-3]
    return wrong


def test_borders_of_windows_are_not_looked_at_but_those_of_the_image() -> None:
    images = torch.rand(1, 2, 50, 61, generator=torch.Generator().manual_seed(0))
    made = registry.build("windows", "overlap", {"size": 20, "stride": 8, "edge": 3}).predict(told, images)
    torch.testing.assert_close(made[..., 3:-3, 3:-3], images[:, :1, 3:-3, 3:-3])
    for border in (made[..., :3, :], made[..., -3:, :], made[..., :, :3], made[..., :, -3:]):
        torch.testing.assert_close(border, torch.full_like(border, 9.0))
    seen = registry.build("windows", "overlap", {"size": 20, "stride": 8}).predict(told, images)
    assert (seen[..., 10:-10, 10:-10] - images[:, :1, 10:-10, 10:-10]).abs().max() > 0.1


def test_a_stride_that_leaves_pixels_between_borders_is_refused() -> None:
    with pytest.raises(ConfigError, match="border of 7"):
        registry.build("windows", "overlap", {"size": 20, "stride": 8, "edge": 7})


@pytest.mark.parametrize(("channels", "width", "expected"), [(3, 16, 64), (20, 64, 16), (180, 16, 5), (3, 4096, 1)])
def test_as_many_windows_go_through_at_once_as_bytes_allow(
    channels: int, width: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "_AT_ONCE", 1 << 24)
    seen: list[int] = []

    class Model:
        """Notes how many windows it is shown."""

        def __init__(self) -> None:
            self.width = width

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(len(batch))
            return batch[:, :1]

    windows = registry.build("windows", "overlap", {"size": 64, "stride": 8})
    windows.predict(Model(), torch.zeros(1, channels, 128, 128))
    assert sum(seen) == 81
    assert max(seen) == expected  # 2^24 bytes over 64 * 64 * 4 * channels of the widest layer
