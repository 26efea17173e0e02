from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_images import write_png
from masks_on_disk import layers, masks_of, table_of, write
from PIL import Image
from places import SHARED
from streets_and_salt import CELLS, NAMES, SIGNATE, cells, salt, scene, write_salt, write_street

from kbench import registry
from kbench.data.masks.cache import look_at_masks, sizes_of
from kbench.data.masks.kinds import colour, index, values
from kbench.data.table.reading import MaskKind
from kbench.errors import ConfigError, DataError


def layer(*places: tuple[int, int], size: tuple[int, int] = (2, 3)) -> np.ndarray:
    made = np.zeros(size, dtype=np.uint8)
    for place in places:
        made[place] = 255
    return made


# -- index ------------------------------------------------------------------------------------------------------


def test_class_numbers_with_an_ignored_one(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 1, 2], [2, 7, 0]], dtype=np.uint8))
    kind = index(folder="m", ignore=[7], _classes=("x", "y", "z"))
    [mask] = masks_of(tmp_path, kind)
    assert (mask.dtype, mask.shape) == (np.uint8, (2, 3, 1))
    assert mask[:, :, 0].tolist() == [[0, 1, 2], [2, 255, 0]]


def test_values_are_merged_into_classes_by_name(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[10, 11, 30], [40, 50, 60]], dtype=np.uint16))
    given: dict[str, int | list[int]] = {"road": [10, 11], "car": 30, "sky": 40}
    kind = index(folder="m", values=given, ignore=[50], rest="sky")
    assert kind.names == ("road", "car", "sky")
    assert masks_of(tmp_path, kind)[0][:, :, 0].tolist() == [[0, 0, 1], [2, 255, 2]]
    ordered = index(folder="m", values=given, rest="ignore", _classes=("sky", "car", "road"))
    assert masks_of(tmp_path, ordered)[0][:, :, 0].tolist() == [[2, 2, 1], [0, 255, 255]]


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_one_class_is_yes_or_no_however_yes_is_written(tmp_path: Path, top: int) -> None:
    write(tmp_path, "a", np.array([[0, top, 0]], dtype=np.uint16 if top > 255 else np.uint8))
    assert masks_of(tmp_path, index(folder="m", _classes=("salt",)))[0].ravel().tolist() == [0, 1, 0]


def test_one_class_against_all_other_values(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 3, 4, 9]], dtype=np.uint8))
    kind = index(folder="m", values={"car": [3, 4]}, ignore=[9])
    assert masks_of(tmp_path, kind)[0].ravel().tolist() == [0, 1, 1, 255]


def test_a_palette_image_holds_the_numbers_of_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("P")
    picture.putpalette([0, 0, 0, 200, 10, 10, 9, 9, 200])
    (tmp_path / "m").mkdir()
    picture.save(tmp_path / "m" / "a.png")
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    assert masks_of(tmp_path, index(folder="m", _classes=("x", "y", "z")))[0][:, :, 0].tolist() == [[0, 1], [2, 1]]


def test_strange_values_and_channels_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 5, 9]], dtype=np.uint8))
    kind = index(folder="m", _classes=("x", "y"))
    with pytest.raises(DataError, match="the values 5, 9"):
        masks_of(tmp_path, kind)
    write(tmp_path, "a", np.full((2, 3, 3), (9, 0, 0), dtype=np.uint8))
    with pytest.raises(DataError, match="3 channels") as caught:
        masks_of(tmp_path, kind)
    assert "colour" in caught.value.todo


# -- colours ----------------------------------------------------------------------------------------------------


def test_street_frames_lose_nothing(tmp_path: Path) -> None:
    root = write_street(tmp_path, train={("Tokyo1", "night"): 3, ("Tokyo2", "day"): 2})
    kind = colour(folder="seg_train_annotations", suffix=".png", colours=SIGNATE)
    found = masks_of(root, kind, images=("seg_train_images",))
    assert kind.names == NAMES
    for row, (drive, frame) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        np.testing.assert_array_equal(found[row][:, :, 0], scene(drive, frame, (61, 97)))


