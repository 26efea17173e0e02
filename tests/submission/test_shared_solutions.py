"""The real solutions of masks can be read: their convention, the size of the image, and what is void."""

from __future__ import annotations

import csv

import pytest
from places import SHARED

from kbench import registry
from kbench.data.table.verify import look
from kbench.metrics.metric import make_metric
from kbench.submission.check import read_sample
from kbench.submission.grading import grade

DATA = SHARED
pytestmark = pytest.mark.skipif(not (DATA / "camvid").is_dir(), reason="the images of ../shared/data are not here")


def size_of(folder: str, suffix: str, name: str) -> tuple[int, int]:
    found = look(DATA / folder / "test" / "images" / f"{name}{suffix}", deep=False)
    assert not isinstance(found, str), found
    return found[:2]


@pytest.mark.slow
def test_camvid() -> None:
    with (DATA / "camvid" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = tuple(row["name"] for row in rows if row["name"].lower() != "void")
    format = registry.build("format", "rle", {"id": "{id}_{class_index}"}, _names=names, _task="segmentation",
                            _sizes=lambda name: size_of("camvid", ".jpg", name))  # fmt: skip
    sample = read_sample(DATA / "camvid" / "sample_submission.csv")
    solution = DATA / "solutions" / "camvid.csv"
    found = grade(solution, solution, sample=sample, format=format, metric=make_metric("mean_iou"))
    assert found.score == 1


@pytest.mark.slow
def test_tgs_salt() -> None:
    format = registry.build("format", "rle", {}, _names=("salt",), _task="segmentation",
                            _sizes=lambda name: (101, 101))  # fmt: skip
    sample = read_sample(DATA / "tgs_salt" / "sample_submission.csv")
    solution = DATA / "solutions" / "tgs_salt.csv"
    metric = make_metric("tgs_iou")
    assert grade(solution, solution, sample=sample, format=format, metric=metric).score == 1
