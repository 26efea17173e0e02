"""The format of numbers per pixel: what is written is what was predicted, and what is wrong is said."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kbench import registry
from kbench.data.masks.kinds import values as value_masks
from kbench.errors import ConfigError, DataError, SubmissionError
from kbench.inference.map_store import NumberSet
from kbench.metrics.metric import make_metric
from kbench.submission.check import check_submission, read_sample, write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import Scores, grade

TASK = "dense_regression"
TARGETS = ("height", "mass")
SIZES = {"a": (5, 7), "b": (6, 4), "c_2": (3, 9)}
IDS = np.array(sorted(SIZES))


def number_set(names: tuple[str, ...] = TARGETS, *, seed: int = 0, asked: list[int] | None = None) -> NumberSet:
    """Return random numbers of three images of different sizes; `asked` notes which rows are read."""

    def read(row: int) -> np.ndarray:
        if asked is not None:
            asked.append(row)
        size = (len(names), *SIZES[str(IDS[row])])
        return np.random.default_rng(seed + row).normal(10, 3, size).astype(np.float32)

    return NumberSet(IDS, names, TASK, {}, read)


def only(values: np.ndarray, names: tuple[str, ...] = ("height",)) -> NumberSet:
    """Return the numbers of the image `a` alone."""
    return NumberSet(np.array(["a"]), names, TASK, {}, lambda row: values)


def flat(value: float) -> np.ndarray:
    return np.full((1, 5, 7), value, dtype=np.float32)


def made(names: tuple[str, ...] = TARGETS, **params: Any) -> Format:
    return registry.build("format", "number_zip", params, _names=names, _task=TASK, _sizes=SIZES.__getitem__)


def sample_of(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"id": ids or ("c_2", "a", "b"), "x": 0})


def written(folder: Path, numbers: NumberSet, format: Format, sample: pd.DataFrame, name: str = "s") -> Path:
    return write_submission(folder / f"{name}.zip", format.build(numbers, sample), sample=sample, format=format)


def archive(path: Path, **contents: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def tif(values: np.ndarray) -> bytes:
    return cv2.imencode(".tif", values)[1].tobytes()


KINDS: dict[str, dict[str, Any]] = {
    "tif of each target": {"file": "{id}_{target}.tif"},
    "tif of float64": {"file": "{target}/{id}.TIFF", "dtype": "float64"},
    "tif of whole numbers": {"file": "{id}_{target}.tif", "dtype": "uint16", "scale": 0.001},
    "png": {"file": "{target}/{id}/{id}.png", "dtype": "uint16", "scale": 0.001, "offset": -10},
    "png of bytes": {"file": "{id}_{target}.png", "dtype": "uint8", "scale": 0.25, "offset": -5.0},
    "npy": {"file": "{id}.npy"},
    "npy of each target, in other units": {"file": "{id}-{target}.npy", "dtype": "float64", "scale": 1e-3, "offset": 7},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_file_are_those_that_were_written(kind: str, tmp_path: Path) -> None:
    params, numbers, asked = KINDS[kind], number_set(), list[int]()
    format, sample = made(**params), sample_of()
    file = written(tmp_path, number_set(asked=asked), format, sample)
    assert asked == [2, 0, 1]  # in the order of the sample, one image after the other
    read = format.parse(check_submission(file, sample, format=format), sample)
    assert (read.ids.tolist(), read.names, read.task) == (IDS.tolist(), TARGETS, TASK)
    step = params.get("scale", 1) / 2 if "uint" in params.get("dtype", "") else 0
    for row in range(3):
        assert read[row].dtype == np.float32
        np.testing.assert_allclose(read[row], numbers[row], atol=step * 1.0001, rtol=1e-6 if "scale" in params else 0)
    first = file.read_bytes()
    written(tmp_path, numbers, format, sample)
    assert file.read_bytes() == first


def test_files_stand_in_the_order_of_the_sample_and_others_read_them(tmp_path: Path) -> None:
    file = written(tmp_path, number_set(), made(file="out/{id}_{target}.tif"), sample_of())
    with zipfile.ZipFile(file) as archive:
        names = [f"out/{image}_{target}.tif" for image in ("c_2", "a", "b") for target in TARGETS]
        assert archive.namelist() == names
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
        with Image.open(io.BytesIO(archive.read(names[1]))) as image:
            np.testing.assert_array_equal(np.asarray(image), number_set()[2][1])


def test_channels_keep_their_order(tmp_path: Path) -> None:
    names = ("red", "green", "blue")
    values = np.stack([flat(value)[0] for value in (1, 2, 3)])
    for params in ({"file": "{id}.png", "dtype": "uint8"}, {"file": "{id}.tif"}):
        format = made(names, **params)
        file = written(tmp_path, only(values, names), format, sample_of("a"))
        name = params["file"].replace("{id}", "a")
        with zipfile.ZipFile(file) as archive:
            (tmp_path / name).write_bytes(archive.read(name))
        kind = value_masks(folder=".", _classes=names)
        np.testing.assert_array_equal(kind.read(tmp_path, (name,), lambda: (5, 7)), values.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("ids", "file"),
    [
        (("b", "a", "c_2"), "{id}.npy"),
        (("b.npy", "a.npy", "c_2.npy"), "{id}.npy"),
        (tuple(f"{i}_{t}.tif" for i in ("b", "a", "c_2") for t in ("mass", "height")), "{id}_{target}.tif"),
    ],
)
def test_a_sample_names_images_or_files(ids: tuple[str, ...], file: str, tmp_path: Path) -> None:
    format, sample, asked = made(file=file), sample_of(*ids), list[int]()
    path = written(tmp_path, number_set(asked=asked), format, sample)
    assert asked == [1, 0, 2]
    again = read_sample(path)  # the zip is a sample of the same files
    assert [format.image_of(name) for name in again["id"]] == [format.image_of(name) for name in ids]
    read = format.parse(check_submission(path, again, format=format), again)
    np.testing.assert_array_equal(read[0], number_set()[0])


def test_a_sample_may_be_a_zip_or_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "files" / "sub").mkdir(parents=True)
    for name in ("sub/b.tif", "sub/a.tif"):
        (tmp_path / "files" / name).write_bytes(b"")
    sample = read_sample(tmp_path / "files")
    assert sample["id"].tolist() == ["sub/a.tif", "sub/b.tif"]
    file = written(tmp_path, number_set(("height",)), made(("height",), file="sub/{id}.tif"), sample)
    assert read_sample(file)["id"].tolist() == ["sub/a.tif", "sub/b.tif"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SubmissionError, match="has no rows"):
        read_sample(tmp_path / "none")


# -- what is refused before it is written -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_with_its_place(value: float, tmp_path: Path) -> None:
    values = flat(1)
    values[0, 3, 2] = value
    with pytest.raises(SubmissionError, match=r"'a.tif': 1 of 35 numbers .* at row 3, column 2, is NaN or infinite"):
        written(tmp_path, only(values), made(("height",)), sample_of("a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "params", "what"),
    [
        (-1, {"dtype": "uint8"}, "does not fit into uint8"),
        (256, {"dtype": "uint16", "scale": 0.001}, "does not fit into uint16"),
        (3e38, {"scale": 0.01}, "does not fit into float32"),
        (5, {"dtype": "uint8", "nodata": 5}, "would be written as 5, which is `nodata`"),
        (-9999, {"nodata": -9999}, "would be written as -9999"),
        (1.25, {"dtype": "uint8", "tolerance": 0.2}, r"is written as another number: 0\.25 away at most"),
        (1.05, {"dtype": "uint8", "scale": 0.1, "tolerance": 0.01}, r"is written as another number: 0\.05\d* away"),
    ],
)
def test_a_number_that_would_be_another_one_is_refused(
    value: float, params: dict[str, Any], what: str, tmp_path: Path
) -> None:
    values = flat(0 if "nodata" not in params else 1)
    values[0, 1, 6] = value
    with pytest.raises(SubmissionError, match=f"at row 1, column 6, {what}"):
        written(tmp_path, only(values), made(("height",), **params), sample_of("a"))


def test_a_clip_holds_numbers_to_what_fits(tmp_path: Path) -> None:
    values = flat(3)
    values[0, 0, 0], values[0, 0, 1] = -0.7, 400
    format, sample = made(("height",), file="{id}.png", dtype="uint8", clip=[0, 255]), sample_of("a")
    read = format.parse(
        check_submission(written(tmp_path, only(values), format, sample), sample, format=format), sample
    )
    np.testing.assert_array_equal(read[0], values.clip(0, 255))


def test_half_a_step_is_what_rounding_may_cost() -> None:
    steps = flat(0)
    steps.ravel()[:] = np.linspace(-10, 15.5, 35)
    made(("height",), dtype="uint8", scale=0.1, offset=-10).build(only(steps), sample_of("a"))
    exact = flat(0)
    exact.ravel()[:] = np.arange(35) / 10 - 10
    made(("height",), dtype="uint8", scale=0.1, offset=-10, tolerance=1e-5).build(only(exact), sample_of("a"))


def test_what_the_sample_asks_for_and_is_not_predicted_is_refused() -> None:
    with pytest.raises(SubmissionError, match="1 of 2 images are not predicted: 'd'"):
        made(file="{id}.npy").build(number_set(), sample_of("d.npy", "a.npy"))
    with pytest.raises(SubmissionError, match="there are no numbers of 'mass'"):
        made(file="{id}.npy").build(number_set(("height",)), sample_of("a"))
    with pytest.raises(SubmissionError, match=r"rows that mean one file: 'a\.npy'"):
        made(file="{id}.npy").build(number_set(), sample_of("a", "a.npy"))
    format, sample = made(file="{id}_{target}.tif"), sample_of("a_mass.tif")
    frame = format.build(number_set(), sample)
    with pytest.raises(SubmissionError, match="1 images have files of some targets alone: 'a'"):
        check_submission(frame, sample, format=format)


@pytest.mark.parametrize(
    ("names", "params", "what"),
    [
        (TARGETS, {"file": "{target}.tif"}, "needs `{id}`"),
        (TARGETS, {"file": "{id}_{class}.tif"}, "needs `{id}`"),
        (TARGETS, {"file": "{id}.jpg"}, "ends in '.jpg'"),
        (TARGETS, {"file": "{id}"}, "ends in ''"),
        (TARGETS, {"file": "{id}.tif"}, "does not hold 2 channels"),
        (tuple("abcd"), {"file": "{id}.tif"}, "does not hold 4 channels"),
        (("a",), {"file": "{id}.png"}, "a PNG cannot hold float32"),
        (("a",), {"scale": 0}, "scale not 0"),
        (("a",), {"offset": float("nan")}, "finite numbers"),
        (("a",), {"tolerance": -1}, "`tolerance`"),
        (("a",), {"clip": [1]}, "`clip`"),
        (("a",), {"clip": [2, 1]}, "`clip`"),
    ],
)
def test_a_format_that_cannot_hold_the_numbers_is_refused(
    names: tuple[str, ...], params: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError) as error:
        made(names, **params)
    assert what in str(error.value)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot write the task 'segmentation'"):
        registry.build("format", "number_zip", {}, _names=("a",), _task="segmentation")


# -- files of others --------------------------------------------------------------------------------------------


def test_a_zip_with_wrong_files_is_refused(tmp_path: Path) -> None:
    format, sample = made(("height",)), sample_of()
    infinite = np.zeros((6, 4), np.float32)
    infinite[2, 1] = np.inf
    path = archive(tmp_path / "s.zip", a__tif=tif(np.zeros((5, 6), np.float32)), b__tif=tif(infinite), d__tif=b"")
    with pytest.raises(SubmissionError) as error:
        check_submission(path, sample, format=format)
    for what in ("1 of 3 ids are missing: 'c_2'", "1 ids are not in the sample: 'd.tif'",
                 "a.tif: 5 x 6 pixels for an image of 5 x 7",
                 "b.tif: 1 numbers are NaN or infinite; the first, inf, at row 2, column 1"):  # fmt: skip
        assert what in str(error.value)
    (tmp_path / "s.zip").write_bytes(b"PK no zip")
    with pytest.raises(SubmissionError, match="cannot read"):
        check_submission(tmp_path / "s.zip", sample, format=format)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no readable '.tif' file"),
        (b"II*\0 half a file", "no readable '.tif' file"),
        (tif(np.zeros((5, 7))), "1 channels of float64 where 1 of float32 are written"),
        (tif(np.zeros((5, 7, 3), np.float32)), "3 channels of float32 where 1"),
    ],
)
def test_a_file_that_is_not_as_the_format_says_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "s.zip", a__tif=content)
    with pytest.raises(SubmissionError, match=what):
        check_submission(path, sample_of("a"), format=made(("height",)))


@pytest.mark.parametrize("array", [np.array([{"a": 1}], dtype=object), np.zeros(4, np.float32), np.array("text")])
def test_an_array_that_is_no_map_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    path = archive(tmp_path / "s.zip", a__npy=buffer.getvalue())
    with pytest.raises(SubmissionError, match=r"no readable '\.npy' file"):
        check_submission(path, sample_of("a"), format=made(("height",), file="{id}.npy"))


def test_a_damaged_zip_is_no_traceback(tmp_path: Path) -> None:
    format, sample = made(("height",)), sample_of("a")
    path = written(tmp_path, only(flat(1)), format, sample)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF  # inside the image
    path.write_bytes(bytes(content))
    with pytest.raises(SubmissionError, match="cannot read"):
        check_submission(path, sample, format=format)


def test_a_file_that_says_something_else_after_writing_is_found(tmp_path: Path) -> None:
    format, sample = made(("height",)), sample_of("a")
    one, other = (format.build(only(flat(value)), sample) for value in (1, 2))
    assert one["numbers"].tolist() == format.build(only(flat(1)), sample)["numbers"].tolist()
    assert one["numbers"].tolist() != other["numbers"].tolist()
    assert one["numbers"].tolist() != ["text"]


# -- grading ----------------------------------------------------------------------------------------------------


def graded(folder: Path, truth: np.ndarray, sent: np.ndarray, metric: str, **params: Any) -> Scores:
    """Grade three images [3, K, H, W] whose truth may be NaN."""
    names = TARGETS[: truth.shape[1]]
    format = registry.build("format", "number_zip", params, _names=names, _task=TASK, _sizes=lambda name: (5, 7))
    sample = sample_of()
    numbers = NumberSet(IDS, names, TASK, {}, lambda row: sent[row])
    file = written(folder, numbers, format, sample)
    with zipfile.ZipFile(folder / "truth.zip", "w") as answers:
        for row, name in enumerate(IDS):
            for part, content in parts_of(truth[row], format, str(name), params):
                answers.writestr(part, content)
    return grade(file, folder / "truth.zip", sample=sample, format=format, metric=make_metric(metric))


def parts_of(values: np.ndarray, format: Format, name: str, params: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Return the files of an image as another program writes them."""
    ending = params["file"].rpartition(".")[2]
    if ending == "npy":
        buffer = io.BytesIO()
        np.save(buffer, values.transpose(1, 2, 0))
        return [(f"{name}.npy", buffer.getvalue())]
    dtype = params.get("dtype", "float32")
    coded = values if dtype == "float32" else np.where(np.isnan(values), params.get("nodata", 0), np.rint(values * 10))
    return [(f"{name}_{target}.{ending}", cv2.imencode(f".{ending}", layer.astype(dtype))[1].tobytes())
            for target, layer in zip(TARGETS, coded, strict=False)]  # fmt: skip


