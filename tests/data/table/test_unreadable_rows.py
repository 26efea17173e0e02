"""Rows that cannot be read: left out of training, kept and marked in a test set, filled with the training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_images import write_png

from kbench.data.masks.cache import look_at_masks, sizes_of
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.data.table.table import Table, training_share
from kbench.errors import DataError
from kbench.runs.experiment import Experiment, mask_kind, open_experiment
from kbench.workspace import Choice, Workspace

YAML = """
task: {task}
source: {{name: local, path: files}}
data:
  {masks}
  train: {{csv: train.csv, images: train}}
  test: {{csv: test.csv, images: test}}
  on_problem: {problem}
folds: {{strategy: kfold, n: 2}}
metric: {metric}
submission: {{format: {format}}}
input: {{size: 16}}
model: {{{model}}}
train: {{batch_size: 8}}
stages: {{all: {{lr: 1e-3, keep: [last]}}}}
"""


def opened(workspace: Workspace, *, problem: str, masks: bool = False) -> Experiment:
    """Write four training and three test images; t1 of the test set is cut off, t2 is missing."""
    root = workspace.data("mine")
    for folder, names in (("train", "abcd"), ("test", ["t0", "t1"])):
        for place, name in enumerate(names):
            write_png(root / folder / f"{name}.png", np.full((4, 5, 3), 40 * place, dtype=np.uint8))
    whole = (root / "test" / "t1.png").read_bytes()
    (root / "test" / "t1.png").write_bytes(whole[: len(whole) // 2])
    (root / "test.csv").write_text("id\nt0\nt1\nt2\n")
    cells = ["1 2", "19 9", "1 2 1 1", "x"] if masks else ["cat", "cat", "cat", "dog"]
    lines = [f"{name},{cell}" for name, cell in zip("abcd", cells, strict=True)]
    (root / "train.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    given = {"task": "single_label", "masks": "target: label", "metric": "accuracy", "format": "label",
             "model": "backbone: resnet10t"}  # fmt: skip
    if masks:
        given = {"task": "segmentation", "masks": "masks: {name: rle}\n  classes: [salt]", "metric": "mean_iou",
                 "format": "rle", "model": "name: smp, backbone: resnet18"}  # fmt: skip
    (workspace.root / "competitions" / "mine.yaml").write_text(YAML.format(problem=problem, **given))
    return open_experiment(Choice(competition="mine"))


@pytest.mark.parametrize("problem", ["fill", "drop"])
def test_a_test_row_that_cannot_be_read_stays_and_is_marked(workspace: Workspace, problem: str) -> None:
    """The trial broken-test-image, its data."""
    experiment = opened(workspace, problem=problem)
    test = experiment.test
    assert test.ids.tolist() == ["t0", "t1", "t2"]
    assert test.unreadable is not None
    assert test.unreadable.tolist() == [False, True, True]
    assert any("'t2'" in note for note in test.notes)
    assert any("'t1'" in note for note in test.notes)
    assert test.select(np.array([0, 2])).unreadable.tolist() == [False, True]  # type: ignore[union-attr]
    assert training_share(experiment.train).tolist() == [0.75, 0.25]


def test_of_dense_tasks_drop_leaves_them_out(workspace: Workspace) -> None:
    test = opened(workspace, problem="drop", masks=True).test
    assert (test.ids.tolist(), test.unreadable) == (["t0"], None)


def test_rows_with_wrong_run_lengths_are_left_out_by_name(workspace: Workspace) -> None:
    train = opened(workspace, problem="drop", masks=True).train
    assert train.ids.tolist() == ["a"]
    assert any("with a wrong mask: 'b', 'c', 'd'" in note for note in train.notes)


@pytest.mark.parametrize(
    ("task", "targets", "expected"),
    [
        ("single_label", np.array([0, 0, 1]), [2 / 3, 1 / 3]),
        ("multi_label", np.array([[1, np.nan], [0, np.nan], [1, np.nan]], dtype=np.float32), [2 / 3, 0]),
        ("regression", np.array([[10, 1], [20, np.nan], [30, 3]], dtype=np.float32), [20, 2]),
        ("segmentation", None, [0, 0]),
    ],
)
def test_the_training_share_of_every_task(task: str, targets: np.ndarray | None, expected: list[float]) -> None:
    table = Table(np.array(["a", "b", "c"]), Path(), ((),) * 3, task, ("x", "y"), targets=targets)
    np.testing.assert_allclose(training_share(table), expected)


def test_wrong_masks_are_known_by_row(workspace: Workspace) -> None:
    experiment = opened(workspace, problem="error", masks=True)
    kind = mask_kind(experiment.competition, experiment.data)
    assert kind is not None
    request = Request(experiment.data, "train", "segmentation", csv="train.csv", images=("train",), mask=kind)
    table = read_table("csv", {}, request)
    report = look_at_masks(table, kind=kind, size_of=sizes_of(table, None), progress=lambda done, total: None)
    assert (report.rows, report.images, len(report.problems)) == ([1, 2, 3], {"salt": 1}, 3)


@pytest.mark.parametrize("what", ["folder", "loop", "dangling"])
def test_what_is_no_file_at_all_is_left_out_of_training_and_filled_in_a_test_set(
    workspace: Workspace, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = opened(workspace, problem="fill")
    for path in (experiment.data / "train" / "b.png", experiment.data / "test" / "t0.png"):
        path.unlink()
        path.mkdir() if what == "folder" else path.symlink_to(path.name if what == "loop" else "nowhere.png")
    write_png(experiment.data / "test" / "t1.png", np.zeros((4, 5, 3), dtype=np.uint8))
    assert experiment.train.ids.tolist() == ["a", "c", "d"]
    unreadable = experiment.test.unreadable
    assert unreadable is not None
    assert dict(zip(experiment.test.ids.tolist(), unreadable.tolist(), strict=True)) == {
        "t0": True, "t1": False, "t2": True,
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "with an unreadable image: 'b'" in said
    assert "with an unreadable image, filled with the training share: 't0'" in said


def test_a_test_set_without_one_readable_image_is_an_error(workspace: Workspace) -> None:
    experiment = opened(workspace, problem="fill")
    (experiment.data / "test" / "t0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no test row can be read"):
        _ = experiment.test
