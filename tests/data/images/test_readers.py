from __future__ import annotations

import contextlib
from pathlib import Path

import cv2
import drawn_images
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.data.images.readers import image, remembering, resized
from kbench.errors import DataError


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_is_read_back_in_its_dtype_and_in_rgb_order(tmp_path: Path, channels: int, dtype: type) -> None:
    written = drawn_images.drawn(1, channels=channels, dtype=dtype)[0]
    path = drawn_images.write_png(tmp_path / "a.png", written)
    read = image(_channels=channels)([path])
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, written)


def test_a_float_tiff_keeps_its_values(tmp_path: Path) -> None:
    values = np.linspace(-3, 5000, 60, dtype=np.float32).reshape(6, 10)
    assert cv2.imwrite(str(tmp_path / "a.tiff"), values)
    np.testing.assert_array_equal(image(_channels=1)([tmp_path / "a.tiff"])[:, :, 0], values)


def test_a_grey_file_is_read_as_three_equal_channels_where_three_are_asked_for(tmp_path: Path) -> None:
    path = drawn_images.write_png(tmp_path / "a.png", drawn_images.drawn(1, channels=1)[0])
    read = image(_channels=3)([path])
    assert read.shape[2] == 3
    assert (read == read[:, :, :1]).all()


def test_several_files_are_stacked_along_the_channels_in_their_order(tmp_path: Path) -> None:
    bands = [drawn_images.drawn(1 + band, channels=channels)[0] for band, channels in enumerate((3, 1, 1))]
    paths = [drawn_images.write_png(tmp_path / f"{band}.png", pixels) for band, pixels in enumerate(bands)]
    np.testing.assert_array_equal(image(_channels=5)(paths), np.concatenate(bands, axis=2))


def test_files_of_one_row_that_differ_in_size_are_an_error(tmp_path: Path) -> None:
    paths = [
        drawn_images.write_png(tmp_path / f"{size}.png", drawn_images.drawn(1, size=(size, 8), channels=1)[0])
        for size in (8, 9)
    ]
    with pytest.raises(DataError, match="differ in size"):
        image(_channels=2)(paths)


def test_another_number_of_channels_than_the_yaml_says_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = drawn_images.write_png(tmp_path / "a.png", drawn_images.drawn(1, channels=4)[0])
    with pytest.raises(DataError, match="4 channels"):
        image(_channels=2)([path])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp", ".bmp"])
def test_a_truncated_file_is_an_error_and_never_half_an_image(tmp_path: Path, suffix: str) -> None:
    _, content = cv2.imencode(suffix, drawn_images.drawn(1, size=(64, 64))[0])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content.tobytes()[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.\w+"):
        image(_channels=3)([path])


@pytest.mark.parametrize("content", [b"", b"\0", b"GIF89a", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40])
def test_what_is_no_image_is_an_error_with_three_parts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        image(_channels=3)([tmp_path / "a.png"])
    assert "a.png" in caught.value.what
    assert caught.value.expected
    assert "kbench check" in caught.value.todo


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            image(_channels=3)([path])


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([".png", ".jpg", ".tiff", ".webp", ".bmp"]), st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_an_image_or_an_error_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    _, content = cv2.imencode(suffix, drawn_images.drawn(1, size=(16, 16))[0])
    content[rng.integers(len(content), size=4)] = rng.integers(256, size=4)
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(content.tobytes())
    with contextlib.suppress(DataError):
        assert image(_channels=3)([path]).ndim == 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 15])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(7, 9), (20, 40)])
def test_every_channel_is_resized_as_it_would_be_alone(channels: int, dtype: type, size: tuple[int, int]) -> None:
    pixels = drawn_images.drawn(1, size=(16, 30), channels=channels, dtype=dtype)[0]
    made = resized(pixels, size)
    assert made.shape == (*size, channels)
    assert made.dtype == dtype
    flag = cv2.INTER_AREA if size == (7, 9) else cv2.INTER_LINEAR
    for channel in range(channels):
        alone = cv2.resize(np.ascontiguousarray(pixels[:, :, channel]), size[::-1], interpolation=flag)
        np.testing.assert_allclose(made[:, :, channel].astype(float), alone.astype(float), rtol=1e-6, atol=1)


def test_the_last_image_is_remembered_and_cannot_be_written_to(tmp_path: Path) -> None:
    paths = [(drawn_images.write_png(tmp_path / f"{n}.png", drawn_images.drawn(n + 1)[0]),) for n in range(2)]
    calls = []
    read = remembering(lambda given: (calls.append(given), image(_channels=3)(given))[1])
    first = read(paths[0])
    assert read(paths[0]) is first
    assert not first.flags.writeable
    read(paths[1])
    np.testing.assert_array_equal(read(paths[0]), first)
    assert calls == [paths[0], paths[1], paths[0]]
