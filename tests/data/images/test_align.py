"""Files that lie some pixels off one another: shifts that are known are told, and what cannot be told is said."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import SHARED

from kbench.data.images.align import NONE, Aligning, Shift, moved, ordered, registered
from kbench.data.images.channels import channels_of
from kbench.data.images.decoding import PLAIN
from kbench.data.images.rasters import RasterReader, stack_of

RAW = SHARED / "satellite_raw" / "spacenet_solaris"
DSTL = SHARED.parent / "generators" / "dstl.py"
BANDS = {"RGB": ("r", "g", "b"), "P": ("1",), "M": tuple("12345678"), "A": tuple("12345678")}
GRAPH = {"M": "P", "A": "P", "P": "RGB"}


def ground(seed: int = 0, size: tuple[int, int] = (160, 200)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.random(size), (0, 0), sigma) for sigma in (1.0, 3.0, 9.0)]
    image = np.sum([(layer - layer.mean()) / layer.std() for layer in layers], axis=0)
    return np.asarray((image - image.min()) / np.ptp(image), dtype=np.float32)


def off(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float64)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def test_a_shift_is_told_and_taken_back() -> None:
    image = ground()
    shift, gain, why = registered(image, off(image, 2.3, -1.7), largest=20, gain=0.01)
    assert (why, gain > 0.05) == ("", True)
    np.testing.assert_allclose(shift, (2.3, -1.7), atol=0.05)
    back = moved(off(image, 2.3, -1.7)[:, :, None], shift)[10:-10, 10:-10, 0]
    assert np.abs(back - image[10:-10, 10:-10]).max() < 0.03 * np.ptp(image)


def test_shifts_add_up_along_the_graph_and_what_is_uncovered_is_unknown() -> None:
    image = ground()
    stack = np.stack([image, off(image, 3, 2), off(image, 8, -4)], axis=2)
    channels = channels_of({"RGB": ("1",), "P": ("1",), "M": ("1",)})
    step = Aligning(channels, "RGB", {"M": "P", "P": "RGB"}, largest=20, gain=0.01)
    np.testing.assert_allclose([one.shift for one in step.shifts(stack)], [(3, 2), (8, -4)], atol=0.05)
    made = step(stack)
    assert np.abs(made[10:-10, 10:-10] - image[10:-10, 10:-10, None]).max() < 0.03 * np.ptp(image)
    unknown = np.isnan(made[:, :, 2])
    assert unknown[:, -7:].all()
    assert unknown[:3].all()
    assert not unknown[10:-10, 10:-10].any()


def test_a_shift_nobody_believes_is_none_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    image, noise = ground(), np.random.default_rng(1).random((160, 200)).astype(np.float32)
    assert registered(image, off(image, 15, 0), largest=5, gain=0.01)[0] == NONE
    shift, _, why = registered(image, noise, largest=20, gain=0.1)
    assert shift == NONE
    assert why
    channels = channels_of({"RGB": ("1",), "P": ("1",)})
    step = Aligning(channels, "RGB", {"P": "RGB"}, largest=20, gain=0.1)
    stack = np.stack([image, noise], axis=2)
    np.testing.assert_array_equal(step(stack, "scene.tif"), stack)
    assert "'scene.tif': the file P stays where it is" in " ".join(capsys.readouterr().err.split())


def test_the_order_of_a_graph_has_those_first_that_others_need() -> None:
    assert ordered(GRAPH, "RGB") == ["P", "M", "A"]


@pytest.mark.skipif(not RAW.is_dir(), reason="the raw satellite tiles are not on this machine")
def test_a_shift_put_on_real_tiles_is_recovered_within_a_tenth_of_a_pixel() -> None:
    channels = channels_of({"P": ("1",), "M": tuple("1234")})
    read = RasterReader(5, PLAIN, stack_of(channels, ["P", "M"], {}, masked=True))
    stack = read([RAW / "pan1.tif", RAW / "ms1.tif"])
    step = Aligning(channels, "P", {"M": "P"}, largest=20, gain=0.001)
    before = step.shifts(stack)[0].shift
    put = stack.copy()
    for band in range(1, 5):
        put[:, :, band] = off(stack[:, :, band], 2.3, -1.7)
    after = step.shifts(put)[0].shift
    assert Shift(after.x - before.x, after.y - before.y) == pytest.approx((2.3, -1.7), abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not DSTL.is_file(), reason="the generators are not on this machine")
def test_scenes_that_look_like_dstl_are_aligned(tmp_path: Path) -> None:
    """The marks: P and M within 0.1 px on every scene, A within 6 px (a quarter of its own) or left and said so."""
    words = [sys.executable, str(DSTL), str(tmp_path / "dstl"), "--areas", "2", "--train", "1", "--test", "1"]
    subprocess.run(words, check=True, capture_output=True)
    with open(tmp_path / "dstl" / "shifts.csv", newline="") as handle:
        truth = {(row["id"], row["band"]): (float(row["dx"]), float(row["dy"])) for row in csv.DictReader(handle)}
    channels = channels_of(BANDS)
    read = RasterReader(20, PLAIN, stack_of(channels, list(BANDS), {}, masked=True))
    step = Aligning(channels, "RGB", GRAPH, largest=20, gain=0.002)
    for name in sorted({one for one, _ in truth}):
        paths = [tmp_path / "dstl" / "sixteen_band" / f"{name}_{band}.tif" for band in "PMA"]
        for found in step.shifts(read([tmp_path / "dstl" / "three_band" / f"{name}.tif", *paths])):
            error = np.hypot(*(np.array(found.shift) - truth[name, found.file]))
            assert error < (6 if found.file == "A" else 0.1) or (found.file == "A" and found.why)
