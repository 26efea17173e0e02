"""Samples with several rows per image, and ids that can be cut in more than one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.errors import ConfigError, SubmissionError
from kbench.inference.map_store import MaskSet
from kbench.metrics.metric import make_metric
from kbench.submission.check import check_submission, find_problems, read_sample, write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import grade

ORGANS = ("liver", "lung")
SIZE = (4, 5)
TASK = "multi_label_segmentation"


def format_of(names: tuple[str, ...] = ORGANS, task: str = TASK, **params: Any) -> Format:
    made: Format = registry.build("format", "rle", params, _names=names, _task=task, _sizes=lambda name: SIZE)
    return made


def masks(ids: list[str], names: tuple[str, ...] = ORGANS, task: str = TASK, *, seed: int = 0) -> MaskSet:
    def one(row: int) -> np.ndarray:
        return (np.random.default_rng(seed + row).random((len(names), *SIZE)) < 0.5).astype(np.uint8)

    return MaskSet(np.array(sorted(ids)), names, task, {}, one)


def written(path: Path, format: Format, sample: pd.DataFrame, predictions: MaskSet) -> Path:
    return write_submission(path, format.build(predictions, sample), sample=sample, format=format)


@pytest.mark.parametrize("header", ["id,class,predicted", "id,predicted,class"])
def test_a_row_per_image_and_class_with_the_class_in_a_column(tmp_path: Path, header: str) -> None:
    """The trial sample-several-rows."""
    rows = [("t1", "lung"), ("t0", "liver"), ("t0", "lung"), ("t1", "liver")]
    lines = [f"{name},{label}," if header.endswith("predicted") else f"{name},,{label}" for name, label in rows]
    (tmp_path / "sample.csv").write_text("\n".join([header, *lines]) + "\n")
    sample, format = read_sample(tmp_path / "sample.csv"), format_of(label="class")
    file = written(tmp_path / "s.csv", format, sample, masks(["t0", "t1"]))
    frame = check_submission(file, sample, format=format)
    assert file.read_text().splitlines()[0] == header
    assert list(zip(frame["id"], frame["class"], strict=True)) == rows
    read = format.parse(frame, sample)
    for row in range(2):
        np.testing.assert_array_equal(read[row], masks(["t0", "t1"])[row])
    metric = make_metric("mean_iou")
    other = written(tmp_path / "other.csv", format, sample, masks(["t0", "t1"], seed=7))
    assert grade(file, file, sample=sample, format=format, metric=metric).score == 1
    assert grade(other, file, sample=sample, format=format, metric=metric).score < 1
    wrong = frame.assign(**{"class": ["lung", "lung", "lung", "liver"]})
    assert "ids are missing: 't0  liver'" in "\n".join(map(str, find_problems(wrong, sample, format=format)))


def test_a_class_the_sample_asks_for_and_that_is_not_there_is_named() -> None:
    sample = pd.DataFrame({"id": ["t0"], "class": ["heart"], "predicted": [""]})
    with pytest.raises(SubmissionError, match="ask for a class that is not there: 't0, heart'"):
        format_of(label="class").build(masks(["t0"]), sample)
    with pytest.raises(SubmissionError, match="no such column"):
        format_of(label="clas").build(masks(["t0"]), sample)


@pytest.mark.parametrize(
    ("sample", "advice"),
    [
        (pd.DataFrame({"id": ["a", "a"], "class": ["liver", "lung"], "rle": ["", ""]}), "label: class"),
        (pd.DataFrame({"id": ["a", "a"], "rle": ["", ""]}), "objects: true"),
    ],
)
def test_several_rows_of_an_id_are_refused_with_the_format_that_writes_them(sample: pd.DataFrame, advice: str) -> None:
    [problem] = find_problems(sample, sample, format=format_of(("liver",), "segmentation"))
    assert "several rows of 1 id: 'a'" in problem.what
    assert advice in problem.hint


def test_a_row_per_object(tmp_path: Path) -> None:
    layer = np.zeros(SIZE, dtype=np.uint8)
    layer[0, 0] = layer[1, 1] = 1  # touch at a corner: one object
    layer[3, 4] = 1
    none = np.zeros(SIZE, dtype=np.uint8)
    both = MaskSet(np.array(["a", "b"]), ("ship",), "segmentation", {}, lambda row: (layer, none)[row][None])
    sample, format = (
        pd.DataFrame({"id": ["b", "a"], "rle": ["", ""]}),
        format_of(("ship",), "segmentation", objects=True),
    )
    file = written(tmp_path / "s.csv", format, sample, both)
    assert file.read_text() == "id,rle\nb,\na,1 1 6 1\na,20 1\n"
    read = format.parse(check_submission(file, sample, format=format), sample)
    np.testing.assert_array_equal(read[0][0], layer)
    assert not read[1].any()
    assert grade(file, file, sample=sample, format=format, metric=make_metric("mean_iou")).score == 1
    twice = pd.DataFrame({"id": ["b", "a", "a"], "rle": ["", "1 2", "2 1"]})
    assert "share a pixel" in str(find_problems(twice, sample, format=format)[0])
    lacking = pd.DataFrame({"id": ["a"], "rle": ["1 2"]})
    assert "1 of 2 ids are missing: 'b'" in str(find_problems(lacking, sample, format=format)[0])


def test_an_id_is_cut_where_its_image_exists(tmp_path: Path) -> None:
    """The trial class-ends-like-another, in the sample."""
    names = ("cell", "dead_cell")
    sample = pd.DataFrame({"id": ["t0_cell", "t0_dead_cell", "t1_dead_cell", "t1_cell"], "rle": ""})
    format, predictions = format_of(names, id="{id}_{class}"), masks(["t0", "t1"], names)
    read = format.parse(check_submission(format.build(predictions, sample), sample, format=format), sample)
    assert read.ids.tolist() == ["t0", "t1"]
    for row in range(2):
        np.testing.assert_array_equal(read[row], predictions[row])
    known = registry.build("format", "rle", {"id": "{id}_{class}"}, _names=names, _task=TASK,
                           _sizes=lambda name: SIZE, _images=lambda: {"t0_dead", "t0"})  # fmt: skip
    assert known.image_of("t0_cell") == "t0"
    with pytest.raises(SubmissionError, match="several images and classes fit: 't0_dead_cell'"):
        known.build(masks(["t0", "t0_dead"], names), sample.iloc[:2])


def test_a_number_is_cut_where_its_image_exists() -> None:
    known = registry.build("format", "rle", {"id": "{id}{class_index}", "first_class": 1}, _names=ORGANS, _task=TASK,
                           _sizes=lambda name: SIZE, _images=lambda: {"a1"})  # fmt: skip
    assert known.image_of("a12") == "a1"
    frame = known.build(masks(["a1"]), pd.DataFrame({"id": ["a12", "a11"], "rle": ""}))
    assert frame["id"].tolist() == ["a12", "a11"]


@pytest.mark.parametrize(
    "params", [{"id": "{class}"}, {"id": "{id}_{id}"}, {"id": "{id}"}, {"id": "{id}_{class}", "label": "class"}]
)
def test_ids_that_leave_the_class_open_are_refused(params: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        format_of(**params)


def test_a_class_column_of_one_class_is_told_what_to_write_and_that_works() -> None:
    sample = pd.DataFrame({"id": ["t0", "t1"], "class": ["Liver ", "Liver "], "predicted": ["", ""]})
    with pytest.raises(SubmissionError, match="2 target columns: 'class', 'predicted'") as caught:
        format_of(("liver",)).build(masks(["t0", "t1"], ("liver",)), sample)
    assert "label: class" in caught.value.todo
    format = format_of(("liver",), label="class")
    frame = format.build(masks(["t0", "t1"], ("liver",)), sample)
    assert frame["class"].tolist() == ["Liver ", "Liver "], "as the sample writes it"
    np.testing.assert_array_equal(format.parse(frame, sample)[1], masks(["t0", "t1"], ("liver",))[1])
    sizes = sample.rename(columns={"class": "width"}).assign(width=5)
    with pytest.raises(SubmissionError, match="'width', 'predicted'") as caught:
        format_of(("liver",)).build(masks(["t0", "t1"], ("liver",)), sizes)
    assert "plug-in" in caught.value.todo
