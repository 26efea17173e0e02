"""The Python API on small runs of every task."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import written
from torch.utils.data import DataLoader

import kbench
from kbench.commands.ensemble import ensemble
from kbench.commands.predict import predict_files
from kbench.errors import ConfigError, DataError, FoldError, PredictionError
from kbench.runs.blend import EnsembleOptions
from kbench.workspace import Choice

TASKS = ["classes", "labels", "numbers"]


def opened(workspace: Path, name: str = "classes") -> kbench.Run:
    return kbench.open_run(competition=name, workspace=workspace)


def test_importing_kbench_is_light_and_the_api_comes_when_asked_for() -> None:
    code = "import sys, kbench; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)), dir(kbench))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[]")
    assert "open_run" in done.stdout
    assert callable(kbench.open_run)


def test_kbench_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_ran'"):
        kbench.open_ran  # noqa: B018


@pytest.mark.parametrize("name", TASKS)
def test_out_of_fold_predictions_cover_the_rows_of_the_trained_folds(small_workspace: Path, name: str) -> None:
    run = opened(small_workspace, name)
    made = run.oof(device="cpu")
    np.testing.assert_array_equal(made.ids, run.table.ids[np.isin(run.folds.fold, run.trained)])
    assert made.names == run.table.target_names
    assert run.score(device="cpu")["rows"] == len(made) == (48 if name == "classes" else 24)


def test_a_run_says_what_it_is(small_workspace: Path) -> None:
    run = opened(small_workspace)
    assert repr(run) == "<kbench run 'baseline-s0' of 'classes': 48 rows, 2 targets, 2 folds, trained: 0, 1>"
    assert (run.name, run.trained, run.members(0)) == ("baseline-s0", [0, 1], ["all-0", "all-1"])
    assert run.config.stages["all"].lr == 0.02
    assert len(run.test) == 10
    assert run.folds.n == 2


def test_a_run_can_be_opened_by_its_name(small_workspace: Path) -> None:
    run = kbench.open_run("baseline-s0", competition="labels", workspace=small_workspace / "competitions")
    assert run.config.task == "multi_label"
    with pytest.raises(ConfigError, match="no run 'nope'"):
        kbench.open_run("nope", competition="labels", workspace=small_workspace)


@pytest.mark.parametrize(
    ("name", "channels", "shape", "dtype"),
    [
        ("classes", 3, (), torch.int64),
        ("labels", 3, (3,), torch.float32),
        ("numbers", 1, (2,), torch.float32),
    ],
)
def test_a_dataset_gives_normalised_tensors_and_targets(
    small_workspace: Path, name: str, channels: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    run = opened(small_workspace, name)
    dataset = run.dataset(0)
    image, target = dataset[0]
    assert (image.shape, image.dtype) == ((channels, 8, 8), torch.float32)
    assert (target.shape, target.dtype) == (shape, dtype)
    np.testing.assert_array_equal(dataset.ids, run.table.ids[run.folds.valid(0)])
    np.testing.assert_array_equal(target.numpy(), run.table.targets[dataset.rows[0]])
    everything = torch.stack([image for image, _ in dataset])
    assert abs(float(everything.mean())) < 1
    assert 0.3 < float(everything.std()) < 3


def test_a_dataset_feeds_a_loader_and_ends(small_workspace: Path) -> None:
    dataset = opened(small_workspace).dataset(1, training=True)
    batches = list(DataLoader(dataset, batch_size=10))
    assert [len(images) for images, _ in batches] == [10, 10, 4]
    assert len(list(dataset)) == 24
    assert torch.equal(dataset[-1][0], dataset[23][0])


def test_training_images_change_with_the_epoch_and_only_with_it(small_workspace: Path) -> None:
    dataset = opened(small_workspace).dataset(0, training=True)
    first = torch.stack([image for image, _ in dataset])
    assert torch.equal(first, torch.stack([image for image, _ in dataset]))
    dataset.epoch = 1
    assert not torch.equal(first, torch.stack([image for image, _ in dataset]))


def test_a_model_on_the_dataset_says_what_the_run_predicted(small_workspace: Path) -> None:
    run = opened(small_workspace)
    model, dataset = run.model(0, "all-1", device="cpu"), run.dataset(0)
    assert not model.training
    images = torch.stack([image for image, _ in dataset])
    with torch.inference_mode():
        plain, mirrored = (model(batch).softmax(1) for batch in (images, images.flip(-1)))
    stored = np.load(run.paths.fold(0).predictions("oof", "all-1").with_suffix(".npy"))
    np.testing.assert_allclose(((plain + mirrored) / 2).numpy(), stored, atol=1e-5)


def test_new_images_are_predicted_as_the_submission_is(small_workspace: Path) -> None:
    run = opened(small_workspace)
    paths = [run.table.root / paths[0] for paths in run.table.images]
    frame = run.predict(paths, folds=[0], device="cpu")
    assert list(frame.columns) == ["left", "right"]
    assert frame.index[0] == "0000.png"
    held_out = run.folds.valid(0)
    out_of_fold = run.oof(device="cpu").values[held_out]
    np.testing.assert_allclose(frame.to_numpy()[held_out], out_of_fold, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_paths_and_arrays_are_predicted_alike(small_workspace: Path, name: str) -> None:
    run = opened(small_workspace, name)
    paths = [run.test.root / paths[0] for paths in run.test.images]
    flag = cv2.IMREAD_GRAYSCALE if name == "numbers" else cv2.IMREAD_COLOR_RGB
    arrays = np.stack([cv2.imread(str(path), flag) for path in paths])
    from_paths, from_arrays = run.predict(paths, device="cpu"), run.predict(arrays, device="cpu")
    np.testing.assert_array_equal(from_paths.to_numpy(), from_arrays.to_numpy())
    assert list(from_arrays.index) == list(range(10))


@pytest.fixture
def workspace(small_workspace: Path, tmp_path: Path) -> Path:
    """A copy of the trained workspace, whose YAMLs a test may change."""
    return Path(shutil.copytree(small_workspace, tmp_path / "copy", symlinks=True))


def sent(workspace: Path, name: str, **ensembled: str) -> pd.DataFrame:
    """Write `ensemble:` into the YAML; return the submission's target columns."""
    path = workspace / "competitions" / f"{name}.yaml"
    settings = ", ".join(f"{key}: {value}" for key, value in ensembled.items())
    path.write_text(path.read_text() + f"ensemble: {{{settings}}}\n")
    made = ensemble(Choice(name, workspace=workspace), [], EnsembleOptions(device="cpu"))
    return pd.read_csv(made["file"]).drop(columns="id")


