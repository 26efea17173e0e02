"""Images of another bit depth than those a model was trained on (trial `bit-depth-test16`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_images import write_png
from small_runs import ROWS
from typer.testing import CliRunner

from kbench import files, open_run
from kbench.cli.app import app
from kbench.commands.train import train
from kbench.errors import DataError
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice


def typed(workspace: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.chdir(workspace)
    done = CliRunner().invoke(app, list(words))
    said = f"{done.output} {done.exception or ''}"
    return done.exit_code, " ".join(said.split())


def deepened(folder: Path, *names: str) -> None:
    """Write images of a folder in 16 bits: each value times 257, so that value / 65535 is what value / 255 was."""
    import cv2

    for path in sorted(folder.glob("*.png")):
        if not names or path.name in names:
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            write_png(path, pixels[:, :, ::-1].astype(np.uint16) * 257)


@pytest.fixture
def run(root: Path) -> Path:
    """A workspace with a run that is trained on images of 8 bits."""
    train(open_experiment(Choice("classes", assignments=("stages.first.lr=0.02",), workspace=root)), "all",
          TrainOptions(device="cpu"))  # fmt: skip
    return root


def test_a_test_set_of_16_bits_is_refused_before_anything_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = run / "data" / "classes" / "test"
    deepened(test)
    first = min(test.glob("*.png"))
    code, said = typed(run, monkeypatch, "ensemble", "-c", "classes")
    assert code == 1
    assert first.name in said
    assert "16 bits (uint16)" in said
    assert "8 bits (uint8)" in said
    assert not (run / "submissions").exists()
    code, said = typed(run, monkeypatch, "predict", "-c", "classes", "--image", str(first))
    assert code == 1
    assert first.name in said
    assert "trained on images of 8 bits" in said
    code, said = typed(run, monkeypatch, "check", "-c", "classes")
    assert code == 1
    assert f"uint8: {ROWS} train images such as" in said
    assert "uint16: 10 test images such as" in said


def test_one_file_of_16_bits_among_many_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = run / "data" / "classes" / "test"
    name = sorted(test.glob("*.png"))[7].name
    deepened(test, name)
    code, said = typed(run, monkeypatch, "ensemble", "-c", "classes")
    assert code == 1
    assert name in said
    assert not (run / "submissions").exists()
    code, said = typed(run, monkeypatch, "check", "-c", "classes")
    assert code == 1
    assert f"uint16: 1 image such as 'test/{name}'" in said


def test_arrays_that_are_handed_over_have_the_type_of_the_training_images(run: Path) -> None:
    opened = open_run("baseline-s0", competition="classes", workspace=run)
    image = np.full((10, 12, 3), 100, np.uint8)
    assert opened.predict([image]).values.shape == (1, 2)
    with pytest.raises(DataError, match="'image 0' has pixels of int64"):
        opened.predict([image.astype(np.int64)])
    for dtype in (np.uint16, np.float32, np.float64):
        with pytest.raises(DataError, match=r"'image 0' has pixels of .*trained on images of 8 bits"):
            opened.predict([image.astype(dtype)])
    with pytest.raises(DataError, match="image 1"):
        opened.predict([image, image.astype(np.uint16)])


def test_checkpoints_of_earlier_versions_are_still_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted((run / "runs").rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and isinstance(content.get("scale"), dict):
            assert content["scale"].pop("dtype") == "uint8"
            content.pop("of_itself", None)
            files.write_json(path, content)
    code, said = typed(run, monkeypatch, "ensemble", "-c", "classes")
    assert code == 0, said
    deepened(run / "data" / "classes" / "test")
    code, said = typed(run, monkeypatch, "ensemble", "-c", "classes")
    assert code == 1
    assert "trained on images of 8 bits" in said


def test_a_model_of_16_bits_refuses_8(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = root / "data" / "classes"
    deepened(data / "train")
    train(open_experiment(Choice("classes", assignments=("stages.first.lr=0.02",), workspace=root)), "0",
          TrainOptions(device="cpu"))  # fmt: skip
    code, said = typed(
        root, monkeypatch, "predict", "-c", "classes", "--image", str(min((data / "test").glob("*.png")))
    )
    assert code == 1
    assert "has pixels of 8 bits (uint8)" in said
    assert "trained on images of 16 bits (uint16)" in said
