"""Every task from its files to a graded submission and a report, through the command line, against plain numpy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import every_task as boxes
import numpy as np
import pytest
import torch
from command_lines import CommandLine
from every_task import MAPS, NAMES, SIZE, TASKS, TEST, TRAIN

import kbench
from kbench.runs.shown_images import ROLES

TESTS = range(TRAIN, TRAIN + TEST)


@dataclass(frozen=True)
class Trained:
    """A competition that is trained: two folds, two snapshots each.

    Attributes:
        name: the competition.
        line: the command line of its workspace.
    """

    name: str
    line: CommandLine

    @property
    def run(self) -> kbench.Run:
        return kbench.open_run(competition=self.name, workspace=self.line.root)

    def json(self, command: str, *words: str) -> dict[str, Any]:
        """Run a command of the competition; return its JSON."""
        return self.line.json(command, *words, "-c", self.name)

    def ensemble(self, name: str) -> tuple[dict[str, Any], Path]:
        """Write a submission; return what the command says, and the file."""
        made = self.json("ensemble", "--device", "cpu", "--name", name)
        return made, Path(made["file"])


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each competition in turn."""
    root = boxes.write(tmp_path_factory.mktemp(request.param), [request.param])
    made = Trained(request.param, CommandLine(root))
    assert made.json("train", "--device", "cpu")["trained"] == [0, 1]
    return made


def values_of(oof: Any) -> np.ndarray:
    """Return all rows of out-of-fold predictions: values, masks or numbers."""
    return oof.values if hasattr(oof, "values") else np.stack([oof[row] for row in range(len(oof))])


