"""Drafts of segmentations: from the files alone to a YAML that passes the check and trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_images import write_png
from PIL import Image
from places import SHARED

from kbench.commands.check import check
from kbench.commands.smoke import smoke
from kbench.config.yaml12 import parse_yaml
from kbench.data.images.cache import Resize
from kbench.data.masks.run_lengths import CONVENTIONS, encode
from kbench.drafting.draft import draft
from kbench.drafting.facts import discover
from kbench.drafting.run_length_tables import Cell, numbering
from kbench.errors import DataError
from kbench.runs import parts
from kbench.runs.experiment import open_experiment
from kbench.workspace import Choice

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
SIZE = (40, 48)
TRAIN, TEST = [f"a{row}" for row in range(8)], ["t0", "t1"]
SKY, ROAD, CAR = 0, 1, 2
PALETTE = np.array([[0, 0, 0], [128, 64, 128], [64, 0, 128]], np.uint8)


def scene(row: int) -> np.ndarray:
    """[40, 48] of 0, 1 and 2: sky above, road below, and a car of (4 + row) x 6 pixels."""
    mask = np.zeros(SIZE, np.uint8)
    mask[22:] = ROAD
    mask[10 : 14 + row, 5 + row : 11 + row] = CAR
    return mask


def car(row: int) -> np.ndarray:
    return np.asarray(scene(row) == CAR)


def runs(mask: np.ndarray, convention: str = "tgs") -> str:
    return encode(mask.astype(np.uint8), CONVENTIONS[convention])


def images(root: Path, *, train: str = "train/images/{}.png", test: str = "test/images/{}.png") -> Path:
    for template, names in ((train, TRAIN), (test, TEST)):
        for row, name in enumerate(names):
            write_png(root / template.format(name), PALETTE[scene(row)] + np.uint8(row))
    return root


def files(root: Path, template: str, mask: Callable[[int], np.ndarray], **options: Any) -> None:
    for row, name in enumerate(TRAIN):
        path = root / template.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask(row)).save(path, **options)


def table(root: Path, name: str, *lines: str) -> None:
    (root / name).write_text("\n".join(lines) + "\n")


def sample(root: Path, header: str = "id,rle", *ids: str) -> None:
    table(root, "sample_submission.csv", header, *(f"{name}{',' * header.count(',')}" for name in ids or TEST))


# -- what lies on disk, and what must be read off it -----------------------------------------------------------------


def index_with_classes(root: Path) -> None:
    files(images(root), "train/masks/{}.png", scene)
    table(root, "classes.csv", "id,name", "0,sky", "1,road", "2,car", "3,void")
    sample(root, "id,rle", *(f"{name}_{number}" for name in TEST for number in (0, 1, 2)))


def index_without_names(root: Path) -> None:
    files(images(root), "train/masks/{}_mask.png", scene)
    sample(root, "id,rle", *(f"{name}_{number}" for name in TEST for number in (1, 2, 3)))


def yes_and_no(root: Path) -> None:
    files(images(root), "train/masks/{}.png", lambda row: car(row).astype(np.uint8) * 255)
    sample(root)


def yes_and_no_as_jpeg(root: Path) -> None:
    files(images(root), "train/masks/{}.jpg", lambda row: car(row).astype(np.uint8) * 255, quality=90)
    sample(root, "id,rle", "t0.png", "t1.png")


def with_void(root: Path) -> None:
    files(images(root), "train/masks/{}.png", lambda row: np.where(scene(row) == ROAD, 255, car(row)).astype(np.uint8))
    sample(root)


def numbered_objects(root: Path) -> None:
    files(
        images(root),
        "train/masks/{}.png",
        lambda row: (car(row) * 300 + 40000 * (scene(row) == ROAD)).astype(np.uint16),
    )
    sample(root)


def colours_with_table(root: Path) -> None:
    files(images(root), "train_labels/{}_L.png", lambda row: PALETTE[scene(row)])
    table(root, "class_dict.csv", "name,r,g,b", "sky,0,0,0", "road,128,64,128", "car,64,0,128")
    sample(root, "id,rle", *(f"{name}_{label}" for name in TEST for label in ("sky", "road", "car")))


def colours_alone(root: Path) -> None:
    files(images(root), "train/masks/{}.png", lambda row: PALETTE[scene(row)])
    sample(root, "id,rle", *(f"{name}_{number}" for name in TEST for number in (0, 1, 2)))


def folders_of_classes(root: Path) -> None:
    images(root)
    for number, label in enumerate(("sky", "road", "car")):
        files(
            root,
            f"train/masks/{label}/{{}}.png",
            lambda row, number=number: (scene(row) == number).astype(np.uint8) * 255,
        )
    sample(root, "id,rle", *(f"{name}_{label}" for name in TEST for label in ("sky", "road", "car")))


def names_of_classes(root: Path) -> None:
    images(root)
    for label in ("car", "red_car"):
        files(root, f"train/masks/{{}}_{label}.png", lambda row: car(row).astype(np.uint8))
    (root / "train/masks/a3_red_car.png").unlink()
    sample(root, "id,class,rle", *(f"{name},{label}" for name in TEST for label in ("car", "red_car")))
    text = (root / "sample_submission.csv").read_text().replace(",,", ",")
    (root / "sample_submission.csv").write_text(text)


def folders_of_objects(root: Path) -> None:
    images(root, train="train/{0}/images/{0}.png", test="test/{0}/images/{0}.png")
    for number in (1, 2):
        files(
            root,
            f"train/{{}}/masks/{number}.png",
            lambda row, number=number: (scene(row) == number).astype(np.uint8) * 255,
        )
    sample(root, "ImageId,EncodedPixels")


def runs_in_the_table(root: Path) -> None:
    images(root)
    table(
        root,
        "train.csv",
        "id,rle_mask,site",
        *(f"{name},{runs(car(row)) if row else ''},s{row % 2}" for row, name in enumerate(TRAIN)),
    )
    sample(root, "id,rle_mask")


def runs_along_the_rows(root: Path) -> None:
    images(root)
    table(
        root,
        "train_masks.csv",
        "img,rle_mask",
        *(f"{name}.png,{runs(car(row), 'carvana')}" for row, name in enumerate(TRAIN)),
    )
    sample(root, "img,rle_mask", "t0.png", "t1.png")


def runs_from_0(root: Path) -> None:
    images(root)
    table(
        root,
        "train.csv",
        "id,rle",
        *(f"{name},{runs(scene(row) == SKY, 'columns_0')}" for row, name in enumerate(TRAIN)),
    )
    sample(root)


def runs_of_objects(root: Path) -> None:
    images(root)
    lines = [f"{name}.png,{runs(mask)}" for row, name in enumerate(TRAIN) for mask in (car(row), scene(row) == ROAD)]
    table(root, "train_segmentations.csv", "ImageId,EncodedPixels", *lines, "a0.png,")
    sample(root, "ImageId,EncodedPixels", "t0.png", "t0.png", "t1.png")


def runs_and_classes(root: Path) -> None:
    images(root)
    lines = [
        f"{name},{label},{runs(scene(row) == number)}"
        for row, name in enumerate(TRAIN)
        for number, label in ((1, "road"), (2, "car"))
    ]
    table(root, "train.csv", "id,class,segmentation", *lines)
    sample(root, "id,class,predicted", *(f"{name},{label}" for name in TEST for label in ("car", "road")))
    text = (root / "sample_submission.csv").read_text().replace(",,", ",")
    (root / "sample_submission.csv").write_text(text)


def runs_by_key(root: Path) -> None:
    images(root)
    lines = [f"{name}_{number},{runs(scene(row) == number)}" for row, name in enumerate(TRAIN) for number in (0, 1, 2)]
    table(root, "train.csv", "Image_Class,rle", *lines)
    sample(root, "Image_Class,rle", *(f"{name}_{number}" for name in TEST for number in (0, 1, 2)))


def runs_in_columns(root: Path) -> None:
    images(root)
    table(
        root,
        "train.csv",
        "id,road,car",
        *(f"{name},{runs(scene(row) == ROAD)},{runs(car(row))}" for row, name in enumerate(TRAIN)),
    )
    sample(root, "id,rle", *(f"{name}_{label}" for name in TEST for label in ("road", "car")))


def measurements(root: Path) -> None:
    images(root)
    for row, name in enumerate(TRAIN):
        (root / "train/targets").mkdir(exist_ok=True)
        np.save(root / f"train/targets/{name}.npy", scene(row) * np.float32(1.5) + 0.25)
    sample(root, "id", *TEST)


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str], dict[str, Any]]] = {
    "index with classes.csv": (
        index_with_classes, {"name": "index", "folder": "train/masks", "suffix": ".png", "ignore": [3]},
        ["sky", "road", "car"], {"name": "rle", "convention": "tgs", "id": "{id}_{class_index}"},
    ),
    "index without names": (
        index_without_names, {"name": "index", "folder": "train/masks", "suffix": "_mask.png"},
        ["background", "class_1", "class_2"],
        {"name": "rle", "convention": "tgs", "id": "{id}_{class_index}", "first_class": 1},
    ),
    "yes and no": (
        yes_and_no, {"name": "index", "folder": "train/masks", "suffix": ".png"}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "JPEG": (
        yes_and_no_as_jpeg, {"name": "index", "folder": "train/masks", "suffix": ".jpg"}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "void": (
        with_void, {"name": "index", "folder": "train/masks", "suffix": ".png", "ignore": [255]}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "numbers of objects": (
        numbered_objects, {"name": "index", "folder": "train/masks", "suffix": ".png", "rest": "object"}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "colours with a table": (
        colours_with_table,
        {"name": "colour", "folder": "train_labels", "suffix": "_L.png", "colours": "class_dict.csv"},
        ["sky", "road", "car"], {"name": "rle", "convention": "tgs", "id": "{id}_{class}"},
    ),
    "colours alone": (
        colours_alone,
        {"name": "colour", "folder": "train/masks", "suffix": ".png",
         "colours": {"background": [0, 0, 0], "colour_400080": [64, 0, 128], "colour_804080": [128, 64, 128]}},
        ["background", "colour_400080", "colour_804080"],
        {"name": "rle", "convention": "tgs", "id": "{id}_{class_index}"},
    ),
    "a folder for each class": (
        folders_of_classes, {"name": "per_class", "folder": "train/masks/{class}", "suffix": ".png"},
        ["car", "road", "sky"], {"name": "rle", "convention": "tgs", "id": "{id}_{class}"},
    ),
    "classes in names": (
        names_of_classes,
        {"name": "per_class", "folder": "train/masks", "suffix": "_{class}.png", "missing": "empty"},
        ["car", "red_car"], {"name": "rle", "convention": "tgs", "label": "class"},
    ),
    "a folder of objects": (
        folders_of_objects, {"name": "instances", "folder": "train/{id}/masks"}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "runs in the table": (
        runs_in_the_table, {"name": "rle", "convention": "tgs", "column": "rle_mask"}, ["object"],
        {"name": "rle", "convention": "tgs"},
    ),
    "runs along the rows": (
        runs_along_the_rows, {"name": "rle", "convention": "carvana", "column": "rle_mask"}, ["object"],
        {"name": "rle", "convention": "carvana"},
    ),
    "runs from 0": (
        runs_from_0, {"name": "rle", "convention": "columns_0", "column": "rle"}, ["object"],
        {"name": "rle", "convention": "columns_0"},
    ),
    "runs of objects": (
        runs_of_objects,
        {"name": "rle", "convention": "tgs", "csv": "train_segmentations.csv", "column": "EncodedPixels"}, ["object"],
        {"name": "rle", "convention": "tgs", "id": "{id}.png", "objects": True},
    ),
    "runs and classes": (
        runs_and_classes,
        {"name": "rle", "convention": "tgs", "csv": "train.csv", "column": "segmentation", "label": "class"},
        ["car", "road"], {"name": "rle", "convention": "tgs", "label": "class"},
    ),
    "runs by key": (
        runs_by_key,
        {"name": "rle", "convention": "tgs", "csv": "train.csv", "column": "rle", "key": "{id}_{class}"},
        ["0", "1", "2"], {"name": "rle", "convention": "tgs", "id": "{id}_{class}"},
    ),
    "runs in columns": (
        runs_in_columns, {"name": "rle", "convention": "tgs", "columns": {"road": "road", "car": "car"}},
        ["road", "car"], {"name": "rle", "convention": "tgs", "id": "{id}_{class}"},
    ),
    "measurements": (
        measurements, {"name": "values", "folder": "train/targets", "suffix": ".npy"}, ["value"],
        {"name": "number_zip"},
    ),
}  # fmt: skip


def written(root: Path, build: Callable[[Path], None]) -> tuple[dict[str, Any], str, Choice]:
    """Write a data set and its draft; return the draft as content and as text."""
    build(root / "data" / "mine")
    text = draft(root / "data" / "mine", name="mine", source={"name": "kaggle", "slug": "mine"})
    (root / "competitions").mkdir()
    (root / "competitions" / "mine.yaml").write_text(text)
    content = parse_yaml(text, name="mine")
    assert isinstance(content, dict)
    return content, text, Choice("mine", workspace=root)


@pytest.mark.parametrize("case", CASES)
def test_masks_are_drafted_from_the_files(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, masks, classes, format = CASES[case]
    content, text, choice = written(tmp_path, build)
    assert content["data"]["masks"] == masks
    assert content["data"]["classes"] == classes
    drafted = content["submission"]["format"]
    assert ({"name": drafted} if isinstance(drafted, str) else drafted) == format
    assert text.count("TODO") == 1, text  # the first line says what to look for
    before = text.partition("  masks:")[0].splitlines()
    assert before[-1].startswith("  # "), "a guess says why"
    said = check(choice, images=True, every=False)
    assert (said["rows"], said["test"]) == (8, 2)


def test_masks_of_a_draft_are_the_true_ones(tmp_path: Path) -> None:
    """Every way to write the one car: the same pixels."""
    truth = [(4 + row) * 6 for row in range(8)]
    for number, (build, name) in enumerate(((yes_and_no, 0), (yes_and_no_as_jpeg, 0), (with_void, 0),
                                            (runs_along_the_rows, 0), (index_with_classes, CAR),
                                            (colours_with_table, CAR), (runs_in_columns, 1))):  # fmt: skip
        root = tmp_path / str(number)
        content, _, choice = written(root, build)
        experiment = open_experiment(choice)
        masks = parts.opened_masks(experiment.competition, experiment.train, experiment.workspace.cache(),
                                   what="training")(Resize("keep", 0, 0))  # fmt: skip
        several = content["task"] == "multi_label_segmentation"
        one = [masks[row][:, :, name] == 1 if several else masks[row][:, :, 0] == (name or 1) for row in range(8)]
        assert [int(np.asarray(mask).sum()) for mask in one] == truth, build.__name__


@pytest.mark.slow
@pytest.mark.parametrize("case", ["colours with a table", "runs of objects", "runs and classes", "measurements"],
)  # fmt: skip
def test_drafts_pass_a_smoke_run(tmp_path: Path, case: str) -> None:
    _, _, choice = written(tmp_path, CASES[case][0])
    said = smoke(choice, device="cpu")
    assert said["failed"] == []
    assert said["rows"] > 0


@real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "masks", "classes"),
    [
        ("camvid", {"name": "index", "folder": "train/masks", "suffix": ".png", "ignore": [11]},
         ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]),
        ("tgs_salt", {"name": "rle", "convention": "tgs", "column": "rle_mask"}, ["object"]),
    ],
)  # fmt: skip
def test_real_segmentations_need_no_edit(tmp_path: Path, name: str, masks: dict[str, Any], classes: list[str]) -> None:
    content, text, choice = written(tmp_path, lambda root: (root.parent.mkdir(), root.symlink_to(SHARED / name))[1])
    assert (content["data"]["masks"], content["data"]["classes"]) == (masks, classes)
    assert text.count("TODO") == 1
    untaught = Choice("mine", assignments=("model.pretrained=false", "folds.n=2"), workspace=choice.workspace)
    assert check(untaught, images=False, every=False)["rows"] > 0
    assert smoke(untaught, device="cpu")["rows"] > 0


# -- how pixels are numbered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["tgs", "carvana", "columns_0", "rows_0", "columns_ends", "rows_ends", "coco"])
def test_the_numbering_of_run_lengths_is_told_by_the_masks_they_make(convention: str) -> None:
    masks = [scene(row) == number for row in range(8) for number in (SKY, ROAD, CAR)]
    cells = [Cell(runs(mask, convention), SIZE) for mask in masks]
    assert numbering(cells)[0] == convention


def test_squares_say_nothing_but_mask_files_do() -> None:
    square = np.zeros((20, 20), bool)
    square[3:9, 5:8] = True
    text = runs(square, "carvana")
    assert "guessed" in numbering([Cell(text, (20, 20))])[1]
    assert numbering([Cell(text, (20, 20), square)])[0] == "carvana"
    assert numbering([])[0] == "tgs"


# -- what is no segmentation ------------------------------------------------------------------------------------------


def test_masks_beside_labels_that_are_asked_for_are_left_alone(tmp_path: Path) -> None:
    files(images(tmp_path), "train/masks/{}.png", scene)
    table(tmp_path, "train.csv", "id,label", *(f"{name},{'xy'[row % 2]}" for row, name in enumerate(TRAIN)))
    sample(tmp_path, "id,label")
    assert discover(tmp_path).task == "single_label"
    sample(tmp_path, "id,x,y")
    assert discover(tmp_path).task == "single_label"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    files(images(tmp_path), "train/masks/{}.png", scene)
    listed = os.scandir

    def refusing(path: Any = ".") -> Any:
        if str(path).endswith("masks"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"the folder '.*train/masks' cannot be listed: Permission denied"):
        discover(tmp_path)


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files(images(tmp_path), "train/masks/{}.png", scene)
    (tmp_path / "train/masks/a0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a0\.png"):
        discover(tmp_path)
