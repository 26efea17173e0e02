"""Images that resemble each other so much that a fold must not train on one and be judged on the other.

An image is hashed to 128 bits: of a grey thumbnail, whether each pixel is brighter than its left and its upper
neighbour. Two images are near-duplicates within 12 bits; unrelated photographs differ in 33 or more. Neighbouring
frames of a video (names that differ in the last number alone) count within 32 bits. Images of any size, smaller ones
too, are linked where all their pixels are equal; `copies.py` says what else such copies mean.

Pairs are found by bands: hashes within 12 bits agree in one of 8 bands but for one bit. Where thousands of images are
so similar that bands tell nothing apart (scans of one organ), pairs are looked for among those that agree in a sample
of their bits, drawn so often that most pairs of 12 bits, and practically all closer ones, are found. Nothing compares
all images with all, but where they are few.

Source: row S-03's note, frames of one drive on both sides of a fold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import overload

import cv2
import numpy as np

from kbench.data.folds.copies import equal_groups
from kbench.data.folds.folds import Folds
from kbench.data.images.cache import Progress, memoised
from kbench.data.images.decoding import decode, path_of
from kbench.data.images.readers import Reader
from kbench.data.table.table import Table
from kbench.errors import DataError, first_names

NEAR = 12  # differing bits of 128, up to which two images are near-duplicates
FRAMES = 32  # the same of neighbouring frames
_SMALLEST = 32  # pixels of a side; smaller images are too coarse to tell apart
_FLAT = 2.0  # grey levels of standard deviation; flatter thumbnails say nothing
_AT_ONCE = 4096  # images that wait for a thread
_BANDS = 8
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
_PAIRS = 1 << 21  # candidates looked at together
_FEW = 2048  # images that are compared with one another
_DENSE = 256  # candidates of an image by bands, above which samples of bits are used instead
_BUCKET = 32  # images of one sample's bits that each is compared with
_MISSED = 0.01  # share of the pairs at the very limit that samples may miss
_MOST_BITS = 40  # of a sample; where these tell too little apart, images are all alike
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


@dataclass(frozen=True)
class Prints:
    """What the first image of each row looks like.

    Attributes:
        hashes: N perceptual hashes; empty ones match nothing.
        pixels: N texts that are equal where grey pixels are; empty where they could not be read.
        flat: [N] bool, images of one grey alone, which resemble each other without being of one thing.
    """

    hashes: list[bytes]
    pixels: list[str]
    flat: np.ndarray

    def unseen(self) -> np.ndarray:
        """Return [N] bool, rows whose image could not be read."""
        return np.array([not text for text in self.pixels], dtype=bool)


def hash_images(
    table: Table, *, folder: Path, progress: Progress, jobs: int = 2, reader: Reader | None = None
) -> Prints:
    """Return what each row's first image looks like, made once until a file is touched.

    Args:
        table: the rows.
        folder: the cache folder.
        progress: called as `progress(done, total)`.
        jobs: number of threads.
        reader: decodes the images of a row where they are no photographs; the first band that varies is looked at.
    """
    rows = _Files(table, most=None if reader else 1)

    def look(paths: tuple[Path, ...]) -> str:
        try:
            pixels = _first_band(reader(paths)) if reader else decode(paths[0], _GREY)[:, :, 0]
        except DataError:
            return "::"  # it is named, as what could not be looked at
        content = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=12)
        content.update(np.ascontiguousarray(pixels).tobytes())
        flat = "flat" if pixels.min() == pixels.max() else ""
        return f"{perceptual_hash(pixels).hex()}:{content.hexdigest()}:{flat}"

    def make() -> list[str]:
        groups = []
        with ThreadPoolExecutor(jobs) as pool:
            for start in range(0, len(rows), _AT_ONCE):  # a pool holds what waits, which is more than a hash
                for text in pool.map(look, (rows[row] for row in range(start, min(start + _AT_ONCE, len(rows))))):
                    groups.append(text)
                    progress(len(groups), len(rows))
        return groups

    hashes, pixels, flat = list[bytes](), list[str](), np.zeros(len(rows), dtype=bool)
    for row, text in enumerate(memoised(folder, "prints" if reader is None else "band-prints", rows, make)):
        looks, equal, word = text.split(":")
        hashes.append(bytes.fromhex(looks))
        pixels.append(equal)
        flat[row] = word == "flat"
    return Prints(hashes, pixels, flat)


@dataclass(frozen=True)
class _Files(Sequence[tuple[Path, ...]]):
    """The paths of each row's images, or of the first ones, made when they are asked for."""

    table: Table
    most: int | None

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, row: int) -> tuple[Path, ...]: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[tuple[Path, ...]]: ...

    def __getitem__(self, row: int | slice) -> tuple[Path, ...] | Sequence[tuple[Path, ...]]:
        if isinstance(row, slice):
            return [self[one] for one in range(len(self))[row]]
        return tuple(path_of(self.table.root, name) for name in self.table.images[row][: self.most])


