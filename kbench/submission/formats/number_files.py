"""Numbers per pixel in a zip, one file per image or per image and target, whatever the kind of file.

`zip_of_numbers` makes the format of a `Naming` (what files are called), `Pixels` (how numbers become pixels) and a
`Codec` (how pixels become a file). To add another kind of file, write a codec beside `number_zip.py` (TIFF, PNG, NPY)
and `raster_zip.py` (GeoTIFF).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.csv_files import texts
from kbench.errors import ConfigError, Problem, SubmissionError, first_names
from kbench.inference.map_store import NumberSet
from kbench.submission.formats.base import Format, framed, id_column
from kbench.submission.formats.mask_cells import Size, Sizes, lacking, opened_files, refuse_maps, zipped

CELL = "numbers"  # column of the files of each row
FIELD = re.compile(r"\{(id|target)\}")
_EPS = 4 * float(np.finfo(np.float32).eps)  # a few roundings of a float32, relative
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Codec:
    """A kind of file.

    Attributes:
        pack: ([C, H, W] pixels, image id) -> the file.
        unpack: the file -> [C, H, W] pixels; raises `SubmissionError`.
        compress: whether the zip packs the files, because they are not packed themselves.
        fault: (the file, image id) -> what is wrong with it beside its pixels; empty when nothing is.
    """

    pack: Callable[[np.ndarray, str], bytes]
    unpack: Callable[[bytes], np.ndarray]
    compress: bool = False
    fault: Callable[[bytes, str], str] = lambda content, image: ""


def zip_of_numbers(naming: Naming, pixels: Pixels, *, task: str, sizes: Sizes | None, own_sample: Any = None) -> Format:
    """Return the format of files in a zip; every number is read back and compared when it is written.

    Args:
        naming: what files are called.
        pixels: how numbers become files.
        task: the competition's.
        sizes: image id -> its height and width; None where images are not at hand.
        own_sample: as `Format` has it.
    """

    def image_of(row: str) -> str:
        return naming.split(row)[0]

    def build(numbers: NumberSet, sample: pd.DataFrame) -> pd.DataFrame:
        rows = texts(sample, id_column(sample)).tolist()
        absent = [name for name in naming.targets if name not in numbers.names]
        problems = lacking([image_of(row) for row in rows], numbers, where=id_column(sample))
        problems += [Problem("targets", f"there are no numbers of {first_names(absent)}")] if absent else []
        refuse_maps([*problems, *_twice(rows, naming)])
        read, spool = lru_cache(maxsize=1)(numbers.read), files.Spool()  # rows of one image may follow one another
        cells = np.empty(len(rows), dtype=object)
        for place, row in enumerate(rows):
            image, targets = naming.split(row)
            values = read(int(np.searchsorted(numbers.ids, image)))[[numbers.names.index(name) for name in targets]]
            parts = zip(naming.files(row), naming.apart(values), strict=True)
            cells[place] = _Cell(tuple(spool.put(pixels.encode(part, of=name, image=image)) for name, part in parts))
        return framed(sample, {CELL: cells})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> NumberSet:
        parts_of: dict[str, dict[str, _Part]] = {}
        for row, cell in _rows(frame):
            image, targets = naming.split(row)
            parts_of.setdefault(image, {}).update(naming.parts(targets, cell))
        ids = np.array(sorted(parts_of), dtype=str)

        def read(row: int) -> np.ndarray:
            parts = parts_of[str(ids[row])]
            return np.stack([parts[name].read(pixels) for name in naming.targets]).astype(np.float32)

        return NumberSet(ids, naming.targets, task, {"file": True}, read)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame, *, truth: bool = False) -> list[Problem]:
        asked = texts(sample, id_column(sample)).tolist()
        faults, known = _incomplete(asked, naming), set(asked)
        for row, cell in _rows(frame):
            if row not in known or len(cell.parts) < len(naming.files(row)):
                continue  # a file of no row, which is said of its name
            size = None if sizes is None else sizes(image_of(row))
            for name, content in zip(naming.files(row), cell.parts, strict=True):
                what = _fault(content(), pixels, channels=naming.channels, size=size, truth=truth)
                what = what or ("" if truth else pixels.codec.fault(content(), image_of(row)))
                faults += [Problem(name, what)] if what else []
            if len(faults) >= 20:
                break
        return faults[:20]

    def encode(frame: pd.DataFrame) -> Iterator[bytes]:
        parts = (
            (name, content())
            for row, cell in _rows(frame)
            for name, content in zip(naming.files(row), cell.parts, strict=True)
        )
        return zipped(parts, compress=pixels.codec.compress)

    def decode(path: Path, sample: pd.DataFrame) -> pd.DataFrame:
        names, read = opened_files(path)
        there = set(names)
        parts = {row: naming.files(row) for row in texts(sample, id_column(sample)).tolist()}
        parts = {row: asked for row, asked in parts.items() if there.issuperset(asked)}
        rest = there.difference(*parts.values())
        parts |= {name: [name] for name in sorted(rest)}  # of no row
        cells = np.empty(len(parts), dtype=object)
        cells[:] = [_Cell(tuple(partial(read, name) for name in asked)) for asked in parts.values()]
        return pd.DataFrame({id_column(sample): np.array(list(parts), dtype=object), CELL: cells})

    return Format(
        ".zip", build, parse, problems, exact=True, columns=(CELL,), encode=encode, decode=decode, image_of=image_of,
        truth_problems=partial(problems, truth=True), own_sample=own_sample,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Cell:
    """The files of a row, which lie on disk until they are asked for; equal where their bytes are."""

    parts: tuple[Callable[[], bytes], ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Cell) or len(other.parts) != len(self.parts):
            return False
        return all(one() == two() for one, two in zip(self.parts, other.parts, strict=True))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Part:
    """One target of a row: a file, and which of its channels."""

    content: Callable[[], bytes]
    channel: int
    channels: int

    def read(self, pixels: Pixels) -> np.ndarray:
        """Return [H, W] float64, NaN where unknown."""
        return np.asarray(pixels.decode(self.content(), channels=self.channels)[self.channel])


@dataclass(frozen=True)
class Naming:
    """What files are called.

    Attributes:
        file: the YAML's.
        targets: K names.
    """

    file: str
    targets: tuple[str, ...]

    @property
    def ending(self) -> str:
        """The ending of files, in lower case."""
        return PurePosixPath(self.file).suffix.lower()

    @property
    def several(self) -> bool:
        """Whether each target has a file of its own."""
        return "{target}" in self.file

    @property
    def channels(self) -> int:
        """Numbers of a pixel of one file."""
        return 1 if self.several else len(self.targets)

    def split(self, row: str) -> tuple[str, tuple[str, ...]]:
        """Return the image that a row of the sample names, by its id or by a file, and the targets it asks for."""
        match = self._pattern.fullmatch(row)
        if match is None:
            return row, self.targets
        return match["id"], (match["target"],) if self.several else self.targets

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(map(re.escape, self.targets), key=len, reverse=True)
        first = {"{id}": "(?P<id>.+)", "{target}": f"(?P<target>{'|'.join(names)})"}
        text, seen = "", set[str]()
        for part in re.split(r"(\{(?:id|target)\})", self.file):
            text += (f"(?P={part[1:-1]})" if part in seen else first[part]) if part in first else re.escape(part)
            seen.add(part)
        return re.compile(text)

    def files(self, row: str) -> list[str]:
        """Return the names of the files of a row of the sample."""
        image, targets = self.split(row)
        name = self.file.replace("{id}", image)
        return [name.replace("{target}", target) for target in targets] if self.several else [name]

    def apart(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the [C, H, W] numbers of each file of a row's [K, H, W] numbers."""
        return [value[None] for value in values] if self.several else [values]

    def parts(self, targets: Sequence[str], cell: _Cell) -> dict[str, _Part]:
        """Return where each target of a row stands."""
        if self.several:
            return {name: _Part(content, 0, 1) for name, content in zip(targets, cell.parts, strict=True)}
        return {name: _Part(cell.parts[0], k, self.channels) for k, name in enumerate(targets)}


