from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from kbench import files
from kbench.commands.lr_find import lr_find
from kbench.commands.smoke import smoke
from kbench.commands.train import train
from kbench.errors import ConfigError, KbenchError, TrainingError
from kbench.inference.predictions import load
from kbench.models.checkpoint import read_checkpoint
from kbench.runs import parts
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions, prepare_fold
from kbench.runs.members import checkpoints
from kbench.runs.opening import run_of, run_paths
from kbench.runs.parts import build_stages
from kbench.runs.results import Rows
from kbench.runs.row_parts import Members, member_predictions
from kbench.runs.row_results import out_of_fold_members
from kbench.training.fold import state_of
from kbench.workspace import Choice, FoldPaths

pytestmark = pytest.mark.usefixtures("quick_disk")
CPU = TrainOptions(device="cpu")
FORCE = replace(CPU, force=True)
NAN = ("stages.all.lr=1e30",)


def opened(root: Path, *assignments: str, name: str = "labels", run: str | None = None) -> Experiment:
    return open_experiment(Choice(name, run=run, assignments=assignments, workspace=root))


def fold(setup: Experiment, number: int | str = 0) -> FoldPaths:
    return run_paths(setup).fold(number)


def log(paths: FoldPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in paths.log.read_text().splitlines()]


def written_at(paths: FoldPaths) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in paths.root.glob("snapshot-*")}


# -- failure -------------------------------------------------------------------------------------------------------


def test_a_fold_whose_loss_becomes_nan_is_failed_and_a_second_call_refuses(root: Path) -> None:
    setup = opened(root, *NAN)
    with pytest.raises(TrainingError, match=r"at step \d+, at a learning rate of \d\S*e\+\d+"):
        train(setup, "0", CPU)
    assert state_of(fold(setup), training=files.read_json(run_paths(setup).manifest)["training"])["state"] == "failed"
    before = fold(setup).log.read_bytes()
    with pytest.raises(TrainingError, match="failed before: the loss is nan") as caught:
        train(opened(root, *NAN), "0", CPU)
    assert "kbench train --fold 0 --force" in caught.value.todo
    assert fold(setup).log.read_bytes() == before


def test_a_failed_fold_does_not_stop_the_others_now_or_later(root: Path) -> None:
    setup = opened(root, *NAN)
    for _ in range(2):
        found = train(setup, "all", CPU)
        assert (found["failed"], found["trained"], found["done"]) == ([0, 1], [], [])
    healthy = opened(root, run="mixed")
    train(healthy, "1", CPU)
    files.write_json(fold(healthy, 0).status, {"state": "failed", **_identity(healthy), "error": "x"})
    found = train(healthy, None, CPU)
    assert (found["failed"], found["trained"], found["done"]) == ([0], [], [1])


def predicted_test(setup: Experiment) -> Members:
    """Predict the test set with fold 0."""
    return member_predictions(run_of(setup), Rows(setup.test, device="cpu"), [0])


def _identity(setup: Experiment) -> dict[str, str]:
    manifest = files.read_json(run_paths(setup).manifest)
    return {key: manifest[key] for key in ("training", "contract", "folds")}