def _first_band(image: np.ndarray) -> np.ndarray:
    """Return [H, W] uint8 of the first channel of an image that varies, from its lowest to its highest value."""
    for channel in range(image.shape[2]):
        band = image[:, :, channel].astype(np.float64)
        known = np.isfinite(band)
        span = np.ptp(band[known]) if known.any() else 0.0
        if span > 0:
            return np.where(known, np.rint((band - band[known].min()) / span * 255), 0).astype(np.uint8)
    return np.zeros(image.shape[:2], np.uint8)


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
    pairs = [equal[equal[:, 0] != equal[:, 1]]]
    if len(unique) <= _FEW:
        near = _compared(unique, _all(len(unique)), distance)
    elif _density(unique) > _DENSE:
        near = _sampled(unique, distance)
    else:
        near = _compared(unique, _candidates(unique), distance)
    pairs.append(np.sort(rows[first[near]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _compared(bits: np.ndarray, candidates: Iterator[tuple[np.ndarray, np.ndarray]], distance: int) -> np.ndarray:
    """Return [P, 2] those of the candidates that are within a distance."""
    words, pairs = bits.view(np.uint64), [np.empty((0, 2), dtype=np.int64)]
    for one, other in candidates:
        close = _apart(words[one], words[other]) <= distance
        pairs.append(np.stack([one[close], other[close]], axis=1))
    return np.concatenate(pairs)


def _all(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of distinct rows."""
    for one in range(count - 1):
        other = np.arange(one + 1, count)
        yield np.full(len(other), one), other


def _density(bits: np.ndarray) -> float:
    """Return how many others each of [n, 16] hashes agrees with in a band, on average, over all bands and flips."""
    if not len(bits):
        return 0.0
    bands = bits.view(">u2").astype(np.int64)
    counts = [np.bincount(bands[:, band], minlength=1 << 16).astype(np.float64) for band in range(_BANDS)]
    return float(sum((count**2).sum() for count in counts)) * 17 / len(bits)


def _sampled(bits: np.ndarray, distance: int) -> np.ndarray:
    """Return [P, 2] numbers of hashes within a distance that agree in a sample of their bits, for many samples.

    Each hash is compared with the next ones of its bucket in the order of other bits, so that the work grows with the
    number of hashes, however many resemble each other.

    Args:
        bits: [n, 16] uint8, distinct hashes in order.
        distance: most differing bits.
    """
    rng, count = np.random.default_rng(0), len(bits)
    signs = np.unpackbits(bits, axis=1)
    words = bits.view(np.uint64)
    size = _sample_size(signs, rng)
    agree = np.prod([(128 - distance - place) / (128 - place) for place in range(size)])
    samples = int(np.ceil(np.log(_MISSED) / np.log1p(-agree)))
    pairs = np.empty(0, dtype=np.int64)
    for _ in range(samples):
        chosen = rng.permutation(128)
        keys = signs[:, chosen[:size]].astype(np.uint64) @ rng.integers(0, 2**63, size, dtype=np.uint64)
        rest = np.ascontiguousarray(np.packbits(signs[:, chosen[size : size + 64]], axis=1)).view(">u8")[:, 0]
        order = np.lexsort((rest, keys))
        all_pairs = [pairs]
        for step in range(1, _BUCKET + 1):
            one, other = order[:-step], order[step:]
            same = keys[one] == keys[other]
            if not same.any():
                break
            one, other = one[same], other[same]
            close = _apart(words[one], words[other]) <= distance
            low, high = np.minimum(one[close], other[close]), np.maximum(one[close], other[close])
            all_pairs.append(low * count + high)
        pairs = np.unique(np.concatenate(all_pairs))
    return np.stack([pairs // count, pairs % count], axis=1)


def _sample_size(signs: np.ndarray, rng: np.random.Generator) -> int:
    """Return how many of [n, 128] bits tell most hashes apart: few share a bucket, and near ones still do."""
    for size in range(8, _MOST_BITS, 4):
        keys = signs[:, rng.permutation(128)[:size]].astype(np.uint64) @ rng.integers(0, 2**63, size, dtype=np.uint64)
        _, counts = np.unique(keys, return_counts=True)
        if (counts.astype(np.float64) ** 2).sum() / len(signs) <= _BUCKET:
            return size
    return _MOST_BITS


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return [P] how many bits of [P, 2] uint64 differ."""
    return np.asarray(np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64))


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
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        alike.setdefault(_NUMBER.sub("\0", str(name)), []).append(row)
    drives, numbers = ids.astype(str), np.full(len(ids), -1, dtype=np.int64)
    for shape, rows in alike.items():
        count = shape.count("\0") - str(ids[rows[0]]).count("\0")
        telling = next((place for place in reversed(range(count)) if _repeats(ids, rows, place)), count - 1)
        for row in rows if count else ():
            drives[row], numbers[row] = _cut(str(ids[row]), telling)
    return drives, numbers


def _cut(text: str, place: int) -> tuple[str, int]:
    """Return a text without one of its numbers, and that number."""
    match = next(islice(_NUMBER.finditer(text), place, None))
    return text[: match.start()] + text[match.end() :], int(match[0])


def _repeats(ids: np.ndarray, rows: Sequence[int], place: int) -> bool:
    """Return whether two ids are one without the number at a place."""
    rests = set[str]()
    for row in rows:
        rest, _ = _cut(str(ids[row]), place)
        if rest in rests:
            return True
        rests.add(rest)
    return False


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


def copies(table: Table, prints: Prints) -> list[list[int]]:
    """Return groups of rows whose images are equal, pixel for pixel, in sorted order."""
    return equal_groups(table, prints.pixels)


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return [count] int64, the cluster of each row: the smallest row number among those linked to it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    linked = coo_array((np.ones(len(pairs), dtype=bool), pairs.T), shape=(count, count))
    _, parts = connected_components(linked, directed=False)
    _, first, part_of = np.unique(parts, return_index=True, return_inverse=True)
    return np.asarray(first[part_of])


def links(table: Table, prints: Prints) -> np.ndarray:
    """Return [P, 2] row numbers of near-duplicates, copies and neighbouring frames."""
    equal = [[group[0], row] for group in copies(table, prints) for row in group[1:] if not prints.flat[group[0]]]
    pairs = [near_pairs(prints.hashes), frame_pairs(table.ids, prints.hashes), np.array(equal, dtype=np.int64)]
    return np.unique(np.concatenate([part.reshape(-1, 2) for part in pairs]), axis=0)


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
