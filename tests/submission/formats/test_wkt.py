"""Polygons of a submission: the masks they are of, what a sample asks for, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.errors import SubmissionError
from kbench.inference.map_store import MaskSet
from kbench.metrics.metric import make_metric
from kbench.submission.check import check_submission, read_sample, write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import grade

pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")

SIZES = {"6010_0_1": (30, 40), "6010_0_2": (25, 33)}
IDS = np.array(sorted(SIZES))
NAMES = ("house", "road")
TASK = "multi_label_segmentation"
EMPTY = "MULTIPOLYGON EMPTY"


def layers(row: int) -> np.ndarray:
    rng = np.random.default_rng(row)
    mask = rng.integers(0, 2, (2, *SIZES[str(IDS[row])])).astype(np.uint8)
    mask[1] = 0 if row else mask[1]
    return mask


MASKS = MaskSet(IDS, NAMES, TASK, {}, layers)


def made(root: Path, **params: Any) -> Format:
    (root / "grid_sizes.csv").write_text(",Xmax,Ymin\n6010_0_1,.0091,-.009\n6010_0_2,.0092,-.0091\n")
    params = {"grid": "grid_sizes.csv", **params}
    return registry.build("format", "wkt", params, _names=NAMES, _task=TASK, _sizes=SIZES.__getitem__, _root=root)


def sample_file(root: Path) -> Path:
    rows = [f"{image},{k},{EMPTY}" for image in reversed(IDS) for k in (1, 2)]
    (root / "sample.csv").write_text("\n".join(["ImageId,ClassType,MultipolygonWKT", *rows]) + "\n")
    return root / "sample.csv"


def test_a_file_has_a_row_for_each_image_and_class_in_the_order_of_the_sample(tmp_path: Path) -> None:
    format, sample = made(tmp_path), read_sample(sample_file(tmp_path))
    file = write_submission(tmp_path / "s.csv", format.build(MASKS, sample), sample=sample, format=format)
    frame = pd.read_csv(file)
    assert list(zip(frame["ImageId"], frame["ClassType"], strict=True)) == [
        ("6010_0_2", 1), ("6010_0_2", 2), ("6010_0_1", 1), ("6010_0_1", 2),
    ]  # fmt: skip
    assert frame["MultipolygonWKT"][1] == EMPTY
    areas = [shapely.from_wkt(text) for text in frame["MultipolygonWKT"]]
    assert all(area.is_valid and area.geom_type == "MultiPolygon" for area in areas)
    unit = (40 * 40 / 41 / 0.0091) * (30 * 30 / 31 / 0.009)
    assert areas[3].area * unit == pytest.approx(layers(0)[1].sum(), rel=1e-3)
    read = format.parse(check_submission(file, sample, format=format), sample)
    for row in range(2):
        np.testing.assert_array_equal(read[row], layers(row))


def test_polygons_grade_polygons_by_class(tmp_path: Path) -> None:
    format, sample = made(tmp_path), read_sample(sample_file(tmp_path))

    def less(row: int) -> np.ndarray:
        mask = layers(row).copy()
        mask[0, :10] = 0
        return mask

    files = [
        write_submission(tmp_path / f"{name}.csv", format.build(MaskSet(IDS, NAMES, TASK, {}, read), sample),
                         sample=sample, format=format)
        for name, read in (("sent", less), ("truth", layers))
    ]  # fmt: skip
    found = grade(files[0], files[1], sample=sample, format=format, metric=make_metric("mean_iou"))
    whole = [layers(row)[0] for row in range(2)]
    house = sum(mask[10:].sum() for mask in whole) / sum(mask.sum() for mask in whole)
    assert found.score == pytest.approx((house + 1) / 2)


def test_classes_that_exclude_one_another_and_one_class_alone(tmp_path: Path) -> None:
    index = np.random.default_rng(0).integers(0, 2, (30, 40)).astype(np.uint8)
    format = registry.build(
        "format", "wkt", {}, _names=NAMES, _task="segmentation", _sizes=lambda image: (30, 40), _root=tmp_path
    )
    sample = pd.DataFrame([("a", "house", ""), ("a", "road", "")], columns=["ImageId", "ClassType", "WKT"])
    masks = MaskSet(np.array(["a"]), NAMES, "segmentation", {}, lambda row: index)
    read = format.parse(format.build(masks, sample), sample)
    np.testing.assert_array_equal(read[0], index)
    alone = registry.build(
        "format", "wkt", {}, _names=("house",), _task="segmentation", _sizes=lambda image: (30, 40), _root=tmp_path
    )
    sample = pd.DataFrame({"id": ["a"], "polygons": [""]})
    masks = MaskSet(np.array(["a"]), ("house",), "segmentation", {}, lambda row: index[None])
    np.testing.assert_array_equal(alone.parse(alone.build(masks, sample), sample)[0], index[None])


def test_a_sample_of_its_own_asks_for_every_class(tmp_path: Path) -> None:
    format = made(tmp_path)
    assert format.own_sample is not None
    sample = format.own_sample(IDS.tolist(), [])
    assert list(sample.columns) == ["ImageId", "ClassType", "MultipolygonWKT"]
    assert sample["ClassType"].tolist() == ["1", "2", "1", "2"]
    assert format.problems(sample, sample) == []


@pytest.mark.parametrize(("change", "says"), [
    (lambda text: text.replace("6010_0_1,2,", "6010_0_1,3,"), "row of no class: '3'|6010_0_1  3"),
    (lambda text: text.replace(EMPTY, "MULTIPOLYGON (((0 0, 1", 1), "is no WKT"),
    (lambda text: text.replace(EMPTY, "", 1), "has no text"),
    (lambda text: text.replace(EMPTY, "POLYGON ((0 0, .001 -.001, .001 0, 0 -.001, 0 0))", 1), "no valid polygon"),
    (lambda text: text.replace(EMPTY, "POLYGON ((0 0, .02 0, .02 -.001, 0 -.001, 0 0))", 1), "outside of its image"),
    (lambda text: "\n".join(text.splitlines()[:-1]), "1 of 4 ids are missing"),
])  # fmt: skip
def test_a_wrong_file_is_told(change: Any, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sample = read_sample(sample_file(tmp_path))
    text = change(sample_file(tmp_path).read_text()).splitlines()
    cells = [line.split(",", 2) for line in text[1:]]
    quoted = [f'{image},{number},"{polygons}"' for image, number, polygons in cells]
    (tmp_path / "sent.csv").write_text("\n".join([text[0], *quoted]) + "\n")
    with pytest.raises(SubmissionError, match=says):
        check_submission(tmp_path / "sent.csv", sample, format=made(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_an_image_without_a_size_and_a_sample_without_classes_are_told(tmp_path: Path) -> None:
    sample = read_sample(sample_file(tmp_path))
    format = made(tmp_path)
    (tmp_path / "grid_sizes.csv").write_text(",Xmax,Ymin\n6010_0_1,.0091,-.009\n")
    with pytest.raises(SubmissionError, match="has no size of '6010_0_2'"):
        format.build(MASKS, sample)
    with pytest.raises(SubmissionError, match="no column 'Class'"):
        made(tmp_path, keys=["ImageId", "Class"]).build(MASKS, sample)
