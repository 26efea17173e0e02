"""Bundles for other engines and in half precision: held against torch on rows that were not trained on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch

from kbench.commands import export as export_module
from kbench.commands.export import ExportOptions, export
from kbench.commands.infer import infer
from kbench.commands.train import train
from kbench.errors import ConfigError
from kbench.models import engines
from kbench.runs.blend import EnsembleOptions
from kbench.runs.bundle_check import Comparison
from kbench.runs.bundle_engines import slower
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

CPU = EnsembleOptions(device="cpu")
HEADS = (
    "stages.all=null", "stages.first.precompute=true", "train.augment=none", "stages.first.keep=[cycles]",
    "stages.first.schedule={name: sgdr, cycles: 2}", "tta=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads on one frozen body."""
    root = small_runs.written(tmp_path_factory.mktemp("engines"))
    (root / "competitions" / "classes" / "small.py").write_text(small_runs.SPLIT)
    train(open_experiment(Choice("classes", assignments=HEADS, workspace=root)), "all", TrainOptions(device="cpu"))
    return root


def predicted(root: Path, folder: Path, work: Path) -> np.ndarray:
    data = work / "data"
    shutil.copytree(root / "data" / "classes" / "test", data / "test")
    shutil.copy(root / "data" / "classes" / "sample_submission.csv", data)
    made = infer(folder, data=data, out=work / "o.csv", work=work / "w", hours=None, device="cpu")
    with open(made["file"], newline="") as handle:
        return np.array([[float(row["left"]), float(row["right"])] for row in csv.DictReader(handle)])


def test_a_frozen_body_is_stored_once_and_half_of_it_in_half_precision(root: Path, tmp_path: Path) -> None:
    choice = Choice("classes", assignments=HEADS, workspace=root)
    sizes, values = {}, {}
    for half in (False, True):
        folder = tmp_path / f"bundle-{half}"
        export(choice, [], CPU, ExportOptions(folder, half=half))
        bodies = list((folder / "runs").rglob("bodies/*.safetensors"))
        assert len(bodies) == 1
        sizes[half] = sum(path.stat().st_size for path in folder.rglob("snapshot-*.safetensors"))
        (tmp_path / str(half)).mkdir()
        values[half] = predicted(root, folder, tmp_path / str(half))
    said = json.loads((tmp_path / "bundle-True" / "bundle.json").read_text())
    assert len(said["members"]) == 4
    assert 0 < said["check"]["largest"] < 1e-3
    assert sizes[True] < sizes[False]
    assert 0 < np.abs(values[True] - values[False]).max() < 1e-3


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_engine_predicts_what_torch_predicts_and_its_score_stands_beside(
    root: Path, tmp_path: Path, engine: str
) -> None:
    choice = Choice("classes", assignments=HEADS, workspace=root)
    for name in ("torch", engine):
        export(choice, [], CPU, ExportOptions(tmp_path / name, engine=name))
        (tmp_path / f"of-{name}").mkdir()
    said = json.loads((tmp_path / engine / "bundle.json").read_text())
    assert set(said["check"]) == {"rows", "torch", engine, "largest"}
    assert said["check"]["rows"] == 48
    assert said["check"][engine] == pytest.approx(said["check"]["torch"], rel=1e-3)
    values = [predicted(root, tmp_path / name, tmp_path / f"of-{name}") for name in ("torch", engine)]
    assert np.abs(values[0] - values[1]).max() < 1e-5
    assert all(one["seconds"] > 0 for one in said["members"])
    there = {one["sha256"][:16] for one in said["members"] if one["engine"] == engine}
    assert {path.stem for path in (tmp_path / engine / "engine").glob("*.onnx")} == there


def test_what_torch_runs_faster_stays_there() -> None:
    seconds = {"a": 1.0, "b": 1.0, "c": 1.0}
    by_torch = {("A", "B"): 1.5, ("C",): 2.0}  # two heads of one body, and a model of its own
    comparison = Comparison(9, 0.5, 0.5, 0.0, seconds, by_torch)
    assert slower(comparison, {"A": "a", "B": "b", "C": "c"}) == ["a", "b"]


def test_an_engine_that_scores_otherwise_is_an_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, shift = engines.OnnxRuntime.forward, torch.tensor([0.5, -0.5])
    written = export_module.write_engines

    def then_changed(*given: Any) -> None:
        written(*given)  # where each is held against torch
        monkeypatch.setattr(engines.OnnxRuntime, "forward", lambda self, images: forward(self, images) + shift)

    monkeypatch.setattr(export_module, "write_engines", then_changed)
    choice = Choice("classes", assignments=HEADS, workspace=root)
    with pytest.raises(ConfigError, match="the engine onnx changes more than") as caught:
        export(choice, [], CPU, ExportOptions(tmp_path / "bundle", engine="onnx"))
    assert "--engine onnx" in caught.value.todo
    assert not (tmp_path / "bundle").exists()


def test_wrong_options_say_what_to_type(root: Path, tmp_path: Path) -> None:
    choice = Choice("classes", assignments=HEADS, workspace=root)
    with pytest.raises(ConfigError, match="no engine 'openvin'") as caught:
        export(choice, [], CPU, ExportOptions(tmp_path / "bundle", engine="openvin"))
    assert "openvino" in caught.value.todo
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no bundle"):
        export(choice, [], CPU, ExportOptions(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
