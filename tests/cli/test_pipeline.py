"""The whole job through the real command line, on the real digits, with small models."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest

pytestmark = pytest.mark.slow

SHORT = """
task: single_label
source: {name: embedded, dataset: digits}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
folds: {strategy: stratified, n: 3, seed: 1}
metric: log_loss
submission: {format: probabilities}
input: {size: 16, channels: 1}
model: {backbone: test_resnet}
train: {batch_size: 32, optimizer: adamw, lr: 5e-3}
stages:
  cycles: {schedule: {name: sgdr, cycles: 2, cycle_len: 2}, keep: [cycles]}
tta: flip
"""


class Workspace:
    """A workspace in a folder, and its command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "competitions" / "short").mkdir(parents=True)
        (root / "competitions" / "short.yaml").write_text(SHORT)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command and hold its exit code against the expected one."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("KBENCH_", "KAGGLE_"))}
        done = processes.kbench(*words, cwd=self.root, env=env)
        assert done.returncode == code, f"kbench {' '.join(words)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str) -> dict:
        """Run a command with --json and return what it printed."""
        return json.loads(self.run(*words, "--json").stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three folds trained, two at a time."""
    workspace = Workspace(tmp_path_factory.mktemp("pipeline"))
    workspace.run("download", "short")
    found = workspace.json("train", "--fold", "all", "--jobs", "2")
    assert found["trained"] == [0, 1, 2]
    return workspace


def test_the_owners_three_lines_work_as_they_stand(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.run("download")
    workspace.run("train", "--fold", "2")
    made = workspace.run("ensemble")
    assert "folds 0, 1 of 'baseline-s0' are not trained" in made.stderr
    graded = workspace.json("submit")
    assert graded["status"] == "complete"
    assert graded["public"] < 1.0
    workspace.run("ensemble", "--require-all", code=1)


def test_a_trained_fold_is_not_trained_again(trained):
    weights = sorted((trained.root / "runs").rglob("snapshot-*.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    found = trained.json("train", "--fold", "all")
    assert found["done"] == [0, 1, 2]
    assert found["trained"] == []
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_folds_in_processes_leave_a_log_each_and_name_their_place(trained):
    for fold in range(3):
        folder = trained.root / "runs" / "short" / "baseline-s0" / f"fold-{fold}"
        events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert events == ["stage", *4 * ["epoch"], "done"]
        assert "out of fold" in (folder / "console.log").read_text()


def test_the_score_is_that_of_the_merged_rows_and_the_file_is_checked(trained):
    score = trained.json("score")
    assert set(score["folds"]) == {"0", "1", "2"}
    assert score["low"] <= score["score"] <= score["high"]
    assert score["rows"] == 1437
    made = trained.json("ensemble")
    assert made["score"] == score["score"]
    assert made["members"] == 6
    frame = pd.read_csv(made["file"], dtype={"id": str})
    sample = pd.read_csv(trained.root / "data" / "short" / "sample_submission.csv", dtype={"id": str})
    assert list(frame["id"]) == list(sample["id"])
    assert np.abs(frame.iloc[:, 1:].to_numpy().sum(1) - 1).max() < 1e-6


def test_other_views_are_predicted_again_without_training(trained):
    yaml = trained.root / "competitions" / "short.yaml"
    try:
        before = trained.json("score")["score"]
        yaml.write_text(SHORT.replace("tta: flip", "tta: {name: random, n: 2}"))
        assert trained.json("score")["score"] != before
        yaml.write_text(SHORT.replace("tta: flip", "tta: none\nensemble: {mean: geometric}"))
        assert trained.json("score")["score"] != before
    finally:
        yaml.write_text(SHORT)


def test_runs_of_other_backbones_and_sizes_join_an_ensemble(trained):
    (trained.root / "competitions" / "short" / "small.yaml").write_text(
        "input: {size: 24}\nmodel: {backbone: test_efficientnet}\nstages: {cycles: {schedule: {cycles: 1}}}\n"
    )
    trained.run("train", "-e", "small")
    made = trained.json("ensemble", "baseline-s0", "small-s0", "--weight", "3", "--weight", "1")
    assert made["runs"] == ["baseline-s0", "small-s0"]
    assert made["members"] == 9
    alone = [trained.json("ensemble", run)["score"] for run in ("baseline-s0", "small-s0")]
    assert made["score"] != alone[0]
    assert made["score"] < max(alone)
    missing = trained.run("ensemble", "baseline-s0", "smal-s0", code=1)
    assert "small-s0" in missing.stderr


def test_imported_predictions_score_and_join(trained, tmp_path):
    trained.json("score")
    run = trained.root / "runs" / "short" / "baseline-s0"
    ids = (run / "oof" / "merged.ids").read_text().split()
    values = np.load(run / "oof" / "merged.npy")
    oof = pd.DataFrame(values, columns=[str(digit) for digit in range(10)])
    oof.insert(0, "id", ids)
    oof.to_csv(tmp_path / "oof.csv", index=False)
    made = trained.json("ensemble", "baseline-s0")
    test = Path(made["file"])
    found = trained.json("import", "theirs", "--oof", str(tmp_path / "oof.csv"), "--test", str(test))
    assert found["score"] == pytest.approx(made["score"], rel=1e-4)
    joined = trained.json("ensemble", "baseline-s0", "theirs")
    assert joined["score"] == pytest.approx(made["score"], rel=1e-4)
    trained.run("import", "theirs", "--oof", str(tmp_path / "oof.csv"), "--test", str(test), code=1)


def test_all_rows_are_trained_with_the_folds_plan_and_sent_apart(trained):
    trained.run("train", "--full")
    made = trained.json("ensemble", "--full")
    assert made["members"] == 2
    assert made["score"] is not None
    assert any("not what was scored" in note for note in made["notes"])
    info = json.loads((trained.root / "runs/short/baseline-s0/full/snapshot-cycles-1.json").read_text())
    assert info["subset"] == "full"
    assert info["score"] is None


def test_a_sweep_compares_on_the_same_rows(trained):
    found = trained.json(
        "sweep", "stages.cycles.lr=3e-3,1e-4", "--fold", "0", "--set", "stages.cycles.schedule.cycles=1"
    )
    assert len(found["rows"]) == 2
    assert found["rows"][0]["stages.cycles.lr"] == "0.003"
    worse = found["rows"][1]
    assert worse["gain"] > 0
    assert worse["gain_low"] <= worse["gain"] <= worse["gain_high"]


def test_a_smoke_run_goes_through_to_a_checked_file_and_leaves_nothing(trained):
    before = sorted(str(path) for path in (trained.root / "runs").rglob("*"))
    done = trained.run("train", "--smoke")
    assert "every step works" in done.stdout
    assert sorted(str(path) for path in (trained.root / "runs").rglob("*")) == before


def test_unseen_rows_are_predicted_against_their_own_sample(trained, tmp_path):
    unseen = tmp_path / "unseen"
    (unseen / "test").mkdir(parents=True)
    data = trained.root / "data" / "short"
    images = sorted((data / "test").iterdir())[:7]
    for path in images:
        (unseen / "test" / path.name).write_bytes(path.read_bytes())
    sample = pd.read_csv(data / "sample_submission.csv", dtype={"id": str})
    sample[sample["id"].isin([path.stem for path in images])].to_csv(unseen / "sample_submission.csv", index=False)
    out = tmp_path / "out.csv"
    found = trained.json("predict", "--data", str(unseen), "--out", str(out))
    assert found["rows"] == 7
    assert len(pd.read_csv(out)) == 7


def test_the_rate_is_found_without_training_the_fold(trained):
    found = trained.json("lr-find", "--fold", "1")
    assert 1e-5 < found["suggestion"] < 1
    assert Path(found["csv"]).is_file()
    assert Path(found["picture"]).read_bytes()[:4] == b"\x89PNG"


def test_a_failed_fold_does_not_stop_the_others_and_is_never_done(trained):
    words = ["--run", "wild", "--set", "stages.cycles.lr=1e30", "--set", "train.precision=fp32"]
    done = trained.run("train", "--fold", "all", "--jobs", "2", *words, code=4)
    assert "folds 0, 1, 2 failed" in done.stderr
    status = json.loads((trained.root / "runs/short/wild/fold-1/status.json").read_text())
    assert status["state"] == "failed"
    assert "step" in status["error"]
    assert "rate" in status["error"]
    again = trained.run("train", "--fold", "1", *words, code=1)
    assert "failed before" in again.stderr


def test_the_demo_and_run_skip_what_is_done(trained):
    again = trained.json("run")
    assert again["submitted"]["status"] == "complete"
    board = trained.json("leaderboard")
    assert {row["status"] for row in board["rows"]} <= {"complete", "written"}
    assert trained.run("leaderboard", "--csv").stdout.startswith("name,run,")
