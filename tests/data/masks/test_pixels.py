"""Yes and no in files of every kind: right, or refused by name; true pixels are known from how the files are made."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_images import write_png
from masks_on_disk import layers, masks_of, table_of
from PIL import Image

from kbench.data.masks.cache import look_at_masks, sizes_of
from kbench.data.masks.kinds import colour, index, values
from kbench.data.table.reading import MaskKind
from kbench.errors import ConfigError, DataError, KbenchError

SIZE = (40, 48)


def disc(row: int = 20, column: int = 24, radius: float = 6) -> np.ndarray:
    """[40, 48] bool, a disc."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def save(root: Path, pixels: np.ndarray, *, file: str = "a.png", **options: Any) -> None:
    """Write a mask with Pillow, OpenCV or NumPy, by its ending, and an image of its size."""
    path = root / "m" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif options or pixels.ndim == 3:
        Image.fromarray(pixels).save(path, **options)
    else:
        assert cv2.imwrite(str(path), pixels)
    write_png(root / "i" / f"{path.stem}.png", np.zeros((*pixels.shape[:2], 3), dtype=np.uint8))


def save_bits(root: Path, pixels: np.ndarray, bits: int) -> None:
    """Write a grey PNG of 1, 2 or 4 bits, whose every row ends with a whole byte."""
    each = 8 // bits
    packed = sum(pixels[:, place::each].astype(np.uint16) << (8 - bits * (place + 1)) for place in range(each))
    rows = b"".join(b"\0" + bytes(row) for row in np.asarray(packed).tolist())

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    (root / "m").mkdir(parents=True, exist_ok=True)
    (root / "m" / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    write_png(root / "i" / "a.png", np.zeros((*pixels.shape, 3), dtype=np.uint8))


def one_class(kind: str, **options: Any) -> MaskKind:
    """A kind of one class whose files lie in `m`; objects have one folder for all, as there is one image."""
    place = {"instances": "m", "per_class": "m", "index": "m"}[kind]
    folder = {"folder": f"{place}/{{id}}"} if kind == "instances" else {"folder": place}
    given = {"_classes": ("blob",)} | ({} if kind == "index" else {"_task": "segmentation"})
    return layers(kind, **folder, **options, **given)


def read(root: Path, kind: str, **options: Any) -> np.ndarray:
    """Return the [H, W] mask of the one image."""
    if kind == "instances":
        [file] = [path for path in (root / "m").iterdir() if path.is_file()]
        (root / "m" / "a").mkdir()
        file.rename(root / "m" / "a" / file.name)
    return masks_of(root, one_class(kind, **options))[0][:, :, 0]


KINDS = ("index", "per_class", "instances")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [60, 90])
def test_black_and_white_stored_with_losses_is_cut_at_half(tmp_path: Path, kind: str, quality: int) -> None:
    """The trial jpeg-masks: the fringe of the compression is no part of the class."""
    save(tmp_path, disc().astype(np.uint8) * 255, file="a.jpg", quality=quality)
    raw = cv2.imread(str(tmp_path / "m" / "a.jpg"), cv2.IMREAD_GRAYSCALE)
    assert (raw > 127).sum() == disc().sum() == 113
    assert (raw > 0).sum() > 140
    np.testing.assert_array_equal(read(tmp_path, kind), disc())


@pytest.mark.parametrize("kind", KINDS)
def test_a_dim_mask_stored_with_losses_is_refused_with_a_level_that_works(tmp_path: Path, kind: str) -> None:
    save(tmp_path, disc(radius=12).astype(np.uint8) * 80, file="a.jpg", quality=95)
    with pytest.raises(DataError, match="brightest pixel is 8") as caught:
        read(tmp_path, kind)
    assert "threshold: 4" in caught.value.todo
    found = masks_of(tmp_path, one_class(kind, threshold=40))[0]
    np.testing.assert_array_equal(found[:, :, 0], disc(radius=12))


