from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from kbench.commands.inspect import inspect, updates_per_epoch
from kbench.errors import FoldError
from kbench.runs.experiment import open_experiment
from kbench.workspace import Choice

TASKS = ("classes", "labels", "numbers")


@pytest.fixture(scope="module")
def inspections(small_workspace: Path) -> dict[str, dict]:
    """What was found of each small competition."""
    return {name: inspect(Choice(name, workspace=small_workspace), samples=3) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_inspected_before_training(inspections: dict[str, dict], name: str) -> None:
    found = inspections[name]
    rows = [(row["split"], row["rows"], row["unreadable"]) for row in found["rows"]]
    assert rows == [("train", 48, 0), ("test", 10, 0)]
    assert found["sizes"][0]["height"] == 10
    assert [record["fold"] for record in found["folds"]] == [0, 1]
    for file in found["files"]:
        assert cv2.imread(file) is not None
        assert Path(file).name in Path(found["page"]).read_text()
    assert json.dumps(found, allow_nan=False)


def test_pictures_lie_in_the_runs_folder_beside_no_run(small_workspace: Path, inspections: dict[str, dict]) -> None:
    found = inspections["classes"]
    assert Path(found["folder"]) == small_workspace / "runs" / "classes" / "inspect"
    names = {Path(file).name for file in found["files"]}
    assert names == {"sizes.png", "balance.png", "plan.png", "samples-first.png"}  # both stages show images alike


def test_labels_that_come_together_are_drawn_too(inspections: dict[str, dict]) -> None:
    found = inspections["labels"]
    assert "together.png" in {Path(file).name for file in found["files"]}
    assert {row["target"]: row["rows"] for row in found["balance"]} == {"bright": 36, "left": 24, "right": 24}


def test_missing_values_are_named(inspections: dict[str, dict]) -> None:
    assert [(row["split"], row["column"], row["missing"]) for row in inspections["numbers"]["missing"]] == [
        ("train", "width", 1),
        ("train", "age", 1),
    ]


def test_the_plan_counts_epochs_updates_and_members_before_training(inspections: dict[str, dict]) -> None:
    first, second = inspections["classes"]["stages"]
    assert (first["lr"], first["epochs"], first["updates"], first["members"]) == ("find", 1, 3, 0)
    assert (second["lr"], second["epochs"], second["updates"], second["members"]) == ("0.02", 2, 6, 2)
    assert second["images_per_epoch"] == 24


@pytest.mark.slow
def test_a_stage_that_shows_images_otherwise_gets_a_sheet_of_its_own(small_workspace: Path) -> None:
    changed = ("stages.all.size=12", "stages.all.sampler={name: balanced, epoch_size: 41}", "stages.all.accumulate=2")
    found = inspect(Choice("classes", assignments=changed, workspace=small_workspace), samples=2)
    assert "samples-all.png" in {Path(file).name for file in found["files"]}
    second = found["stages"][1]
    assert (second["size"], second["images_per_epoch"], second["updates"], second["batch"]) == ("12 x 12", 41, 6, 16)


def test_a_fold_that_is_not_there_is_an_error(small_workspace: Path) -> None:
    with pytest.raises(FoldError, match="no fold '7'"):
        inspect(Choice("classes", workspace=small_workspace), fold=7)


@pytest.mark.slow
def test_nothing_of_the_run_is_touched(small_workspace: Path) -> None:
    run = open_experiment(Choice("classes", workspace=small_workspace)).workspace.run("classes", "baseline-s0").root
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    inspect(Choice("classes", workspace=small_workspace))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(("images", "updates"), [(1, 1), (8, 1), (9, 1), (10, 2), (16, 2), (17, 2), (18, 3)])
def test_a_last_batch_of_one_image_joins_the_one_before_as_in_training(images: int, updates: int) -> None:
    assert updates_per_epoch(images, 8, 1) == updates
    assert updates_per_epoch(images, 8, 2) == -(-updates // 2)
