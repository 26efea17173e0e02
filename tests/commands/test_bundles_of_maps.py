"""Bundles of segmentations: masks are those of the ensemble, their rule carried as numbers, slice by slice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from streets import write_street

from kbench.commands.ensemble import ensemble
from kbench.commands.export import ExportOptions, export
from kbench.commands.infer import infer
from kbench.commands.train import train
from kbench.runs.blend import EnsembleOptions
from kbench.runs.bundle_opening import open_bundle
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

SET = ("stages.all.keep=[cycles]", "stages.all.schedule={name: sgdr, cycles: 2, cycle_len: 1}", "tta=flip",
       "loader.valid_batch_size=1", "loader.workers=0")  # fmt: skip
TUNED = "maps.postprocess={name: standard, bias: tuned_per_class, min_object: tuned}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("street-bundles")
    write_street(root)
    train(open_experiment(Choice("street", assignments=SET, workspace=root)), "all", TrainOptions(device="cpu"))
    return root


def hidden_data(root: Path, folder: Path) -> Path:
    """Return a data folder without anything of the training set."""
    source = open_experiment(Choice("street", workspace=root))
    for path in {row[0] for row in source.test.images}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.test.root / path, folder / path)
    shutil.copy(source.sample, folder / source.sample.name)
    return folder


@pytest.mark.parametrize(("more", "combine"), [((), None), ((TUNED,), None), ((TUNED,), "weights")])
def test_masks_are_those_of_the_ensemble_byte_by_byte(
    root: Path, tmp_path: Path, more: tuple[str, ...], combine: str | None
) -> None:
    choice = Choice("street", assignments=(*SET, *more), workspace=root)
    options = EnsembleOptions(device="cpu", combine=combine)
    expected = Path(ensemble(choice, [], options)["file"]).read_bytes()
    export(choice, [], options, ExportOptions(tmp_path / "bundle"))
    said = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert "tuned" not in json.dumps(said["rule"])  # resolved to numbers
    assert said["check"]["largest"] == 0
    made = infer(tmp_path / "bundle", data=hidden_data(root, tmp_path / "data"), out=tmp_path / "o.csv",
                 work=tmp_path / "w", hours=9, device="cpu", checkpoint_s=1e-6)  # fmt: skip
    assert len(json.loads((tmp_path / "w" / "plan.json").read_text())["slices"]) > 1
    assert Path(made["file"]).read_bytes() == expected


def test_a_broken_image_gets_no_mask_and_half_the_time_leaves_out_models(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice("street", assignments=SET, workspace=root)
    export(choice, [], EnsembleOptions(device="cpu"), ExportOptions(tmp_path / "bundle"))
    data = hidden_data(root, tmp_path / "data")
    combined = open_bundle(tmp_path / "bundle", tmp_path / "w").combined
    table = combined.experiment.table("test", data=data, look=False)
    broken = data / table.images[-1][0]
    broken.write_bytes(broken.read_bytes()[:60])
    made = infer(tmp_path / "bundle", data=data, out=tmp_path / "o.csv", work=tmp_path / "w", hours=1e-9,
                 device="cpu", checkpoint_s=1e-6)  # fmt: skip
    assert made["unreadable"] == [str(table.ids[-1])]
    assert len(made["left_out"]) == 3  # of two folds and two cycles
    frame = pd.read_csv(made["file"], dtype=str, keep_default_na=False)
    assert len(frame) > 0