@pytest.mark.parametrize("kind", KINDS)
def test_void_and_yes_in_one_file_are_refused_until_the_yaml_says_what_is_void(tmp_path: Path, kind: str) -> None:
    """The trial void-in-one-class: 1 is the blob, a ring of 255 round it is void."""
    pixels = np.where(disc(), 1, np.where(disc(radius=8), 255, 0)).astype(np.uint8)
    save(tmp_path, pixels)
    with pytest.raises(DataError, match=r"a\.png' has the values 0, 1, 255") as caught:
        read(tmp_path, kind)
    assert "ignore: [255]" in caught.value.todo
    mask = masks_of(tmp_path, one_class(kind, ignore=[255]))[0][:, :, 0]
    assert (int((mask == 1).sum()), int((mask == 255).sum())) == (int(disc().sum()), int((pixels == 255).sum()))
    np.testing.assert_array_equal(mask == 1, disc())
    assert int((masks_of(tmp_path, one_class(kind, threshold=0))[0] == 1).sum()) == int((pixels > 0).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_two_ways_to_say_yes_in_16_bits_are_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path, np.where(disc(), 65535, np.where(disc(radius=8), 255, 0)).astype(np.uint16))
    with pytest.raises(DataError, match="255, 65535"):
        read(tmp_path, kind)


def test_ways_that_differ_between_files_are_remembered_for_a_warning(tmp_path: Path) -> None:
    save(tmp_path, disc().astype(np.uint8), file="a.png")
    save(tmp_path, disc().astype(np.uint8) * 255, file="b.png")
    kind = one_class("per_class")
    table = table_of(tmp_path, kind)
    report = look_at_masks(table, kind=kind, size_of=sizes_of(table, None), progress=lambda done, total: None)
    assert (report.problems, report.images) == ([], {"blob": 2})
    assert kind.on == {1: "m/a.png", 255: "m/b.png"}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_numbers_of_objects_are_the_class_that_rest_names(tmp_path: Path, dtype: Any) -> None:
    """The trial instances-rest: 16-bit numbers of objects and one class."""
    numbers = [1, 2] if dtype == np.uint8 else [300, 40001] if dtype == np.uint16 else [7, 1_000_000]
    pixels = np.zeros(SIZE, dtype=dtype)
    pixels[disc(10, 10)], pixels[disc(28, 30)] = numbers
    save(tmp_path, pixels, file="a.tif" if dtype == np.int32 else "a.png")
    with pytest.raises(DataError, match=f"has the values {numbers[0]}|values {numbers[1]}") as caught:
        masks_of(tmp_path, one_class("index"))
    assert "rest: blob" in caught.value.todo
    np.testing.assert_array_equal(masks_of(tmp_path, one_class("index", rest="blob"))[0][:, :, 0], pixels != 0)
    beside = one_class("index", rest="blob", values={"blob": 1})
    np.testing.assert_array_equal(masks_of(tmp_path, beside)[0][:, :, 0], pixels != 0)
    void = masks_of(tmp_path, one_class("index", rest="ignore", values={"blob": numbers[0] % 65536}))[0][:, :, 0]
    assert (void[~disc(10, 10) & ~disc(28, 30)] == 0).all()
    assert (void[disc(28, 30)] == 255).all()


def test_a_rest_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="every pixel would be 'blob'"):
        index(folder="m", values={"blob": 0}, rest="blob")
    with pytest.raises(ConfigError, match="every pixel would be 'blob'"):
        colour(folder="m", colours={"blob": (255, 0, 0), "none": (0, 0, 0)}, rest="blob", _classes=("blob",))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("index", {"threshold": 127, "rest": "blob"}),
        ("index", {"threshold": 127, "values": {"blob": 1}}),
        ("index", {"ignore": [0]}),
        ("per_class", {"labels": {"blob": "b"}}),
        ("instances", {"labels": {"blob": "b"}}),
        ("per_class", {"threshold": -1}),
    ],
)
def test_options_that_would_have_no_effect_with_one_class_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        one_class(kind, **options)


