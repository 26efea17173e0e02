"""Regressions are learned in standard deviations of the fold's training rows; everything else is in target units."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
import toy
from drawn_images import drawn, write_images

from kbench.commands.train import train
from kbench.config.competition import Competition
from kbench.config.reading import validate
from kbench.data.whole_images import value_statistics
from kbench.errors import ConfigError
from kbench.inference.predictions import load
from kbench.metrics.metric import make_metric
from kbench.models.checkpoint import read_checkpoint
from kbench.models.outputs import Units
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.members import kept_snapshots
from kbench.runs.opening import run_of, run_paths
from kbench.runs.out_of_fold import score_of_fold
from kbench.runs.results import Rows
from kbench.runs.row_parts import member_predictions
from kbench.training.events import Epoch, Note
from kbench.training.fold import train_fold
from kbench.workspace import Choice

pytestmark = pytest.mark.usefixtures("quick_disk")
CPU = TrainOptions(device="cpu")


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_what_is_standardised_and_restored_is_what_it_was() -> None:
    units = Units((1e6, -3.0), (20.0, 0.001))
    target = torch.tensor([[1e6 + 40, -3.002], [float("nan"), -2.999]])
    made = units.standardised(target)
    torch.testing.assert_close(
        made, torch.tensor([[2.0, -2.0], [float("nan"), 1.0]]), equal_nan=True, atol=1e-3, rtol=0
    )
    assert made.dtype == torch.float32
    torch.testing.assert_close(units.restored(made), target, equal_nan=True)


def test_maps_are_standardised_target_by_target() -> None:
    target = torch.stack([torch.full((2, 3), 10.0), torch.full((2, 3), -1.0)])[None]
    made = Units((8.0, -1.0), (2.0, 5.0)).standardised(target)
    assert made[0, 0].unique().item() == 1.0
    assert made[0, 1].unique().item() == 0.0


def test_statistics_are_those_of_all_known_numbers() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.normal(1e6, 3, (4, 5, 2)).astype(np.float32) for _ in range(3)]
    masks[1][:2, :, 0] = np.nan
    masks[2][..., 0] = np.nan
    mean, std = value_statistics(masks, np.array([0, 1, 2]))  # type: ignore[arg-type]
    known = np.concatenate([mask.reshape(-1, 2) for mask in masks]).astype(np.float64)
    np.testing.assert_allclose(mean, np.nanmean(known, 0))
    np.testing.assert_allclose(std, np.nanstd(known, 0))


def test_a_target_that_does_not_vary_keeps_its_scale_and_an_unknown_one_its_mean_too(tmp_path: Path) -> None:
    targets = np.stack([np.full(36, 7.0), np.full(36, np.nan)], axis=1).astype(np.float32)
    assert regression(tmp_path, targets).units() == Units((7.0, 0.0), (1.0, 1.0))


# -- training --------------------------------------------------------------------------------------------------------


def regression(folder: Path, targets: np.ndarray, **changes: Any) -> Any:
    return toy.context(folder, table=toy.table(36, task="regression", targets=targets), standardise=True, **changes)


def scale_of_pictures() -> np.ndarray:
    """Return [36, 2] targets that the pictures tell, some of them unknown."""
    images = drawn(36).reshape(36, -1)
    targets = np.stack([images.mean(1), images.max(1) - images.mean(1)], axis=1).astype(np.float32)
    targets[3, 0] = targets[30, 1] = np.nan
    return targets


STAGE = {"loss": ("mse", {}), "monitor": make_metric("rmse"), "schedule": ("constant", {"epochs": 3}), "lr": 0.02}


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (0.001, 0.0), (1.0, 1e4), (-3.0, 50.0)])
def test_another_scale_of_the_targets_gives_the_same_training(tmp_path: Path, factor: float, shift: float) -> None:
    scores: list[list[float]] = []
    losses: list[list[float]] = []
    for name, targets in (("one", scale_of_pictures()), ("other", scale_of_pictures() * factor + shift)):
        fold = regression(tmp_path / name, targets.astype(np.float32))
        events = list(train_fold(fold, [toy.stage(**STAGE)], toy.build, resumed=None))
        epochs = [event for event in events if isinstance(event, Epoch)]
        scores.append([float(epoch.score or 0) for epoch in epochs])
        losses.append([float(epoch.valid_loss or 0) for epoch in epochs])
    if factor > 0:
        np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
        np.testing.assert_allclose(np.array(scores[0]) * factor, scores[1], rtol=2e-3)
    assert max(scores[1]) < 10 * abs(factor) * np.nanstd(scale_of_pictures())


def test_a_snapshot_keeps_the_numbers_of_the_folds_own_training_rows(tmp_path: Path) -> None:
    targets = scale_of_pictures()
    fold = regression(tmp_path, targets)
    list(train_fold(fold, [toy.stage("one", **STAGE), toy.stage("two", index=1, **STAGE)], toy.build, resumed=None))
    rows = targets[fold.train_rows].astype(np.float64)
    for stage in ("one", "two"):
        found = read_checkpoint(fold.paths.snapshot(stage, "last"))
        assert found is not None
        np.testing.assert_allclose(found.info["units"]["mean"], np.nanmean(rows, 0))
        np.testing.assert_allclose(found.info["units"]["std"], np.nanstd(rows, 0))


def test_a_member_that_is_worse_than_the_mean_is_said(tmp_path: Path) -> None:
    worse = toy.stage(**{**STAGE, "lr": 0.6, "schedule": ("constant", {"epochs": 1})})
    events = list(train_fold(regression(tmp_path, scale_of_pictures()), [worse], toy.build, resumed=None))
    said = [event.text for event in events if isinstance(event, Note) and "worse than the mean" in event.text]
    assert len(said) == 1
    assert "only-last" in said[0]


def test_without_standardising_targets_are_learned_as_they_are(tmp_path: Path) -> None:
    fold = replace(regression(tmp_path, scale_of_pictures()), standardise=False)
    list(train_fold(fold, [toy.stage(**STAGE)], toy.build, resumed=None))
    found = read_checkpoint(fold.paths.snapshot("only", "last"))
    assert found is not None
    assert "units" not in found.info
    assert Units.of_checkpoint(found.info) is None


# -- a whole run -----------------------------------------------------------------------------------------------------


def ages(root: Path, *assignments: str) -> Experiment:
    """The trial `regression-unscaled` in small: ages of 100 to 160 that the pictures tell."""
    small_runs.written(root)
    source = root / "source" / "numbers"
    light = drawn(small_runs.ROWS + small_runs.TEST, channels=1).mean((1, 2, 3))[: small_runs.ROWS]
    ages = 100 + 60 * (light - light.min()) / (light.max() - light.min())
    with open(source / "train.csv", "w", newline="") as handle:
        rows = [[f"{row:04d}", "" if row == 9 else f"{age:.1f}", row % 2] for row, age in enumerate(ages)]
        csv.writer(handle, lineterminator="\n").writerows([["id", "level", "width"], *rows])
    text = (root / "competitions" / "numbers.yaml").read_text().replace("  metadata: [site, age]\n", "")
    (root / "competitions" / "numbers.yaml").write_text(text)
    more = ("stages.all.schedule.cycle_len=15", "stages.all.lr=0.05", "tta=none", *assignments)
    return open_experiment(Choice("numbers", assignments=more, workspace=root))


def test_predictions_and_scores_are_in_the_users_units(tmp_path: Path) -> None:
    """The trial `regression-unscaled`: below the rmse of the mean."""
    setup = ages(tmp_path, "ensemble.members=[all-1]")
    train(setup, "0", CPU)
    paths = run_paths(setup)
    valid = setup.folds.valid(0)
    truth = setup.train.select(valid)
    assert truth.targets is not None
    mean = np.broadcast_to(np.nanmean(setup.train.targets[~valid], 0), truth.targets.shape).astype(np.float32)
    score = score_of_fold(run_of(setup), 0).value
    assert score < make_metric("rmse")(truth.targets, mean, truth)
    last = kept_snapshots(run_of(setup), 0)[-1]
    assert score == pytest.approx(last.info["score"], rel=1e-4)  # what was judged is what is predicted
    member_predictions(run_of(setup), Rows(setup.test, device="cpu"), [0])
    values = np.asarray(load(paths.fold(0).predictions("test", "all-1")).values)
    assert 95 < values[:, 0].min() < values[:, 0].max() < 165


def test_models_of_all_rows_take_the_numbers_of_all_rows(tmp_path: Path) -> None:
    setup = ages(tmp_path, "stages.all.schedule.cycle_len=1")
    train(setup, "full", CPU)
    (found, *_) = kept_snapshots(run_of(setup), "full", subset="full")
    np.testing.assert_allclose(found.info["units"]["mean"], np.nanmean(setup.train.targets.astype(np.float64), 0))


def test_a_run_trained_before_there_were_units_predicts_as_it_did(tmp_path: Path) -> None:
    setup = ages(tmp_path, "model.standardise=false", "stages.all.schedule.cycle_len=1")
    train(setup, "0", CPU)
    found = kept_snapshots(run_of(setup), 0)
    assert all("units" not in one.info for one in found)
    score = score_of_fold(run_of(replace_members(setup, "all-1")), 0).value
    assert score == pytest.approx(found[-1].info["score"], rel=1e-4)


def replace_members(setup: Experiment, *members: str) -> Experiment:
    ensemble = setup.competition.ensemble.model_copy(update={"members": list(members)})
    return replace(setup, competition=setup.competition.model_copy(update={"ensemble": ensemble}))


DENSE = """
title: Maps of numbers
task: dense_regression
source: {name: local, path: source}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  masks: {name: values, folder: maps}
folds: {strategy: kfold, n: 2, seed: 1}
metric: rmse_per_image
submission: {format: none_for_tests}
plugins: [pixels.py]
input: {size: 8}
model: {name: pixels_for_tests}
train: {batch_size: 8, precision: fp32}
stages:
  all: {lr: 0.1, schedule: {name: constant, epochs: 6}, keep: [last]}