@pytest.mark.parametrize(
    ("name", "ensembled"),
    [
        ("classes", {"combine": "{name: weights}"}),
        ("classes", {"combine": "{name: greedy, draws: 0}"}),
        ("labels", {"decision": "{name: threshold, low: 0.05, high: 0.95}"}),
        ("classes", {"prune": "true"}),
    ],
)
def test_new_images_are_weighed_and_decided_as_the_submission_is(
    workspace: Path, name: str, ensembled: dict[str, str]
) -> None:
    expected = sent(workspace, name, **ensembled)
    run = opened(workspace, name)
    images = [run.test.root / paths[0] for paths in run.test.images]
    frame = run.predict(images, device="cpu")
    np.testing.assert_allclose(frame[list(expected.columns)].to_numpy(), expected.to_numpy(), atol=1e-5)
    before = run.predict(images, device="cpu", decided=False)
    assert ("decision" in ensembled) == (not np.allclose(frame, before))
    found = predict_files(Choice(name, workspace=workspace), [str(images[0])], device="cpu")
    np.testing.assert_allclose(list(found["rows"][0]["values"].values()), before.iloc[0].to_numpy(), atol=1e-6)
    if "decision" in ensembled:
        chosen = [label for label in frame.columns if frame.iloc[0][label] == 1]
        words = found["words"][0]["labels"]
        assert all(label in words for label in chosen) if chosen else words.startswith("none")
        assert found["rows"][0]["decided"] == {str(key): value for key, value in frame.iloc[0].items()}


def test_a_few_images_have_no_ranks(workspace: Path) -> None:
    path = workspace / "competitions" / "classes.yaml"
    path.write_text(path.read_text() + "ensemble: {combine: rank}\n")
    with pytest.raises(ConfigError, match="compares images"):
        opened(workspace).predict(np.zeros((2, 9, 9, 3), np.uint8))