@torch.no_grad()
def seen(run: kbench.Run, fold: int, name: str, **of: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of a dataset, and [members, N, ...] what a fold's models say of it, mirrored images included."""
    finish = {"classes": lambda logits: logits.softmax(1), "masks": lambda logits: logits.softmax(1),
              "tags": torch.sigmoid, "layers": torch.sigmoid}.get(name, lambda logits: logits)  # fmt: skip
    rows = run.dataset(fold, **of)
    images, means = torch.stack([rows[place][0] for place in range(len(rows))]), []
    for member in run.members(fold):
        model = run.model(fold, member, device="cpu")
        plain, mirrored = (finish(model(some)) for some in (images, images.flip(-1)))
        mean = ((plain + (mirrored.flip(-1) if name in MAPS else mirrored)) / 2).numpy()
        means.append(in_units(mean, run.snapshot(fold, member).info.get("units")))
    return rows.ids, np.stack(means)


def in_units(values: np.ndarray, units: dict[str, Any] | None) -> np.ndarray:
    """Return numbers of a network that was taught in standard deviations, [N, K, ...], in those of the files."""
    if units is None:
        return values
    middle, spread = (np.reshape(units[key], (-1, *[1] * (values.ndim - 2))) for key in ("mean", "std"))
    return values * spread + middle


def decided(mean: np.ndarray, name: str) -> np.ndarray:
    """Return what is sent of the mean."""
    return {"masks": lambda: mean.argmax(1), "layers": lambda: mean > 0.5}.get(name, lambda: mean)()


# -- scores -----------------------------------------------------------------------------------------------------


def test_the_yaml_and_the_data_have_no_problem(trained: Trained) -> None:
    found = trained.json("check", "--images")
    assert (found["rows"], found["test"], found["sample"]) == (TRAIN, TEST, TEST)


def test_out_of_fold_predictions_are_the_mean_of_snapshots_and_views(trained: Trained) -> None:
    run, name = trained.run, trained.name
    oof = run.oof(device="cpu")
    assert oof.ids.tolist() == [boxes.id_of(number) for number in range(TRAIN)]
    assert (oof.names, oof.task) == (NAMES[name], TASKS[name])
    for fold in (0, 1):
        ids, said = seen(run, fold, name)
        rows = values_of(oof)[np.searchsorted(oof.ids, ids)]
        np.testing.assert_allclose(rows, decided(said.mean(0), name), rtol=1e-4, atol=1e-5)


def test_the_score_out_of_fold_is_that_of_numpy(trained: Trained) -> None:
    found, oof = trained.json("score", "--device", "cpu"), trained.run.oof(device="cpu")
    assert found["score"] == pytest.approx(boxes.score(trained.name, values_of(oof), map(int, oof.ids)), rel=1e-5)
    assert (found["rows"], found["members"]) == (TRAIN, 4)
    assert found["low"] <= found["score"] <= found["high"]
    assert set(found["folds"]) == {"0", "1"}


# -- what is sent -----------------------------------------------------------------------------------------------


def test_what_is_sent_is_the_mean_over_folds_snapshots_and_views(trained: Trained) -> None:
    run, name = trained.run, trained.name
    _, file = trained.ensemble("sent")
    means = []
    for fold in (0, 1):
        ids, said = seen(run, fold, name, role="test")
        assert ids.tolist() == [boxes.id_of(number) for number in TESTS]
        means.append(said.mean(0))
    expected = decided(np.mean(means, axis=0), name)
    np.testing.assert_allclose(
        boxes.sent(name, file), expected > 0.2 if name == "tags" else expected, rtol=1e-4, atol=1e-5
    )


def test_the_graded_score_is_that_of_numpy_on_the_written_file(trained: Trained) -> None:
    made, file = trained.ensemble("graded")
    expected = boxes.score(trained.name, boxes.sent(trained.name, file), TESTS)
    graded = trained.json("submit", str(file))
    assert graded["status"] == "complete"
    assert graded["all_rows"] == graded["public"] == pytest.approx(expected, rel=1e-5)
    assert graded["cv"] == pytest.approx(made["score"])
    assert graded["gap"] == pytest.approx(graded["public"] - made["score"])


def test_the_lineage_says_what_a_submission_was_made_of(trained: Trained) -> None:
    made, file = trained.ensemble("lineage")
    run = trained.run
    lineage = json.loads(file.with_name("lineage.lineage.json").read_text())["lineage"]
    assert (lineage["competition"], lineage["runs"]) == (trained.name, ["baseline-s0"])
    assert lineage["format"]["name"] == run.config.submission.format.name
    assert lineage["combine"]["name"] == "mean"
    assert len(lineage["members"]) == len(lineage["weights"]) == 4
    assert sum(lineage["weights"]) == pytest.approx(1)
    assert [(member["run"], member["fold"], member["stage"]) for member in lineage["members"]] == [
        ("baseline-s0", fold, "all") for fold in (0, 0, 1, 1)
    ]
    assert lineage["views"]["name"] == "flip"
    assert lineage["hashes"] == {"baseline-s0": json.loads((run.paths.root / "run.json").read_text())["training"]}
    assert lineage["folds"] == run.folds.hash
    maximised = trained.name in ("tags", "masks", "layers")
    assert (lineage["metric"], lineage["maximise"]) == (run.config.metric.name, maximised)
    assert (lineage["score"], lineage["low"]) == pytest.approx((made["score"], made["low"]))


def test_other_rows_are_predicted_as_the_test_set_is(trained: Trained) -> None:
    _, file = trained.ensemble("same")
    out = trained.line.root / f"unseen{file.suffix}"
    found = trained.json("predict", "--data", "source", "--out", str(out), "--device", "cpu")
    assert found["rows"] == TEST
    np.testing.assert_allclose(boxes.sent(trained.name, out), boxes.sent(trained.name, file), rtol=1e-5)
    assert trained.json("predict", "--device", "cpu")["rows"] == TEST


# -- what is looked at ------------------------------------------------------------------------------------------


def test_the_report_agrees_with_the_score_and_the_submission(trained: Trained) -> None:
    found = trained.json("report", "--solution", "--device", "cpu")
    names, page = {Path(file).name for file in found["files"]}, Path(found["page"]).read_text()
    assert {"growth.csv", "training.png"} <= names
    assert {"worst.png", "random.png"} <= names or trained.name not in MAPS
    assert all(Path(file).is_file() for file in found["files"])
    assert all(name in page for name in names if name.endswith(".png"))
    assert found["score"]["score"] == pytest.approx(trained.json("score", "--device", "cpu")["score"])
    _, file = trained.ensemble("reported")
    graded = boxes.score(trained.name, boxes.sent(trained.name, file), TESTS)
    assert found["test"][-1]["test"] == pytest.approx(graded, rel=1e-5)


def test_every_step_is_tried_on_two_batches(trained: Trained) -> None:
    found = trained.json("train", "--smoke", "--device", "cpu")
    assert (found["rows"], found["stages"], found["failed"]) == (
        min(TEST, 4) if trained.name in MAPS else TEST, ["all"], [],
    )  # fmt: skip


def test_data_are_looked_at_before_training(trained: Trained) -> None:
    found = trained.json("inspect")
    assert found["files"]
    assert all(Path(file).is_file() for file in found["files"])


# -- the API ----------------------------------------------------------------------------------------------------

SHAPES = {
    "classes": ((), torch.int64), "tags": ((3,), torch.float32), "number": ((1,), torch.float32),
    "numbers": ((2,), torch.float32), "masks": (SIZE, torch.int64), "layers": ((2, *SIZE), torch.float32),
    "heights": ((2, *SIZE), torch.float32),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_a_dataset_gives_images_and_known_targets(trained: Trained, role: Any) -> None:
    rows = trained.run.dataset(0, role=role)
    for place in range(len(rows)):
        image, target = rows[place]
        assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, *SIZE))
        assert torch.isfinite(image).all()
        if role.startswith("test"):
            assert target.isnan().all()
            continue
        assert (tuple(target.shape), target.dtype) == SHAPES[trained.name]
        truth = boxes.truth_of(trained.name, int(rows.ids[place]))
        if role in ("valid", "fix"):  # shown as they are: the target is the truth as losses take it
            expected = np.where(truth == 255, -100, truth.astype(float)) if trained.name == "masks" else truth
            np.testing.assert_allclose(target.numpy(), expected, rtol=1e-6)
        assert not target.isnan().all()


def test_a_batch_is_shown(trained: Trained) -> None:
    figure = trained.run.show_batch(n=4)
    figure.canvas.draw()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    assert shown.std() > 10
    if trained.name in ("masks", "layers"):  # classes have colours, which these grey pictures have not
        assert ((shown.max(2) - shown.min(2)) > 80).sum() > 200
