"""How the images of a competition are read: its reader, and what is done to an image before anybody sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kbench import files, registry
from kbench.config.competition import Competition, Input
from kbench.data.images.align import Aligning
from kbench.data.images.by_image import ByImage, Finished
from kbench.data.images.channels import DERIVED, ONE, Channel, channels_of
from kbench.data.images.decoding import Decoding
from kbench.data.images.indices import Deriving
from kbench.data.images.rasters import Stack, stack_of
from kbench.data.images.readers import Reader

Step = Callable[[np.ndarray, str], np.ndarray]


def channels(section: Input) -> tuple[Channel, ...]:
    """Return what each channel of an image is, in the order of the pixels [H, W, C]."""
    if not section.files:
        return channels_of({ONE: tuple(map(str, range(1, section.channels + 1)))})
    derived = [part.name for part in section.derive]
    return channels_of(section.band_names(), dates=section.dates, dated=section.dated, derived=derived)


def decoding_of(competition: Competition) -> Decoding:
    """Return how image files become arrays: the limit and the orientation of `input`."""
    section = competition.input
    return Decoding(section.orientation, section.max_pixels, quick=section.decode == "auto")


def reader_of(competition: Competition) -> Reader:
    """Return the competition's reader: it decodes files, aligns them, derives channels and normalises by the image.

    Raises:
        ConfigError: the reader needs what is not installed, or an index a band that is not there.
    """
    section = competition.input
    stack = _stack(section) if section.files else None
    bands = [channel for channel in channels(section) if channel.file != DERIVED]
    reader: Reader = registry.build(
        "reader", section.reader.name, section.reader.params, _channels=len(bands), _decoding=decoding_of(competition),
        _stack=stack,
    )  # fmt: skip
    steps = steps_of(section)
    return Finished(reader, steps) if steps else reader


def _stack(section: Input) -> Stack:
    """Return what the paths of a row are."""
    nodata = {name: section.bands[name].nodata_values for name in section.files}
    masked = section.missing == "mask" or section.align is not None
    return stack_of(channels(section), list(section.files), nodata, masked=masked)


def steps_of(section: Input) -> list[Step]:
    """Return what is done to a decoded image, in order."""
    every, steps = channels(section), list[Step]()
    if section.align is not None:
        part = section.align
        steps.append(Aligning(
            [channel for channel in every if channel.file != DERIVED], part.to, part.edges(list(section.files)),
            largest=part.largest, gain=part.gain,
        ))  # fmt: skip
    if section.derive:
        indices = {part.name: registry.build("index", part.name, part.params) for part in section.derive}
        steps.append(Deriving(every, indices, _divisors(section)))
    if section.normalise.of_each_image:
        part_of = section.normalise
        spared = tuple(one is not None for one in fixed_channels(section))
        steps.append(ByImage(
            part_of.by,  # type: ignore[arg-type]  # neither of the data set nor of a region
            part_of.window, (part_of.percentiles[0], part_of.percentiles[1]), spared,
        ))  # fmt: skip
    return steps


def _divisors(section: Input) -> dict[tuple[str, str], float]:
    """Return (file, band) -> what its values are divided by, where `input.bands` has a scale."""
    found = {}
    for name, part in section.bands.items():
        for band, one in zip(part.band_names(), part.fixed(), strict=True):
            if part.scale is not None and one is not None:
                found[name, band] = one[1]
    return found


def fixed_channels(section: Input) -> list[tuple[float, float] | None]:
    """Return per channel what `input.bands` takes off its values and divides them by; None where it says nothing."""
    bands = {name: dict(zip(part.band_names(), part.fixed(), strict=True)) for name, part in section.bands.items()}
    return [bands.get(channel.file, {}).get(channel.band) for channel in channels(section)]


def reader_key(competition: Competition) -> list[Any]:
    """Return what the pixels of an image depend on beside its file; what came later only where it is used."""
    section = competition.input
    later: list[str] = [section.orientation] if section.orientation != "apply" else []
    later += [section.decode] if section.decode != "exact" else []
    if section.files:
        known = {name: [part.number, *map(str, part.nodata_values)] for name, part in section.bands.items()}
        later += [files.digest([known, section.files, section.dates, section.missing])]
    steps = {key: value for key, value in section.view().items() if key in ("align", "derive", "bands")}
    if section.align is not None or section.derive:
        later += [files.digest(steps)]
    if section.normalise.of_each_image:
        later += [files.digest([section.normalise.view(), [str(one) for one in fixed_channels(section)]])]
    later += [stamp for part in section.derive if (stamp := registry.stamp("index", part.name))]
    return [section.reader.model_dump(), section.channels, *later]
