"""What a fold keeps as JSON, damaged by hand: an error that names the file and what to type, never a defect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_runs
import toy

from kbench import files
from kbench.commands.train import train
from kbench.errors import CheckpointError, DataError
from kbench.pictures.curves import read_epochs
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.fold_processes import last_epoch
from kbench.runs.opening import open_run, prepare_run, run_paths
from kbench.training.fold import begin, mark, state_of, train_fold
from kbench.training.fold_context import Plan
from kbench.training.resume import Progress, lost_resume, save_resume
from kbench.workspace import Choice, FoldPaths

pytestmark = pytest.mark.usefixtures("quick_disk")
TRAINING = toy.IDENTITY["training"]
NO_OBJECTS = ["[]", "null", "3", '"text"', "", "{", "\xff\xfe"]


@pytest.mark.parametrize("content", [*NO_OBJECTS, "{}", '{"state": null, "training": "t"}', '{"training": "t"}'])
def test_a_damaged_state(tmp_path: Path, content: str) -> None:
    paths = FoldPaths(tmp_path)
    paths.status.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"status\.json' is damaged") as caught:
        state_of(paths, training=TRAINING)
    assert f"delete '{paths.status}'" in caught.value.todo
    files.remove(paths.status)
    assert state_of(paths, training=TRAINING)["state"] == "none"


@pytest.mark.parametrize("content", [
    *NO_OBJECTS, "{}", '{"training": 7}', f'{{"training": "{TRAINING}", "lr/only": "x"}}',
    f'{{"training": "{TRAINING}", "threads": null}}', f'{{"training": "{TRAINING}", "scale": []}}',
    f'{{"training": "{TRAINING}", "precision/only": "fp32"}}', f'{{"training": "{TRAINING}", "end/only": 1}}',
])  # fmt: skip
def test_a_damaged_plan(tmp_path: Path, content: str) -> None:
    paths = FoldPaths(tmp_path)
    paths.plan.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"plan\.json' is damaged") as caught:
        Plan(paths, training=TRAINING)
    assert f"delete '{paths.plan}'" in caught.value.todo


def test_a_plan_that_is_whole_is_read(tmp_path: Path) -> None:
    Plan(FoldPaths(tmp_path), training=TRAINING).set("lr/only", 0.1)
    assert Plan(FoldPaths(tmp_path), training=TRAINING).get("lr/only") == 0.1
    assert Plan(FoldPaths(tmp_path), training="other").get("lr/only") is None


# -- the log ---------------------------------------------------------------------------------------------------------


def trained_log(folder: Path) -> FoldPaths:
    fold = toy.context(folder)
    list(train_fold(fold, [toy.stage()], toy.build, resumed=None))
    return fold.paths


def test_a_flipped_byte_in_the_log_names_its_line_and_removing_it_helps(tmp_path: Path) -> None:
    paths = trained_log(tmp_path)
    whole = paths.log.read_bytes()
    epochs, lines = read_epochs(paths), whole.split(b"\n")[:-1]
    place = next(number for number, line in enumerate(lines) if b'"epoch"' in line)
    damaged = 0
    for position in range(len(lines[place])):
        line = bytearray(lines[place])
        line[position] ^= 4
        paths.log.write_bytes(b"\n".join([*lines[:place], bytes(line), *lines[place + 1 :], b""]))
        error = damage_of(paths)  # a digit that became another one cannot be seen
        if error is not None:
            damaged += 1
            assert f"line {place + 1} of" in error.what
            assert f"sed -i {place + 1}d" in error.todo
            assert len(last_epoch_of(paths)) == 6  # the live table goes on
    assert damaged > 20
    paths.log.write_bytes(b"\n".join([*lines[:place], *lines[place + 1 :], b""]))
    assert read_epochs(paths) == epochs[1:]


def damage_of(paths: FoldPaths) -> DataError | None:
    try:
        read_epochs(paths)
    except DataError as error:
        return error
    return None


def last_epoch_of(paths: FoldPaths) -> list[str]:
    class Run:
        @staticmethod
        def fold(number: int | str) -> FoldPaths:
            return paths

    return last_epoch(Run, 0)  # type: ignore[arg-type]


# -- the resume point ------------------------------------------------------------------------------------------------


def saved(folder: Path) -> FoldPaths:
    import torch

    save_resume(FoldPaths(folder), Progress(stage=1, epoch=4, batch=2), {"w": torch.ones(3)}, training=TRAINING)
    return FoldPaths(folder)


def test_lost_tensors_say_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved(tmp_path)
    assert lost_resume(paths, training=TRAINING) == ""
    (tensors,) = tmp_path.glob("last-*.safetensors")
    tensors.unlink()
    assert begin(paths, training=TRAINING) is None
    said = " ".join(capsys.readouterr().err.split())
    assert "last-1-4-2.safetensors' are missing" in said
    assert "stage 2, epoch 5, batch 2 is lost" in said
    assert not paths.last.exists()
    assert begin(paths, training=TRAINING) is None
    assert capsys.readouterr().err == ""  # said once


def test_damaged_tensors_say_so(tmp_path: Path) -> None:
    paths = saved(tmp_path)
    (tensors,) = tmp_path.glob("last-*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    assert "are damaged" in lost_resume(paths, training=TRAINING)


@pytest.mark.parametrize("content", [
    "{}", "[]", "null", '{"files": {}}', '{"files": {}, "training": "%s"}', '{"files": {"tensors": 1}}',
    '{"files": {}, "training": "%s", "progress": {"stage": "x"}}', '{"files": [], "progress": {"other": 1}}', "rubbish",
])  # fmt: skip
def test_a_damaged_resume_point_is_said_and_left(tmp_path: Path, content: str) -> None:
    paths = saved(tmp_path)
    paths.last.write_text(content % TRAINING if "%" in content else content)
    assert "cannot be used" in lost_resume(paths, training=TRAINING)
    assert begin(paths, training=TRAINING) is None
    assert state_of(paths, training=TRAINING)["state"] == "none"


def test_the_resume_point_of_another_training_is_nobodys_loss(tmp_path: Path) -> None:
    assert lost_resume(saved(tmp_path), training="other") == ""


def test_a_lost_best_snapshot_is_no_defect(tmp_path: Path) -> None:
    fold = toy.context(tmp_path)
    running = train_fold(fold, [toy.stage(early_stop=5, schedule=("constant", {"epochs": 3}))], toy.build, resumed=None)
    without = (files.remove(tmp_path / "snapshot-only-best.json") for _ in running)
    with pytest.raises(CheckpointError, match="best epoch of stage only"):
        list(without)
    mark(fold.paths, "failed", toy.IDENTITY)
    assert state_of(fold.paths, training=TRAINING)["state"] == "failed"


# -- the run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"training": 1}', "rubbish"])
def test_a_damaged_run_names_its_file(tmp_path: Path, content: str) -> None:
    small_runs.written(tmp_path)
    setup = open_experiment(Choice("labels", workspace=tmp_path))
    prepare_run(setup, force=False)
    run_paths(setup).manifest.write_text(content)
    for attempt in (
        lambda: train(setup, "0", TrainOptions(device="cpu")),
        lambda: open_run(Choice("labels", workspace=tmp_path)),
    ):
        with pytest.raises(DataError, match=r"run\.json' is damaged") as caught:
            attempt()
        assert str(run_paths(setup).root) in caught.value.todo
    assert json.loads((tmp_path / "folds" / "labels.json").read_text())