@dataclass(frozen=True)
class Pixels:
    """How numbers become the pixels of a file, and back.

    Attributes:
        dtype: of the pixels.
        scale: number = pixel * scale + offset.
        offset: see there.
        tolerance: how far a number may be from what is written of it; None for what `dtype` needs.
        nodata: pixel of unknown numbers, or None.
        clip: lowest and highest number, or None.
        codec: how pixels become a file.
    """

    dtype: np.dtype[Any]
    scale: float
    offset: float
    tolerance: float | None
    nodata: float | None
    clip: list[float] | None
    codec: Codec

    @property
    def whole(self) -> bool:
        """Whether pixels are whole numbers."""
        return self.dtype.kind in "ui"

    @property
    def allowed(self) -> float:
        """How far a written number may be from the predicted one, a rounding of float32 aside."""
        if self.tolerance is not None:
            return self.tolerance
        return abs(self.scale) / 2 if self.whole else 0.0

    def encode(self, values: np.ndarray, *, of: str, image: str) -> bytes:
        """Return the file of [C, H, W] numbers.

        Raises:
            SubmissionError: one is NaN or infinite, does not fit, or is written as another number.
        """
        numbers = values.astype(np.float64)
        self._refuse(of, ~np.isfinite(numbers), numbers, "is NaN or infinite", "finite numbers",
                     "look at the training log of this run; a lower learning rate may help")  # fmt: skip
        if self.clip is not None:
            numbers = numbers.clip(self.clip[0], self.clip[1])
        stored = (numbers - self.offset) / self.scale
        limits: Any = np.iinfo(self.dtype) if self.whole else np.finfo(self.dtype)
        stored = np.rint(stored) if self.whole else stored
        outside = (stored < limits.min) | (stored > limits.max)
        low, high = sorted(float(end) * self.scale + self.offset for end in (limits.min, limits.max))
        self._refuse(of, outside, numbers, f"does not fit into {self.dtype}", f"numbers from {low:g} to {high:g}",
                     "set `scale` and `offset` of submission.format in the YAML, or `clip`")  # fmt: skip
        pixels = stored.astype(self.dtype)
        if self.nodata is not None:
            self._refuse(of, pixels == self.nodata, numbers, f"would be written as {self.nodata:g}, which is `nodata`",
                         "a pixel that no number has", "set another submission.format.nodata, or `clip`")  # fmt: skip
        content = self.codec.pack(pixels, image)
        error = np.abs(self.decode(content, channels=len(values)) - numbers)
        far = error > self.allowed + _EPS * (np.abs(numbers) + abs(self.offset)) + _TINY
        self._refuse(of, far, numbers, f"is written as another number: {error.max():g} away at most",
                     f"at most {self.allowed:g} (`tolerance`)",
                     "set a finer `scale` or a larger `tolerance` of submission.format in the YAML")  # fmt: skip
        return content

    def _refuse(self, of: str, wrong: np.ndarray, numbers: np.ndarray, what: str, expected: str, todo: str) -> None:
        if not wrong.any():
            return
        channel, row, column = map(int, np.argwhere(wrong)[0])
        place = f"row {row}, column {column}" + (f", channel {channel}" if len(numbers) > 1 else "")
        raise SubmissionError(
            f"'{of}': {int(wrong.sum()):,} of {wrong.size:,} numbers cannot be written; the first, "
            f"{numbers[channel, row, column]:g} at {place}, {what}",
            expected, todo,
        )  # fmt: skip

    def decode(self, content: bytes, *, channels: int) -> np.ndarray:
        """Return [C, H, W] float64 numbers of a file, NaN where unknown.

        Raises:
            SubmissionError: it cannot be read, or has another dtype or number of channels.
        """
        pixels = self.codec.unpack(content)
        if pixels.dtype != self.dtype or pixels.shape[0] != channels:
            raise SubmissionError(
                f"{pixels.shape[0]} channels of {pixels.dtype} where {channels} of {self.dtype} are written",
                "files as submission.format says", "write them again, or correct submission.format in the YAML",
            )  # fmt: skip
        numbers = pixels.astype(np.float64) * self.scale + self.offset
        if self.nodata is not None:
            numbers[pixels == self.nodata] = np.nan
        return numbers