@pytest.mark.parametrize("tta", ["flip", "{name: random, n: 3}", "five_crop"])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_the_stack_of_views_has_both_means_and_they_are_the_runs_own(workspace: Path, tta: str, mean: str) -> None:
    path = workspace / "competitions" / "classes.yaml"
    path.write_text(path.read_text().replace("tta: flip", f"tta: {tta}\nensemble: {{mean: {mean}}}"))
    run = opened(workspace)
    stack = run.views(0, "all-1", device="cpu")
    assert stack.views[0] == "plain"
    assert stack.values.shape == (len(stack.views), 24, 2) == (len(stack.weights), len(stack.ids), len(stack.names))
    assert stack.weights.sum() == pytest.approx(1)
    assert not np.allclose(stack.values[0], stack.values[1])
    np.testing.assert_allclose(stack.values.sum(axis=2), 1, atol=1e-5)
    run.oof(device="cpu")
    stored = np.load(run.paths.fold(0).predictions("oof", "all-1").with_suffix(".npy"))
    np.testing.assert_allclose(stack.mean(mean).values, stored, atol=1e-5)  # type: ignore[arg-type]
    shares = stack.weights[:, None, None]
    if mean == "arithmetic":
        np.testing.assert_allclose((stack.values * shares).sum(axis=0), stored, atol=1e-5)
    else:
        product = np.exp((np.log(stack.values) * shares).sum(axis=0))
        np.testing.assert_allclose(product / product.sum(axis=1, keepdims=True), stored, atol=1e-5)
    assert run.views(0, role="test", device="cpu").values.shape[1] == 10


def test_predicting_leaves_nothing_behind(small_workspace: Path) -> None:
    run = opened(small_workspace)
    run.oof(device="cpu")
    before = set(run.paths.root.rglob("*"))
    run.predict(np.zeros((2, 9, 9, 3), np.uint8), device="cpu")
    assert set(run.paths.root.rglob("*")) == before


def test_no_images_are_an_empty_frame(small_workspace: Path) -> None:
    assert opened(small_workspace).predict([]).shape == (0, 2)


def test_an_image_of_other_channels_is_an_error(small_workspace: Path) -> None:
    with pytest.raises(DataError, match=r"image 1 has the shape \(5, 5\)"):
        opened(small_workspace).predict([np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.uint8)])


def test_an_image_that_is_not_there_is_an_error(small_workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*none\.png'"):
        opened(small_workspace).predict([tmp_path / "none.png"])


def test_names_that_are_not_there_are_errors(small_workspace: Path) -> None:
    run = opened(small_workspace)
    with pytest.raises(ConfigError, match="no stage 'tail'"):
        run.dataset(0, "tail")
    with pytest.raises(FoldError, match="no fold '9'"):
        run.dataset(9)
    with pytest.raises(FoldError, match="no fold '9'"):
        run.model(9)
    with pytest.raises(PredictionError, match="fold 0 has no snapshot 'all-7'"):
        run.model(0, "all-7")


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_shown(small_workspace: Path, tmp_path: Path, name: str) -> None:
    figure = opened(small_workspace, name).show_batch(fold=1, n=5)
    figure.savefig(tmp_path / "batch.png")
    assert cv2.imread(str(tmp_path / "batch.png")).shape[1] > 400


def test_an_experiment_that_is_not_trained_shows_its_data_and_says_what_it_lacks(tmp_path: Path) -> None:
    run = opened(written(tmp_path))
    assert run.trained == []
    assert repr(run).endswith("trained: none>")
    assert run.dataset(0)[0][0].shape == (3, 8, 8)
    run.show_batch(n=2)
    for ask in (run.oof, run.score, lambda: run.members(0), lambda: run.model(0), lambda: run.predict([])):
        with pytest.raises(PredictionError, match="was not trained when it was opened"):
            ask()
    assert not run.paths.root.exists()


def test_the_six_roles_show_their_rows_plain_or_augmented_and_in_order(small_workspace: Path) -> None:
    run = opened(small_workspace)
    made = {role: run.dataset(0, role=role) for role in ("train", "valid", "fix", "aug", "test", "test_aug")}
    assert [len(made[role]) for role in made] == [24, 24, 24, 24, 10, 10]
    for plain, augmented in (("fix", "train"), ("valid", "aug"), ("test", "test_aug")):
        np.testing.assert_array_equal(made[plain].ids, made[augmented].ids)
        assert list(made[plain].ids) == sorted(made[plain].ids)  # never shuffled
        images = [torch.stack([made[role][place][0] for place in range(8)]) for role in (plain, augmented)]
        assert not torch.equal(*images)
        for role, differs in ((plain, False), (augmented, True)):
            made[role].epoch = 1
            again = torch.stack([made[role][place][0] for place in range(8)])
            assert torch.equal(again, images[role == augmented]) != differs
    assert not set(made["fix"].ids) & set(made["valid"].ids)
    assert torch.isnan(made["test"][0][1])
    with pytest.raises(ConfigError, match="no role 'tset'"):
        run.dataset(0, role="tset")
