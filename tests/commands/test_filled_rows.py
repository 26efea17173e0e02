"""One broken test image: the submission is made, and says which row is filled with what."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_runs
import test_trials

from kbench.commands.check import check
from kbench.commands.ensemble import ensemble
from kbench.commands.report import ReportOptions, report
from kbench.commands.train import train
from kbench.data.table.table import training_share
from kbench.errors import DataError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    small_runs.written(tmp_path)
    broken = tmp_path / "source" / "classes" / "test" / "0003.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / "source" / "classes" / "test" / "0005.png").unlink()
    return tmp_path


def test_the_error_names_the_option_and_the_option_fills_the_rows(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    sample = workspace / "source" / "classes" / "sample_submission.csv"
    yaml = workspace / "competitions" / "classes.yaml"
    yaml.write_text(
        yaml.read_text().replace(
            "test: {images: test, suffix: .png}", "test: {csv: sample_submission.csv, images: test, suffix: .png}"
        )
    )
    with pytest.raises(DataError) as caught:
        _ = open_experiment(Choice("classes", workspace=workspace)).test
    assert "on_problem: fill" in caught.value.what

    choice = Choice("classes", assignments=("data.on_problem=fill",), workspace=workspace)
    check(choice, images=True, every=False)
    assert "'0003'" in (said := capsys.readouterr().err)
    assert "'0005'" in said
    experiment = open_experiment(choice)
    train(experiment, "0", TrainOptions(device="cpu"))
    made = ensemble(choice, [], EnsembleOptions(device="cpu"))
    assert "2 test rows without a readable image: the training rows' share" in made["notes"]
    with open(made["file"], newline="") as handle:
        rows = {row["id"]: [float(row["left"]), float(row["right"])] for row in csv.DictReader(handle)}
    assert list(rows) == [line.partition(",")[0] for line in sample.read_text().splitlines()[1:]]
    share = training_share(experiment.train)
    for name, values in rows.items():
        assert np.allclose(values, share, atol=1e-6) == (name in ("0003", "0005")), name
    report(choice, ReportOptions())


@pytest.mark.parametrize("head", [True, False])
def test_masks_of_unreadable_images_are_empty(tmp_path: Path, head: bool) -> None:
    """With a head the mask has the size it says; without one, that of the other images."""
    masks = {f"{name}.png": test_trials.disc(radius).astype(np.uint8) for name, radius in test_trials.RADII.items()}
    written = test_trials.written(tmp_path, test_trials.SAMPLE, images=test_trials.SCENES, masks=masks,
                                  format="{name: mask_zip, file: '{id}.png'}")  # fmt: skip
    broken = tmp_path / "data" / "trial" / "test" / "images" / "t1.png"
    broken.write_bytes(broken.read_bytes()[: 60 if head else 12])
    more = ("data.on_problem=fill", "model.backbone=test_resnet")
    choice = Choice("trial", assignments=more, workspace=written.workspace)
    train(open_experiment(choice), "0", TrainOptions(device="cpu"))
    made = ensemble(choice, [], EnsembleOptions(device="cpu"))
    assert "1 test row without a readable image: an empty mask" in made["notes"]
    with zipfile.ZipFile(made["file"]) as packed:
        assert sorted(packed.namelist()) == ["t0.png", "t1.png"]
        pixels = cv2.imdecode(np.frombuffer(packed.read("t1.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == test_trials.SIZE
    assert not pixels.any()
