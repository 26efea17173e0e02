"""GeoTIFFs written by rasterio, as satellites' files are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

CORNER = (500_000.0, 4_000_000.0)  # of a UTM zone, in metres


def geotiff(
    path: Path, pixels: np.ndarray, *, step: float | None = 10.0, corner: tuple[float, float] = CORNER,
    crs: str | None = "EPSG:32630", **options: Any,
) -> Path:  # fmt: skip
    """Write [H, W] or [H, W, C] pixels.

    Args:
        path: the file.
        pixels: of any dtype.
        step: side of a pixel in units of the reference system; None: the file says nothing of where it lies.
        corner: upper left.
        crs: reference system.
        options: further ones of rasterio, such as `nodata`.
    """
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    bands = pixels[:, :, None] if pixels.ndim == 2 else pixels
    place = {} if step is None else {"transform": rasterio.Affine(step, 0, corner[0], 0, -step, corner[1]), "crs": crs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", driver="GTiff", height=bands.shape[0], width=bands.shape[1], count=bands.shape[2],
            dtype=bands.dtype.name, **place, **options,
        ) as sink:  # fmt: skip
            sink.write(bands.transpose(2, 0, 1))
    return path
