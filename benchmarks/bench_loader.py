"""The loader alone, in images per second of one core's time, against bare decoding of the same JPEGs with OpenCV.

python benchmarks/bench_loader.py [--images 512] [--grain 4]

Every way takes its turn in each round, so that other work on the machine slows all of them alike; the time is the
process's own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from bench_step import SIZE, photographs

from kbench.data.dataset import Draw, ImageDataset, Loader, Show, cut
from kbench.data.images.augment import NO_AUGMENTATION, side_on
from kbench.data.images.cache import Images, Resize, open_images
from kbench.data.images.crops import centre, random
from kbench.data.images.decoding import Decoding
from kbench.data.images.readers import image

Rows = list[tuple[Path, ...]]
PLAIN = NO_AUGMENTATION


def rates(ways: dict[str, Callable[[], int]], *, rounds: int = 5) -> dict[str, float]:
    """Return the median number of images per second of each way; the ways take turns."""
    found: dict[str, list[float]] = {what: [] for what in ways}
    for number in range(rounds + 1):
        for what, work in ways.items():
            started = time.process_time()
            done = work()
            if number:  # the first round reads the files into memory
                found[what].append(done / (time.process_time() - started))
    return {what: statistics.median(several) for what, several in found.items()}


def decoding(rows: Rows) -> Callable[[], int]:
    """Return what decodes all rows with nothing around it."""

    def decode() -> int:
        for (path,) in rows:
            cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        return len(rows)

    return decode


def loading(images: Images, show: Show) -> Callable[[], int]:
    """Return what loads all rows in batches."""
    loader = Loader(ImageDataset([images], [show], None))
    plan = cut(len(images), 32, lambda row: Draw(row, (0, row)))
    return lambda: sum(len(batch.rows) for batch in loader(plan))


def opened(rows: Rows, folder: Path, *, side: int, quick: bool, mode: str) -> Images:
    """Return the images of rows at a size."""
    return open_images(
        rows, reader=image(_channels=3, _decoding=Decoding(quick=quick)), reader_key=["bench", quick],
        resize=Resize("cover", side, side), folder=folder, mode=mode, progress=lambda done, total: None,
    )  # fmt: skip


def show_rates(title: str, ways: dict[str, Callable[[], int]]) -> None:
    """Print the rate of each way, and how it compares with the first."""
    found = rates(ways)
    bare = next(iter(found.values()))
    print(title)
    for what, speed in found.items():
        print(f"  {what:32} {speed:8.0f} images/s per core, {speed / bare:5.2f} x bare decoding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--grain", type=float, default=4.0, help="grey levels; photographs have some")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size, side in (((500, 375), SIZE), ((2048, 1536), 224), ((4000, 3000), 224)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            count = max(8, options.images * 500 * 375 // (size[0] * size[1]))
            rows = photographs(folder / "images", count, size=size, grain=options.grain)
            centred = Show((side, side), centre(), PLAIN)

            def way(show: Show, *, quick: bool = False, mode: str = "off", side: int = side) -> Callable[[], int]:
                return loading(opened(rows, folder / "cache", side=side, quick=quick, mode=mode), show)  # noqa: B023

            ways = {
                "bare decoding": decoding(rows),
                "loader, decode: exact": way(centred),
                "loader, decode: auto": way(centred, quick=True),
                "loader, cache": way(centred, mode="on"),
                "loader, cache, side_on": way(Show((side, side), random(), side_on()), mode="on"),
            }
            show_rates(f"{size[0]} x {size[1]} -> {side}, {count} images", ways)


if __name__ == "__main__":
    main()