def test_a_failed_fold_is_tried_again_by_force(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    files.write_json(fold(setup).status, {"state": "failed", **_identity(setup), "error": "x"})
    assert train(setup, "0", FORCE)["trained"] == [0]


NO_RATE = ("stages.first.range_test.start=1e-12", "stages.first.range_test.end=1e-11", "stages.first.lr=find")


def test_a_range_test_that_shows_no_rate_leaves_its_picture_and_marks_nothing(root: Path) -> None:
    setup = opened(root, *NO_RATE)
    with pytest.raises(TrainingError, match="neither falls nor rises"):
        train(setup, "0", CPU)
    assert (fold(setup).root / "lr-find-first.png").read_bytes()[:4] == b"\x89PNG"
    assert state_of(fold(setup), training=_identity(setup)["training"])["state"] == "none"
    with pytest.raises(TrainingError, match="neither falls nor rises"):
        lr_find(setup.choice, fold=1, stage="first", device="cpu")
    drawn = setup.workspace.scratch("labels", "lr-find").fold(1).root / "lr-find-first.png"
    assert drawn.read_bytes()[:4] == b"\x89PNG"


def test_several_folds_may_be_named(root: Path) -> None:
    assert train(opened(root), "1,0", CPU)["trained"] == [1, 0]


# -- work that exists ----------------------------------------------------------------------------------------------


def test_a_trained_fold_is_trained_again_only_by_force(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    before = written_at(fold(setup))
    assert train(setup, "0", CPU)["done"] == [0]
    assert written_at(fold(setup)) == before
    checksum = files.sha256(fold(setup).root / "snapshot-all-1.safetensors")
    assert train(setup, "0", FORCE)["trained"] == [0]
    assert written_at(fold(setup)) != before
    assert files.sha256(fold(setup).root / "snapshot-all-1.safetensors") == checksum


@pytest.mark.parametrize("which", [None, pytest.param("all", marks=pytest.mark.slow)])
def test_force_trains_every_fold_again(root: Path, which: str | None) -> None:
    setup = opened(root)
    train(setup, "all", CPU)
    before = [written_at(fold(setup, number)) for number in range(2)]
    assert train(setup, which, FORCE)["trained"] == [0, 1]
    assert all(written_at(fold(setup, number)) != before[number] for number in range(2))


def test_a_run_of_another_training_is_not_removed_by_force_while_a_fold_of_it_is_trained(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    other = opened(root, "stages.all.lr=0.01")
    with files.lock(fold(setup).lock), pytest.raises(KbenchError, match="another kbench process"):
        train(other, None, FORCE)
    assert written_at(fold(setup))
    assert train(other, None, FORCE)["trained"] == [0, 1]


def test_a_fold_that_is_being_trained_elsewhere_is_left_alone_by_force_too(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    before = written_at(fold(setup))
    with files.lock(fold(setup).lock), pytest.raises(KbenchError, match="another kbench process"):
        train(setup, "0", FORCE)
    assert written_at(fold(setup)) == before


def test_predictions_a_killed_process_did_not_make_are_made_by_the_same_command(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    path = fold(setup).predictions("oof", "all-1")
    expected, before = np.array(load(path).values), written_at(fold(setup))
    files.remove(path.parent)
    assert train(setup, "0", CPU)["done"] == [0]
    np.testing.assert_array_equal(load(path).values, expected)
    assert written_at(fold(setup)) == before


def test_a_fold_killed_and_started_again_by_the_same_command_ends_the_same(root: Path) -> None:
    whole, stopped = opened(root, run="whole"), opened(root, run="stopped")
    train(whole, "0", CPU)

    class Killed(BaseException):
        pass

    class Killer:
        """Raises in the middle of the run, as a signal would."""

        def __init__(self) -> None:
            self.left = 6

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise Killed
            return STEP(*args, **kwargs)

    STEP = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", Killer())
        with pytest.raises(Killed):
            train(stopped, "0", CPU)
    train(stopped, "0", CPU)
    for name in ("snapshot-all-0.safetensors", "snapshot-all-1.safetensors", "oof/all-1.npy"):
        assert (fold(stopped).root / name).read_bytes() == (fold(whole).root / name).read_bytes()


# -- all rows ------------------------------------------------------------------------------------------------------


def test_all_rows_train_with_the_plan_of_the_folds_and_keep_their_ends(root: Path) -> None:
    setup = opened(root, "stages.all.keep=[best]", name="classes")
    with pytest.raises(ConfigError, match="no fold of"):
        train(setup, "full", CPU)
    train(setup, "all", CPU)
    rates = [files.read_json(fold(setup, number).plan)["lr/first"] for number in range(2)]
    found = train(setup, "full", CPU)
    assert found["trained"] == ["full"]
    stages = [line for line in log(fold(setup, "full")) if line["event"] == "stage"]
    assert stages[0]["lr"][-1] == pytest.approx(float(np.sqrt(rates[0] * rates[1])))
    assert stages[1]["lr"] == pytest.approx([0.02 / 3, 0.02])
    assert {line["rows"] for line in stages} == {48}
    kept = [read_checkpoint(path) for path in fold(setup, "full").snapshots()]
    assert [(one.info["tag"], one.info["subset"], one.info["score"]) for one in kept if one] == [("last", "full", None)]
    assert train(setup, "full", CPU)["done"] == ["full"]
    assert train(setup, "full", FORCE)["trained"] == ["full"]


def test_models_of_all_rows_keep_the_plan_they_were_begun_with(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup = opened(root, "stages.all.keep=[last]", name="classes")
    train(setup, "0", CPU)
    train(setup, "full", CPU)
    begun = files.read_json(fold(setup, "full").plan)
    assert begun["full"]["folds"] == [0]
    (fold(setup, "full").status).unlink()
    train(setup, "1", CPU)
    capsys.readouterr()
    train(setup, "full", CPU)
    assert files.read_json(fold(setup, "full").plan)["full"] == begun["full"]
    assert "keep the plan of folds 0; `kbench train --full --force`" in capsys.readouterr().err


@pytest.mark.parametrize(("way", "tag"), [
    (("stages.all.schedule={name: sgdr, cycles: 1, cycle_len: 9}", "stages.all.early_stop=1",
      "stages.all.lr=1e-12", "stages.all.keep=[cycles]"), "best"),
    (("stages.all.keep=[average]", "stages.all.average={start: 99}"), "last"),
])  # fmt: skip
def test_a_stage_that_is_over_before_there_is_what_it_keeps_keeps_its_end(
    root: Path, way: tuple[str, ...], tag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = opened(root, *way)
    train(setup, "0", CPU)
    (only,) = checkpoints(run_of(setup), 0)
    assert only.info["tag"] == tag
    assert "to keep: its" in capsys.readouterr().err
    assert train(setup, "0", CPU)["done"] == [0]


def test_images_that_change_under_their_names_are_predicted_anew(root: Path) -> None:
    setup = opened(root, "stages.all.keep=[last]", "input.cache=on")
    train(setup, "0", CPU)

    def predicted() -> np.ndarray:
        (one,) = predicted_test(opened(root, "stages.all.keep=[last]", "input.cache=on"))[0].values()
        return np.array(one.values)

    before = predicted()
    image = setup.test.root / setup.test.images[0][0]
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    image.unlink()  # the folder may be a link to files that others use
    cv2.imwrite(str(image), 255 - pixels)
    after = predicted()
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1:], after[1:])


def test_a_stage_of_all_rows_keeps_its_end_in_place_of_a_best_epoch(root: Path) -> None:
    setup = opened(root, "stages.all.subset=full", "stages.all.keep=[best]", "stages.first.keep=[last]")
    assert [stage.keep for stage in parts.build_stages(setup.competition)] == [{"last"}, {"last"}]
    train(setup, "0", CPU)
    found = [read_checkpoint(path) for path in fold(setup).snapshots()]
    assert [(one.member, one.info["subset"]) for one in found if one] == [("all-last", "full"), ("first-last", "fold")]


@pytest.mark.parametrize("keep", ["[best]", "[cycles, best]"])
def test_the_best_epoch_of_the_folds_is_the_end_of_a_model_of_all_rows(root: Path, keep: str) -> None:
    setup = opened(root, f"stages.all.keep={keep}", "ensemble.members=[all-best]", "stages.first.keep=[last]")
    for which, tag, subset in (("0", "best", "fold"), ("full", {"[best]": "last"}.get(keep, "1"), "full")):
        train(setup, which, CPU)
        number = 0 if which == "0" else "full"
        (found,) = checkpoints(run_of(setup), number, subset=subset)
        assert found.member == f"all-{tag}"


def test_the_end_of_a_stage_is_a_member_by_that_name_even_where_it_is_the_end_of_a_cycle(root: Path) -> None:
    setup = opened(root, "stages.all.keep=[cycles, last]", "ensemble.members=[all-last]")
    train(setup, "0", CPU)
    assert [one.member for one in checkpoints(run_of(setup), 0)] == ["all-1"]


def test_folds_whose_rate_others_take_are_trained_first(root: Path) -> None:
    setup = opened(root, "stages.first.lr_from_fold=1", name="classes")
    assert train(setup, "all", CPU)["trained"] == [0, 1]
    plans = [files.read_json(fold(setup, number).plan) for number in range(2)]
    assert plans[0]["lr/first"] == plans[1]["lr/first"]
    assert not (fold(setup, 0).root / "lr-find-first.csv").exists()
    assert (fold(setup, 1).root / "lr-find-first.csv").exists()


def test_a_smoke_run_needs_no_rate_of_another_fold(root: Path) -> None:
    smoke(Choice("classes", assignments=("stages.first.lr_from_fold=1",), workspace=root), device="cpu")


# -- predictions ---------------------------------------------------------------------------------------------------


def test_predictions_are_made_again_when_the_views_change_and_only_then(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)

    def made(setup: Experiment) -> int:
        out_of_fold_members(run_of(setup), [0], device="cpu")
        return fold(setup).predictions("oof", "all-1").stat().st_mtime_ns

    first = made(setup)
    assert made(setup) == first
    assert made(opened(root, "tta=d4")) > first
    assert load(fold(setup).predictions("oof", "all-1")).source["views"] == {"name": "d4"}


def test_half_made_predictions_are_made_again(root: Path) -> None:
    setup = opened(root)
    train(setup, "0", CPU)
    path = fold(setup).predictions("test", "all-1")
    predicted_test(setup)
    expected = np.array(load(path).values)
    files.remove(path)  # what a killed process leaves: an array, and nothing that seals it
    predicted_test(setup)
    np.testing.assert_array_equal(load(path).values, expected)


def test_one_image_is_decoded_once_for_every_model_and_view(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = opened(root, "tta={name: five_crop}")
    train(setup, "0", CPU)
    reads: list[str] = []
    read = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, **more: (reads.append(str(path)), read(path, **more))[1])
    predicted_test(setup)
    assert len(reads) == len(set(reads)) == len(setup.test)


# -- smoke ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels", pytest.param("classes", marks=pytest.mark.slow)])
def test_a_smoke_run_goes_through_every_step_and_leaves_nothing(root: Path, name: str) -> None:
    train(opened(root, name=name), "0", CPU)
    before = {path: path.read_bytes() for path in (root / "runs").rglob("*") if path.is_file()}
    found = smoke(Choice(name, workspace=root), device="cpu")
    assert found["stages"] == ["first", "all"]
    assert found["rows"] > 0
    assert {path: path.read_bytes() for path in (root / "runs").rglob("*") if path.is_file()} == before
    assert not list((root / "runs" / name).glob("*smoke*"))


def test_a_smoke_run_finds_what_would_fail_after_hours(root: Path) -> None:
    with pytest.raises(KbenchError):
        smoke(Choice("labels", assignments=("submission.sample=missing.csv",), workspace=root), device="cpu")
    assert not list((root / "runs" / "labels").glob("*smoke*"))


@pytest.mark.parametrize("members", ["[all-1]", "[all]", "[first-best, all-0]"])
def test_a_smoke_run_takes_the_ends_of_the_stages_whose_members_count(root: Path, members: str) -> None:
    assignments = (f"ensemble.members={members}", "stages.first.keep=[best]")
    assert smoke(Choice("labels", assignments=assignments, workspace=root), device="cpu")["rows"] > 0


def test_a_smoke_run_looks_at_no_more_images_than_its_batches_hold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: set[str] = set()
    read = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, **more: (reads.add(str(path)), read(path, **more))[1])
    few = ("train.batch_size=2", "loader.valid_batch_size=2", "tta=none", "input.cache=on", "folds.group=auto",
           "folds.strategy=group")  # fmt: skip
    smoke(Choice("labels", assignments=few, workspace=root), device="cpu")
    assert len([path for path in reads if "/train/" in path]) < 20  # of 48
    assert len([path for path in reads if "/test/" in path]) == 2
    assert not list((root / "data" / ".cache").rglob("*.bin"))


def test_folds_are_those_of_a_real_run_whether_or_not_a_smoke_run_came_first(root: Path) -> None:
    path = root / "folds" / "labels.csv"
    smoke(Choice("labels", workspace=root), device="cpu")
    assert not path.exists()
    after = opened(root).folds
    path.unlink()
    again = opened(root).folds
    assert path.is_file()
    assert (after.hash, after.manifest) == (again.hash, again.manifest)


# -- pictures ------------------------------------------------------------------------------------------------------


def test_what_a_kill_left_half_drawn_is_removed_and_drawn_again(root: Path) -> None:
    setup = open_experiment(Choice("classes", workspace=root))
    train(setup, "0", CPU)
    fold = root / "runs" / "classes" / "baseline-s0" / "fold-0"
    leftover = fold / f"{files._TEMPORARY}123-abcd-losses.png"
    leftover.write_bytes(b"half")
    (fold / "losses.png").unlink()
    assert train(setup, "0", CPU)["done"] == [0]
    assert not leftover.exists()
    assert (fold / "losses.png").is_file()


# -- rows ----------------------------------------------------------------------------------------------------------


def test_a_fold_trains_on_what_its_fold_file_lets_it(root: Path) -> None:
    """Rows within the gap of `blocks` are neither trained on nor judged; a stage of all rows takes them too."""
    setup = opened(root, "folds.strategy=blocks", "folds.options={order: id, gap: 2}")
    run = run_of(setup)
    for number in range(setup.folds.n):
        context = prepare_fold(run, number, CPU).context
        assert context.train_rows.tolist() == np.flatnonzero(setup.folds.train(number)).tolist()
        assert context.valid_rows.tolist() == np.flatnonzero(setup.folds.valid(number)).tolist()
        assert len(context.train_rows) + len(context.valid_rows) < len(setup.train)
        stage = build_stages(setup.competition)[0]
        assert context.rows_of(stage.with_settings(subset="full")).tolist() == list(range(len(setup.train)))
