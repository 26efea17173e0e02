"""Small look-alikes of the two satellite contests, drawn from numbers: their files, and what is true of each pixel."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

MONTHS = ("00", "01", "02")
MASS_SIZE = 24
SCENE_SIZE = (40, 48)
HOUSE, WATER = "1", "2"
EMPTY = "MULTIPOLYGON EMPTY"
X_MAX, Y_MIN = 0.009169, -0.00904


def table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def raster(path: Path, bands: np.ndarray, place: int = 0, metres: int = 10) -> None:
    """Write [C, H, W] bands of so many metres at a place of their own."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2], crs="EPSG:3067",
        dtype=bands.dtype.name, transform=rasterio.Affine(metres, 0, 2e5 + 1e4 * place, 0, -metres, 7e6),
    ) as sink:  # fmt: skip
        sink.write(bands)


def mass_of(number: int) -> np.ndarray:
    """Return the [H, W] float32 biomass of a chip, in t/ha."""
    field = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal((MASS_SIZE, MASS_SIZE)), 3)
    return (70 * np.exp(0.85 * field / field.std())).astype(np.float32)


def chip(root: Path, split: str, number: int, months: Sequence[str]) -> str:
    """Write a chip's months, of which the second one's optics is missing in every other chip; return its id."""
    rng, name = np.random.default_rng([number, 1]), f"{number:08x}"
    canopy = 1 - np.exp(-mass_of(number) / 150)
    for place, month in enumerate(months):
        speckle = 10 * np.log10(rng.gamma(4, 0.25, (4, *canopy.shape)))
        radar = np.array([-11, -19, -11.5, -19.5])[:, None, None] + 5.5 * canopy + speckle
        raster(root / f"{split}_features" / f"{name}_S1_{month}.tif", radar.astype(np.float32), number)
        if place != 1 or number % 2:
            optics = 3000 + 4000 * canopy * np.linspace(-1, 1, 11)[:, None, None] + rng.normal(0, 300, (11, 1, 1))
            raster(root / f"{split}_features" / f"{name}_S2_{month}.tif", optics.astype(np.uint16), number)
    return name


def write_biomass(root: Path, train: int = 8, test: int = 3, months: Sequence[str] = MONTHS) -> None:
    """Write chips of both splits, the truth of the test ones under `solution`."""
    rows, sample = [], []
    for number in range(train + test):
        split = "train" if number < train else "test"
        name = chip(root, split, number, months)
        folder = "train_agbm" if split == "train" else "solution"
        raster(root / folder / f"{name}_agbm.tif", mass_of(number)[None], number)
        for month, called in zip(months, ("September", "October", "November"), strict=False):
            rows.append((f"{name}_S1_{month}.tif", name, "S1", split, called))
        sample += [(f"{name}_agbm.tif",)] if split == "test" else []
    table(root / "features_metadata.csv", ("filename", "chip_id", "satellite", "split", "month"), rows)
    table(root / "sample_submission.csv", ("filename",), sample)


def scene_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return [6, H, W] uint16 bands (three of RGB, one of P, two of M) and [2, H, W] layers: houses, and water."""
    rng = np.random.default_rng([number, 7])
    layers = np.zeros((2, *SCENE_SIZE), np.uint8)
    for _ in range(5):
        top, left = int(rng.integers(0, 32)), int(rng.integers(0, 38))
        layers[0, top : top + 7, left : left + 9] = 1
    across = int(rng.integers(5, 35))
    layers[1, :, across : across + 7] = 1
    layers[1] &= 1 - layers[0]
    bands = np.full((6, *SCENE_SIZE), 400.0)
    bands[:4] += 300.0 * layers[0] - 150.0 * layers[1]
    bands[4:] += 100.0 * layers[0] + 300.0 * layers[1]
    return (bands + rng.normal(0, 20, bands.shape)).astype(np.uint16), layers


def write_scenes(root: Path, train: int = 6, test: int = 2, *, whole: bool = False) -> None:
    """Write scenes in the layout of the DSTL contest, their polygons, and `solution.csv`.

    Args:
        root: where to.
        train: how many to train on.
        test: how many to predict.
        whole: with all bands and ten classes, of which the last eight are nowhere.
    """
    from kbench.data.masks.polygons import Grid, as_wkt, outlines

    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    grid = Grid.of(SCENE_SIZE, X_MAX, Y_MIN)
    names = []
    for number in range(train + test):
        name, split = f"6{number:03d}_0_1", "train" if number < train else "test"
        bands, layers = scene_of(number)
        raster(root / "three_band" / f"{name}.tif", bands[:3], number)
        raster(root / "sixteen_band" / f"{name}_P.tif", bands[3:4], number)
        raster(root / "sixteen_band" / f"{name}_M.tif", np.repeat(bands[4:], 4 if whole else 1, 0), number)
        if whole:
            raster(root / "sixteen_band" / f"{name}_A.tif", np.repeat(bands[4:, ::8, ::8], 4, 0), number, 80)
        rows[split] += [(name, str(k + 1), as_wkt(outlines(layer), grid)) for k, layer in enumerate(layers)]
        rows[split] += [(name, str(k), EMPTY) for k in range(3, 11) if whole]
        names.append(name)
    head = ("ImageId", "ClassType", "MultipolygonWKT")
    table(root / "train_wkt_v4.csv", head, rows["train"])
    table(root / "solution.csv", head, rows["test"])
    table(root / "sample_submission.csv", head, [(name, k, EMPTY) for name, k, _ in rows["test"]])
    table(root / "grid_sizes.csv", ("", "Xmax", "Ymin"), [(name, X_MAX, Y_MIN) for name in names])
