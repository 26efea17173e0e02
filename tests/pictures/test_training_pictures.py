from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from looks import picture

from kbench.pictures.curves import draw_fold, draw_lr_find, draw_range_tests, draw_training, read_curve, read_epochs
from kbench.workspace import FoldPaths


def epochs(count: int = 6, **changes) -> list[dict]:
    made = [
        {"event": "epoch", "stage": "head" if k < 2 else "all", "epoch": k if k < 2 else k - 2, "lr": 1e-3 / (k + 1),
         "train_loss": 1 / (k + 1), "valid_loss": 1.2 / (k + 1), "score": 0.5 + k / 20}
        for k in range(count)
    ]  # fmt: skip
    return [{**record, **changes} for record in made]


def test_only_the_epochs_of_a_log_are_read_and_a_half_line_is_not(tmp_path: Path) -> None:
    paths = FoldPaths(tmp_path)
    lines = [json.dumps(record) for record in ({"event": "note"}, *epochs(2))]
    paths.log.write_text("\n".join(lines) + '\n{"event": "epo')
    assert [record["epoch"] for record in read_epochs(paths)] == [0, 1]
    assert read_epochs(FoldPaths(tmp_path / "none")) == []


def test_folds_of_different_length_share_a_picture(tmp_path: Path) -> None:
    picture(draw_training({"fold 0": epochs(6), "fold 1": epochs(3)}, tmp_path / "t.png", metric="accuracy"))


def test_folds_without_validation_rows_are_drawn(tmp_path: Path) -> None:
    picture(draw_training({"full": epochs(valid_loss=None, score=None)}, tmp_path / "t.png", metric="accuracy"))


def test_losses_below_zero_and_wild_epochs_are_drawn(tmp_path: Path) -> None:
    wild = epochs()
    wild[0] |= {"valid_loss": 1e9, "train_loss": -0.5}
    picture(draw_training({"fold 0": wild}, tmp_path / "t.png", metric="loss"))


def curve(path: Path, shift: float) -> Path:
    lrs = np.geomspace(1e-5, 1, 80)
    losses = 2.3 - np.exp(-((np.log10(lrs) + 2 + shift) ** 2))
    pd.DataFrame({"step": range(80), "lr": lrs, "loss": losses, "smoothed": losses}).to_csv(path, index=False)
    return path


def test_range_tests_of_all_folds_share_a_picture(tmp_path: Path) -> None:
    curves = {f"fold {k}": curve(tmp_path / f"{k}.csv", k / 4) for k in range(3)}
    picture(draw_range_tests(curves, tmp_path / "r.png"))


def test_a_range_test_that_shows_no_rate_is_drawn_without_its_line(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    pd.DataFrame({"step": range(80), "lr": np.geomspace(1e-5, 1, 80), "loss": 1.0, "smoothed": 1.0}).to_csv(path)
    picture(draw_lr_find(path))
    picture(draw_range_tests({"fold 0": path, "fold 1": curve(tmp_path / "1.csv", 0.0)}, tmp_path / "r.png"))


def test_a_range_test_with_held_out_rows_is_drawn_with_both_losses(tmp_path: Path) -> None:
    path = curve(tmp_path / "valid.csv", 0.0)
    frame = pd.read_csv(path)
    frame.assign(valid_loss=2.3 - np.exp(-((np.log10(frame["lr"]) + 4) ** 2))).to_csv(path, index=False)
    assert read_curve(path).suggestion < read_curve(curve(tmp_path / "plain.csv", 0.0)).suggestion / 3
    picture(draw_lr_find(path))


def test_a_folds_own_pictures_lie_beside_its_log(tmp_path: Path) -> None:
    paths = FoldPaths(tmp_path)
    paths.log.write_text("".join(json.dumps(record) + "\n" for record in epochs()))
    curve(paths.lr_find("head"), 0)
    assert [path.name for path in draw_fold(paths)] == ["lr-find-head.png", "losses.png"]
