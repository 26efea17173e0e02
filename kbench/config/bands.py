"""What an image of several files is: its files, their bands and dates, and what values mean (`input:` of the YAML)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kbench.config.section import Finite, Positive, Section
from kbench.errors import Problem, nearest

if TYPE_CHECKING:
    from kbench.config.competition import Input

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
DateName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$", max_length=60)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]
Nothing = Finite | Literal["nan", "inf", "-inf"]
Missing = Literal["error", "drop", "mask"]
_FIELD = re.compile(r"\{([^{}]*)\}")


class Bands(Section):
    """The bands of one file."""

    names: list[str] | None = Field(None, min_length=1, description="of the bands; numbers from 1 by default")
    count: int | None = Field(None, ge=1, le=10_000, description="how many there are, where nothing else says it")
    scale: Positive | list[Positive] | None = Field(
        None, description="what a band, or each band, is divided by; such bands are not normalised otherwise"
    )
    range: list[Interval] | None = Field(
        None, min_length=1, description="lowest and highest value of each band, which become 0 and 1; likewise"
    )
    nodata: Nothing | list[Nothing] | None = Field(
        None, description="values that mean nothing is known, beside NaN and what the file itself says"
    )

    @property
    def number(self) -> int | None:
        """How many bands there are, or None where nothing says it."""
        scales = self.scale if isinstance(self.scale, list) else None
        return next((len(some) for some in (self.names, self.range, scales) if some is not None), self.count)

    @property
    def nodata_values(self) -> tuple[float, ...]:
        """The values that mean nothing is known."""
        values = self.nodata if isinstance(self.nodata, list) else [self.nodata]
        return tuple(float(value) for value in values if value is not None)

    def fixed(self) -> list[tuple[float, float] | None]:
        """Return per band what is taken off its values and what they are divided by then; None where nothing says."""
        count = self.number or 0
        if self.range is not None:
            return [(low, high - low) for low, high in self.range]
        scales = self.scale if isinstance(self.scale, list) else [self.scale] * count
        return [None if scale is None else (0.0, scale) for scale in scales]

    def band_names(self) -> tuple[str, ...]:
        """Return the name of each band."""
        return tuple(self.names or map(str, range(1, (self.number or 0) + 1)))

    def problems(self, where: str) -> Iterator[Problem]:
        """Yield what its settings say against one another."""
        lists = {"names": self.names, "range": self.range, "scale": self.scale}
        counts = {key: len(value) for key, value in lists.items() if isinstance(value, list)}
        counts |= {} if self.count is None else {"count": self.count}
        if not counts:
            yield Problem(where, "does not say how many bands there are", "write `count:`, or `names:`")
        elif len(set(counts.values())) > 1:
            text = ", ".join(f"{count} by `{key}`" for key, count in counts.items())
            yield Problem(where, f"has {text}", "one of each for every band")
        if self.scale is not None and self.range is not None:
            yield Problem(f"{where}.scale", "stands beside `range`", "write one of the two")
        for place, (low, high) in enumerate(self.range or ()):
            if high <= low:
                yield Problem(f"{where}.range.{place}", f"{high:g} is not above {low:g}", "write [lowest, highest]")
        twice = sorted({name for name in self.names or () if (self.names or []).count(name) > 1})
        if twice:
            yield Problem(f"{where}.names", f"'{twice[0]}' stands twice", "a name for each band")


class Align(Section):
    """Files that lie some pixels off one another are moved onto one of them."""

    to: str = Field(description="the file that stays")
    graph: dict[str, str] = Field(
        {}, description="file -> the file it is registered to; every other file to `to` by default"
    )
    method: Literal["ecc"] = Field("ecc", description="how: OpenCV's enhanced correlation")
    largest: Positive = Field(20.0, description="shift that is believed, in pixels of the image")
    gain: float = Field(0.002, ge=0, le=1, description="in correlation, that a shift must bring")

    def edges(self, files: Sequence[str]) -> dict[str, str]:
        """Return file -> the file it is registered to."""
        return dict(self.graph) or {name: self.to for name in files if name != self.to}

    def problems(self, files: Sequence[str]) -> Iterator[Problem]:
        """Yield names that are none and graphs that do not end at `to`."""
        where = "input.align"
        if self.to not in files:
            yield Problem(f"{where}.to", f"'{self.to}' is no file of `input.files`", nearest(self.to, files))
        for name, parent in self.graph.items():
            for one in (name, parent):
                if one not in files:
                    yield Problem(f"{where}.graph.{name}", f"'{one}' is no file of `input.files`", nearest(one, files))
            seen = [name]
            while seen[-1] in self.graph and self.graph[seen[-1]] not in seen:
                seen.append(self.graph[seen[-1]])
            if seen[-1] != self.to:
                way = " -> ".join(seen)
                yield Problem(f"{where}.graph.{name}", f"{way} does not lead to '{self.to}'", f"end it at {self.to}")


class TestTiles(Section):
    """Whose pixels count in the statistics of a region."""

    test: bool = Field(False, description="those of the test set too, which have no labels")


class Normalising(Section):
    """What the values of a channel are brought to."""

    by: Literal["dataset", "region", "image", "window", "minmax", "percentile"] = Field(
        "dataset", description="mean 0 and standard deviation 1 of the training rows, of those of a region, of each "
        "image or around each pixel; or 0 to 1 from each image's lowest to its highest value, or percentiles"
    )  # fmt: skip
    group: str | None = Field(None, description="`region`: metadata column with the region of each row")
    region: TestTiles = Field(TestTiles(), description="`region`: whose pixels count")
    window: int = Field(65, ge=3, le=9999, description="`window`: side of the square around a pixel")
    percentiles: Interval = Field([1.0, 99.0], description="`percentile`: of an image's values, that become 0 and 1")

    @property
    def of_each_image(self) -> bool:
        """Whether an image is all that is looked at."""
        return self.by not in ("dataset", "region")


def normalising_problems(section: Input, metadata: Sequence[str]) -> Iterator[Problem]:
    """Yield what `input.normalise` says wrong."""
    part, where = section.normalise, "input.normalise"
    if part.by == "region" and part.group is None:
        yield Problem(f"{where}.group", "is missing", "write the metadata column with each row's region")
    elif part.group is not None and part.by != "region":
        yield Problem(f"{where}.group", f"would have no effect by '{part.by}'", "remove it, or write `by: region`")
    elif part.group is not None and part.group not in metadata:
        yield Problem(f"{where}.group", f"'{part.group}' is not in data.metadata", nearest(part.group, metadata))
    if part.region.test and part.by != "region":
        yield Problem(f"{where}.region", f"would have no effect by '{part.by}'", "remove it, or write `by: region`")
    low, high = part.percentiles
    if not 0 <= low < high <= 100:
        yield Problem(f"{where}.percentiles", f"are {low:g} and {high:g}", "two of 0 to 100, the lower one first")
    if part.by != "dataset" and section.mean is not None:
        yield Problem(f"{where}.by", f"'{part.by}' stands beside `input.mean`", "write one of the two")
    if part.of_each_image and section.decode == "auto":
        yield Problem(f"{where}.by", f"'{part.by}' looks at every pixel, which `decode: auto` does not read",
                      "write `decode: exact`")  # fmt: skip


def fields_of(pattern: str) -> set[str]:
    """Return the names in braces of a pattern of file names."""
    return set(_FIELD.findall(pattern))


def file_problems(section: Input) -> Iterator[Problem]:
    """Yield what `input:` says wrong of files, dates and bands."""
    if not section.files:
        for key in ("dates", "bands", "align", "derive"):
            if getattr(section, key):
                yield Problem(f"input.{key}", "stands without `files`", 'write `files: {NAME: "{id}.tif"}`')
        if section.missing != "error":
            yield Problem("input.missing", "would have no effect without `files`", "remove it")
        return
    if section.align is not None:
        yield from section.align.problems(list(section.files))
    if section.reader.name == "image":
        yield Problem("input.reader", "'image' reads photographs, not the files of `input.files`",
                      "write `reader: raster`")  # fmt: skip
    for name, pattern in section.files.items():
        yield from _pattern_problems(f"input.files.{name}", pattern, section.dates)
        if name in section.bands:
            yield from section.bands[name].problems(f"input.bands.{name}")
        else:
            yield Problem(f"input.bands.{name}", "is missing, and nothing says how many bands its files have",
                          f"write `bands: {{{name}: {{count: 1}}}}`, or their `names`")  # fmt: skip
    for name in section.bands:
        if name not in section.files:
            yield Problem(f"input.bands.{name}", "is no file of `input.files`", nearest(name, section.files))
    twice = sorted({date for date in section.dates if section.dates.count(date) > 1})
    if twice:
        yield Problem("input.dates", f"'{twice[0]}' stands twice", "each date once")
    if section.dates and not any("date" in fields_of(pattern) for pattern in section.files.values()):
        yield Problem("input.dates", "stand in no name of `files`", "write `{date}` where they stand in file names")


def _pattern_problems(where: str, pattern: str, dates: Sequence[str]) -> Iterator[Problem]:
    fields = fields_of(pattern)
    if "id" not in fields:
        yield Problem(where, f"'{pattern}' has no `{{id}}`", 'such as "{id}_S1.tif"')
    for name in sorted(fields - {"id", "date"}):
        yield Problem(where, f"'{pattern}' has `{{{name}}}`", "`{id}` and `{date}` are known")
    if "date" in fields and not dates:
        yield Problem(where, f"'{pattern}' has `{{date}}`, and there are no dates", 'write `dates: ["00", "01"]`')
    if pattern.startswith("/") or ".." in pattern.split("/"):
        yield Problem(where, f"'{pattern}' leads out of the image folder", "a path below it")
