"""How wide a network is, counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from kbench.models.plain_unets import deepsense, unet_plain
from kbench.models.width import width_of


def test_the_widest_layer_counts_at_the_size_of_the_image() -> None:
    images = torch.zeros(2, 3, 128, 200)
    flat = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 64, 2, stride=2), nn.Conv2d(64, 1, 1)).eval()
    assert width_of(flat, images) == 16  # 64 channels on a quarter of the pixels
    assert width_of(deepsense(1, 20).eval(), torch.zeros(1, 20, 64, 64)) == 128
    assert width_of(unet_plain(1, 3, width=8, depth=1).eval(), images) == 16  # two levels beside each other


def test_what_has_more_bands_than_channels_is_as_wide_as_its_bands() -> None:
    assert width_of(nn.Conv2d(180, 4, 1).eval(), torch.zeros(1, 180, 64, 64)) == 180


def test_a_model_that_takes_one_size_alone_is_as_wide_as_its_image() -> None:
    class Fixed(nn.Module):
        """Takes 100 x 100 pixels."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.view(-1, 3, 100, 100)

    assert width_of(Fixed().eval(), torch.zeros(1, 3, 100, 100)) == 3
