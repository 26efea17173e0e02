"""Channels that are derived from bands: spectral indices (row D-22), and whatever a plug-in adds.

An index is a registered factory whose parameters are names of bands, as `input.bands` has them: `red`, or `RGB.red`
where several files have one of that name. To add one, write a factory with `@register("index")` here or in a plug-in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kbench.data.images.channels import DERIVED, Channel
from kbench.errors import ConfigError, nearest
from kbench.registry import register


@dataclass(frozen=True)
class Index:
    """One derived channel.

    Attributes:
        bands: names of the bands it is made of.
        value: called with them, each [H, W] float64, in the same order; returns [H, W]. What is not finite is unknown.
    """

    bands: tuple[str, ...]
    value: Callable[..., np.ndarray]


def _share(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the difference of two bands over their sum."""
    return np.asarray((one - other) / (one + other))


@register("index")
def ndwi(*, green: str = "green", nir: str = "nir") -> Index:
    """Derive (G - NIR) / (G + NIR): water is above 0.

    Args:
        green: name of the green band.
        nir: name of the near infrared band.

    Source: row D-22.
    """
    return Index((green, nir), _share)


@register("index")
def ndvi(*, nir: str = "nir", red: str = "red") -> Index:
    """Derive (NIR - R) / (NIR + R): green plants are near 1.

    Args:
        nir: name of the near infrared band.
        red: name of the red band.

    Source: row D-22.
    """
    return Index((nir, red), _share)


@register("index")
def evi(*, nir: str = "nir", red: str = "red", blue: str = "blue") -> Index:
    """Derive (NIR - R) / (NIR + 6 R - 7.5 B + 1), of reflectances: divide bands by `input.bands.FILE.scale`.

    Args:
        nir: name of the near infrared band.
        red: name of the red band.
        blue: name of the blue band.

    Source: row D-22.
    """
    return Index((nir, red, blue), lambda nir, red, blue: (nir - red) / (nir + 6 * red - 7.5 * blue + 1))


@register("index")
def savi(*, nir: str = "nir", red: str = "red", soil: float = 0.5) -> Index:
    """Derive (1 + L) (NIR - R) / (NIR + R + L), of reflectances.

    Args:
        nir: name of the near infrared band.
        red: name of the red band.
        soil: L, how much of the soil shows; 0 is `ndvi`.

    Source: Huete 1988.
    """
    return Index((nir, red), lambda nir, red: (1 + soil) * (nir - red) / (nir + red + soil))


@register("index")
def ccci(*, nir: str = "nir", red: str = "red", red_edge: str = "red_edge") -> Index:
    """Derive (NIR - RE) / (NIR + RE) * (NIR - R) / (NIR + R): water is above 0.11 in DSTL's scenes.

    Args:
        nir: name of the near infrared band.
        red: name of the red band.
        red_edge: name of the red edge band.

    Source: row D-22.
    """
    return Index((nir, red, red_edge), lambda nir, red, edge: _share(nir, edge) * _share(nir, red))


class Deriving:
    """Puts derived channels where they belong among the bands of an image.

    Args:
        channels: of the result, in order; those of `derived` are made, in the order of `indices` for each date.
        indices: name -> index.
        divisors: (file, band) -> what raw values are divided by before; 1 where it says nothing.
    """

    def __init__(
        self, channels: Sequence[Channel], indices: dict[str, Index], divisors: dict[tuple[str, str], float]
    ) -> None:
        bands = [channel for channel in channels if channel.file != DERIVED]
        self._plan: list[int | tuple[Index, list[tuple[int, float]]]] = []
        for channel in channels:
            if channel.file != DERIVED:
                self._plan.append(bands.index(channel))
                continue
            index = indices[channel.band]
            places = [band_place(bands, name, channel.date, of=channel.band) for name in index.bands]
            self._plan.append((index, [(place, divisors.get((bands[place].file, bands[place].band), 1.0))
                                       for place in places]))  # fmt: skip

    def __call__(self, image: np.ndarray, name: str = "") -> np.ndarray:
        """Return [H, W, C] with the derived channels of an image of bands; floating point."""
        made = np.empty((*image.shape[:2], len(self._plan)), np.result_type(image.dtype, np.float32))
        for place, step in enumerate(self._plan):
            if isinstance(step, int):
                made[:, :, place] = image[:, :, step]
                continue
            index, sources = step
            with np.errstate(divide="ignore", invalid="ignore"):
                value = index.value(*(image[:, :, source].astype(np.float64) / divisor for source, divisor in sources))
            made[:, :, place] = np.where(np.isfinite(value), value, np.nan)
        return made


def band_place(bands: Sequence[Channel], name: str, date: str | None, *, of: str) -> int:
    """Return the place of a band that is named in the YAML.

    Args:
        bands: those there are.
        name: of a band, or `FILE.BAND`.
        date: of the channel that is derived; bands without dates are of every one.
        of: the index, for the message.

    Raises:
        ConfigError: there is none, or several files have one.
    """
    places = [
        place for place, band in enumerate(bands)
        if name in (band.band, f"{band.file}.{band.band}") and band.date in (None, date)
    ]  # fmt: skip
    if len(places) == 1:
        return places[0]
    known = list(dict.fromkeys(f"{band.file}.{band.band}" for band in bands))
    if not places:
        raise ConfigError(
            f"'{of}' is derived from the band '{name}', and no file has one", f"one of {', '.join(known[:20])}",
            f"{nearest(name, known)} Write its name in `input.bands`, or `{{name: {of}, BAND: FILE.NAME}}` in `derive`",
        )  # fmt: skip
    files = ", ".join(f"{bands[place].file}.{name}" for place in places)
    raise ConfigError(
        f"'{of}' is derived from the band '{name}', which several files have: {files}", "one band",
        f"write which: `input: {{derive: [{{name: {of}, BAND: FILE.{name}}}]}}`",
    )  # fmt: skip
