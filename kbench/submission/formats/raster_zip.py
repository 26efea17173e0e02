"""Numbers per pixel as GeoTIFFs in a zip, each with the georeference of its image.

To add another format, see `base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from kbench.data.images.georeference import Georeference, from_geotiff, geotiff, rasterio_or_raise
from kbench.errors import DataError, SubmissionError
from kbench.registry import register
from kbench.submission.formats.base import Format, asking, check_task
from kbench.submission.formats.mask_cells import Sizes
from kbench.submission.formats.number_files import Codec, Naming, Pixels, check_format, zip_of_numbers

Dtype = Literal["uint8", "uint16", "int16", "int32", "float32", "float64"]


@register("format")
def raster_zip(
    *, file: str = "{id}.tif", dtype: Dtype = "float32", scale: float = 1.0, offset: float = 0.0,
    tolerance: float | None = None, nodata: float | None = None, clip: list[float] | None = None,
    _names: tuple[str, ...], _task: str, _sizes: Sizes | None = None,
    _places: Callable[[str], Georeference] | None = None,
) -> Format:  # fmt: skip
    """Return the format with the predicted numbers as GeoTIFFs in a zip (B-14).

    Every file has the coordinate system and the transform of its image, to the last digit, and is read back and
    compared when it is written. A folder of such files can be a sample or a solution too.

    Args:
        file: name of a file, with `{id}`, ending in `.tif` or `.tiff`. With `{target}` every target has a file of its
            own, else they are bands.
        dtype: of the pixels. Whole numbers are rounded to the nearest.
        scale: what a pixel is multiplied by to give the number.
        offset: what is added then.
        tolerance: how far a written number may be from the predicted one; as in `number_zip`.
        nodata: pixel that a solution has where the truth is unknown, beside NaN; it is never written.
        clip: lowest and highest number that is sent; what lies beyond is set to it. By default nothing is.
        _names: the competition's targets.
        _task: its task.
        _sizes: image id -> its height and width; images that are at hand hold the numbers to their size.
        _places: image id -> where its pixels lie; without it files have no georeference.

    Raises:
        ConfigError: the file's name, or what says how numbers are written, makes no sense; or rasterio is missing.
    """
    check_task(_task, ("dense_regression",), format="raster_zip")
    rasterio_or_raise("the format 'raster_zip'")

    def place_of(image: str) -> Georeference:
        return Georeference() if _places is None else _places(image)

    def pack(values: np.ndarray, image: str) -> bytes:
        return geotiff(values, place_of(image), nodata=nodata)

    def fault(content: bytes, image: str) -> str:
        expected, written = place_of(image), from_geotiff(content)[1]
        if expected == written:
            return ""
        return f"it lies at {_said(written)}, and its image at {_said(expected)}"

    naming = Naming(file, _names)
    pixels = Pixels(
        np.dtype(dtype), scale, offset, tolerance, nodata, clip, Codec(pack, _unpacked, compress=True, fault=fault)
    )
    wrong = naming.ending not in (".tif", ".tiff")
    problems = [("file", f"'{file}' ends in '{naming.ending}'; GeoTIFFs end in .tif or .tiff")] if wrong else []
    check_format("raster_zip", naming, pixels, problems)
    return zip_of_numbers(naming, pixels, task=_task, sizes=_sizes, own_sample=_own_sample)


def _unpacked(content: bytes) -> np.ndarray:
    try:
        return from_geotiff(content)[0]
    except DataError as error:
        raise SubmissionError(error.what, "files as the format writes them", "write them again") from error


def _own_sample(images: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    return asking(images, columns[:1], [])


def _said(place: Georeference) -> str:
    crs = place.crs.split('"')[1] if '"' in place.crs else place.crs
    return f"{list(place.transform or ())} of {crs or 'no coordinate system'}"
