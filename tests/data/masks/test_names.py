"""Whose mask it is: rows and files that name no image, names that fit two, ids cut into image and class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_images import write_png
from masks_on_disk import layers, masks_of, table_of, write

from kbench.data.masks.kinds import index
from kbench.data.table.names import alike, cuts
from kbench.errors import DataError

ONE = {"_classes": ("salt",), "_task": "segmentation"}


def rows(root: Path, text: str, *images: str, csv: str = "rle.csv") -> None:
    """Write a table and images of 2 x 3 pixels."""
    (root / csv).write_text(text)
    for name in images:
        path = root / "i" / (name if "." in name else f"{name}.png")
        write_png(path.with_suffix(".png"), np.zeros((2, 3, 3), dtype=np.uint8))
        path.with_suffix(".png").rename(path)


# -- run lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "image"),
    [("25", "025.png"), ("A25", "a25.png"), ("025.dcm", "025.png"), ("./025", "025.png"), ("m\\025", "025.png"),
     ("025 ", "025.png")],
)  # fmt: skip
def test_a_row_that_names_no_image_is_refused_with_the_image_it_may_mean(
    tmp_path: Path, given: str, image: str
) -> None:
    """The trial rle-leading-zeros, and what else makes names differ."""
    rows(tmp_path, f"id,rle\n{given},1 2\n100,2 1\n", image, "100")
    with pytest.raises(DataError, match="1 name of no image") as caught:
        table_of(tmp_path, layers("rle", csv="rle.csv", **ONE))
    text = str(caught.value)
    assert f"'{given}' may mean '{image.removesuffix('.png')}'" in text
    assert "1 image would have an empty mask" in text
    assert "unmatched: ignore" in text
    table = table_of(tmp_path, layers("rle", csv="rle.csv", unmatched="ignore", **ONE))
    assert [cells[0] for cells in table.masks or ()] == (["", "2 1"] if image[0] == "0" else ["2 1", ""])
    assert "1 name of no image" in table.notes[0]


def test_images_without_a_row_are_empty_masks_without_a_word(tmp_path: Path) -> None:
    rows(tmp_path, "id,rle\na,1 2\n", "a", "b", "c")
    table = table_of(tmp_path, layers("rle", csv="rle.csv", **ONE))
    assert (table.masks, table.notes) == ((("1 2",), ("",), ("",)), ())


def test_rows_that_where_leaves_out_may_have_run_lengths(tmp_path: Path) -> None:
    rows(tmp_path, "id,rle\na,1 2\nb,1 1\n", "a")
    (tmp_path / "train.csv").write_text("id,use\na,yes\nb,no\n")
    table = table_of(tmp_path, layers("rle", csv="rle.csv", **ONE), csv="train.csv", where={"use": "yes"})
    assert (table.masks, table.notes) == ((("1 2",),), ())


def test_two_images_of_one_stem_each_get_their_own(tmp_path: Path) -> None:
    """The trial same-stem."""
    rows(tmp_path, "id,rle\nx.jpg,1 1\nx.png,2 3\ny.png,3 1\n", "x.jpg", "x.png", "y", csv="train.csv")
    table = table_of(tmp_path, layers("rle", **ONE), csv="train.csv")
    assert dict(zip(table.ids.tolist(), table.masks or (), strict=True)) == {
        "x.jpg": ("1 1",), "x.png": ("2 3",), "y.png": ("3 1",),
    }  # fmt: skip
    counts = [int(mask.sum()) for mask in masks_of(tmp_path, layers("rle", **ONE), csv="train.csv")]
    assert counts == [1, 3, 1]
    (tmp_path / "rle.csv").write_text("id,rle\nx,1 1\ny,3 1\n")
    with pytest.raises(DataError, match="1 id that several images or classes fit: 'x'"):
        table_of(tmp_path, layers("rle", csv="rle.csv", **ONE), csv="train.csv")


@pytest.mark.parametrize(
    ("key", "a", "b"),
    [("{id}_{class}", "a00_dead_cell", "a00_cell"), ("{class}_{id}", "cell_dead_a00", "cell_a00"),
     ("{id}{class}", "a00dead_cell", "a00cell"), ("{id}-{class}.png", "a00-dead_cell.png", "a00-cell.png")],
)  # fmt: skip
def test_an_id_is_cut_where_its_image_exists(tmp_path: Path, key: str, a: str, b: str) -> None:
    """The trial class-ends-like-another."""
    names = ("cell", "cell_dead") if key.startswith("{class}") else ("cell", "dead_cell")
    rows(tmp_path, f"id,rle\n{a},1 2\n{b},3 1\n", "a00")
    given = {"csv": "rle.csv", "key": key, "column": "rle", "_classes": names, "_task": "multi_label_segmentation"}
    table = table_of(tmp_path, layers("rle", **given), task="multi_label_segmentation")
    assert table.masks == (("3 1", "1 2"),)
    if key == "{id}_{class}":
        rows(tmp_path, f"id,rle\n{a},1 2\n", "a00_dead")
        with pytest.raises(DataError, match="several images or classes fit: 'a00_dead_cell'"):
            table_of(tmp_path, layers("rle", **given), task="multi_label_segmentation")


def test_every_way_to_cut_a_text_is_found() -> None:
    ways = cuts("{id}_{class}", "a_b_c", {"class": ["c", "b_c", "x"]})
    assert [(way["id"], way["class"]) for way in ways] == [("a", "b_c"), ("a_b", "c")]
    assert cuts("{id}", "a", {}) == [{"id": "a"}]
    assert cuts("{id}_{class}", "_c", {"class": ["c"]}) == []
    assert cuts("({id})", "(x)", {}) == [{"id": "x"}]


def test_names_are_alike_but_for_what_people_change() -> None:
    assert {alike(name) for name in ("025", "25", "025.PNG", "x/025.jpg", "x\\25", " 25 ")} == {"25"}
    assert alike("scan.v2.png") == alike("scan.v2.jpg") == "scan.v2"
    assert alike("a1") != alike("a10")


# -- files ------------------------------------------------------------------------------------------------------


def test_a_mask_file_of_no_image_is_said(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, name, np.zeros((2, 3), dtype=np.uint8), image=name != "c")
    table = table_of(tmp_path, index(folder="m", _classes=("x",)))
    assert table.notes == ("masks in 'm' with 1 name of no image: 'c'",)


def test_an_empty_mask_beside_a_file_of_no_image_is_refused(tmp_path: Path) -> None:
    """The kind of the trial rle-leading-zeros, with files: `missing: empty` hides nothing."""
    write(tmp_path, "25", np.ones((2, 3), dtype=np.uint8), image=False)
    write(tmp_path, "100", np.ones((2, 3), dtype=np.uint8))
    write_png(tmp_path / "i" / "025.png", np.zeros((2, 3, 3), dtype=np.uint8))
    given: dict[str, Any] = {"folder": "m", "missing": "empty", **ONE}
    with pytest.raises(DataError, match="'25' may mean '025'"):
        table_of(tmp_path, layers("per_class", **given))
    table = table_of(tmp_path, layers("per_class", **given, unmatched="ignore"))
    assert table.masks == (("",), ("m/100.png",))
    (tmp_path / "m" / "25.png").unlink()
    assert table_of(tmp_path, layers("per_class", **given)).notes == ()


@pytest.mark.parametrize("kind", ["index", "per_class", "instances"])
def test_masks_are_not_shared_by_images_of_one_stem(tmp_path: Path, kind: str) -> None:
    """The kind of the trial same-stem, in every kind of files."""
    rows(tmp_path, "id\nx.jpg\nx.png\n", "x.jpg", "x.png", csv="train.csv")
    write(tmp_path, "x", np.ones((2, 3), dtype=np.uint8), folder="m/x" if kind == "instances" else "m", image=False)
    given = {"folder": "m/{id}" if kind == "instances" else "m", "_classes": ("salt",)}
    given |= {} if kind == "index" else {"_task": "segmentation"}
    with pytest.raises(DataError, match=r"2 images that only the ending tells apart: 'x\.jpg', 'x\.png'"):
        table_of(tmp_path, layers(kind, **given), csv="train.csv")


def test_a_file_that_two_images_claim_is_refused(tmp_path: Path) -> None:
    """The kind of the trial class-ends-like-another, in names of files."""
    for name in ("a", "a_dead"):
        write_png(tmp_path / "i" / f"{name}.png", np.zeros((2, 3, 3), dtype=np.uint8))
        for label in ("cell", "dead_cell"):
            write(tmp_path, f"{name}_{label}", np.ones((2, 3), dtype=np.uint8), image=False)
    kind = layers("per_class", folder="m", suffix="_{class}.png", _classes=("cell", "dead_cell"),
                  _task="multi_label_segmentation")  # fmt: skip
    with pytest.raises(DataError, match=r"1 file of two images or classes: 'm/a_dead_cell\.png'"):
        table_of(tmp_path, kind, task="multi_label_segmentation")


def test_folders_of_objects_of_no_image_are_said(tmp_path: Path) -> None:
    write(tmp_path, "1", np.ones((2, 3), dtype=np.uint8), folder="m/a", image=False)
    write(tmp_path, "1", np.ones((2, 3), dtype=np.uint8), folder="m/A2", image=False)
    write_png(tmp_path / "i" / "a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    table = table_of(tmp_path, layers("instances", folder="m/{id}", **ONE))
    assert table.notes == ("folders in 'm' with 1 name of no image: 'A2'",)
