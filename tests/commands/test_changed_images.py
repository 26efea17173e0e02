"""Images that change under their names between two folds of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_images import drawn, write_png

from kbench import files
from kbench.commands.score import score
from kbench.commands.train import train
from kbench.errors import ConfigError
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice


def opened(root: Path, **choice: str) -> Experiment:
    return open_experiment(
        Choice("classes", assignments=("stages.first.lr=0.02", "input.cache=on"), workspace=root, **choice)
    )


def test_a_later_fold_refuses_and_names_the_file_and_the_ways_on(root: Path) -> None:
    options = TrainOptions(device="cpu")
    train(opened(root), "0", options)
    image = min((root / "data" / "classes" / "train").glob("*.png"))
    content = image.read_bytes()
    write_png(image, 255 - drawn(48)[0])
    with pytest.raises(ConfigError) as refused:
        train(opened(root), "1", options)
    assert f"1 file changed: 'train/{image.name}'" in refused.value.what
    assert "--run NAME" in refused.value.todo
    assert "--force" in refused.value.todo
    image.write_bytes(content)
    assert train(opened(root), "1", options)["trained"] == [1], "the files are back"
    write_png(image, 255 - drawn(48)[0])
    assert train(opened(root, run="other"), "0", options)["trained"] == [0], "the first way on"
    assert train(opened(root), "all", TrainOptions(device="cpu", force=True))["trained"] == [0, 1], "the second way on"
    assert train(opened(root), "all", options)["done"] == [0, 1]


def test_a_run_of_an_earlier_version_goes_on_and_is_held_to_its_files_from_then_on(root: Path) -> None:
    options = TrainOptions(device="cpu")
    train(opened(root), "0", options)
    manifest = root / "runs" / "classes" / "baseline-s0" / "run.json"
    known = files.read_json(manifest)
    assert known.pop("content")["exact"]
    files.write_json(manifest, known)
    train(opened(root), "0", options)
    write_png(min((root / "data" / "classes" / "train").glob("*.png")), 255 - drawn(48)[0])
    with pytest.raises(ConfigError, match="1 file changed"):
        train(opened(root), "1", options)


def test_a_score_of_rows_that_were_others_when_they_were_trained_says_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(opened(root), "all", TrainOptions(device="cpu"))
    choice = Choice("classes", workspace=root)
    before = score(choice)["score"]
    assert "have changed since" not in capsys.readouterr().err
    image = min((root / "data" / "classes" / "train").glob("*.png"))
    content = image.read_bytes()
    write_png(image, 255 - drawn(48)[0])
    assert score(choice)["score"] != before
    said = capsys.readouterr().err
    assert f"1 file changed: 'train/{image.name}'" in said
    assert "kbench train --force" in said
    image.write_bytes(content)
    table = root / "data" / "classes" / "train.csv"
    table.write_text(table.read_text().replace("0001,right", "0001,left"))
    score(choice)
    said = capsys.readouterr().err
    assert "ids, targets or metadata of the table" in said
    assert "changed: 'train/" not in said
    assert train(opened(root), "all", TrainOptions(device="cpu", force=True))["trained"] == [0, 1], "as it says"
    score(choice)
    assert "have changed since" not in capsys.readouterr().err
