from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from small_runs import written

from kbench import console, files
from kbench.errors import KbenchError
from kbench.runs import fold_processes
from kbench.runs.fold_processes import divided_environment, last_epoch, live_table, visible_gpus
from kbench.workspace import RunPaths

EPOCH = {"event": "epoch", "stage": "all", "epoch": 1, "epochs": 4, "train_loss": 0.51239, "valid_loss": 0.75,
         "score": 0.875, "images_per_s": 123.4}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# -- what each fold gets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "jobs", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 5, "1")])
def test_threads_are_divided_among_the_folds(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for slot in range(jobs):
        made = divided_environment(slot, jobs)
        assert made["OMP_NUM_THREADS"] == made["MKL_NUM_THREADS"] == threads
        assert made["SOMETHING"] == "else"
        assert made["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["OMP_NUM_THREADS"] == "7"  # no fold changes its parent


def test_gpus_are_dealt_to_the_folds_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab,5")
    assert [divided_environment(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["3", "GPU-ab", "5", "3"]


def test_the_gpus_are_those_the_environment_names_else_all_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,")
    assert visible_gpus() == ["1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ["0", "1", "2"]


# -- where the folds are -------------------------------------------------------------------------------------------


def logged(paths: RunPaths, fold: int, *records: dict[str, Any], rest: str = "") -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    files.write_text(paths.fold(fold).log, text + rest)


def test_the_last_epoch_is_the_last_whole_one(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert last_epoch(paths, 0) == ["-"] * 6
    logged(paths, 0, {"event": "stage"})
    assert last_epoch(paths, 0) == ["-"] * 6
    logged(paths, 0, EPOCH, {**EPOCH, "epoch": 2, "valid_loss": None, "score": None}, {"event": "note"}, rest='{"eve')
    assert last_epoch(paths, 0) == ["all", "3/4", "0.5124", "-", "-", "123"]


def test_a_terminal_shows_where_each_fold_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, screen = RunPaths(tmp_path), io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(fold_processes, "_POLL_S", 0.01)
    logged(paths, 1, EPOCH)
    codes = {0: None, 1: 0, 2: 4}
    running = {fold: SimpleNamespace(poll=lambda fold=fold: codes[fold]) for fold in codes}
    with live_table([0, 1, 2, 3], paths, running):
        time.sleep(0.1)
    last = screen.getvalue().rpartition("fold")[2]
    states = {line.split()[1]: line.split()[3] for line in last.splitlines() if line.startswith("│")}
    assert states == {"0": "running", "1": "done", "2": "failed", "3": "waiting"}
    assert "0.8750" in last


def test_what_is_no_terminal_is_shown_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True))
    with live_table([0], RunPaths(tmp_path), {}):
        pass
    assert screen.getvalue() == ""


# -- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folds_stopped_together_go_on_by_the_same_command(tmp_path: Path) -> None:
    root = written(tmp_path)
    words = ["train", "-c", "labels", "--fold", "all", "--jobs", "2", "--device", "cpu", "--set",
             "stages.all.schedule.cycles=400"]  # fmt: skip
    places = [RunPaths(root / "runs" / "labels" / "baseline-s0").fold(fold) for fold in range(2)]

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kbench", *words], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def until(reached: Any) -> None:
        while not all(reached(place) for place in places):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)

    def resume_points(place: Any) -> bool:
        return place.last.is_file() and len(files.read_lines(place.log)) > 4

    process = started()
    until(resume_points)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    for place in places:
        assert "goes on from the last resume point" in place.console.read_text()
        with files.lock(place.lock):  # the fold's own process has ended
            assert place.last.is_file()

    process = started()
    until(lambda place: "going on from stage all" in place.console.read_text())
    process.kill()  # who trains the folds ends with who started them, so that the same command can go on at once
    process.communicate(timeout=120)
    for place in places:
        ended = time.monotonic() + 60
        while True:
            try:
                with files.lock(place.lock):
                    break
            except KbenchError:
                assert time.monotonic() < ended, "a fold goes on without the command that started it"
                time.sleep(0.05)
