"""Pseudo-labels: what is sure enough, what is written, and how rows join those of a fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench import files
from kbench.data.pseudo_rows import PREFIX, join, read_pseudo
from kbench.data.table.table import Table
from kbench.ensemble.pseudo_labels import Chosen, Sure, chosen_masks, chosen_rows, sure_mask, write_pseudo
from kbench.errors import ConfigError, DataError
from kbench.inference.predictions import Predictions
from kbench.tasks import IGNORED

NAMES = ("cat", "dog", "owl")


def predictions(values: list[list[float]], task: str = "single_label") -> Predictions:
    ids = np.array([f"t{row}" for row in range(len(values))])
    return Predictions(ids, NAMES, np.array(values, dtype=np.float32), task, {})


def table(ids: list[str], task: str = "single_label", *, folder: str = "test", **columns: Any) -> Table:
    return Table(np.array(ids), Path("/data"), tuple((f"{folder}/{name}.png",) for name in ids), task, NAMES, **columns)


VALUES = [[0.95, 0.03, 0.02], [0.5, 0.3, 0.2], [0.02, 0.97, 0.01], [0.01, 0.99, 0.0], [0.0, 0.05, 0.95]]


def test_rows_are_taken_at_the_threshold_and_the_surest_of_each_class() -> None:
    found = chosen_rows(predictions(VALUES), Sure(0.95))
    assert [(one.id, one.label) for one in found] == [("t0", 0), ("t2", 1), ("t3", 1), ("t4", 2)]
    assert [one.id for one in chosen_rows(predictions(VALUES), Sure(0.9, most=1))] == ["t0", "t3", "t4"]


def test_labels_are_there_not_there_or_unknown() -> None:
    found = chosen_rows(predictions([[0.95, 0.5, 0.02], [0.5, 0.6, 0.97]], "multi_label"), Sure(0.9, least=0.5))
    assert [one.id for one in found] == ["t0"]
    np.testing.assert_array_equal(np.asarray(found[0].label), [1, np.nan, 0])
    assert found[0].sure == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.51, 1), st.sampled_from(["segmentation", "multi_label_segmentation"]))
def test_pixels_are_of_the_class_they_are_sure_of_or_ignored(seed: int, threshold: float, task: str) -> None:
    maps = np.random.default_rng(seed).dirichlet([0.3, 0.3, 0.3], (5, 6)).transpose(2, 0, 1).astype(np.float32)
    mask, share = sure_mask(maps, Sure(threshold), task=task)
    assert share == pytest.approx((mask != IGNORED).mean())
    if task == "segmentation":
        best = maps.max(0)
        np.testing.assert_array_equal(mask[:, :, 0] == IGNORED, best < np.float32(threshold))
        known = mask[:, :, 0] != IGNORED
        np.testing.assert_array_equal(mask[:, :, 0][known], maps.argmax(0)[known])
    else:
        assert mask.shape == (5, 6, 3)
        np.testing.assert_array_equal(mask.transpose(2, 0, 1) == 1, maps >= np.float32(threshold))


def test_a_number_is_sure_of_nothing() -> None:
    with pytest.raises(ConfigError, match="pseudo-labels for the task 'regression'"):
        chosen_rows(predictions(VALUES, "regression"), Sure())
    for wrong in ({"threshold": 0.5}, {"threshold": 1.1}, {"least": -0.1}, {"most": 0}):
        with pytest.raises(ConfigError):
            Sure(**wrong)


# -- files ------------------------------------------------------------------------------------------------------

ORIGIN = {"run": "baseline-s0", "folds": "abc"}


def written(path: Path, task: str = "single_label") -> dict[str, Any]:
    rows = chosen_rows(predictions(VALUES, task), Sure())
    return write_pseudo(path, {"fold-0": rows, "full": rows[:1]}, names=NAMES, task=task, sure=Sure(), origin=ORIGIN)


def test_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    said = written(tmp_path / "labels.json")
    assert said["places"]["fold-0"] == {"rows": 4, "classes": {"cat": 1, "dog": 2, "owl": 1}}
    assert (tmp_path / "fold-0.csv").read_text().splitlines()[:2] == ["id,fold,sure,label", "t0,-1,0.95,cat"]
    unlabelled = table(["s", "t0", "t1", "t2", "t3", "t4"], meta=pd.DataFrame({"light": list("abcdef")}))
    labels = read_pseudo(tmp_path / "labels.json", "fold-0", unlabelled=unlabelled, names=NAMES, folds="abc")
    assert labels.table.ids.tolist() == [f"{PREFIX}t{row}" for row in (0, 2, 3, 4)]
    assert labels.table.targets is not None
    assert labels.table.targets.tolist() == [0, 1, 1, 2]
    assert labels.rows.tolist() == [1, 3, 4, 5]
    assert labels.table.images[1] == ("test/t2.png",)
    assert labels.origin["run"] == "baseline-s0"
    assert labels.kind is None


def test_unknown_labels_stay_unknown(tmp_path: Path) -> None:
    written(tmp_path / "labels.json", "multi_label")
    unlabelled = table([f"t{row}" for row in range(5)], "multi_label")
    labels = read_pseudo(tmp_path / "labels.json", "fold-0", unlabelled=unlabelled, names=NAMES, folds="abc")
    known = np.where(np.array(VALUES) >= 0.9, 1, np.where(np.array(VALUES) <= 0.1, 0, np.nan))
    np.testing.assert_array_equal(labels.table.targets, known[[0, 2, 3, 4]])


@pytest.mark.parametrize("task", ["segmentation", "multi_label_segmentation"])
def test_masks_are_read_as_they_were_written(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = {f"t{row}": rng.dirichlet([0.1] * 3, (6, 9)).transpose(2, 0, 1).astype(np.float32) for row in range(4)}
    maps["t2"][:] = 1 / 3
    rows = chosen_masks(maps.items(), Sure(), task=task)
    said = write_pseudo(tmp_path / "l.json", {"fold-1": rows}, names=NAMES, task=task, sure=Sure(), origin=ORIGIN)
    assert said["places"]["fold-1"]["rows"] == 3
    labels = read_pseudo(tmp_path / "l.json", "fold-1", unlabelled=table(sorted(maps), task), names=NAMES, folds="abc")
    assert labels.table.ids.tolist() == [f"{PREFIX}t{row}" for row in (0, 1, 3)]
    assert labels.kind is not None
    assert labels.table.masks is not None
    for row, name in enumerate(("t0", "t1", "t3")):
        mask = labels.kind.read(labels.table.root, labels.table.masks[row], lambda: (6, 9))
        np.testing.assert_array_equal(mask, sure_mask(maps[name], Sure(), task=task)[0])
    again = {path.name: files.sha256(path) for path in tmp_path.iterdir()}
    rows = chosen_masks(maps.items(), Sure(), task=task)
    write_pseudo(tmp_path / "l.json", {"fold-1": rows}, names=NAMES, task=task, sure=Sure(), origin=ORIGIN)
    assert {path.name: files.sha256(path) for path in tmp_path.iterdir()} == again
    rows = chosen_masks(maps.items(), Sure(most=2), task=task)
    assert write_pseudo(tmp_path / "m.json", {"full": rows}, names=NAMES, task=task, sure=Sure(most=2),
                        origin=ORIGIN)["places"]["full"]["rows"] == 2  # fmt: skip


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    unlabelled = table([f"t{row}" for row in range(5)])
    with pytest.raises(DataError, match="there are no pseudo-labels"):
        read_pseudo(path, "fold-0", unlabelled=unlabelled, names=NAMES, folds="abc")
    written(path)
    with pytest.raises(DataError, match="models trained on other folds"):
        read_pseudo(path, "fold-0", unlabelled=unlabelled, names=NAMES, folds="abd")
    with pytest.raises(DataError, match="no labels for 'fold-7'"):
        read_pseudo(path, "fold-7", unlabelled=unlabelled, names=NAMES, folds="abc")
    with pytest.raises(DataError, match="other classes"):
        read_pseudo(path, "fold-0", unlabelled=unlabelled, names=("cat", "dog"), folds="abc")
    with pytest.raises(DataError, match="of 3 unknown rows: 't2'"):
        read_pseudo(path, "fold-0", unlabelled=table(["t0", "t1"]), names=NAMES, folds="abc")
    (tmp_path / "fold-0.csv").write_text("id,fold,sure,label\nt0,-1,1,dog\n")
    with pytest.raises(DataError, match="or they are damaged"):
        read_pseudo(path, "fold-0", unlabelled=unlabelled, names=NAMES, folds="abc")
    before = path.read_bytes()
    with pytest.raises(DataError, match="no row of 'fold-0' is sure enough"):
        write_pseudo(path, {"fold-0": []}, names=NAMES, task="single_label", sure=Sure(), origin=ORIGIN)
    assert path.read_bytes() == before


# -- joining ----------------------------------------------------------------------------------------------------


def test_rows_are_joined_in_the_order_of_their_ids_and_keep_their_images() -> None:
    train = table(["a", "t0", "zz"], folder="train", targets=np.array([0, 1, 2]),
                  meta=pd.DataFrame({"light": ["day", "dusk", "day"], "route": list("xyz")}))  # fmt: skip
    extra = table([f"{PREFIX}a", f"{PREFIX}t0"], targets=np.array([2, 2]), meta=pd.DataFrame({"light": ["day", "day"]}))
    both = join(train, extra)
    assert both.table.ids.tolist() == ["a", f"{PREFIX}a", f"{PREFIX}t0", "t0", "zz"]
    assert both.table.ids[both.first].tolist() == train.ids.tolist()
    assert both.table.ids[both.second].tolist() == extra.ids.tolist()
    assert both.table.targets is not None
    assert both.table.targets.tolist() == [0, 2, 2, 1, 2]
    assert both.table.column("route").tolist() == ["x", "", "", "y", "z"]
    first = [np.full((1, 1, 1), row) for row in range(3)]
    second = [np.full((1, 1, 1), 10 + row) for row in range(6)]
    images = both.images(first, second, rows=np.array([5, 2]))
    assert [int(images[row].item()) for row in range(len(images))] == [0, 15, 12, 1, 2]


def test_an_image_of_the_training_set_is_no_unlabelled_one() -> None:
    train = table(["a", "b"], folder="images", targets=np.array([0, 1]))
    with pytest.raises(DataError, match="1 rows with pseudo-labels show images of the training set: 'b'"):
        join(train, table(["b"], folder="images", targets=np.array([0])))


def test_labels_that_are_there_stay_where_new_ones_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    options: Any = {"names": ("cat", "dog"), "task": "single_label", "sure": Sure(0.6), "origin": {}}
    write_pseudo(path, {"fold-0": [Chosen("a", 0.9, 1)], "full": [Chosen("a", 0.9, 1)]}, **options)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DataError, match="no row of 'full' is sure enough"):
        write_pseudo(path, {"fold-0": [Chosen("b", 0.9, 0)], "full": []}, **options)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write_pseudo(path, {"fold-0": [Chosen("b", 0.9, 0)], "full": [Chosen("b", 0.9, 0)]}, **options)
    assert {file.name for file in tmp_path.iterdir()} == set(before)
    assert (tmp_path / "fold-0.csv").read_bytes() != before["fold-0.csv"]
