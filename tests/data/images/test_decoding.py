"""Every way to open a picture says and gives the same: header, check, reader, masks."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tiffs import tiff

from kbench.data.images.decoding import Decoding, decode, decode_numbers, upright
from kbench.data.images.headers import Damaged, read_header
from kbench.data.images.readers import image
from kbench.data.masks.kinds import index, values
from kbench.data.masks.layers import per_class
from kbench.data.table.table import Table
from kbench.data.table.verify import Opening, look, look_at_images
from kbench.errors import DataError

IGNORE = Decoding("ignore")
COLOUR, GREY = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
RAMP = np.arange(48 * 56 * 3, dtype=np.float64).reshape(48, 56, 3)


def picture(channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """[48, 56, C] without any symmetry."""
    top = 255 if dtype == np.uint8 else 4000
    ramp = (RAMP / RAMP.max() * top).astype(dtype)
    return np.ascontiguousarray(np.concatenate([ramp, ramp[:, :, :1]], 2)[:, :, :channels])


def saved(pixels: np.ndarray, format: str, orientation: int = 0, **how: Any) -> bytes:
    """Return a file written by Pillow, with the orientation in its EXIF block."""
    if format == "TIFF":
        return tiff(pixels, orientation=orientation, **how)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    with io.BytesIO() as file:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format, exif=exif, **how)
        return file.getvalue()


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return what an image of an orientation looks like upright, by transposes written down one by one."""
    ways = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.swapaxes(0, 1),
            6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90(pixels)}  # fmt: skip
    return ways[orientation]


