"""Channels have names: which file, which band and which date each of the C channels of an image [H, W, C] is.

Pixels stay one array whatever they come from. Their order is date by date, within a date file by file and within a file
band by band; what is derived of a date stands behind its bands. Files without a date come after all dates, and what is
derived of them after those. A photograph is the case of one file and no date.

What is unknown (a date without a file, a pixel without data) is NaN in the pixels and exactly 0 behind the
normalisation, where `valid_channels` tells it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DERIVED = "derived"
"""`Channel.file` of what is derived from bands."""
ONE = "image"
"""`Channel.file` where the YAML names no files."""


@dataclass(frozen=True)
class Channel:
    """What one channel is.

    Attributes:
        file: name of its file in `input.files`; `image` where the YAML names none, `derived` of what is derived.
        band: its name in `input.bands`, else its number from 1; of what is derived, the name of the formula.
        date: one of `input.dates`, or None of a file without dates.
    """

    file: str
    band: str
    date: str | None = None

    def __str__(self) -> str:
        name = f"{self.file}.{self.band}"
        return name if self.date is None else f"{name} of {self.date}"


def places_of(
    files: Sequence[str], *, dates: Sequence[str] = (), dated: Collection[str] = ()
) -> list[tuple[str, str | None]]:
    """Return the (file, date) of each path of a row, in the order of the pixels.

    Args:
        files: names of files, in the order of the YAML.
        dates: the dates, in the order of the YAML.
        dated: files there is one of for each date.
    """
    of_dates = [(name, date) for date in dates for name in files if name in dated]
    return [*of_dates, *((name, None) for name in files if name not in dated)]


def channels_of(
    files: Mapping[str, Sequence[str]],
    *,
    dates: Sequence[str] = (),
    dated: Collection[str] = (),
    derived: Sequence[str] = (),
) -> tuple[Channel, ...]:
    """Return the channels of an image in the order of its pixels.

    Args:
        files: name of each file -> the names of its bands, in the order of the YAML.
        dates: the dates, in the order of the YAML.
        dated: files there is one of for each date.
        derived: what is derived from bands, for each date where any file has dates.
    """
    places = places_of(list(files), dates=dates, dated=dated)
    of_dates: list[str | None] = list(dict.fromkeys(date for _, date in places if date is not None))
    order: list[Channel] = []
    for date in [*of_dates, None]:
        order += [Channel(name, band, date) for name, when in places if when == date for band in files[name]]
        if date is not None or not of_dates:
            order += [Channel(DERIVED, formula, date) for formula in derived]
    return tuple(order)


def by_date(channels: Sequence[Channel]) -> dict[str | None, list[int]]:
    """Return date -> the places of its channels, dates in order; None stands for channels without one, last."""
    places: dict[str | None, list[int]] = {}
    for place, channel in enumerate(channels):
        places.setdefault(channel.date, []).append(place)
    return places


def valid_channels(images: Any) -> Any:
    """Return [B, C] bool, which channels of a normalised batch hold anything.

    Invalid pixels are exactly 0 behind the normalisation; a channel that is 0 throughout is one that is not there.

    Args:
        images: [B, C, H, W] array or tensor, as the network takes it.
    """
    return (images != 0).any(-1).any(-1)