def check_format(name: str, naming: Naming, pixels: Pixels, problems: Sequence[tuple[str, str]] = ()) -> None:
    """Refuse what cannot be written, or not read back.

    Args:
        name: of the format.
        naming: what files are called.
        pixels: how numbers become files.
        problems: (parameter, what is wrong) that the kind of file itself knows.

    Raises:
        ConfigError: it cannot.
    """
    problems = list(problems)
    if "{id}" not in naming.file or set("{}") & set(FIELD.sub("", naming.file)):
        problems.append(("file", f"'{naming.file}' needs `{{id}}`, and `{{target}}` is all it knows beside it"))
    if not np.isfinite([pixels.scale, pixels.offset]).all() or pixels.scale == 0:
        problems.append(("scale", f"scale {pixels.scale} and offset {pixels.offset}: finite numbers, scale not 0"))
    if pixels.tolerance is not None and not 0 <= pixels.tolerance < np.inf:
        problems.append(("tolerance", f"'{pixels.tolerance}' is no number from 0 on"))
    clip = pixels.clip
    if clip is not None and (len(clip) != 2 or not np.isfinite(clip).all() or clip[0] >= clip[1]):
        problems.append(("clip", f"{clip} are not a lowest and a highest number"))
    if problems:
        raise ConfigError(
            f"the submission format '{name}': " + "; ".join(f"`{one}`: {what}" for one, what in problems),
            "a file that holds the numbers and gives them back",
            f"correct submission.format in the YAML, such as {{name: {name}, file: '{{id}}.tif', dtype: float32}}",
        )


