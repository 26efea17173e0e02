"""Derived channels: the published formulas, and names of bands that are none or stand twice."""

from __future__ import annotations

import numpy as np
import pytest

from kbench.data.images.channels import channels_of
from kbench.data.images.indices import Deriving, ccci, evi, ndvi, ndwi, savi
from kbench.errors import ConfigError

NAMES = ("blue", "green", "red", "red_edge", "nir")
PIXEL = dict(zip(NAMES, (0.05, 0.1, 0.2, 0.4, 0.6), strict=True))


@pytest.mark.parametrize(
    ("index", "value"),
    [(ndwi(), -0.5 / 0.7), (ndvi(), 0.5), (evi(), 0.4 / 2.425), (savi(), 1.5 * 0.4 / 1.3), (ccci(), 0.2 * 0.5)],
)
def test_an_index_is_its_formula(index: object, value: float) -> None:
    channels = channels_of({"M": NAMES}, derived=("made",))
    step = Deriving(channels, {"made": index}, {})  # type: ignore[dict-item]
    made = step(np.array([[[PIXEL[name] for name in NAMES]]], dtype=np.float32))
    assert made.shape == (1, 1, 6)
    assert made[0, 0, 5] == pytest.approx(value, rel=1e-6)


def test_each_date_has_its_own_behind_its_bands_in_the_units_of_the_scale() -> None:
    channels = channels_of({"S": ("green", "nir")}, dates=("0", "1"), dated={"S"}, derived=("ndwi", "savi2"))
    step = Deriving(
        channels, {"ndwi": ndwi(), "savi2": savi(red="S.green")}, {("S", "green"): 100.0, ("S", "nir"): 100.0}
    )
    image = np.array([[[10, 30, 0, 0]]], dtype=np.uint16)
    made = step(image)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0, 0, :4], [10, 30, -0.5, 1.5 * 0.2 / 0.9], rtol=1e-6)
    assert made[0, 0, 4:6].tolist() == [0, 0]
    assert np.isnan(made[0, 0, 6])  # 0 / 0
    assert made[0, 0, 7] == 0


def test_a_band_that_is_not_there_or_there_twice_is_said() -> None:
    channels = channels_of({"RGB": ("red", "green"), "M": ("red", "nir")}, derived=("ndvi",))
    with pytest.raises(ConfigError, match=r"which several files have: RGB\.red, M\.red"):
        Deriving(channels, {"ndvi": ndvi()}, {})
    assert Deriving(channels, {"ndvi": ndvi(red="M.red")}, {})(np.ones((1, 1, 4), np.float32))[0, 0, 4] == 0
    with pytest.raises(ConfigError, match="from the band 'blue', and no file has one"):
        Deriving(channels, {"ndvi": ndvi(red="blue")}, {})