KINDS = [
    ("JPEG", 3, {"quality": 100, "subsampling": 0}), ("JPEG", 1, {"quality": 100}), ("PNG", 3, {}), ("PNG", 1, {}),
    ("PNG", 4, {}), ("WEBP", 3, {"lossless": True}), ("TIFF", 1, {}), ("TIFF", 3, {}), ("TIFF", 4, {}),
    ("TIFF", 3, {"big_endian": True}),
]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "channels", "how"), KINDS)
@pytest.mark.parametrize("square", [False, True])
def test_header_reader_and_pixels_agree_on_every_orientation(
    tmp_path: Path, format: str, channels: int, how: dict[str, Any], orientation: int, square: bool
) -> None:
    pixels = picture(channels)[:, :48] if square else picture(channels)
    pixels = np.ascontiguousarray(pixels)
    path = tmp_path / "a.img"
    path.write_bytes(saved(pixels, format, orientation, **how))
    plain = tmp_path / "plain.img"
    plain.write_bytes(saved(pixels, format, **how))
    stored = decode(plain, cv2.IMREAD_UNCHANGED)
    if format != "JPEG":
        np.testing.assert_array_equal(stored, pixels)
    for decoding in (Decoding(), IGNORE):
        expected = turned(stored, orientation) if decoding is not IGNORE else stored
        np.testing.assert_array_equal(decode(path, cv2.IMREAD_UNCHANGED, decoding), expected)
        np.testing.assert_array_equal(image(_channels=channels, _decoding=decoding)([path]), expected)
        assert look(path, decoding=decoding) == look(path, deep=True, decoding=decoding) == expected.shape
        stacked = image(_channels=2 * channels, _decoding=decoding)([path, path])
        np.testing.assert_array_equal(stacked, np.concatenate([expected, expected], axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_the_standard_says(orientation: int) -> None:
    np.testing.assert_array_equal(upright(picture(), orientation), turned(picture(), orientation))


def test_photographs_are_decoded_as_opencv_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(picture(), "JPEG", 6))
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for flags in (COLOUR, GREY):
        expected = cv2.imdecode(content, flags)
        np.testing.assert_array_equal(decode(path, flags), expected.reshape(*expected.shape[:2], -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_colours_of_a_tiff_are_red_green_blue_whatever_its_type(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(picture(3, dtype)))
    np.testing.assert_array_equal(image(_channels=3)([path]), picture(3, dtype))
    if dtype in (np.uint8, np.uint16, np.int16):
        path.write_bytes(tiff(picture(4, dtype)))
        np.testing.assert_array_equal(image(_channels=3)([path]), picture(3, dtype))


def test_planes_of_more_than_8_bits_are_refused_rather_than_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(picture(), planes=True))
    np.testing.assert_array_equal(image(_channels=3)([path]), picture())
    for dtype in (np.uint16, np.float32):
        path.write_bytes(tiff(picture(3, dtype), planes=True))
        with pytest.raises(DataError, match="one after another"):
            image(_channels=3)([path])
    path.write_bytes(tiff(picture(2, np.uint16)))
    with pytest.raises(DataError, match="is decoded as"):
        decode(path, cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(
    ("format", "mode", "shape"),
    [("PNG", "P", (3,)), ("PNG", "LA", (4,)), ("PNG", "1", (1,)), ("BMP", "L", (1,)), ("BMP", "P", (3,)),
     ("BMP", "RGB", (3,)), ("GIF", "P", (3,)), ("JPEG", "CMYK", (3,)), ("JPEG2000", "RGB", (3,)),
     ("JPEG2000", "L", (1,)), ("PPM", "RGB", (3,)), ("PPM", "L", (1,)), ("PPM", "1", (1,)), ("WEBP", "RGB", (3,)),
     ("AVIF", "RGB", (3,))],
)  # fmt: skip
def test_the_size_a_header_tells_is_the_size_that_is_decoded(
    tmp_path: Path, format: str, mode: str, shape: tuple[int]
) -> None:
    path = tmp_path / "a.img"
    Image.fromarray(picture()).convert(mode).save(path, format)
    assert look(path) == (48, 56, *shape) == decode(path, cv2.IMREAD_UNCHANGED).shape


def test_a_16_bit_png_says_so(tmp_path: Path) -> None:
    for pixels, dtype in ((picture(3), "uint8"), (picture(3, np.uint16), "uint16")):
        header = read_header(bytes(cv2.imencode(".png", pixels)[1]))
        assert header is not None
        assert header.dtype == dtype


def test_palette_masks_are_numbers_turned_as_their_file_says(tmp_path: Path) -> None:
    numbers = (np.arange(48 * 56).reshape(48, 56) % 7).astype(np.uint8)
    coloured = Image.fromarray(numbers, "P")
    coloured.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] * 85)
    exif = Image.Exif()
    exif[274] = 6
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        coloured.save(tmp_path / "a.img", format, **({"exif": exif} if format == "PNG" else {}))
        expected = turned(numbers[:, :, None], 6 if format == "PNG" else 1)
        np.testing.assert_array_equal(decode_numbers(tmp_path / "a.img"), expected)
        np.testing.assert_array_equal(decode_numbers(tmp_path / "a.img", IGNORE), numbers[:, :, None])


def test_masks_follow_the_same_rule_as_images(tmp_path: Path) -> None:
    mask = (picture(1) > 100).astype(np.uint8) * 255
    (tmp_path / "m.tif").write_bytes(tiff(mask, orientation=6))
    (tmp_path / "m.png").write_bytes(saved(mask, "PNG", 8))
    (tmp_path / "v.tif").write_bytes(tiff(picture(1, np.float32), orientation=5))
    for decoding in (Decoding(), IGNORE):
        on = decoding is not IGNORE
        for name, orientation in (("m.tif", 6), ("m.png", 8)):
            expected = turned(mask, orientation) if on else mask
            read = index(folder="", _classes=("x",), _decoding=decoding).read
            np.testing.assert_array_equal(read(tmp_path, (name,), lambda: (0, 0)), expected // 255)
            size = expected.shape[:2]
            several = per_class(folder="", _classes=("x",), _task="segmentation", _decoding=decoding).read
            made = several(tmp_path, (name,), lambda size=size: size)
            np.testing.assert_array_equal(made, expected // 255)
        expected = turned(picture(1, np.float32), 5) if on else picture(1, np.float32)
        numbers = values(folder="", _decoding=decoding).read(tmp_path, ("v.tif",), lambda: (0, 0))
        np.testing.assert_array_equal(numbers, expected)


# -- limits -----------------------------------------------------------------------------------------------------


def huge_png(side: int) -> bytes:
    """Return a small file of a large black image of one bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_an_image_over_the_limit_is_refused_by_header_check_reader_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(huge_png(50_000))
    assert path.stat().st_size < 400_000
    code = f"""
import resource
from pathlib import Path
from kbench.data.images.decoding import decode
from kbench.data.table.verify import look
from kbench.errors import DataError
path = Path({str(path)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(look(path), look(path, deep=True))
try:
    decode(path, -1)
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *said, grown = done.stdout.splitlines()
    assert first.count("with more than 1,073,741,824 pixels (input.max_pixels)") == 2
    assert "50,000 x 50,000 pixels" in said[0]
    assert "max_pixels: 2500000000" in said[2]
    assert int(grown) < 50_000, "kB: nothing was decoded"
    assert done.stderr == ""


def test_the_yaml_moves_the_limit_either_way(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(huge_png(14_000))  # more pixels than Pillow opens
    mask = index(folder="", _classes=("x",))
    assert look(path) == look(path, deep=True) == (14_000, 14_000, 1)
    assert mask.read(tmp_path, ("a.png",), lambda: (0, 0)).shape == (14_000, 14_000, 1)
    low = Decoding(max_pixels=10_000)
    assert look(path, decoding=low) == "with more than 10,000 pixels (input.max_pixels)"
    for read in (image(_channels=1, _decoding=low), lambda paths: decode_numbers(paths[0], low)):
        with pytest.raises(DataError, match=r"10,000 pixels at most \(input.max_pixels\)"):
            read([path])


# -- what the check decodes is what training decodes ------------------------------------------------------------


def checked(root: Path, *rows: tuple[str, ...], channels: int = 3) -> dict[str, list[str]]:
    table = Table(np.array([f"{row:03d}" for row in range(len(rows))]), root, rows, "single_label", ())
    opening = Opening(read=image(_channels=channels))
    return look_at_images(table, progress=lambda *_: None, deep=True, opening=opening).reasons


def test_the_check_refuses_what_the_reader_refuses(tmp_path: Path) -> None:
    grey = picture(1, np.float32)
    contents = {
        "float.tif": tiff(grey), "bands.tif": tiff(np.repeat(grey, 6, 2)), "good.png": saved(picture(), "PNG"),
        "tga.png": saved(picture(), "TGA"), "ico.png": saved(picture(), "ICO"), "flipped.png": b"",
    }  # fmt: skip
    flipped = bytearray(contents["good.png"])
    flipped[len(flipped) // 2] ^= 0x5A
    contents["flipped.png"] = bytes(flipped)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows = [(name,) for name in sorted(contents)]
    refused = {name for names in checked(tmp_path, *rows).values() for name in names}
    unread = set()
    for name in contents:
        try:
            image(_channels=3)([tmp_path / name])
        except DataError:
            unread.add(name)
    assert refused == unread == set(contents) - {"good.png"}


def test_rows_of_mixed_channels_depths_or_sizes_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(picture(1), "PNG"))
    (tmp_path / "b.png").write_bytes(saved(picture(3), "PNG"))
    (tmp_path / "c.tif").write_bytes(tiff(picture(1, np.uint16)))
    (tmp_path / "d.png").write_bytes(saved(np.ascontiguousarray(picture(1)[:20]), "PNG"))
    assert checked(tmp_path, ("a.png", "a.png"), channels=2) == {}
    for row in (("a.png", "b.png"), ("a.png", "c.tif"), ("a.png", "d.png")):
        (names,) = checked(tmp_path, row, channels=2).values()
        assert tuple(names) == row
    (reason,) = checked(tmp_path, ("b.png",), channels=4)
    assert reason == "that the reader refuses (4 channels (input.channels))"


def test_element_types_of_a_table_are_told_by_headers(tmp_path: Path) -> None:
    for name, dtype in (("a", np.uint8), ("b", np.uint16), ("c", np.uint8)):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), picture(3, dtype))
    table = Table(np.array(["a", "b", "c"]), tmp_path, (("a.png",), ("b.png",), ("c.png",)), "single_label", ())
    (problem,) = look_at_images(table, progress=lambda *_: None).problems()
    assert problem.what == (
        "pixels of 2 element types: uint16: 1 image such as 'b.png'; uint8: 2 images such as 'a.png'"
    )


@pytest.mark.parametrize(("orientation", "masks", "warned"), [
    (6, "plain", True), (6, "turned", False), (6, "texts", True), (6, "none", False), (1, "plain", False),
    (0, "plain", False), (3, "plain", True), (2, "plain", True),
])  # fmt: skip
def test_images_that_are_turned_without_their_masks_are_warned_of(
    tmp_path: Path, orientation: int, masks: str, warned: bool
) -> None:
    pixels = np.ascontiguousarray(picture()[:, :48])
    (tmp_path / "a.jpg").write_bytes(saved(pixels, "JPEG", orientation))
    (tmp_path / "m.png").write_bytes(saved(pixels[:, :, :1], "PNG", orientation if masks == "turned" else 0))
    cells = {"texts": (("1 2",),), "none": None}.get(masks, (("m.png",),))
    table = Table(np.array(["a"]), tmp_path, (("a.jpg",),), "segmentation", ("x",), masks=cells,
                  encoded=masks == "texts")  # fmt: skip
    for deep in (False, True):
        report = look_at_images(table, progress=lambda *_: None, deep=deep)
        assert [("'a.jpg'" in text, "orientation: ignore" in text) for text in report.warnings()] == [
            (True, True)
        ] * warned
        ignoring = look_at_images(table, progress=lambda *_: None, deep=deep, opening=Opening(IGNORE))
        assert ignoring.warnings() == []


# -- quiet, and whatever the bytes ------------------------------------------------------------------------------


def test_nothing_reaches_the_terminal_but_what_python_writes(tmp_path: Path) -> None:
    jpeg, png, lossy = saved(picture(), "JPEG"), saved(picture(), "PNG"), tiff(picture())
    contents = [jpeg[:-2] + bytes(50) + jpeg[-2:], jpeg[: len(jpeg) // 2], png[: len(png) // 2],
                lossy[: len(lossy) // 2], saved(picture(), "PNG", icc_profile=b"junk" * 40)]  # fmt: skip
    for place, content in enumerate(contents):
        (tmp_path / f"{place}.img").write_bytes(content)
    code = f"""
import os, sys, threading
from pathlib import Path
from kbench.data.images.decoding import decode
from kbench.data.table.verify import look
from kbench.errors import DataError
def read(path):
    for _ in range(50):
        look(path, deep=True)
        for flags in (-1, 258):
            try:
                decode(path, flags)
            except DataError:
                pass
threads = [threading.Thread(target=read, args=(path,)) for path in Path({str(tmp_path)!r}).iterdir()]
for thread in threads:
    thread.start()
for number in range(200):
    print("ours", number, file=sys.stderr)
for thread in threads:
    thread.join()
os.write(2, b"theirs\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [*(f"ours {number}" for number in range(200)), "theirs"]


def test_no_header_raises_anything_but_damage() -> None:
    rng = np.random.default_rng(0)
    formats = [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ]
    contents = [
        saved(picture(), format, 6, **how) for format, how in formats if format not in ("GIF", "BMP", "PPM", "JPEG2000")
    ]
    contents += [
        bytes(cv2.imencode(suffix, picture())[1]) for suffix in (".bmp", ".ppm", ".jp2", ".gif", ".hdr", ".ras")
    ]
    contents += [tiff(picture(), orientation=6), tiff(picture(6), big_endian=True)]
    for content in contents:
        assert read_header(content) is not None
        for _ in range(150):
            damaged = bytearray(content[: int(rng.integers(1, min(len(content), 600)))])
            for _ in range(int(rng.integers(0, 5))):
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            try:
                header = read_header(bytes(damaged))
            except Damaged:
                continue
            assert header is None or header.pixels > 0


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_numbers_that_are_no_colours_are_told_the_channels_that_read_them(tmp_path: Path, dtype: Any) -> None:
    (tmp_path / "v.tif").write_bytes(tiff(picture(1, dtype)))
    with pytest.raises(DataError, match=r"has 1 channel of .*, which cannot be shown as colours") as caught:
        image(_channels=3)([tmp_path / "v.tif"])
    assert "channels: 1}" in caught.value.todo
    np.testing.assert_array_equal(image(_channels=1)([tmp_path / "v.tif"]), picture(1, dtype))