@pytest.mark.parametrize(
    "params",
    [
        {"file": "{id}.npy"},
        {"file": "{id}_{target}.tif"},
        {"file": "{id}_{target}.png", "dtype": "uint16", "scale": 0.1, "nodata": 65535},
    ],
)
def test_a_file_is_graded_against_a_solution_with_unknown_pixels(params: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sent, truth = (rng.integers(0, 300, (3, 2, 5, 7)).astype(np.float32) / 10 for _ in range(2))
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[1, 0], truth[2] = np.nan, np.nan  # a target and an image of which nothing is known
    error = (sent.astype(np.float64) - truth).reshape(3, 2, 35)
    each = [np.sqrt(np.nanmean(error[0] ** 2, axis=1)).mean(), np.sqrt(np.nanmean(error[1, 1] ** 2))]
    pooled = [np.sqrt(np.nanmean(error[:, k] ** 2)) for k in range(2)]
    absolute = [np.abs(error[0, k][~np.isnan(error[0, k])]).mean() for k in range(2)]
    absolute = [np.mean(absolute), np.nanmean(np.abs(error[1, 1]))]
    for metric, expected in (("rmse_per_image", each), ("rmse_pixels", pooled), ("mae_per_image", absolute)):
        found = graded(tmp_path, truth, sent, metric, **params)
        assert found.score == pytest.approx(np.mean(expected), rel=1e-5)
        assert (found.public, found.private) == (None, None)


def test_a_solution_may_hold_unknown_numbers_and_no_infinite_ones(tmp_path: Path) -> None:
    sent = np.ones((3, 1, 5, 7), np.float32)
    with pytest.raises(DataError, match="no known pixel of 'height'"):
        graded(tmp_path, np.full_like(sent, np.nan), sent, "rmse_per_image", file="{id}_{target}.tif")
    with pytest.raises(SubmissionError, match="35 numbers are NaN or infinite"):
        graded(tmp_path, np.full_like(sent, np.inf), sent, "rmse_per_image", file="{id}_{target}.tif")


def test_a_solution_of_another_size_is_refused_where_images_are_not_at_hand(tmp_path: Path) -> None:
    format = registry.build("format", "number_zip", {}, _names=("height",), _task=TASK)
    sample = sample_of("a")
    file = written(tmp_path, only(flat(1)), format, sample)
    truth = archive(tmp_path / "truth.zip", a__tif=tif(np.zeros((5, 6), np.float32)))
    with pytest.raises(SubmissionError, match="'a' has 1 x 5 x 7 pixels, and 1 x 5 x 6 in the solution"):
        grade(file, truth, sample=sample, format=format, metric=make_metric("rmse_per_image"))
