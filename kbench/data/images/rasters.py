"""The reader `raster`: files of any bands, brought onto one grid, as one array of named channels.

The files of a row are brought onto the grid of the first one (`grids.py`), their dtypes are promoted to one that holds
them all, and what is unknown (a file that is not there, a pixel that the YAML, the file or its mask says is none) is
NaN. Rasters are read as they are stored, without scale, offset or orientation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kbench.data.images.channels import Channel
from kbench.data.images.decoding import PLAIN, Decoding, is_there
from kbench.data.images.grids import Grid, between, covered, onto
from kbench.data.images.raster_files import RasterFile, Window, describe, load_rasterio, read_pixels, reprojected
from kbench.errors import DataError
from kbench.registry import register

_REACH = 4  # pixels around a window that its interpolation looks at


@dataclass(frozen=True)
class Slot:
    """What one path of a row is.

    Attributes:
        file: its name in `input.files`.
        bands: how many it has; 0 where nothing says it.
        date: of it, or None.
        nodata: values that mean nothing is known; NaN may be among them.
    """

    file: str
    bands: int = 0
    date: str | None = None
    nodata: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.file if self.date is None else f"{self.file} of {self.date}"


@dataclass(frozen=True)
class Stack:
    """What the paths of a row are, in their order.

    Attributes:
        slots: one for each path.
        masked: whether files may be missing; pixels then have a dtype that holds NaN.
    """

    slots: tuple[Slot, ...]
    masked: bool = False

    @property
    def order(self) -> list[int]:
        """Places of the paths, those first whose grid is the row's: the first file of the YAML, at its first date."""
        names = list(dict.fromkeys(slot.file for slot in self.slots))
        return sorted(range(len(self.slots)), key=lambda place: names.index(self.slots[place].file))


def stack_of(
    channels: Sequence[Channel], files: Sequence[str], nodata: Mapping[str, tuple[float, ...]], *, masked: bool
) -> Stack:
    """Return what the paths of a row are whose channels have names.

    Args:
        channels: in the order of the pixels.
        files: names of files; what is derived is none.
        nodata: file -> its values that mean nothing is known.
        masked: whether files may be missing.
    """
    counts: dict[tuple[str, str | None], int] = {}
    for channel in channels:
        if channel.file in files:
            counts[channel.file, channel.date] = counts.get((channel.file, channel.date), 0) + 1
    slots = [Slot(file, count, date, nodata.get(file, ())) for (file, date), count in counts.items()]
    return Stack(tuple(slots), masked)


@register("reader")
def raster(*, _channels: int = 3, _decoding: Decoding = PLAIN, _stack: Stack | None = None) -> RasterReader:
    """Read GeoTIFF and whatever else GDAL opens: any number of bands, any dtype but complex, missing data as NaN.

    Several files of a row are brought onto the grid of the first one, by their georeference or else by their sizes. It
    needs rasterio: `pip install 'kaggle-kbench[satellite]'`.

    Args:
        _channels: of the files of a row together.
        _decoding: limit, of `input`.
        _stack: what each file is, where the YAML names them.

    Returns:
        A reader of [H, W, C] arrays.

    Raises:
        ConfigError: rasterio is not installed.
    """
    load_rasterio()
    return RasterReader(_channels, _decoding, _stack)


class RasterReader:
    """Reads the files of a row as one array.

    Args:
        channels: of a row.
        decoding: the limit of pixels.
        stack: what each path is; None: paths are files of any bands, which make the channels together.
    """

    def __init__(self, channels: int, decoding: Decoding, stack: Stack | None) -> None:
        self._channels, self._decoding, self._stack = channels, decoding, stack

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        """Return [H, W, C] of a row."""
        return self.read(paths)

    def size(self, paths: Sequence[Path]) -> tuple[int, int]:
        """Return the height and width of a row, from the head of one file."""
        stack = self._stack_for(paths)
        first = _first(stack, paths)
        return self._described(paths[first], stack.slots[first]).grid.size

    def read(self, paths: Sequence[Path], window: Window | None = None) -> np.ndarray:
        """Return the pixels of a row.

        Args:
            paths: its files, `NOWHERE` where there is none.
            window: of the row's grid; all of it by default.

        Returns:
            [H, W, C], date by date and file by file; NaN where unknown.

        Raises:
            DataError: a file cannot be read, has other bands than the YAML says, or lies elsewhere.
        """
        stack = self._stack_for(paths)
        files = [
            self._described(path, slot) if is_there(path) else None
            for path, slot in zip(paths, stack.slots, strict=True)
        ]
        target = files[_first(stack, paths)]
        assert target is not None, "the first file is there"
        place = window or Window(0, 0, *target.grid.size)
        dtype = np.result_type(*(file.dtype for file in files if file is not None), *([np.float32] * stack.masked))
        parts = [
            np.full((place.height, place.width, slot.bands), np.nan, dtype)
            if file is None else _placed(file, target, place, dtype)
            for slot, file in zip(stack.slots, files, strict=True)
        ]  # fmt: skip
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        if stacked.shape[2] != self._channels:
            raise DataError(
                f"{'the files of a row have' if len(paths) > 1 else 'a file has'} {stacked.shape[2]} bands: "
                + ", ".join(path.name for path in paths),
                f"{self._channels} channels (input.channels)", f"set `input: {{channels: {stacked.shape[2]}}}`",
            )  # fmt: skip
        return stacked

    def _stack_for(self, paths: Sequence[Path]) -> Stack:
        if self._stack is None:
            return Stack(tuple(Slot(str(place)) for place in range(len(paths))))
        if len(paths) != len(self._stack.slots):
            raise DataError(
                f"an image of {len(paths)} files", f"{len(self._stack.slots)} files (input.files)",
                f"name them in this order: {', '.join(map(str, self._stack.slots))}",
            )  # fmt: skip
        return self._stack

    def _described(self, path: Path, slot: Slot) -> RasterFile:
        file = describe(path, self._decoding, slot.nodata)
        if slot.bands and slot.bands != file.bands:
            raise DataError(
                f"'{path}' has {file.bands} bands", f"{slot.bands} bands (input.bands.{slot.file})",
                f"correct `input: {{bands: {{{slot.file}: ...}}}}` in the YAML, or the file",
            )  # fmt: skip
        return file


