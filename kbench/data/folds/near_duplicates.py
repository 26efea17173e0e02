"""Images that resemble each other so much that a fold must not train on one and be judged on the other.

An image is hashed to 128 bits: of a grey thumbnail, whether each pixel is brighter than its left and its upper
neighbour. Two images are near-duplicates within 12 bits; unrelated photographs differ in 33 or more. Neighbouring
frames of a video (names that differ in the last number alone) count within 32 bits. Pairs are found by bands: hashes
within 12 bits agree in one of 8 bands but for one bit, so that nothing compares all images with all.

Source: row S-03's note, frames of one drive on both sides of a fold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from kbench.data.folds.folds import Folds
from kbench.data.images.cache import Progress, memoised
from kbench.data.images.decoding import decode
from kbench.data.table.table import Table
from kbench.errors import DataError, first_names

NEAR = 12  # differing bits of 128, up to which two images are near-duplicates
FRAMES = 32  # the same of neighbouring frames
_SMALLEST = 32  # pixels of a side; smaller images are too coarse to tell apart
_FLAT = 2.0  # grey levels of standard deviation; flatter thumbnails say nothing
_BANDS = 8
_PAIRS = 1 << 21  # candidates looked at together
_NUMBER = re.compile(r"\d{1,15}")


def perceptual_hash(image: np.ndarray) -> bytes:
    """Return the 16 bytes of a grey [H, W] image; empty where it is too small or too flat to say anything."""
    if min(image.shape[:2]) < _SMALLEST:
        return b""
    grey = image.astype(np.float32)
    across = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    down = cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA)
    if across.std() < _FLAT * (1 if image.dtype == np.uint8 else float(grey.max()) / 255):
        return b""
    bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
    return np.packbits(bits).tobytes()


def hash_images(table: Table, *, folder: Path, progress: Progress, jobs: int = 2) -> list[bytes]:
    """Return the hash of each row's first image, made once until a file is touched; empty ones match nothing.

    Args:
        table: the rows.
        folder: the cache folder.
        progress: called as `progress(done, total)`.
        jobs: number of threads.
    """
    rows = [(table.root / paths[0],) for paths in table.images]

    def look(paths: tuple[Path, ...]) -> str:
        try:
            pixels = decode(paths[0], cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        except DataError:
            return ""  # `kbench check` names files that cannot be read; others have no image to compare
        return perceptual_hash(pixels[:, :, 0]).hex()

    def make() -> list[str]:
        made = []
        with ThreadPoolExecutor(jobs) as pool:
            for text in pool.map(look, rows):
                made.append(text)
                progress(len(made), len(rows))
        return made

    return [bytes.fromhex(text) for text in memoised(folder, "hashes", rows, make)]


def near_pairs(hashes: Sequence[bytes], *, distance: int = NEAR) -> np.ndarray:
    """Return [P, 2] row numbers of near-duplicates, the smaller one first; of equal images each with the first one.

    Args:
        hashes: of N rows; empty ones match nothing.
        distance: most differing bits, below 16.
    """
    rows = np.array([row for row, value in enumerate(hashes) if value], dtype=np.int64)
    if not len(rows):
        return np.empty((0, 2), dtype=np.int64)
    bits = np.frombuffer(b"".join(hashes[row] for row in rows), dtype=np.uint8).reshape(len(rows), 16)
    unique, first, inverse = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    equal = np.stack([rows[first[inverse]], rows], axis=1)
    found = [equal[equal[:, 0] != equal[:, 1]]]
    for one, other in _candidates(unique):
        close = np.bitwise_count(unique[one] ^ unique[other]).sum(axis=1, dtype=np.int64) <= distance
        found.append(np.sort(rows[first[np.stack([one[close], other[close]], axis=1)]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _candidates(bits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of distinct rows that agree in a band but for one bit."""
    bands = bits.view(">u2").astype(np.int64)
    flips = np.concatenate([[0], 1 << np.arange(16)])
    for band in range(_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        keys = bands[order, band]
        for flip in flips.tolist():
            start = np.searchsorted(keys, keys ^ flip, side="left")
            count = np.searchsorted(keys, keys ^ flip, side="right") - start
            edges = np.concatenate([[0], np.cumsum(count)])
            begin = 0
            while begin < len(keys):
                end = max(begin + 1, int(np.searchsorted(edges, edges[begin] + _PAIRS, side="right")) - 1)
                one = np.repeat(np.arange(begin, end), count[begin:end])
                other = start[one] + np.arange(len(one)) - (edges[one] - edges[begin])
                keep = order[one] < order[other]
                yield order[one[keep]], order[other[keep]]
                begin = end


def frame_numbers(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [N] text, the drive of each frame, and [N] int64 the frame's number in it (-1: none).

    Of the numbers in an id the frame's is the last one that alone tells it from another, such as the 19 of
    `aachen_000000_000019_leftImg8bit`, or just the last one; the drive is the rest of the id.
    """
    texts = [str(name) for name in ids]
    found = [list(_NUMBER.finditer(text)) for text in texts]
    alike: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        alike.setdefault(_NUMBER.sub("\0", text), []).append(row)
    drives, numbers = list(texts), np.full(len(texts), -1, dtype=np.int64)
    for rows in alike.values():
        count = len(found[rows[0]])
        rests = [[_without(texts[row], found[row][place]) for row in rows] for place in range(count)]
        telling = [place for place in range(count) if len(set(rests[place])) < len(rows)] or list(range(count))
        for at, row in enumerate(rows if telling else ()):
            drives[row], numbers[row] = rests[telling[-1]][at], int(found[row][telling[-1]][0])
    return np.array(drives, dtype=str), numbers


def _without(text: str, number: re.Match[str]) -> str:
    return text[: number.start()] + text[number.end() :]


def frame_pairs(ids: np.ndarray, hashes: Sequence[bytes]) -> np.ndarray:
    """Return [P, 2] row numbers of neighbouring frames that resemble each other.

    Frames of a drive have ids that differ in one number alone; neighbours are no further apart than three times
    the usual step.
    """
    drives, numbers = frame_numbers(ids)
    order = np.lexsort([numbers, drives])
    one, other = order[:-1], order[1:]
    step = numbers[other] - numbers[one]
    near = (drives[one] == drives[other]) & (numbers[one] >= 0)
    if not near.any():
        return np.empty((0, 2), dtype=np.int64)
    steps = step[near & (step > 0)]  # those of 0 lie between pictures of one moment
    near &= step <= (3 * np.median(steps) if len(steps) else 0)
    pairs = np.sort(np.stack([one[near], other[near]], axis=1), axis=1)
    kept = [bool(hashes[a] and hashes[b]) and _differ(hashes[a], hashes[b]) <= FRAMES for a, b in pairs.tolist()]
    return np.asarray(pairs[np.array(kept, dtype=bool)])


def _differ(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return [count] int64, the cluster of each row: the smallest row number among those linked to it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    linked = coo_array((np.ones(len(pairs), dtype=bool), pairs.T), shape=(count, count))
    _, parts = connected_components(linked, directed=False)
    _, first, part_of = np.unique(parts, return_index=True, return_inverse=True)
    return np.asarray(first[part_of])


def links(table: Table, hashes: Sequence[bytes]) -> np.ndarray:
    """Return [P, 2] row numbers of near-duplicates and neighbouring frames."""
    return np.unique(np.concatenate([near_pairs(hashes), frame_pairs(table.ids, hashes)]), axis=0)


def leaks(folds: Folds, pairs: np.ndarray) -> list[str]:
    """Return a warning when rows are judged by a model that trained on a near-duplicate; nothing when none is.

    Args:
        folds: the folds.
        pairs: [P, 2] row numbers.
    """
    judged = np.zeros(len(folds.ids), dtype=bool)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    for fold in range(folds.n):
        of_fold, trained = folds.valid(fold), folds.train(fold)
        judged[both[of_fold[both[:, 0]] & trained[both[:, 1]], 0]] = True
    if not judged.any():
        return []
    names, validated = first_names([str(name) for name in folds.ids[judged]]), int((folds.fold >= 0).sum())
    return [
        f"{int(judged.sum()):,} of {validated:,} rows have a near-duplicate among the rows their fold trains on, so "
        f"scores will be too good: {names}; `group: auto` keeps them together, `strategy: blocks` cuts drives in blocks"
    ]