def test_twenty_colours_become_the_five_classes_of_the_contest(tmp_path: Path) -> None:
    root = write_street(tmp_path, train={("Tokyo1", "day"): 2})
    names = ("background", "car", "pedestrian", "lane", "signal")
    place = {"folder": "seg_train_annotations", "suffix": ".png", "colours": SIGNATE}
    others = [name for name in NAMES if name not in names]
    merged = colour(**place, merge={"background": others}, _classes=names)
    rest = colour(**place, rest="ignore", _classes=names[1:])
    [one, *_] = masks_of(root, merged, images=("seg_train_images",))
    [two, *_] = masks_of(root, rest, images=("seg_train_images",))
    truth = scene(0, 0, (61, 97))
    for number, name in enumerate(names[1:]):
        np.testing.assert_array_equal(one[:, :, 0] == number + 1, truth == NAMES.index(name))
        np.testing.assert_array_equal(two[:, :, 0] == number, truth == NAMES.index(name))
    assert set(np.unique(one)) <= set(range(5))
    alone = colour(**place, _classes=("car",))
    np.testing.assert_array_equal(
        masks_of(root, alone, images=("seg_train_images",))[0][:, :, 0], truth == NAMES.index("car")
    )


def test_what_does_not_fit_the_colours_is_named_at_once(tmp_path: Path) -> None:
    colours = {"sky": (0, 0, 1), "road": (0, 0, 2), "tree": (0, 0, 3)}
    with pytest.raises(ConfigError) as caught:
        colour(folder="m", colours=colours, ignore=["tre"], merge={"land": ["raod"]}, _classes=("sky", "land", "x"))
    text = str(caught.value)
    for part in ("'tre' is no name", "'raod' is no name", "'road', 'tree'", "classes without a value: 'land', 'x'"):
        assert part in text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
def test_a_table_of_colours_may_lie_in_the_data() -> None:
    kind = colour(folder="train/masks", colours="classes.csv", _root=SHARED / "camvid")
    assert len(kind.names) == 11
    table = table_of(SHARED / "camvid", index(folder="train/masks", ignore=[11], _classes=kind.names),
                     csv="train.csv", images=("train/images",))  # fmt: skip
    assert len(table) == 247
    found = look_at_masks(
        table.select(np.arange(0, 247, 40)), kind=index(folder="train/masks", ignore=[11], _classes=kind.names),
        size_of=sizes_of(table, None), progress=lambda done, total: None,
    )  # fmt: skip
    assert found.problems == []
    assert found.images["road"] > 0


# -- values -----------------------------------------------------------------------------------------------------


def test_targets_are_numbers_with_unknown_ones(tmp_path: Path) -> None:
    pixels = np.array([[1.5, -9999, np.inf], [np.nan, 0, 2]], dtype=np.float32)
    (tmp_path / "m").mkdir()
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "m" / "a_agbm.tif"), pixels)
    kind = values(folder="m", suffix="_agbm.tif", nodata=-9999, scale=2)
    [mask] = masks_of(tmp_path, kind, task="dense_regression")
    assert (kind.names, mask.dtype, mask.shape) == (("value",), np.float32, (2, 3, 1))
    np.testing.assert_array_equal(mask[:, :, 0], [[3, np.nan, np.nan], [np.nan, 0, 4]])


def test_a_geotiff_says_itself_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write_png(tmp_path / "i" / "a.png", np.zeros((1, 3, 3), dtype=np.uint8))
    picture = Image.fromarray(np.array([[1, -32768, 3]], dtype=np.float32))
    picture.save(tmp_path / "m" / "a.tif", tiffinfo={42113: "-32768"})
    [mask] = masks_of(tmp_path, values(folder="m"), task="dense_regression")
    np.testing.assert_array_equal(mask.ravel(), [1, np.nan, 3])


