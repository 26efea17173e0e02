"""Where on Earth the pixels of a raster lie: read off a file, and written into another one of the same grid.

GDAL comes with rasterio, which is an extra; whatever needs it asks `rasterio_or_raise`.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kbench.errors import ConfigError, DataError


def rasterio_or_raise(what: str) -> Any:
    """Return the module rasterio.

    Args:
        what: what needs it, such as `the format 'raster_zip'`.

    Raises:
        ConfigError: it is not installed.
    """
    return _satellite(what, ("rasterio", "rasterio.features"), "rasterio 1.4.4 or newer, which brings GDAL")


def shapely_or_raise(what: str) -> Any:
    """Return the module shapely.

    Args:
        what: what needs it.

    Raises:
        ConfigError: it is not installed.
    """
    return _satellite(what, ("shapely", "shapely.affinity", "shapely.geometry"), "shapely 2.1 or newer")


def _satellite(what: str, modules: Sequence[str], expected: str) -> Any:
    """Return the first of some modules of the extra `satellite`, all of them loaded."""
    try:
        loaded = [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {modules[0]}, which is not installed", expected, "pip install 'kaggle-kbench[satellite]'"
        ) from error
    return loaded[0]


@contextlib.contextmanager
def without_grumbling() -> Iterator[None]:
    """Keep rasterio's warning off the terminal that a file has no georeference: such files are ordinary ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not georeferenced.*|.*no geotransform.*")
        yield


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie.

    Attributes:
        crs: the coordinate system as WKT; empty where the file names none.
        transform: six numbers a, b, c, d, e, f: x = a * column + b * row + c, y = d * column + e * row + f; None where
            the file has none.
    """

    crs: str = ""
    transform: tuple[float, ...] | None = None

    def options(self) -> dict[str, Any]:
        """Return what rasterio writes a file with."""
        from rasterio import Affine

        options: dict[str, Any] = {"crs": self.crs} if self.crs else {}
        return options if self.transform is None else {**options, "transform": Affine(*self.transform)}


def georeference(source: Any) -> Georeference:
    """Return the georeference of an open rasterio dataset."""
    from rasterio import Affine

    transform: Any = source.transform
    plain = transform == Affine.identity()
    return Georeference(source.crs.to_wkt() if source.crs else "", None if plain else tuple(transform)[:6])


def read_georeference(path: Path) -> Georeference:
    """Return the georeference of a file.

    Raises:
        DataError: it cannot be read.
        ConfigError: rasterio is not installed.
    """
    rasterio = rasterio_or_raise("the georeference of an image")
    try:
        with without_grumbling(), rasterio.open(path) as source:
            return georeference(source)
    except rasterio.errors.RasterioError as error:
        raise DataError(
            f"the image '{path}' cannot be read: {error}", "a raster that GDAL reads", "`kbench check --images`"
        ) from error


def geotiff(pixels: np.ndarray, place: Georeference, *, nodata: float | None = None) -> bytes:
    """Return a GeoTIFF of [C, H, W] pixels."""
    rasterio = rasterio_or_raise("a GeoTIFF")
    options = {} if nodata is None else {"nodata": nodata}
    with without_grumbling(), rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], dtype=pixels.dtype.name,
            **options, **place.options(),
        ) as sink:  # fmt: skip
            sink.write(pixels)
        return bytes(memory.getbuffer())


def from_geotiff(content: bytes) -> tuple[np.ndarray, Georeference]:
    """Return [C, H, W] pixels and the georeference of a file in memory.

    Raises:
        DataError: it cannot be read.
    """
    rasterio = rasterio_or_raise("a GeoTIFF")
    try:
        with without_grumbling(), rasterio.MemoryFile(content) as memory, memory.open() as source:
            return source.read(), georeference(source)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"no readable GeoTIFF: {error}", "a file that GDAL reads", "write it again") from error
