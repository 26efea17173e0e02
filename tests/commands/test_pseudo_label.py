"""A run labels the test set fold by fold, and a run trained with that is as clean as any other."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_runs import written
from streets import write_street

from kbench import console, files
from kbench.commands.check import check
from kbench.commands.ensemble import ensemble
from kbench.commands.pseudo_label import pseudo_label
from kbench.commands.train import train
from kbench.ensemble.average import ensemble_run
from kbench.ensemble.pseudo_labels import Sure, chosen_rows
from kbench.errors import ConfigError, DataError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions, prepare_fold
from kbench.runs.opening import run_of, run_paths
from kbench.runs.results import Rows
from kbench.runs.row_parts import member_predictions
from kbench.workspace import Choice

CPU = TrainOptions(device="cpu")
LOOSE = Sure(0.501)
SET = ("stages.first.lr=0.02",)


pytestmark = pytest.mark.usefixtures("quick_disk")


def choice(root: Path, name: str, *more: str, run: str | None = None) -> Choice:
    return Choice(name, run=run, assignments=(*SET, *more), workspace=root)


@pytest.mark.slow
def test_a_fold_trains_with_the_labels_of_its_own_snapshots_alone(tmp_path: Path) -> None:
    root = written(tmp_path)
    setup = open_experiment(choice(root, "classes"))
    train(setup, "all", CPU)
    found = pseudo_label(choice(root, "classes", run="baseline-s0"), sure=LOOSE, device="cpu")
    assert found["labels"] == "baseline-s0/first"
    assert [row["labels"] for row in found["rows"]] == ["fold-0", "fold-1", "full"]
    run = run_of(setup)
    known = run.trained_as
    members = member_predictions(run, Rows(setup.test, device="cpu"), [0, 1])
    for fold in (0, 1):
        own = ensemble_run({fold: list(members[fold].values())}, mean="arithmetic")
        with Path(found["file"]).with_name(f"fold-{fold}.csv").open() as file:
            rows = list(csv.DictReader(file))
        expected = chosen_rows(own, LOOSE)
        assert [(row["id"], row["label"]) for row in rows] == [(one.id, own.names[int(one.label)]) for one in expected]  # type: ignore[arg-type]
        assert {row["fold"] for row in rows} == {"-1"}

    second = open_experiment(choice(root, "classes", "pseudo=baseline-s0", run="with"))
    context = prepare_fold(run_of(second), 0, CPU).context
    valid = setup.train.ids[setup.folds.valid(0)]
    assert context.table.ids[context.valid_rows].tolist() == valid.tolist()
    trained_on = context.table.ids[context.train_rows].tolist()
    assert len(trained_on) == len(setup.train) - len(valid) + found["rows"][0]["rows"]
    assert sum(name.startswith("pseudo/") for name in trained_on) == found["rows"][0]["rows"]
    assert not set(trained_on) & set(valid.tolist())
    files.remove(run_paths(second).root)

    report = train(second, "all", CPU)
    assert (report["trained"], report["failed"]) == ([0, 1], [])
    manifest = files.read_json(run_paths(second).manifest)
    assert manifest["pseudo"]["labels"] == "baseline-s0"
    assert manifest["pseudo"]["origin"]["training"] == known["training"]
    assert manifest["folds"] == known["folds"]
    assert manifest["training"] != known["training"]
    score = run_of(second).out_of_fold(device="cpu").score
    assert score["rows"] == len(setup.train)  # rows of the training set alone are scored

    # other labels are another training
    pseudo_label(choice(root, "classes", run="baseline-s0"), sure=Sure(0.501, most=1), device="cpu")
    with pytest.raises(ConfigError, match="was trained otherwise"):
        train(open_experiment(choice(root, "classes", "pseudo=baseline-s0", run="with")), "0", CPU)


def test_labels_that_are_not_there_or_of_other_folds_are_refused(tmp_path: Path) -> None:
    root = written(tmp_path)
    with pytest.raises(ConfigError, match="`pseudo: baseline-s0` in the YAML") as error:
        train(open_experiment(choice(root, "labels", "pseudo=baseline-s0")), "0", CPU)
    assert "kbench pseudo-label baseline-s0" in str(error.value)
    with pytest.raises(ConfigError, match="`pseudo: baseline-s0` in the YAML"):  # before anything is trained
        check(choice(root, "labels", "pseudo=baseline-s0"), images=False, every=False)
    setup = open_experiment(choice(root, "labels"))
    train(setup, "0", CPU)
    pseudo_label(choice(root, "labels", run="baseline-s0"), sure=Sure(0.6, least=0), name="loose", device="cpu")
    second = open_experiment(choice(root, "labels", "pseudo=baseline-s0/loose", run="with"))
    train(second, "0", CPU)
    with pytest.raises(DataError, match="no labels for 'fold-1'"):
        train(second, "1", CPU)
    train(open_experiment(choice(root, "numbers")), "0", CPU)
    with pytest.raises(ConfigError, match="pseudo-labels for the task 'regression'"):
        pseudo_label(choice(root, "numbers", run="baseline-s0"), sure=Sure(), device="cpu")


@pytest.mark.slow
def test_sure_pixels_of_test_images_train_and_the_others_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_street(tmp_path)
    wrong = open_experiment(Choice("street", assignments=("metric.classes=[cube]",), workspace=tmp_path))
    with pytest.raises(ConfigError, match="'cube'"):
        train(wrong, "0", CPU)
    setup = open_experiment(Choice("street", workspace=tmp_path))
    train(setup, "all", CPU)
    found = pseudo_label(Choice("street", run="baseline-s0", workspace=tmp_path), sure=Sure(0.8, 0.1), device="cpu")
    assert [row["rows"] for row in found["rows"]] == [4, 4, 4]
    second = open_experiment(
        Choice("street", run="with", assignments=("pseudo=baseline-s0/first",), workspace=tmp_path)
    )
    context = prepare_fold(run_of(second), 1, CPU).context
    extra = [row for row in context.train_rows if context.table.ids[row].startswith("pseudo/")]
    assert len(extra) == 4
    from kbench.training.fold_context import KEEP

    assert context.masks is not None
    images, masks = context.images(KEEP), context.masks(KEEP)
    for row in extra:
        name = str(context.table.ids[row]).removeprefix("pseudo/")
        shown = cv2.imread(str(tmp_path / "data" / "street" / "test" / f"{name}.png"))[:, :, ::-1]
        np.testing.assert_array_equal(images[row], shown)
        assert set(np.unique(masks[row]).tolist()) <= {0, 1, 255}
        assert (masks[row] != 255).mean() >= 0.1
    files.remove(run_paths(second).root)
    train(second, "1", CPU)
    tuned = ("maps.postprocess={name: standard, min_object: tuned, grid: {min_object: [3]}}",)
    made = ensemble(Choice("street", assignments=tuned, workspace=tmp_path), ["with"], EnsembleOptions(device="cpu"))
    assert (made["missing"], made["gains"]) == ({"with": [0]}, [])
    assert any("with trained with pseudo-labels baseline-s0/first" in note for note in made["notes"])
    both = ensemble(Choice("street", assignments=tuned, workspace=tmp_path), [], EnsembleOptions(device="cpu"))
    capsys.readouterr()
    console.show_score(both, "over 12 rows")
    said = capsys.readouterr().out
    assert "nested" in said
    assert "optimism" in said
    assert "tuning gains" in said
    console.show_score(made, "over 6 rows")
    assert "nested: each fifth of the only fold with what was found on the others" in capsys.readouterr().out
