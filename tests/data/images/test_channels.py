"""The order of channels, and which of them hold anything."""

from __future__ import annotations

import torch

from kbench.data.images.channels import Channel, by_date, channels_of, valid_channels


def test_dates_come_first_then_files_then_bands_and_what_is_derived_stands_behind_its_date() -> None:
    files = {"S1": ("vv", "vh"), "dem": ("1",), "S2": ("red", "nir")}
    channels = channels_of(files, dates=("00", "01"), dated={"S1", "S2"}, derived=("ndwi",))
    assert [str(channel) for channel in channels] == [
        "S1.vv of 00", "S1.vh of 00", "S2.red of 00", "S2.nir of 00", "derived.ndwi of 00",
        "S1.vv of 01", "S1.vh of 01", "S2.red of 01", "S2.nir of 01", "derived.ndwi of 01", "dem.1",
    ]  # fmt: skip
    assert by_date(channels) == {"00": [0, 1, 2, 3, 4], "01": [5, 6, 7, 8, 9], None: [10]}


def test_files_without_dates_are_stacked_in_the_order_of_the_yaml() -> None:
    channels = channels_of({"RGB": ("r", "g", "b"), "P": ("1",)}, derived=("evi",))
    assert channels == (
        Channel("RGB", "r", None), Channel("RGB", "g", None), Channel("RGB", "b", None), Channel("P", "1", None),
        Channel("derived", "evi", None),
    )  # fmt: skip


def test_a_channel_that_is_zero_throughout_is_not_there() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 1, 2, 3] = -0.5
    images[1, 2] = 1
    assert valid_channels(images).tolist() == [[False, True, False], [False, False, True]]
