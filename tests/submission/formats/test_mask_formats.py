"""Formats of masks: what is written is what was predicted, and what is wrong is said."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.data.masks import run_lengths
from kbench.errors import ConfigError, SubmissionError
from kbench.inference.map_store import MaskSet
from kbench.metrics.metric import make_metric
from kbench.submission.check import check_submission, read_rows, read_sample, write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import grade
from kbench.submission.ledger import Lineage, new_entry, newest_unsent, verify_file

STREET = ("car", "pedestrian", "lane", "signal")
SIZES = {"a": (5, 7), "b": (6, 4), "c_2": (3, 9)}
IDS = np.array(sorted(SIZES))


def mask_set(task: str, names: tuple[str, ...] = STREET, *, seed: int = 0, read: list[int] | None = None) -> MaskSet:
    """Return random masks of three images of different sizes; `read` notes which rows are asked for."""

    def one(row: int) -> np.ndarray:
        if read is not None:
            read.append(row)
        rng = np.random.default_rng(seed + row)
        size = SIZES[str(IDS[row])]
        if task == "segmentation" and len(names) > 1:
            return rng.integers(0, len(names), size).astype(np.uint8)
        return (rng.random((len(names), *size)) < 0.4).astype(np.uint8)

    return MaskSet(IDS, names, task, {}, one)


def made(name: str, task: str, names: tuple[str, ...] = STREET, **params: Any) -> Format:
    return registry.build("format", name, params, _names=names, _task=task, _sizes=SIZES.__getitem__)


def by_class(names: tuple[str, ...] = STREET) -> pd.DataFrame:
    """Return a sample with a row per image and class, images in another order than sorted."""
    ids = [f"{image}_{k}" for image in ("c_2", "a", "b") for k in range(len(names))]
    return pd.DataFrame({"id": ids, "rle": ""})


def by_image(end: str = "") -> pd.DataFrame:
    return pd.DataFrame({"id": [f"{image}{end}" for image in ("c_2", "a", "b")], "x": 0})


def rle_by_class(task: str) -> tuple[Format, pd.DataFrame]:
    return made("rle", task, id="{id}_{class_index}"), by_class()


KINDS: dict[str, Callable[[str], tuple[Format, pd.DataFrame]]] = {
    "rle": rle_by_class,
    "rle carvana": lambda task: (made("rle", task, id="{id}_{class_index}", convention="carvana"), by_class()),
    "rle rows_0": lambda task: (
        made("rle", task, id="{id}_{class_index}", convention="rows_0", empty="-1"), by_class(),
    ),
    "rle coco": lambda task: (made("rle", task, id="{id}_{class_index}", convention="coco"), by_class()),
    "runs_json": lambda task: (made("runs_json", task), by_image(".jpg")),
    "runs_json, ids alone": lambda task: (made("runs_json", task, suffix=".png"), by_image()),
    "mask_zip": lambda task: (
        made("mask_zip", task, file="{id}.png" if task == "segmentation" else "{class}/{id}.png"), by_image(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["segmentation", "multi_label_segmentation"])
def test_the_masks_of_a_file_are_those_that_were_written(kind: str, task: str, tmp_path: Path) -> None:
    format, sample = KINDS[kind](task)
    masks = mask_set(task)
    file = write_submission(tmp_path / f"s{format.suffix}", format.build(masks, sample), sample=sample, format=format)
    read = format.parse(check_submission(file, sample, format=format), sample)
    assert (read.ids.tolist(), read.names, read.task) == (IDS.tolist(), STREET, task)
    for row in range(len(IDS)):
        np.testing.assert_array_equal(read[row], masks[row])
    first = file.read_bytes()
    write_submission(file, format.build(masks, sample), sample=sample, format=format)
    assert file.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mask_that_is_being_written_is_in_memory(kind: str, tmp_path: Path) -> None:
    format, sample = KINDS[kind]("segmentation")
    asked: list[int] = []
    write_submission(
        tmp_path / f"s{format.suffix}", format.build(mask_set("segmentation", read=asked), sample), sample=sample,
        format=format,
    )  # fmt: skip
    assert sorted(asked) == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_graded_against_one_of_its_kind(kind: str, tmp_path: Path) -> None:
    format, sample = KINDS[kind]("segmentation")
    files = [
        write_submission(
            tmp_path / f"{seed}{format.suffix}", format.build(mask_set("segmentation", seed=seed), sample),
            sample=sample, format=format,
        )
        for seed in (0, 5)
    ]  # fmt: skip
    metric = make_metric("mean_iou")
    assert grade(files[0], files[0], sample=sample, format=format, metric=metric).score == 1
    counts = [
        [(seen[real == k] == k).sum() for k in range(4)] + [((seen == k) | (real == k)).sum() for k in range(4)]
        for seen, real in ((mask_set("segmentation")[row], mask_set("segmentation", seed=5)[row]) for row in range(3))
    ]
    hits, unions = np.sum(counts, axis=0).reshape(2, 4)
    found = grade(files[0], files[1], sample=sample, format=format, metric=metric)
    assert found.score == pytest.approx((hits / unions).mean())


# -- run lengths ------------------------------------------------------------------------------------------------


def test_one_class_is_one_row_per_image_and_nothing_is_an_empty_cell(tmp_path: Path) -> None:
    layers = {
        "a": np.zeros((1, 5, 7), np.uint8),
        "b": np.ones((1, 6, 4), np.uint8),
        "c_2": np.zeros((1, 3, 9), np.uint8),
    }
    layers["c_2"][0, 1, 0] = layers["c_2"][0, 2, 0] = layers["c_2"][0, 0, 1] = 1
    masks = MaskSet(IDS, ("salt",), "segmentation", {}, lambda row: layers[str(IDS[row])])
    format, sample = made("rle", "segmentation", ("salt",)), by_image()
    file = write_submission(tmp_path / "s.csv", format.build(masks, sample), sample=sample, format=format)
    assert file.read_text() == "id,x\nc_2,2 3\na,\nb,1 24\n"  # the three pixels follow one another down the columns
    assert grade(file, file, sample=sample, format=format, metric=make_metric("tgs_iou")).score == 1


def test_rows_may_name_the_class_and_count_from_one() -> None:
    sample = pd.DataFrame({"id": ["lane:1:a", "car:4:a"], "rle": ""})
    names = ("lane", "x", "y", "car")
    frame = made("rle", "segmentation", names, id="{class}:{class_index}:{id}", first_class=1).build(
        mask_set("segmentation", names), sample
    )
    assert [len(cell) > 0 for cell in frame["rle"]] == [True, True]
    strange = pd.DataFrame({"id": ["lane:2:a"], "rle": ""})
    with pytest.raises(SubmissionError, match=r"1 ids are not '\{class\}"):
        made("rle", "segmentation", names, id="{class}:{class_index}:{id}", first_class=1).build(
            mask_set("segmentation", names), strange
        )


def test_a_class_the_sample_asks_for_and_the_run_lacks_is_refused() -> None:
    sample = pd.DataFrame({"id": ["a_0", "a_4"], "rle": ""})
    format = made("rle", "segmentation", id="{id}_{class_index}")
    with pytest.raises(SubmissionError, match="1 rows ask for a class that is not there: 'a_4'"):
        format.build(mask_set("segmentation"), sample)
    with pytest.raises(SubmissionError, match="the masks have no class 'signal'"):
        made("rle", "segmentation", id="{id}_{class_index}").build(
            mask_set("segmentation", STREET[:3]), pd.DataFrame({"id": ["a_0", "a_3"], "rle": ""})
        )
    with pytest.raises(SubmissionError, match="1 of 1 images are not predicted: 'd'"):
        format.build(mask_set("segmentation"), pd.DataFrame({"id": ["d_0"], "rle": ""}))


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (["1 2 3", ""], "has 3 numbers"),
        (["1 x", ""], "something that is no whole number"),
        (["1 0", ""], "a run without pixels"),
        (["4 2 1 2", ""], "overlap or are not in order"),
        (["1 3 3 2", ""], "overlap or are not in order"),
        (["35 2", ""], "pixels outside of an image of 5 x 7"),
        (["0 2", ""], "pixels outside"),
        (["1 3", "3 1"], "two classes share a pixel"),
    ],
)
def test_cells_that_are_no_runs_are_found(cells: list[str], what: str, tmp_path: Path) -> None:
    sample = pd.DataFrame({"id": ["a_0", "a_1"], "rle": ""})
    format = made("rle", "segmentation", id="{id}_{class_index}")
    pd.DataFrame({"id": sample["id"], "rle": cells}).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(SubmissionError, match=what):
        check_submission(tmp_path / "s.csv", sample, format=format)


def test_pixels_of_no_class_are_ignored_where_all_classes_are_written(tmp_path: Path) -> None:
    sample = pd.DataFrame({"id": ["a_0", "a_1"], "rle": ""})
    format = made("rle", "segmentation", ("road", "sky"), id="{id}_{class_index}")
    (tmp_path / "truth.csv").write_text("id,rle\na_1,6 5\na_0,1 5\n")  # two columns of seven; the rest is void
    (tmp_path / "s.csv").write_text("id,rle\na_0,1 5 11 25\na_1,6 5\n")
    found = grade(tmp_path / "s.csv", tmp_path / "truth.csv", sample=sample, format=format,
                  metric=make_metric("mean_iou"))  # fmt: skip
    assert found.score == 1
    one = made("rle", "segmentation", ("road", "sky"), id="{id}_{class_index}", classes=["road"])
    (tmp_path / "truth.csv").write_text("id,rle\na_0,1 5\n")
    (tmp_path / "s.csv").write_text("id,rle\na_0,1 5 11 5\n")
    found = grade(tmp_path / "s.csv", tmp_path / "truth.csv", sample=sample[:1], format=one,
                  metric=make_metric("mean_iou"))  # fmt: skip
    assert found.score == 0.5  # one class of two is written: what is not road is something else


def test_usage_splits_images(tmp_path: Path) -> None:
    sample = by_image()
    format = made("rle", "segmentation", ("salt",))
    (tmp_path / "s.csv").write_text("id,x\nc_2,1 2\na,1 2\nb,1 2\n")
    (tmp_path / "t.csv").write_text("id,y,Usage\na,1 2,Public\nb,1 4,Private\nc_2,9 1,Ignored\n")
    metric = make_metric("mean_iou")
    found = grade(tmp_path / "s.csv", tmp_path / "t.csv", sample=sample, format=format, metric=metric)
    assert (found.score, found.public, found.private) == (pytest.approx(4 / 6), 1, 0.5)
    (tmp_path / "t.csv").write_text("id,rle,Usage\na_0,1 2,Public\na_1,3 4,Private\n")
    sample = pd.DataFrame({"id": ["a_0", "a_1"], "rle": ""})
    format = made("rle", "segmentation", ("road", "sky"), id="{id}_{class_index}")
    (tmp_path / "s.csv").write_text("id,rle\na_0,1 2\na_1,3 4\n")
    with pytest.raises(SubmissionError, match="rows of one image in two parts"):
        grade(tmp_path / "s.csv", tmp_path / "t.csv", sample=sample, format=format, metric=metric)


# -- JSON and zip -----------------------------------------------------------------------------------------------


def test_the_runs_are_inclusive_keys_sorted_and_empty_categories_left_out(tmp_path: Path) -> None:
    mask = np.full((5, 7), 2, np.uint8)
    mask[1, 2:5], mask[1, 6], mask[3, :] = 0, 0, 0
    masks = MaskSet(np.array(["a"]), STREET, "segmentation", {}, lambda row: mask)
    format, sample = made("runs_json", "segmentation", classes=["signal", "car"]), pd.DataFrame({"id": ["a.jpg"]})
    file = write_submission(tmp_path / "s.json", format.build(masks, sample), sample=sample, format=format)
    assert file.read_text() == '{"a.jpg":{"car":{"1":[[2,4],[6,6]],"3":[[0,6]]}}}'
    assert read_sample(file)["id"].tolist() == ["a.jpg"]
    read = format.parse(read_rows(file, sample, format=format), sample)
    assert read.names == ("signal", "car")
    np.testing.assert_array_equal(read.layers(0), [mask == 3, mask == 0])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'{' expected"),
        ("[]", "'{' expected"),
        ('{"a.jpg":{}} x', "text after the object"),
        ('{"a.jpg":{},"a.jpg":{}}', "stands twice"),
        ('{"a.jpg":{"car":{"1":[[0,1]],"1":[[3,4]]}}}', "stands twice"),
        ('{"b.jpg":{}}', "1 of 1 ids are missing: 'a.jpg'"),
        ('{"a.jpg":[]}', "no object of categories"),
        ('{"a.jpg":{"tram":{"1":[[0,1]]}}}', "categories that are not written here: 'tram'"),
        ('{"a.jpg":{"car":{}}}', "a category that is not there is left out"),
        ('{"a.jpg":{"car":{"1":[[0]]}}}', "whole numbers"),
        ('{"a.jpg":{"car":{"1":[[0,7]]}}}', "outside of an image of 5 x 7"),
        ('{"a.jpg":{"car":{"1":[[3,2]]}}}', "end before they start"),
        ('{"a.jpg":{"car":{"1":[[0,2],[2,3]]}}}', "'car' has runs that share a pixel"),
        ('{"a.jpg":{"car":{"1":[[0,2]]},"lane":{"1":[[2,3]]}}}', "two categories share a pixel"),
    ],
)
def test_a_json_that_is_no_submission_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SubmissionError, match=what.replace("{", r"\{")):
        check_submission(tmp_path / "s.json", pd.DataFrame({"id": ["a.jpg"]}),
                         format=made("runs_json", "segmentation"))  # fmt: skip


def test_a_zip_holds_images_in_the_colours_asked_for(tmp_path: Path) -> None:
    colours = {"car": [0, 0, 255], "pedestrian": [255, 0, 0], "lane": [69, 47, 142], "signal": [255, 255, 0]}
    format, sample = made("mask_zip", "segmentation", colours=colours, file="m/{id}_x.png"), by_image()
    masks = mask_set("segmentation")
    file = write_submission(tmp_path / "s.zip", format.build(masks, sample), sample=sample, format=format)
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["m/a_x.png", "m/b_x.png", "m/c_2_x.png"]
        pixels = cv2.imdecode(np.frombuffer(archive.read("m/a_x.png"), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(pixels, np.array(list(colours.values()), np.uint8)[masks[0]])
    assert read_sample(file)["id"].tolist() == ["m/a_x.png", "m/b_x.png", "m/c_2_x.png"]
    named = pd.DataFrame({"id": ["m/a_x.png", "m/b_x.png", "m/c_2_x.png"]})
    assert format.parse(read_rows(file, named, format=format), named).ids.tolist() == IDS.tolist()
    few = made("mask_zip", "segmentation", classes=["lane", "car"], file="m/{id}_x.png")
    with pytest.raises(SubmissionError, match="no readable mask image"):
        check_submission(file, sample, format=few)


def test_a_zip_with_wrong_files_is_refused(tmp_path: Path) -> None:
    format, sample = made("mask_zip", "segmentation"), by_image()
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("a.png", cv2.imencode(".png", np.zeros((5, 6), np.uint8))[1].tobytes())
        archive.writestr("b.png", cv2.imencode(".png", np.full((6, 4), 9, np.uint8))[1].tobytes())
        archive.writestr("d.png", b"")
    with pytest.raises(SubmissionError) as error:
        check_submission(tmp_path / "s.zip", sample, format=format)
    for what in ("'c_2'", "1 ids are not in the sample: 'd.png'", "pixels that are no class",
                 "a mask of 5 x 6 for an image of 5 x 7"):  # fmt: skip
        assert what in str(error.value)
    (tmp_path / "s.zip").write_bytes(b"PK no zip")
    with pytest.raises(SubmissionError, match="cannot read"):
        check_submission(tmp_path / "s.zip", sample, format=format)


@pytest.mark.parametrize(
    ("name", "task", "params"),
    [
        ("rle", "segmentation", {}),
        ("rle", "segmentation", {"id": "{class}"}),
        ("rle", "segmentation", {"convention": "tsg", "classes": ["car"]}),
        ("rle", "segmentation", {"classes": ["cat"]}),
        ("rle", "single_label", {}),
        ("mask_zip", "segmentation", {"file": "{id}_{class}.png"}),
        ("mask_zip", "multi_label_segmentation", {"file": "{id}.png"}),
        ("mask_zip", "segmentation", {"values": [1, 2, 3]}),
        ("mask_zip", "segmentation", {"values": [1, 2, 3, 3]}),
        ("mask_zip", "segmentation", {"values": [1, 2, 3, 256]}),
        ("mask_zip", "segmentation", {"colours": {"car": [1, 2, 3]}}),
        ("mask_zip", "multi_label_segmentation", {"file": "{id}{class}", "values": [0, 1, 1, 1]}),
        ("runs_json", "segmentation", {"classes": ["cat"]}),
    ],
)
def test_a_format_that_cannot_tell_classes_apart_is_refused(name: str, task: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        made(name, task, **params)


def test_a_mask_that_does_not_survive_its_encoding_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(
        run_lengths, "as_text", lambda starts, lengths, rule, pixels: " ".join(["1 1"] * (len(starts) > 0))
    )
    with pytest.raises(SubmissionError, match="is not what its encoding says"):
        made("rle", "multi_label_segmentation", id="{id}_{class_index}").build(
            mask_set("multi_label_segmentation"), by_class()
        )


def test_a_submission_that_is_no_csv_has_its_place_in_the_ledger(tmp_path: Path) -> None:
    format, sample = made("runs_json", "segmentation"), by_image()
    file = write_submission(
        tmp_path / "run.json", format.build(mask_set("segmentation"), sample), sample=sample, format=format
    )
    entry = new_entry(file, Lineage("street"))
    assert newest_unsent(tmp_path) == entry
    assert entry.name == "run"
    verify_file(entry)
    assert set(json.loads(file.read_text())) == {"a.jpg", "b.jpg", "c_2.jpg"}
    with pytest.raises(SubmissionError, match="gzip for a"):
        write_submission(file, format.build(mask_set("segmentation"), sample), sample=sample, format=format, gzip=True)
