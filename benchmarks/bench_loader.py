"""The loader alone, in images/s on one core, against bare decoding of the same JPEGs with OpenCV.

python benchmarks/bench_loader.py [--images 512]
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
from kbench.data.images.cache import Resize, open_images
from kbench.data.images.crops import centre, random
from kbench.data.images.readers import image


def rate(work: Callable[[], int], rounds: int = 5) -> float:
    """Return the median number of images per second."""
    work()
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = photographs(folder, options.images)
        resize = Resize("cover", SIZE, SIZE)
        opened = {
            mode: open_images(
                rows,
                reader=image(_channels=3),
                reader_key="bench",
                resize=resize,
                folder=folder / "cache",
                mode=mode,
                progress=lambda done, total: None,
            )
            for mode in ("off", "on")
        }

        def load(mode: str, show: Show) -> Callable[[], int]:
            loader = Loader(ImageDataset([opened[mode]], [show], None))
            plan = cut(len(rows), 32, lambda row: Draw(row, (0, row)))
            return lambda: sum(len(batch.rows) for batch in loader(plan))

        def decode() -> int:
            for (path,) in rows:
                cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
            return len(rows)

        bare = rate(decode)
        results = {
            "bare decoding": bare,
            "loader, decoding each time": rate(load("off", Show((SIZE, SIZE), centre(), NO_AUGMENTATION))),
            "loader, from the cache": rate(load("on", Show((SIZE, SIZE), centre(), NO_AUGMENTATION))),
            "loader, from the cache, side_on": rate(load("on", Show((SIZE, SIZE), random(), side_on()))),
        }
        for what, speed in results.items():
            print(f"{what:34} {speed:8.0f} images/s per core, {speed / bare:5.2f} x bare decoding")


if __name__ == "__main__":
    main()
