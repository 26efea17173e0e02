"""`--devices`: a fold in several processes, from the command to the out-of-fold predictions."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streets import write_street

from kbench.commands.train import train
from kbench.errors import ConfigError, DataError, RankLost
from kbench.models.checkpoint import read_checkpoint, read_tensors
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.fold_processes import divided_environment
from kbench.runs.opening import open_run, run_paths
from kbench.training.deadline import Deadline, Stopped
from kbench.workspace import Choice, FoldPaths

pytestmark = pytest.mark.usefixtures("quick_disk")
ONE, TWO = TrainOptions(device="cpu"), TrainOptions(device="cpu", devices=2)
LONG = ("stages.all.schedule.cycles=24", "stages.first.lr=0.05", "ensemble.members=[all-23]")


def opened(root: Path, run: str, *assignments: str, name: str = "classes") -> Experiment:
    return open_experiment(Choice(name, run=run, assignments=assignments, workspace=root))


def fold_of(experiment: Experiment) -> FoldPaths:
    return run_paths(experiment).fold(0)


def epochs_of(paths: FoldPaths) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in paths.log.read_text().splitlines()] if paths.log.is_file() else []
    return [line for line in lines if line["event"] == "epoch"]


def assert_alike(root: Path, name: str, *runs: str) -> None:
    """Hold two runs' fold 0 against one another: every epoch's losses, and the out-of-fold rows."""
    choices = [Choice(name, run=run, workspace=root) for run in runs]
    one, other = (epochs_of(fold_of(open_experiment(choice))) for choice in choices)
    assert [(line["stage"], line["epoch"]) for line in one] == [(line["stage"], line["epoch"]) for line in other]
    for key in ("train_loss", "valid_loss", "score"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in other], rel=1e-5)
    ours, theirs = (open_run(choice).out_of_fold(device="cpu") for choice in choices)
    held_out = open_experiment(choices[0]).folds.valid(0)
    assert list(ours.table.ids) == list(theirs.table.ids) == list(open_experiment(choices[0]).train.ids[held_out])
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5, atol=1e-5)
    assert ours.score["score"] == pytest.approx(theirs.score["score"], rel=1e-5)


def test_a_segmentation_on_two_devices_is_that_of_one(tmp_path: Path) -> None:
    write_street(tmp_path)
    for run, options in (("one", ONE), ("two", TWO)):
        assert train(opened(tmp_path, run, name="street"), "0", options)["trained"] == [0]
    assert_alike(tmp_path, "street", "two", "one")


def _tell_to_stop(paths: FoldPaths, ends: Deadline) -> None:
    """Say that a signal came, when an epoch is in the log."""
    while not epochs_of(paths):
        time.sleep(0.02)
    ends.why = "told to stop"


def _kill_a_rank(paths: FoldPaths, *, epochs: int, killed: list[int]) -> None:
    """Kill the process of the second device when so many epochs are in the log."""
    while len(epochs_of(paths)) < epochs:
        time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid() and b"kbench.commands.train_rank" in words:
            killed.append(int(process.name))
            if words[-2] == b"1":
                os.kill(int(process.name), signal.SIGKILL)


def test_a_fold_is_stopped_in_time_then_loses_a_device_and_goes_on_on_one(root: Path) -> None:
    train(opened(root, "one", *LONG), "0", ONE)
    broken = opened(root, "broken", *LONG)
    ends = Deadline()
    threading.Thread(target=_tell_to_stop, args=(fold_of(broken), ends), daemon=True).start()
    with pytest.raises(Stopped, match="told to stop by SIGTERM: stopped at a resume point"):
        train(broken, "0", replace(TWO, deadline=ends))
    before = len(epochs_of(fold_of(broken)))
    assert 1 <= before < 16
    ranks: list[int] = []
    killer = threading.Thread(
        target=_kill_a_rank, args=(fold_of(broken),), kwargs={"epochs": before + 2, "killed": ranks}, daemon=True
    )  # fmt: skip
    killer.start()
    with pytest.raises(RankLost) as lost:
        train(broken, "0", TWO)
    killer.join()
    assert lost.value.what == "the process of device 1 of fold 0 was killed by SIGKILL; the others were stopped"
    assert "`kbench train --fold 0 --devices 2`" in lost.value.todo
    assert len(ranks) == 2
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert before + 2 <= len(epochs_of(fold_of(broken))) < 25
    assert train(broken, "0", ONE)["trained"] == [0]
    assert_alike(root, "classes", "broken", "one")
    weights = []
    for run in ("broken", "one"):
        checkpoint = read_checkpoint(fold_of(opened(root, run, *LONG)).snapshot("all", "23"))
        assert checkpoint is not None
        weights.append(read_tensors(checkpoint.tensors))
    for name, tensor in weights[1].items():
        np.testing.assert_allclose(weights[0][name], tensor, rtol=1e-4, atol=1e-5)


def test_an_image_that_only_one_device_reads_and_cannot_is_told_as_on_one_device(root: Path) -> None:
    experiment = opened(root, "bad", "stages.first.lr=0.05")
    row = int(np.flatnonzero(experiment.folds.train(0))[3])
    image = experiment.train.root / experiment.train.images[row][0]
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=image.name):
        train(experiment, "0", TWO)


@pytest.mark.parametrize(
    ("options", "assignments", "what", "todo"),
    [
        (TrainOptions(device="cpu", devices=9), (), "batch_size of 8, which 9 devices cannot share",
         "`--set stages.first.batch_size=9` or more, or fewer --devices"),
        (TrainOptions(device="cuda:1", devices=2), (), "--device cuda:1 is one device", "`--device cuda`; CUDA"),
        (TrainOptions(device="mps", devices=2), (), "several devices 'mps'", "leave out --devices"),
        (TrainOptions(device="cuda", devices=4), (), "--devices 4 asks for 4 GPUs, and this machine has 3",
         "`--devices 3`"),
        (TrainOptions(device="auto", devices=2, jobs=2), (), "for each of 2 folds at once asks for 4 GPUs",
         "leave out --devices"),
    ],
)  # fmt: skip
def test_devices_that_are_not_there_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: TrainOptions, assignments: tuple[str, ...], what: str,
    todo: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError) as refused:
        train(opened(root, "none", *assignments), "0", options)
    assert what in refused.value.what
    assert todo in refused.value.todo
    assert not run_paths(opened(root, "none")).root.exists()


def test_folds_at_once_have_as_many_gpus_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    shares = [divided_environment(slot, 2, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert shares == ["4,5", "6,7"]
    assert divided_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"
