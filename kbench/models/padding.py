"""Pad images by reflection to a size the layers can halve, and cut the maps back."""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor
from torch.nn.functional import pad

Place = tuple[EllipsisType, slice, slice]


def padded(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Place]:
    """Return images padded on all sides by reflection, and the index that cuts [..., H, W] back.

    Args:
        images: [B, C, H, W].
        size: height and width, not below those of the images; an image is reflected as often as it takes.
    """
    height, width = images.shape[-2:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    place = (..., slice(top, top + height), slice(left, left + width))
    down, across = size[0] - height, size[1] - width
    if not down and not across:
        return images, place
    if max(down - top, top) < height and max(across - left, left) < width:
        return pad(images, (left, across - left, top, down - top), mode="reflect"), place
    rows = _reflected(height, -top, size[0], images.device)
    columns = _reflected(width, -left, size[1], images.device)
    return images[..., rows, :][..., columns], place


def _reflected(length: int, first: int, count: int, device: torch.device) -> Tensor:
    """Return `count` positions from `first` on, reflected into 0..length-1 without repeating the border."""
    places = torch.arange(first, first + count, device=device)
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    places = places % period
    return torch.minimum(places, period - places)
