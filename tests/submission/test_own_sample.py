"""Files for people who have a test set and no sample submission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_images import drawn, write_images

from kbench import registry
from kbench.commands.check import check
from kbench.commands.submit import submit
from kbench.errors import ConfigError, SubmissionError
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import make_metric
from kbench.runs.experiment import open_experiment
from kbench.submission.check import write_submission
from kbench.submission.grading import grade
from kbench.workspace import Choice, Workspace

IDS = ["t0", "t1"]
YAML = """
task: single_label
source: {{name: local, path: files, solution: answers.csv}}
data:
  layout: folders
  train: {{images: train, suffix: .png}}
  test: {{images: test, suffix: .png}}
folds: {{strategy: stratified, n: 2}}
metric: accuracy
submission: {{format: {format}{more}}}
input: {{size: 16}}
model: {{backbone: resnet10t}}
train: {{batch_size: 8}}
stages: {{all: {{lr: 1e-3, keep: [last]}}}}
"""


@pytest.mark.parametrize(
    ("name", "params", "task", "columns", "expected"),
    [
        ("label", {}, "single_label", ["id", "kind"], ["id", "kind"]),
        ("label", {}, "single_label", [], ["id", "label"]),
        ("tags", {}, "multi_label", ["image", "tags", "Usage"], ["image", "tags"]),
        ("value", {}, "regression", [], ["id", "x", "y"]),
        ("value", {}, "regression", ["id", "y", "x"], ["id", "y", "x"]),
        ("probabilities", {}, "single_label", ["id", "label"], ["id", "x", "y"]),
        ("probabilities", {}, "single_label", ["name", "y", "x"], ["name", "y", "x"]),
        ("single_probability", {"target": "x"}, "single_label", [], ["id", "x"]),
        ("mask_zip", {}, "segmentation", [], ["id"]),
        ("runs_json", {}, "segmentation", [], ["id"]),
        ("rle", {"id": "{id}_{class_index}", "first_class": 1}, "segmentation", [], ["id", "rle"]),
        ("rle", {"label": "class"}, "segmentation", ["id", "class", "runs"], ["id", "runs", "class"]),
    ],
)
def test_every_format_can_say_what_a_sample_would(
    name: str, params: dict[str, Any], task: str, columns: list[str], expected: list[str]
) -> None:
    format = registry.build("format", name, params, _names=("x", "y"), _task=task)
    sample = format.own_sample(IDS, columns)
    assert list(sample.columns) == expected
    assert list(dict.fromkeys(format.image_of(row) for row in sample.iloc[:, 0])) == IDS
    if "id" in params:
        assert sample["id"].tolist() == ["t0_1", "t0_2", "t1_1", "t1_2"]
    if "label" in params:
        assert sample["class"].tolist() == ["x", "y", "x", "y"]


def written(workspace: Workspace, *, format: str = "label", more: str = "") -> Choice:
    files = workspace.data("mine")
    images = drawn(26)
    for place, kind in enumerate(("forest", "sea")):
        write_images(files / "train" / kind, images[place:20:2])
    write_images(files / "test", images[20:])
    (workspace.root / "files").mkdir()
    answers = [f"{row:04d},{('forest', 'sea')[row % 2]}" for row in range(6)]
    (workspace.root / "answers.csv").write_text("\n".join(["id,label", *answers]) + "\n")
    (workspace.root / "competitions" / "mine.yaml").write_text(YAML.format(format=format, more=more))
    return Choice(competition="mine")


def test_own_data_without_a_sample_is_checked_written_and_graded(workspace: Workspace, tmp_path: Path) -> None:
    """The trial own-data-no-sample."""
    choice = written(workspace)
    assert check(choice, images=False, every=False)["sample"] == 6
    experiment = open_experiment(choice)
    sample = experiment.read_sample()
    values = np.eye(2, dtype=np.float32)[np.arange(6) % 2]
    predictions = Predictions(experiment.test.ids, ("forest", "sea"), values, "single_label", {})
    file = write_submission(
        tmp_path / "s.csv", experiment.format.build(predictions, sample), sample=sample, format=experiment.format
    )
    rows = [f"{row:04d},{('forest', 'sea')[row % 2]}" for row in range(6)]
    assert file.read_text() == "\n".join(["id,label", *rows]) + "\n"
    solution = workspace.root / "answers.csv"
    graded = grade(file, solution, sample=sample, format=experiment.format, metric=make_metric("accuracy"))
    assert graded.score == 1.0


def test_a_sample_that_is_named_and_missing_is_an_error(workspace: Workspace) -> None:
    choice = written(workspace, more=", sample: sample_submission.csv")
    with pytest.raises(ConfigError, match=r"sample_submission\.csv"):
        check(choice, images=False, every=False)


def test_a_file_edited_after_it_was_recorded_is_not_graded_here(workspace: Workspace, tmp_path: Path) -> None:
    choice = written(workspace)
    rows = [f"{row:04d},{('forest', 'sea')[row % 2]}" for row in range(6)]
    (tmp_path / "mine.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    graded = submit(choice, None, own=str(tmp_path / "mine.csv"), wait=False, wait_s=0)
    assert graded["public"] == 1.0
    [file] = (workspace.submissions("mine")).glob("*.csv")
    file.write_text(file.read_text().replace("0000,forest", "0000,sea"))
    with pytest.raises(SubmissionError, match="is not what was written"):
        submit(choice, file.name, wait=False, wait_s=0)
