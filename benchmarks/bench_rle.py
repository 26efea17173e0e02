"""Run-length encoding and decoding of masks, against pycocotools, in masks/s on one core.

    python benchmarks/bench_rle.py [--rounds 7]

Masks are blobs of smoothed noise at the sizes of TGS salt and of the Signate street scenes. Both sides go from a mask
to its text and back; the two take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from pycocotools import mask as coco

from kbench.data.masks.run_lengths import CONVENTIONS, decode, encode

SIZES = {(101, 101): 200, (1216, 1936): 8}  # height and width -> masks of a round


def blobs(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Return masks of smoothed noise, in column order as pycocotools wants them."""
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), size[0] / 12) for _ in range(count)]
    return [np.asfortranarray((layer > 0.3 * layer.std()).astype(np.uint8)) for layer in noise]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rule = CONVENTIONS["tgs"]
    for size, count in SIZES.items():
        masks = blobs(size, count)
        texts, packed = [encode(mask, rule) for mask in masks], [coco.encode(mask) for mask in masks]
        assert all(
            np.array_equal(decode(text, size, rule), coco.decode(item))
            for text, item in zip(texts, packed, strict=True)
        )
        works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (
                lambda masks=masks: [encode(mask, rule) for mask in masks],
                lambda masks=masks: [coco.encode(mask) for mask in masks],
            ),
            "decode": (
                lambda texts=texts, size=size: [decode(text, size, rule) for text in texts],
                lambda packed=packed: [coco.decode(item) for item in packed],
            ),
        }
        for what, pair in works.items():
            taken = [[seconds(work) for work in pair] for _ in range(rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
            print(
                f"{what} {size[0]} x {size[1]}: {count / ours:8.0f} masks/s, pycocotools {count / theirs:8.0f}, "
                f"ratio {theirs / ours:.2f}"
            )


if __name__ == "__main__":
    main()