def test_arrays_have_a_channel_per_target(tmp_path: Path) -> None:
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    (tmp_path / "m").mkdir()
    np.save(tmp_path / "m" / "a.npy", np.arange(12).reshape(2, 3, 2))
    [mask] = masks_of(tmp_path, values(folder="m", _classes=("x", "y")), task="dense_regression")
    np.testing.assert_array_equal(mask, np.arange(12).reshape(2, 3, 2))
    with pytest.raises(DataError, match="2 channels"):
        masks_of(tmp_path, values(folder="m"), task="dense_regression")


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [(np.float64, -1.7976931348623157e308), (np.float64, np.nan), (np.float64, -9999.0), (np.float64, 0.1),
     (np.float32, float(np.finfo(np.float32).min)), (np.float32, 0.1), (np.int32, -9999.0), (np.uint16, -9999.0)],
)  # fmt: skip
def test_no_data_of_any_size_is_unknown_without_a_warning(dtype: type, nodata: float, tmp_path: Path) -> None:
    write_png(tmp_path / "i" / "a.png", np.zeros((1, 3, 3), dtype=np.uint8))
    (tmp_path / "m").mkdir()
    fits = dtype is not np.uint16
    np.save(tmp_path / "m" / "a.npy", np.array([[1, nodata if fits else 2, 3]], dtype=dtype))
    [mask] = masks_of(tmp_path, values(folder="m", nodata=nodata), task="dense_regression")
    np.testing.assert_array_equal(mask.ravel(), [1, np.nan if fits else 2, 3])


def test_a_scale_that_no_float32_holds_makes_a_number_unknown(tmp_path: Path) -> None:
    write_png(tmp_path / "i" / "a.png", np.zeros((1, 2, 3), dtype=np.uint8))
    (tmp_path / "m").mkdir()
    np.save(tmp_path / "m" / "a.npy", np.array([[1, 1e30]], dtype=np.float32))
    [mask] = masks_of(tmp_path, values(folder="m", scale=1e10), task="dense_regression")
    np.testing.assert_array_equal(mask.ravel(), [np.float32(1e10), np.nan])


@pytest.mark.parametrize("array", [np.zeros(6), np.zeros((1, 2, 3, 4)), np.array([["a", "b"]]), np.float32(3)])
def test_an_array_that_is_no_map_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    (tmp_path / "m").mkdir()
    np.save(tmp_path / "m" / "a.npy", array)
    with pytest.raises(DataError, match="the shape"):
        masks_of(tmp_path, values(folder="m"), task="dense_regression")


# -- run-length texts -------------------------------------------------------------------------------------------


def rle(**params: Any) -> MaskKind:
    return registry.build("mask", "rle", {key: value for key, value in params.items() if key[0] != "_"},
                          **{key: value for key, value in params.items() if key[0] == "_"})  # fmt: skip


def test_salt_is_the_same_from_texts_and_from_files(tmp_path: Path) -> None:
    root = write_salt(tmp_path, train=12)
    place = {"csv": "train.csv", "images": ("train/images",)}
    texts = masks_of(root, rle(_classes=("salt",)), **place)
    files = masks_of(root, index(folder="train/masks", _classes=("salt",)), **place)
    ids = table_of(root, rle(_classes=("salt",)), **place).ids.tolist()
    made = {f"{np.random.default_rng(row).integers(16**10):010x}": salt(row)[1] for row in range(12)}
    assert any(mask.any() for mask in texts)
    assert any(not mask.any() for mask in texts)
    for name, text, file in zip(ids, texts, files, strict=True):
        np.testing.assert_array_equal(text, file)
        np.testing.assert_array_equal(text[:, :, 0], made[name])


def write_rows(root: Path, text: str, *names: str, csv: str = "train.csv") -> None:
    (root / csv).write_text(text)
    for name in names:
        write_png(root / "i" / f"{name}.png", np.zeros((2, 3, 3), dtype=np.uint8))


