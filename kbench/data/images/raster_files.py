"""One raster file through rasterio: what its head says, its pixels, and its pixels in another reference system.

Whatever GDAL has to say is in the errors that are raised here; its own lines reach no terminal.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kbench.data.images.decoding import Decoding, check_file, check_pixels
from kbench.data.images.georeference import rasterio_or_raise
from kbench.data.images.grids import Grid
from kbench.data.images.headers import Header
from kbench.data.images.quiet import native_lines_muted
from kbench.errors import DataError

_KEPT = {
    "int8": "int16", "uint32": "float64", "int32": "float64", "int64": "float64", "uint64": "float64",
    "float16": "float32", "bool": "uint8",
}  # fmt: skip
_WHOLE = float(1 << 53)  # float64 holds every whole number up to it


class Window(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RasterFile:
    """What the head of a file says.

    Attributes:
        path: the file.
        grid: where its pixels lie.
        bands: how many it has.
        stored: dtype of its pixels.
        nodata: values that mean nothing is known, by the YAML or by the file.
        masked: whether it has a mask beside its bands.
    """

    path: Path
    grid: Grid
    bands: int
    stored: str
    nodata: tuple[float, ...]
    masked: bool

    @property
    def dtype(self) -> np.dtype:
        """Dtype that holds its pixels, and NaN where some are unknown."""
        kept = np.dtype(_KEPT.get(self.stored, self.stored))
        return np.result_type(kept, np.float32) if self.nodata or self.masked else kept


@cache
def _loaded() -> Any:
    rasterio = rasterio_or_raise("the reader 'raster'")
    logging.getLogger("rasterio").addHandler(logging.NullHandler())  # its lines are in the errors that are raised
    return rasterio


def load_rasterio() -> Any:
    """Return the package, which writes nothing by itself.

    Raises:
        ConfigError: it is not installed.
    """
    rasterio = _loaded()
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def describe(path: Path, decoding: Decoding, nodata: tuple[float, ...] = ()) -> RasterFile:
    """Return what the head of a file says.

    Args:
        path: the file.
        decoding: the limit of pixels.
        nodata: values that the YAML says mean nothing is known.

    Raises:
        DataError: it is no raster, too large, or of complex numbers.
    """
    rasterio = load_rasterio()
    check_file(path)
    try:
        with native_lines_muted(), rasterio.open(path) as source:
            stored = {str(dtype) for dtype in source.dtypes}
            flags = {flag.name for band in source.mask_flag_enums for flag in band}
            file = RasterFile(
                path, _grid(source), source.count, stored.pop() if len(stored) == 1 else "several dtypes",
                (*nodata, *{float(value) for value in source.nodatavals if value is not None}),
                masked="per_dataset" in flags and "alpha" not in flags,
            )  # fmt: skip
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise refused(path, error) from error
    check_pixels(path, Header("tiff", file.grid.height, file.grid.width, file.bands), decoding)
    if np.dtype(file.stored if hasattr(np, file.stored) else "O").kind not in "biuf":
        raise DataError(
            f"'{path}' has pixels of {file.stored}", "real numbers of one dtype",
            "write it anew, such as real and imaginary part as two bands (`gdal_translate -ot Float32 IN OUT`)",
        )  # fmt: skip
    return file


def _grid(source: Any) -> Grid:
    placed = None if source.transform.is_identity else tuple(float(value) for value in source.transform[:6])
    return Grid(source.height, source.width, placed, source.crs.to_wkt() if source.crs and placed else "")


def refused(path: Path, error: Exception) -> DataError:
    """Return the error of a file that is no whole raster."""
    why = " ".join(str(error.__cause__ or error).split())[:160]
    return DataError(
        f"'{path}' is not a readable raster ({path.stat().st_size:,} bytes): {why}", "a whole file that GDAL opens",
        "`kbench check --images` lists every such file; fetch it again, or set `data: {on_problem: drop}`",
    )  # fmt: skip


def read_pixels(file: RasterFile, dtype: np.dtype, window: Window | None = None) -> np.ndarray:
    """Return pixels of a file, NaN where unknown.

    Args:
        file: from `describe`.
        dtype: of the result, which holds its own.
        window: inside of the file; all of it by default.

    Returns:
        [H, W, C].

    Raises:
        DataError: the file is truncated, or has pixels that are not finite where nothing says what they mean.
    """
    rasterio = load_rasterio()
    place = window or Window(0, 0, *file.grid.size)
    cut = rasterio.windows.Window(place.left, place.top, place.width, place.height)
    try:
        with native_lines_muted(), rasterio.open(file.path) as source:
            stored = source.read(window=cut)
            hidden = source.dataset_mask(window=cut) == 0 if file.masked else None
    except (rasterio.errors.RasterioError, MemoryError, ValueError) as error:
        raise refused(file.path, error) from error
    if file.stored in ("int64", "uint64") and stored.size and float(np.abs(stored).max()) > _WHOLE:
        raise DataError(
            f"'{file.path}' has whole numbers above 2^53", "numbers that float64 holds", "write them as another dtype"
        )
    pixels = np.ascontiguousarray(stored.transpose(1, 2, 0)).astype(dtype, copy=False)
    for value in file.nodata:
        pixels[np.isnan(pixels) if np.isnan(value) else pixels == np.asarray(value, pixels.dtype)] = np.nan
    if hidden is not None:
        pixels[hidden] = np.nan
    _refuse_strange(file, pixels)
    return pixels


def _refuse_strange(file: RasterFile, pixels: np.ndarray) -> None:
    """Raise a DataError where numbers are not finite, and neither the YAML nor the file says that they mean nothing."""
    if pixels.dtype.kind != "f":
        return
    strange = np.isinf(pixels) if file.nodata or file.masked else ~np.isfinite(pixels)
    if not strange.any():
        return
    band = int(np.flatnonzero(strange.any((0, 1)))[0])
    some = pixels[:, :, band][strange[:, :, band]][0]
    word = "nan" if np.isnan(some) else f"{some:g}"
    raise DataError(
        f"'{file.path}' has {int(strange.sum()):,} pixels that are {word}, first in band {band + 1}, and nothing says "
        "what they mean",
        "finite pixels, or a value that means that nothing is known",
        f"write `input: {{bands: {{FILE: {{nodata: {word}}}}}}}` in the YAML if it means that nothing is known there",
    )


def reprojected(pixels: np.ndarray, source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Bring pixels of another reference system onto a grid.

    Args:
        pixels: [h, w, C]; NaN where unknown.
        source: their grid.
        target: the grid.

    Returns:
        [H, W, C] of the same dtype, cubic or averaged, and [H, W] bool, where the source has pixels.
    """
    rasterio = load_rasterio()
    from rasterio.warp import Resampling, reproject

    places = {
        "src_transform": rasterio.Affine(*source.transform or ()), "src_crs": source.crs,
        "dst_transform": rasterio.Affine(*target.transform or ()), "dst_crs": target.crs,
    }  # fmt: skip
    inside = np.zeros(target.size, np.uint8)
    with native_lines_muted():
        reproject(np.ones(source.size, np.uint8), inside, resampling=Resampling.nearest, **places)
        coarser = inside.sum() * 2 < source.height * source.width  # a target pixel covers several of the source's
        how = Resampling.average if coarser else Resampling.cubic
        layers = np.full((pixels.shape[2], *target.size), np.nan, np.float64)
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float64)
        reproject(values, layers, resampling=how, src_nodata=np.nan, dst_nodata=np.nan, **places)
    known = inside == 1
    made = layers.transpose(1, 2, 0)
    if pixels.dtype.kind in "iu":
        limits = np.iinfo(pixels.dtype)
        known &= np.isfinite(made).all(2)
        made = np.clip(np.rint(np.nan_to_num(made)), limits.min, limits.max)
    return np.ascontiguousarray(made.astype(pixels.dtype)), known
