"""Notebooks of other tasks, run without network on hidden rows: what they write is what this machine writes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import small_runs
from notebooks_standin import execute
from streets import write_street

from kbench.commands.export import ExportOptions, export
from kbench.commands.infer import infer
from kbench.commands.train import train
from kbench.data.masks.run_lengths import CONVENTIONS, decode
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

pytestmark = pytest.mark.slow
CPU = EnsembleOptions(device="cpu")
RULE = "maps.postprocess={name: standard, bias: tuned_per_class, min_object: tuned}"


def both(bundle: Path, hidden: Path, root: Path, name: str) -> pd.DataFrame:
    """Return what the notebook writes for hidden rows, which this machine writes too."""
    said = json.loads((bundle / "bundle.json").read_text())
    files = {one["name"]: (bundle / one["path"]).read_bytes() for one in said["files"]}
    files["bundle.json"] = (bundle / "bundle.json").read_bytes()
    text = (bundle / "notebook.ipynb").read_text()
    written, log = execute(text, files, hidden, root / "kaggle", slug=name)
    assert set(written) == {"submission.csv"}, log
    here = infer(bundle, data=hidden, out=root / "here.csv", work=root / "w", hours=None, device="cpu")
    assert written["submission.csv"] == Path(here["file"]).read_bytes()
    return pd.read_csv(here["file"], dtype=str, keep_default_na=False)


def test_a_regression(tmp_path: Path) -> None:
    root = small_runs.written(tmp_path / "mine")
    choice = Choice("numbers", workspace=root)
    train(open_experiment(choice), "0", TrainOptions(device="cpu"))
    export(choice, [], CPU, ExportOptions(tmp_path / "bundle"))
    hidden = tmp_path / "hidden"
    (hidden / "test").mkdir(parents=True)
    source = root / "source" / "numbers"
    with open(source / "train.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["level"] and row["width"]][:13]
    for number, row in enumerate(rows):
        shutil.copy(source / "train" / f"{row['id']}.png", hidden / "test" / f"h{number:02d}.png")
    ids = [f"h{number:02d}" for number in range(len(rows))]
    pd.DataFrame({"id": ids, "level": 0, "width": 0}).to_csv(hidden / "sample_submission.csv", index=False)
    frame = both(tmp_path / "bundle", hidden, tmp_path, "numbers")
    assert frame["id"].tolist() == ids
    truth = np.array([[float(row["level"]), float(row["width"])] for row in rows])
    errors = frame[["level", "width"]].to_numpy(float) - truth
    assert np.sqrt((errors**2).mean()) < np.sqrt((truth**2).mean())  # better than nothing


def test_a_segmentation_with_tuned_rules(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_street(root)
    choice = Choice("street", assignments=(RULE,), workspace=root)
    train(open_experiment(choice), "all", TrainOptions(device="cpu"))
    export(choice, [], CPU, ExportOptions(tmp_path / "bundle"))
    hidden = tmp_path / "hidden"
    (hidden / "test").mkdir(parents=True)
    source = root / "data" / "street"
    names = [f"f{row:02d}" for row in range(7)]
    for name in names:
        shutil.copy(source / "train" / f"{name}.png", hidden / "test" / f"h{name}.png")
    ids = [f"h{name}_{k}" for name in names for k in range(2)]
    pd.DataFrame({"id": ids, "rle": ""}).to_csv(hidden / "sample_submission.csv", index=False)
    frame = both(tmp_path / "bundle", hidden, tmp_path, "street")
    assert frame["id"].tolist() == ids
    met, joined = 0, 0
    for name, text in zip(names, frame["rle"].tolist()[1::2], strict=True):
        mask = decode(text, (16, 16), CONVENTIONS["tgs"]) > 0
        truth = cv2.imread(str(source / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 0
        met, joined = met + int((mask & truth).sum()), joined + int((mask | truth).sum())
    assert met / joined > 0.5
