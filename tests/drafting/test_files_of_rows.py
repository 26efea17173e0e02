"""What `kbench new` says of rows of several files: their patterns, dates, bands and targets, in a YAML that checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from geotiffs import geotiff

from kbench.commands.check import check
from kbench.config.yaml12 import parse_yaml
from kbench.drafting.draft import draft
from kbench.workspace import Choice, Workspace


def months(root: Path, *, dates: tuple[str, ...] = ("00", "01")) -> Path:
    rng = np.random.default_rng(0)
    for row in range(12):
        folder = root / ("train_features" if row < 10 else "test_features")
        for date in dates:
            geotiff(folder / f"c{row}_S1_{date}.tif", rng.random((32, 32, 4)).astype(np.float32))
            if (row, date) != (1, "01"):
                geotiff(folder / f"c{row}_S2_{date}.tif", rng.integers(1, 99, (32, 32, 11)).astype(np.uint16))
        if row < 10:
            geotiff(root / "train_agbm" / f"c{row}_agbm.tif", rng.random((32, 32)).astype(np.float32))
    (root / "train.csv").write_text("split,chip\n" + "".join(f"train,c{row}\n" for row in range(10)))
    (root / "sample_submission.csv").write_text("chip\nc10\nc11\n")
    return root


def test_files_and_dates_are_told_by_their_names_and_the_draft_checks(workspace: Workspace) -> None:
    root = months(workspace.data("months"))
    text = draft(root, name="months", source={"name": "local", "path": "files"})
    made = parse_yaml(text, name="draft")
    assert made["input"]["files"] == {"S1": "{id}_S1_{date}.tif", "S2": "{id}_S2_{date}.tif"}
    assert made["input"]["dates"] == ["00", "01"]
    assert made["input"]["bands"] == {"S1": {"count": 4}, "S2": {"count": 11}}
    assert made["data"]["train"] == {"csv": "train.csv", "id": "chip", "images": "train_features"}
    assert made["data"]["masks"] == {"name": "values", "folder": "train_agbm", "suffix": "_agbm.tif"}
    (workspace.root / "competitions" / "months.yaml").write_text(text)
    facts = check(Choice(competition="months"), images=True, every=False)
    assert (facts["rows"], facts["test"], facts["sample"]) == (10, 2, 2)


def test_one_file_for_each_row_is_no_case_of_it(tmp_path: Path) -> None:
    for row in range(3):
        geotiff(tmp_path / "train" / f"c{row}.tif", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train.csv").write_text("id,label\nc0,a\nc1,b\nc2,a\n")
    assert "files:" not in draft(tmp_path, name="x", source={"name": "local", "path": "files"})
