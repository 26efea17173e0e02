"""`input: {decode: auto}`: photographs at a size, near to what every pixel of them gives, and nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_images import write_png
from PIL import Image

from kbench.data.images.cache import DirectImages, Resize, open_images
from kbench.data.images.decoding import Decoding
from kbench.data.images.quick import QuickReader, shrunk
from kbench.data.images.readers import image, remembering
from kbench.errors import DataError

QUICK, EXACT = Decoding(quick=True), Decoding()


def photograph(height: int, width: int) -> np.ndarray:
    """[H, W, 3] with shapes of several sizes and a little grain."""
    rng = np.random.default_rng(0)
    small = rng.random((9, 11, 3)).astype(np.float32)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * 200 + 20
    return (smooth + rng.normal(0, 2, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(path: Path, height: int, width: int, *, grey: bool = False, orientation: int = 1) -> tuple[Path, ...]:
    exif = Image.Exif()
    exif[274] = orientation
    pixels = Image.fromarray(photograph(height, width))
    (pixels.convert("L") if grey else pixels).save(path, quality=95, exif=exif)
    return (path,)


@pytest.mark.parametrize("how", ["cover", "exact"])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (1536, 2048), (160, 2000), (161, 163), (100, 90)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photograph_is_near_to_what_all_its_pixels_give(
    tmp_path: Path, how: str, height: int, width: int, channels: int, orientation: int
) -> None:
    row = jpeg(tmp_path / "a.jpg", height, width, orientation=orientation)
    resize = Resize(how, 160, 150)
    quick = DirectImages([row], image(_channels=channels, _decoding=QUICK), resize)[0]
    exact = DirectImages([row], image(_channels=channels, _decoding=EXACT), resize)[0]
    assert (quick.shape, quick.dtype) == (exact.shape, exact.dtype)
    difference = np.abs(quick.astype(int) - exact)
    assert difference.mean() < 1
    assert difference.max() < 25


def test_the_smallest_scale_that_covers_the_size_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, flag: (flags.append(flag), decode(content, flag))[1])
    reader = image(_channels=3, _decoding=QUICK)
    row = jpeg(tmp_path / "a.jpg", 801, 1200)
    for side, wanted in ((100, cv2.IMREAD_REDUCED_COLOR_8), (102, cv2.IMREAD_REDUCED_COLOR_4),
                         (200, cv2.IMREAD_REDUCED_COLOR_4), (202, cv2.IMREAD_REDUCED_COLOR_2),
                         (402, cv2.IMREAD_COLOR_RGB), (900, cv2.IMREAD_COLOR_RGB)):  # fmt: skip
        flags.clear()
        Resize("cover", side, side).read(reader, row)
        assert [flag & ~cv2.IMREAD_IGNORE_ORIENTATION for flag in flags] == [wanted], side


@pytest.mark.parametrize("kind", ["whole", "bits", "bands", "larger", "rows"])
def test_everything_else_is_read_pixel_by_pixel(tmp_path: Path, kind: str) -> None:
    rng, channels, resize = np.random.default_rng(0), 3, Resize("exact", 20, 30)
    pixels = (rng.random((60, 80, 3)) * 255).astype(np.uint8)
    if kind == "bits":
        pixels = pixels.astype(np.uint16) * 257
    elif kind == "bands":
        pixels, channels = np.concatenate([pixels, pixels[:, :, :1]], 2), 4
    row = (write_png(tmp_path / "a.png", pixels),)
    if kind == "whole":
        row, resize = jpeg(tmp_path / "a.jpg", 400, 500), Resize("keep", 0, 0)
    elif kind == "larger":
        resize = Resize("exact", 70, 90)
    elif kind == "rows":
        row, channels = (*row, *row), 6
    quick, exact = (image(_channels=channels, _decoding=decoding) for decoding in (QUICK, EXACT))
    np.testing.assert_array_equal(DirectImages([row], quick, resize)[0], DirectImages([row], exact, resize)[0])
    np.testing.assert_array_equal(quick(row), exact(row))


def test_exact_is_what_it_always_was(tmp_path: Path) -> None:
    row = jpeg(tmp_path / "a.jpg", 375, 500)
    whole = cv2.imdecode(np.fromfile(row[0], dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    expected = cv2.resize(whole, (213, 160), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(DirectImages([row], image(_channels=3), Resize("cover", 160, 160))[0], expected)


def test_faults_are_said_as_ever(tmp_path: Path) -> None:
    row = jpeg(tmp_path / "a.jpg", 375, 500)
    content = row[0].read_bytes()
    row[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable image"):
        Resize("cover", 50, 50).read(image(_channels=3, _decoding=QUICK), row)
    with pytest.raises(DataError, match="max_pixels"):
        Resize("cover", 50, 50).read(image(_channels=3, _decoding=Decoding(quick=True, max_pixels=100)), row)


def test_a_reader_that_remembers_still_decodes_for_a_size(tmp_path: Path) -> None:
    reader = remembering(image(_channels=3, _decoding=QUICK))
    assert isinstance(reader, QuickReader)
    row = jpeg(tmp_path / "a.jpg", 375, 500)
    assert Resize("cover", 80, 80).read(reader, row).shape == (80, 107, 3)
    assert Resize("cover", 160, 160).read(reader, row).shape == (160, 213, 3)


def test_the_cache_holds_what_is_read_at_a_size(tmp_path: Path) -> None:
    rows = [jpeg(tmp_path / f"{row}.jpg", 300 + row, 400) for row in range(3)]
    reader, resize = image(_channels=3, _decoding=QUICK), Resize("cover", 64, 64)
    made = open_images(rows, reader=reader, reader_key="auto", resize=resize, folder=tmp_path / "cache", mode="on",
                       progress=lambda done, total: None)  # fmt: skip
    for row in range(3):
        np.testing.assert_array_equal(made[row], resize.read(reader, rows[row]))


def test_shrinking_is_pillows() -> None:
    pixels = photograph(97, 130)
    for channels in (1, 3):
        given = np.ascontiguousarray(pixels[:, :, :channels])
        expected = np.asarray(Image.fromarray(given.squeeze()).resize((50, 40), Image.Resampling.BILINEAR))
        made = shrunk(given, (40, 50))
        assert np.abs(made.squeeze().astype(int) - expected).max() <= 1
        assert made.flags.c_contiguous
        given.flags.writeable = False
        np.testing.assert_array_equal(shrunk(given, (40, 50)), made)