def test_a_column_per_class(tmp_path: Path) -> None:
    write_rows(tmp_path, "id,fish,sand\na,1 2,5 1\nb,-1,\n", "a", "b")
    kind = rle(empty=["-1"], columns={"flower": "fish"}, _classes=("flower", "sand"), _task="multi_label_segmentation")
    a, b = masks_of(tmp_path, kind, csv="train.csv", task="multi_label_segmentation")
    assert a.shape == (2, 3, 2)
    assert a[:, :, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert a[:, :, 1].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert not b.any()


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("image,kind,runs\na.png,1,1 2\na.png,2,5 1\na.png,2,6 1\n", {"label": "kind"}),
        ("key,runs\na.png_1,1 2\na.png_2,5 1\na.png_2,6 1\n", {"key": "{id}_{class}"}),
    ],
)
def test_a_long_table_with_objects(tmp_path: Path, text: str, params: dict[str, str]) -> None:
    write_rows(tmp_path, text, "a", "b", csv="runs.csv")
    given = {"csv": "runs.csv", "column": "runs", "labels": {"x": "1", "y": "2"}, **params}
    kind = rle(**given, _classes=("x", "y"), _task="multi_label_segmentation")
    a, b = masks_of(tmp_path, kind, task="multi_label_segmentation")
    assert a[:, :, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert a[:, :, 1].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert not b.any()
    exclusive = rle(**given, background="none", _classes=("none", "x", "y"), _task="segmentation")
    assert masks_of(tmp_path, exclusive)[0][:, :, 0].tolist() == [[1, 0, 2], [1, 0, 2]]
    ignored = rle(**given, _classes=("x", "y"), _task="segmentation")
    assert masks_of(tmp_path, ignored)[0][:, :, 0].tolist() == [[0, 255, 1], [0, 255, 1]]


def test_a_long_table_that_does_not_fit_says_all(tmp_path: Path) -> None:
    write_rows(tmp_path, "key,runs\na_1,1 2\nc,5 1\na_3,6 1\n", "a", csv="runs.csv")
    kind = rle(csv="runs.csv", column="runs", key="{id}_{class}", labels={"x": "1", "y": "2"}, _classes=("x", "y"))
    with pytest.raises(DataError, match="2 ids not made as") as caught:
        table_of(tmp_path, kind)
    assert "'c', 'a_3'" in str(caught.value)
    write_rows(tmp_path, "image,kind,runs\nq,1,1 2\na,5,1 2\n", csv="runs.csv")
    kind = rle(csv="runs.csv", column="rns", label="kind", _classes=("x", "y"))
    with pytest.raises(DataError, match="did you mean 'runs'"):
        table_of(tmp_path, kind)
    kind = rle(csv="runs.csv", column="runs", label="kind", _classes=("x", "y"))
    with pytest.raises(DataError, match="2 rows of no class: '1', '5'"):
        table_of(tmp_path, kind)


def test_classes_that_share_a_pixel_are_refused_where_they_exclude_one_another(tmp_path: Path) -> None:
    write_rows(tmp_path, "id,x,y\na,1 3,2 1\n", "a")
    with pytest.raises(DataError, match="1 pixels of"):
        masks_of(tmp_path, rle(_classes=("x", "y"), _task="segmentation"), csv="train.csv")


# -- one file per class, or per object --------------------------------------------------------------------------


@pytest.mark.parametrize("place", [{"folder": "m/{class}"}, {"folder": "m", "suffix": "_{class}.png"}])
def test_one_file_per_class(tmp_path: Path, place: dict[str, str]) -> None:
    for name, made in (("sea", layer((0, 0), (1, 0))), ("land", layer((0, 2)))):
        folder = place["folder"].replace("{class}", name)
        file = "a" if "suffix" not in place else f"a_{name}"
        write(tmp_path, file, made, folder=folder, image=False)
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    task = "multi_label_segmentation"
    kind = layers("per_class", **place, labels={"water": "sea"}, _classes=("water", "land"), _task=task)
    [mask] = masks_of(tmp_path, kind, task=task)
    assert mask[:, :, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert mask[:, :, 1].tolist() == [[0, 0, 1], [0, 0, 0]]
    kind = layers("per_class", **place, labels={"water": "sea"}, background="air", missing="empty",
                  _classes=("air", "water", "land"), _task="segmentation")  # fmt: skip
    [mask] = masks_of(tmp_path, kind)
    assert mask[:, :, 0].tolist() == [[1, 0, 2], [1, 0, 0]]


def test_a_missing_class_file_is_an_error_or_an_empty_mask(tmp_path: Path) -> None:
    write(tmp_path, "a", layer((0, 1)), folder="m/x")
    write(tmp_path, "b", layer((0, 1)), folder="m/y", image=False)
    task = "multi_label_segmentation"
    params = {"folder": "m/{class}", "_classes": ("x", "y"), "_task": task}
    with pytest.raises(DataError, match=r"1 missing file: 'm/y/a\.png'"):
        table_of(tmp_path, layers("per_class", **params), task=task)
    kind = layers("per_class", **params, missing="empty")
    assert table_of(tmp_path, kind, task=task).masks == (("m/x/a.png", ""),)
    assert not masks_of(tmp_path, kind, task=task)[0][:, :, 1].any()


def test_objects_of_a_class_are_united(tmp_path: Path) -> None:
    for name, made in (("1_cat", layer((0, 0))), ("2_cat", layer((0, 0), (1, 1))), ("3_dog", layer((0, 2)))):
        write(tmp_path, name, made, folder="m/a", image=False)
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    kind = layers("instances", folder="m/{id}", label=r"\d_(?P<label>\w+)\.png", background="none",
                  _classes=("none", "cat", "dog"), _task="segmentation")  # fmt: skip
    assert masks_of(tmp_path, kind)[0][:, :, 0].tolist() == [[1, 0, 2], [0, 1, 0]]
    alone = layers("instances", folder="m/{id}", _classes=("animal",), _task="segmentation")
    assert masks_of(tmp_path, alone)[0][:, :, 0].tolist() == [[1, 0, 1], [0, 1, 0]]
    write_png(tmp_path / "i" / "b.png", np.zeros((2, 3, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="1 missing folder: 'm/b'"):
        table_of(tmp_path, alone)
    (tmp_path / "m" / "b").mkdir()
    assert not masks_of(tmp_path, alone)[1].any()
    strange = layers("instances", folder="m/{id}", label=r"\d_(?P<label>\w+)\.png", _classes=("cat", "cow"),
                     _task="segmentation")  # fmt: skip
    with pytest.raises(DataError, match=r"1 file of no class: 'm/a/3_dog\.png'"):
        table_of(tmp_path, strange)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("per_class", {"folder": "m"}),
        ("per_class", {"folder": "m/{class}", "labels": {"z": "1"}}),
        ("per_class", {"folder": "m/{class}", "background": "z"}),
        ("instances", {"folder": "m"}),
        ("instances", {"folder": "m/{id}"}),
        ("instances", {"folder": "m/{id}", "label": "("}),
        ("instances", {"folder": "m/{id}", "label": "x"}),
        ("rle", {"convention": "tsg"}),
        ("rle", {"label": "kind"}),
        ("rle", {"key": "x", "csv": "y"}),
        ("rle", {"columns": {"z": "1"}}),
        ("index", {"folder": "m", "values": {"x": 1, "y": 1}}),
        ("index", {"folder": "m", "values": {"x": 1, "y": 70000}}),
        ("index", {"folder": "m", "rest": "z"}),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(kind: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        layers(kind, **params, _classes=("x", "y"), _task="segmentation")


def test_all_wrong_masks_are_named(tmp_path: Path) -> None:
    for row in range(14):
        write(tmp_path, f"{row:02d}", np.full((2, 3), row % 4, dtype=np.uint8))
    kind = index(folder="m", _classes=("x", "y"))
    table = table_of(tmp_path, kind)
    found = look_at_masks(table, kind=kind, size_of=sizes_of(table, None), progress=lambda done, total: None, jobs=2)
    assert len(found.problems) == 6
    assert found.problems[0].where == "data.masks: row '02'"


def test_look_alikes_keep_the_proportions_of_the_contest() -> None:
    made = cells(200)
    assert abs(sum(made.values()) - 200) < 3
    assert list(made) == list(CELLS)