@pytest.mark.parametrize("kind", ["per_class", "instances"])
def test_numbers_of_objects_are_one_class_where_nothing_is_white(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[disc(10, 10)], pixels[disc(28, 30)] = 1, 2
    save(tmp_path, pixels)
    np.testing.assert_array_equal(read(tmp_path, kind), pixels != 0)


def rgba(colour: tuple[int, int, int], alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.full((*SIZE, 3), colour, dtype=np.uint8), alpha.astype(np.uint8)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pixels",
    [
        rgba((0, 0, 0), disc() * 255),
        rgba((255, 255, 255), disc() * 255),
        np.dstack([np.zeros(SIZE, dtype=np.uint8), disc().astype(np.uint8) * 255]),
        np.dstack([disc().astype(np.uint8) * 255, np.full(SIZE, 255, dtype=np.uint8)]),
        np.dstack([disc().astype(np.uint8) * 255] * 3),
        np.dstack([*[disc().astype(np.uint8) * 255] * 3, disc().astype(np.uint8) * 255]),
    ],
    ids=["black alpha", "white alpha", "LA alone", "LA opaque", "RGB grey", "RGBA both"],
)
def test_a_mask_is_the_same_in_grey_in_colours_and_in_alpha(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    save(tmp_path, pixels)
    np.testing.assert_array_equal(read(tmp_path, kind), disc())


@pytest.mark.parametrize("kind", KINDS)
def test_colours_and_alpha_that_contradict_each_other_are_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path, np.dstack([*[disc(20, 20).astype(np.uint8) * 255] * 3, disc(20, 30).astype(np.uint8) * 255]))
    with pytest.raises(DataError, match="transparent pixels that are not black"):
        read(tmp_path, kind)


def test_classes_in_alpha_alone_are_refused(tmp_path: Path) -> None:
    save(tmp_path, rgba((0, 0, 0), disc() * 2))
    for kind in (
        index(folder="m", _classes=("x", "y", "z")),
        colour(folder="m", colours={"x": (0, 0, 0), "y": (9, 9, 9)}),
    ):
        with pytest.raises(DataError, match="an alpha channel that differs"):
            masks_of(tmp_path, kind)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_holds_the_numbers_it_stores(tmp_path: Path, bits: int) -> None:
    pixels = (np.indices((4, 16)).sum(axis=0) % (1 << bits)).astype(np.uint8)
    save_bits(tmp_path, pixels, bits)
    names = tuple(f"c{number}" for number in range(1 << bits))
    np.testing.assert_array_equal(masks_of(tmp_path, index(folder="m", _classes=names))[0][:, :, 0], pixels)
    scale = 255 // ((1 << bits) - 1)
    shown: dict[str, int | list[int]] = {name: scale * number for number, name in enumerate(names)}
    np.testing.assert_array_equal(masks_of(tmp_path, index(folder="m", values=shown))[0][:, :, 0], pixels)
    found = masks_of(tmp_path, values(folder="m"), task="dense_regression")[0][:, :, 0]
    np.testing.assert_array_equal(found, pixels)
    if bits == 1:
        np.testing.assert_array_equal(masks_of(tmp_path, one_class("per_class"))[0][:, :, 0], pixels)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_masks(tmp_path: Path, kind: str, dtype: Any) -> None:
    save(tmp_path, disc().astype(dtype), file="a.npy")
    np.testing.assert_array_equal(read(tmp_path, kind), disc())


def test_arrays_hold_classes_and_colours(tmp_path: Path) -> None:
    pixels = (np.indices(SIZE).sum(axis=0) % 3).astype(np.int64)
    save(tmp_path, pixels, file="a.npy")
    np.testing.assert_array_equal(masks_of(tmp_path, index(folder="m", _classes=("x", "y", "z")))[0][:, :, 0], pixels)
    table = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 9]], dtype=np.uint8)
    save(tmp_path, table[pixels], file="a.npy")
    colours = {name: tuple(table[row].tolist()) for row, name in enumerate("xyz")}
    np.testing.assert_array_equal(masks_of(tmp_path, colour(folder="m", colours=colours))[0][:, :, 0], pixels)  # type: ignore[arg-type]
    save(tmp_path, np.zeros((1, *SIZE, 1), dtype=np.uint8)[0], file="a.npy")
    np.save(tmp_path / "m" / "a.npy", np.zeros(5))
    with pytest.raises(DataError, match=r"the shape \[5\]"):
        masks_of(tmp_path, index(folder="m", _classes=("x", "y")))


def test_class_numbers_and_losses_do_not_go_together(tmp_path: Path) -> None:
    save(tmp_path, (disc() * 2).astype(np.uint8), file="a.jpg", quality=95)
    for kind in (index(folder="m", _classes=("x", "y", "z")), index(folder="m", values={"x": 2}, _classes=("x",))):
        with pytest.raises(DataError, match="stored with losses"):
            masks_of(tmp_path, kind)
    with pytest.raises(DataError, match="stored with losses") as caught:
        masks_of(tmp_path, one_class("index", rest="blob"))
    assert "threshold: 127" in caught.value.todo