def _rows(frame: pd.DataFrame) -> Iterator[tuple[str, _Cell]]:
    return zip(texts(frame, str(frame.columns[0])).tolist(), frame[CELL].tolist(), strict=True)


def _twice(rows: Sequence[str], naming: Naming) -> list[Problem]:
    """Return a problem where two rows of the sample mean one file, one by its id, the other by its name."""
    names = [name for row in rows for name in naming.files(row)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    return [Problem("sample", f"rows that mean one file: {first_names(twice)}")] if twice else []


def _incomplete(rows: Sequence[str], naming: Naming) -> list[Problem]:
    """Return a problem where the sample asks for some targets of an image alone."""
    seen: dict[str, int] = {}
    for row in rows:
        image, targets = naming.split(row)
        seen[image] = seen.get(image, 0) + len(targets)
    few = [image for image, count in seen.items() if count < len(naming.targets)]
    if not few:
        return []
    what = f"{len(few):,} images have files of some targets alone: {first_names(few)}"
    return [Problem("targets", what, f"each has {first_names(list(naming.targets), 30)}")]


def _fault(content: bytes, pixels: Pixels, *, channels: int, size: Size | None, truth: bool) -> str:
    """Return what is wrong with a file; empty when nothing is."""
    try:
        numbers = pixels.decode(content, channels=channels)
    except SubmissionError as error:
        return error.what
    if size is not None and numbers.shape[1:] != tuple(size):
        return f"{numbers.shape[1]} x {numbers.shape[2]} pixels for an image of {size[0]} x {size[1]}"
    wrong = np.isinf(numbers) if truth else ~np.isfinite(numbers)
    if not wrong.any():
        return ""
    channel, row, column = map(int, np.argwhere(wrong)[0])
    worst = numbers[channel, row, column]
    return f"{int(wrong.sum()):,} numbers are NaN or infinite; the first, {worst:g}, at row {row}, column {column}"