"""
PIXELS = """
from torch import nn

from kbench.registry import register


@register("model", "pixels_for_tests", tasks=("dense_regression",))
def pixels(n_outputs, in_channels):
    return nn.Conv2d(in_channels, n_outputs, 1)


@register("format", "none_for_tests", tasks=("dense_regression",))
def none():
    return None
"""


def test_maps_of_numbers_are_judged_and_predicted_in_their_units(tmp_path: Path) -> None:
    images = drawn(24)
    source = tmp_path / "source"
    write_images(source / "train", images[:16])
    write_images(source / "test", images[16:])
    (source / "maps").mkdir()
    for row, image in enumerate(images[:16]):
        numbers = 1000 + 2 * image.mean(2, keepdims=True).astype(np.float32)
        numbers[0, 0] = np.nan
        np.save(source / "maps" / f"{row:04d}.npy", numbers)
    (source / "train.csv").write_text("id\n" + "".join(f"{row:04d}\n" for row in range(16)))
    (tmp_path / "competitions" / "maps").mkdir(parents=True)
    (tmp_path / "competitions" / "maps.yaml").write_text(DENSE)
    (tmp_path / "competitions" / "maps" / "pixels.py").write_text(PIXELS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "maps").symlink_to(source, target_is_directory=True)
    setup = open_experiment(Choice("maps", workspace=tmp_path))
    train(setup, "0", CPU)
    (kept,) = kept_snapshots(run_of(setup), 0)
    assert 1000 < kept.info["units"]["mean"][0] < 1600
    assert score_of_fold(run_of(setup), 0).value == pytest.approx(kept.info["score"], rel=1e-4)
    assert kept.info["score"] < 0.9 * kept.info["units"]["std"][0]


# -- the YAML --------------------------------------------------------------------------------------------------------


def competition(task: str, **model: Any) -> Competition:
    metric = {"regression": "rmse", "single_label": "log_loss"}[task]
    content = {
        "task": task,
        "source": {"name": "local", "path": "x"},
        "metric": metric,
        "model": model,
        "stages": {"all": {"keep": ["last"]}},
    }
    return validate(content, file="x.yaml", folder=Path(), name="x", experiment="baseline")


def test_standardised_targets_are_part_of_the_training_hash() -> None:
    said, silent, off = (
        competition("regression", **how) for how in ({"standardise": True}, {}, {"standardise": False})
    )
    assert said.training_view() == silent.training_view() != off.training_view()


def test_standardising_what_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.standardise"):
        competition("single_label", standardise=False)