def test_void_of_one_class_is_void_where_no_other_class_is(tmp_path: Path) -> None:
    save(tmp_path, np.where(disc(), 1, np.where(disc(radius=8), 255, 0)).astype(np.uint8), file="a_x.png")
    (tmp_path / "i" / "a_x.png").rename(tmp_path / "i" / "a.png")
    assert cv2.imwrite(str(tmp_path / "m" / "a_y.png"), disc(20, 34, 3).astype(np.uint8))
    kind = layers("per_class", folder="m", suffix="_{class}.png", background="none", ignore=[255],
                  _classes=("none", "x", "y"), _task="segmentation")  # fmt: skip
    mask = masks_of(tmp_path, kind)[0][:, :, 0]
    np.testing.assert_array_equal(mask == 1, disc())
    np.testing.assert_array_equal(mask == 2, disc(20, 34, 3))
    np.testing.assert_array_equal(mask == 255, disc(radius=8) & ~disc() & ~disc(20, 34, 3))
    kind = layers("per_class", folder="m", suffix="_{class}.png", ignore=[255], _classes=("x", "y"),
                  _task="multi_label_segmentation")  # fmt: skip
    mask = masks_of(tmp_path, kind, task="multi_label_segmentation")[0]
    assert sorted(np.unique(mask[:, :, 0]).tolist()) == [0, 1, 255]
    assert sorted(np.unique(mask[:, :, 1]).tolist()) == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    save(tmp_path, disc().astype(np.uint8))
    (tmp_path / "m" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(KbenchError, match=r"a\.png"):
        read(tmp_path, kind)


@pytest.mark.parametrize("kind", ["per_class", "instances"])
def test_a_mask_without_a_black_pixel_is_refused_with_a_level_that_works(tmp_path: Path, kind: str) -> None:
    """Numbers that count from 1: 1 is nothing and 2 the class; all of it would be taken for the class."""
    save(tmp_path, disc().astype(np.uint8) + 1)
    with pytest.raises(DataError, match="none of its pixels is black") as caught:
        read(tmp_path, kind)
    assert "threshold: 1`" in caught.value.todo
    np.testing.assert_array_equal(masks_of(tmp_path, one_class(kind, threshold=1))[0][:, :, 0], disc())


@pytest.mark.parametrize("kind", ["per_class", "instances"])
def test_colours_without_black_are_refused_and_objects_in_colours_on_black_are_not(tmp_path: Path, kind: str) -> None:
    save(tmp_path, np.dstack([~disc() * 255, disc() * 255, disc() * 0]).astype(np.uint8))
    with pytest.raises(DataError, match="several colours, and none of its pixels is black"):
        read(tmp_path, kind)
    other = tmp_path / "other"
    save(other, np.dstack([disc() * 200, (disc() & (np.arange(48) > 24)) * 90, disc() * 0]).astype(np.uint8))
    np.testing.assert_array_equal(read(other, kind), disc())


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_with_soft_edges_is_refused_with_a_level_that_works(tmp_path: Path, kind: str) -> None:
    alpha = np.where(disc(), 200, np.where(disc(radius=8), 80, 0)).astype(np.uint8)
    save(tmp_path, np.dstack([np.zeros((*SIZE, 3), dtype=np.uint8), alpha]))
    with pytest.raises(DataError, match="alpha channel of the values 0, 80, 200") as caught:
        read(tmp_path, kind)
    assert "threshold: 100" in caught.value.todo
    np.testing.assert_array_equal(masks_of(tmp_path, one_class(kind, threshold=100))[0][:, :, 0], disc())


def test_the_level_that_a_message_names_lies_between_no_and_yes(tmp_path: Path) -> None:
    save(tmp_path, disc().astype(np.uint8) * 2)
    with pytest.raises(DataError, match="has the values 2") as caught:
        read(tmp_path, "index")
    assert "`threshold: 1`" in caught.value.todo
    np.testing.assert_array_equal(masks_of(tmp_path, one_class("index", threshold=1))[0][:, :, 0], disc())