def _first(stack: Stack, paths: Sequence[Path]) -> int:
    """Return the place of the file whose grid is the row's."""
    for place in stack.order:
        if is_there(paths[place]):
            return place
    raise DataError(
        "all files of a row are missing", "one of them at least", "`kbench check` names such rows; leave them out"
    )


def _placed(file: RasterFile, target: RasterFile, place: Window, dtype: np.dtype) -> np.ndarray:
    """Return a window of the target's grid of a file, NaN where it has no pixels."""
    size = (place.height, place.width)
    if file.path == target.path:
        return read_pixels(file, dtype, place)
    if _other_system(file, target):
        pixels, inside = reprojected(read_pixels(file, dtype), file.grid, _window_of(target.grid, place))
    else:
        begin = np.array([[1.0, 0.0, place.left], [0.0, 1.0, place.top], [0.0, 0.0, 1.0]])
        matrix = between(target.grid, file.grid) @ begin
        inside = covered(matrix, size, file.grid.size)
        seen = _seen(matrix, size, file.grid)
        pixels = onto(read_pixels(file, dtype, seen), _begun(matrix, seen), size) if inside.any() else np.empty(0)
    if inside.all():
        return pixels
    whole = size == target.grid.size
    if not inside.any() and whole:
        raise DataError(
            f"'{file.path}' and '{target.path.name}' do not overlap", "files of one place",
            "look at their georeference (`rio info FILE`), and at the names in `input.files`",
        )  # fmt: skip
    if dtype.kind != "f":
        raise DataError(
            f"'{file.path}' covers {inside.mean():.1%} of '{target.path.name}', and {dtype} has no value for the rest",
            "files of one extent", "write `input: {missing: mask}`, and the rest is masked",
        )  # fmt: skip
    if not inside.any():
        return np.full((*size, file.bands), np.nan, dtype)
    pixels = pixels if pixels.flags.writeable else pixels.copy()
    pixels[~inside] = np.nan
    return pixels


def _other_system(file: RasterFile, target: RasterFile) -> bool:
    """Return whether two files have different reference systems.

    Raises:
        DataError: one of them does not say which.
    """
    one, other = file.grid, target.grid
    if one.transform is None or other.transform is None or one.crs == other.crs:
        return False
    if not one.crs or not other.crs:
        said, silent = (file, target) if one.crs else (target, file)
        raise DataError(
            f"'{silent.path}' does not say its reference system, and '{said.path.name}' does",
            "files that say where they lie, or files that do not",
            f"write it into the file: `rio edit-info --crs EPSG:CODE '{silent.path}'`",
        )
    return True


def _window_of(grid: Grid, place: Window) -> Grid:
    assert grid.transform is not None, "asked only of georeferenced grids"
    a, b, c, d, e, f = grid.transform
    moved = (a, b, c + a * place.left + b * place.top, d, e, f + d * place.left + e * place.top)
    return replace(grid, height=place.height, width=place.width, transform=moved)


def _seen(matrix: np.ndarray, size: tuple[int, int], source: Grid) -> Window:
    """Return the rectangle of a source that its pixels on a target are made of."""
    corners = matrix @ np.array([[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]], dtype=np.float64)
    low = np.floor(corners[:2].min(1)).astype(int) - _REACH
    high = np.ceil(corners[:2].max(1)).astype(int) + _REACH
    left, top = np.clip(low, 0, [source.width - 1, source.height - 1])
    right, bottom = np.clip(high, [left + 1, top + 1], [source.width, source.height])
    return Window(int(top), int(left), int(bottom - top), int(right - left))


def _begun(matrix: np.ndarray, seen: Window) -> np.ndarray:
    moved = matrix.copy()
    moved[:2, 2] -= (seen.left, seen.top)
    return moved
