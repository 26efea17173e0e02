"""A segmentation from its files to a graded submission, through the real command line, with a tiny network."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_lines import CommandLine
from streets_and_salt import NAMES, SIGNATE, salt, write_salt, write_street

from kbench.api import open_run
from kbench.data.masks.run_lengths import CONVENTIONS, encode
from kbench.metrics.maps import image_counts

pytestmark = pytest.mark.slow

SALT = """
task: segmentation
source: {name: local, path: files, solution: answers.csv}
data:
  train: {csv: train.csv, images: train/images, suffix: .png}
  test: {csv: sample_submission.csv, images: test/images, suffix: .png}
  classes: [salt]
  masks: {name: rle, convention: tgs, column: rle_mask}
folds: {strategy: kfold, n: 2, seed: 1}
metric: tgs_iou
submission: {format: {name: rle, convention: tgs}}
input: {size: 64}
model: {name: smp, backbone: test_resnet}
train: {batch_size: 4, lr: 3e-3, crop: random, augment: side_on}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 1}, keep: [cycles]}
tta: flip
"""
STREET = """
task: segmentation
source: {name: local, path: files}
data:
  train: {csv: frames.csv, images: seg_train_images, suffix: .jpg}
  test: {images: seg_test_images, suffix: .jpg}
  masks: {name: colour, folder: seg_train_annotations, suffix: .png, colours: COLOURS}
  metadata: [route, time]
folds: {strategy: stratified, n: 3, by: [route, time], seed: 1}
metric: {name: iou_per_image, classes: [car, pedestrian, signal, lane]}
submission: {format: {name: runs_json, suffix: .jpg, classes: [car, pedestrian, signal, lane]}, sample: sample.json}
input: {size: 64}
model: {name: smp, backbone: test_resnet}
train: {batch_size: 4, lr: 3e-3, crop: random, loss: {name: cross_entropy, class_weights: balanced}}
stages:
  all: {schedule: {name: sgdr, cycles: 1, cycle_len: 1}, keep: [last]}
"""


@pytest.fixture(scope="module")
def salty(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Salt bodies with two trained folds."""
    root = tmp_path_factory.mktemp("salt")
    made = CommandLine.of(root, "salt", SALT)
    write_salt(root / "files", train=16, test=5)
    sample = pd.read_csv(root / "files" / "sample_submission.csv")
    sample["rle_mask"] = [encode(salt(16 + row)[1], CONVENTIONS["tgs"]) for row in range(len(sample))]
    sample.to_csv(root / "answers.csv", index=False)
    made.run("download")
    assert made.json("train")["trained"] == [0, 1]
    return made


def test_out_of_fold_maps_are_scored_and_what_views_and_snapshots_add_is_told(salty: CommandLine) -> None:
    score = salty.json("score")
    assert score["metric"] == "tgs_iou"
    assert (score["rows"], score["members"]) == (16, 4)
    assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
    names = [record["ensemble"] for record in score["growth"]]
    assert names[-2:] == ["mean, plain view", "mean"]
    assert len(names) == 6


def test_the_submission_is_checked_graded_and_has_its_lineage(salty: CommandLine) -> None:
    made = salty.json("ensemble")
    frame = pd.read_csv(made["file"], keep_default_na=False)
    assert frame.columns.tolist() == ["id", "rle_mask"]
    graded = salty.json("submit")
    assert graded["status"] == "complete"
    assert 0 <= graded["all_rows"] <= 1
    lineage = json.loads(next((salty.root / "submissions").rglob("*.lineage.json")).read_text())
    assert len(lineage["lineage"]["members"]) == 4
    assert lineage["lineage"]["weights"] == [0.25] * 4
    assert lineage["lineage"]["format"]["name"] == "rle"


def test_nothing_is_predicted_twice_and_other_views_are(salty: CommandLine) -> None:
    store = salty.root / "runs" / "salt" / "baseline-s0" / "fold-0" / "oof" / "maps.bin"
    salty.run("score")
    before = store.stat().st_mtime_ns
    salty.run("score")
    assert store.stat().st_mtime_ns == before
    found = salty.json("sweep", "tta=none,flip,d4")
    assert {row["tta"] for row in found["rows"]} == {'"none"', '"flip"', '"d4"'}
    assert {row["run"] for row in found["rows"]} == {"baseline-s0"}
    assert store.stat().st_mtime_ns > before


def test_a_tuned_post_process_is_scored_nested_and_sent(salty: CommandLine) -> None:
    yaml = salty.root / "competitions" / "salt.yaml"
    tuned = (
        "maps: {postprocess: {name: standard, threshold: tuned, empty: tuned, grid: {threshold: [0.4], empty: [50]}}}"
    )
    yaml.write_text(SALT + tuned + "\n")
    try:
        score = salty.json("score")
        assert score["postprocess"]["candidates"] == 4
        assert score["score"] == pytest.approx(score["postprocess"]["nested"])
        assert score["plain"]["value"] >= score["postprocess"]["plain"]
        assert score["optimism"] == pytest.approx(score["plain"]["value"] - score["score"])
        made = salty.json("ensemble")
        assert made["score"] == pytest.approx(score["score"])
    finally:
        yaml.write_text(SALT)


RULE = "{name: standard, empty: 2000, threshold: 0.3}"
LEVELS = np.arange(0.5, 1.0, 0.05)  # of the IoU that `tgs_iou` counts
TUNED = "{name: standard, threshold: tuned, empty: tuned, grid: {threshold: [0.2, 0.7], empty: [3000]}}"


@contextlib.contextmanager
def maps_of(salty: CommandLine, rule: str, keep: str) -> Iterator[None]:
    """Write a post-process, and whether maps are kept, into the YAML for a while; nothing is predicted before."""
    yaml, run = salty.root / "competitions" / "salt.yaml", salty.root / "runs" / "salt" / "baseline-s0"
    yaml.write_text(SALT + f"maps: {{postprocess: {rule}, keep: {keep}}}\n")
    predicted = [run / "fold-0" / "oof", run / "fold-1" / "oof", run / "test"]
    try:
        for folder in predicted:
            shutil.rmtree(folder, ignore_errors=True)
        yield
    finally:
        yaml.write_text(SALT)
        for folder in predicted:
            shutil.rmtree(folder, ignore_errors=True)


def test_ways_of_post_processing_are_one_table(salty: CommandLine) -> None:
    ways = "maps.postprocess={name: standard, threshold: 0.0001},{name: standard, empty: 20000}"
    rows = {"empty" in json.loads(row["maps.postprocess"]): row for row in salty.json("sweep", ways)["rows"]}
    everything, nothing = rows[False], rows[True]
    shares = np.array([salt(row)[1].mean() for row in range(16)])  # whatever the network learned, these are the masks
    assert everything["score"] == pytest.approx(np.mean([np.mean(share > LEVELS) for share in shares]))
    assert nothing["score"] == pytest.approx(np.mean(shares == 0))
    assert nothing["gain"] == pytest.approx(nothing["score"] - everything["score"])


@pytest.mark.parametrize(("rule", "keep"), [(RULE, "on"), (TUNED, "off")])
def test_report_score_and_submission_agree_about_a_post_process(salty: CommandLine, rule: str, keep: str) -> None:
    run = salty.root / "runs" / "salt" / "baseline-s0"
    with maps_of(salty, rule, keep):
        score = salty.json("score")
        assert json.loads((run / "score.json").read_text()) == score
        made = salty.json("report")
        assert json.loads((run / "score.json").read_text()) == made["score"] == score
        assert [record["ensemble"] for record in made["growth"]][-2:] == ["mean", "mean, post-processed"]
        assert made["growth"][-1]["score"] == pytest.approx(score["score"])
        ensemble = salty.json("ensemble")
        assert ensemble["score"] == pytest.approx(score["score"])
        assert json.loads((run / "score.json").read_text()) == score
        masks = open_run("baseline-s0", competition="salt", workspace=salty.root).oof()
        assert (run / "fold-0" / "oof" / "ruled.json").exists() == (keep == "off")
        found = [masks[row] for row in range(len(masks))]
    frame = pd.read_csv(salty.root / "files" / "train.csv", dtype=str)
    truth = {name: salt(row)[1] for row, name in enumerate(frame["id"])}
    counts = sum(image_counts(mask, truth[name][:, :, None], n_classes=1)
                 for mask, name in zip(found, masks.ids, strict=True))  # fmt: skip
    assert made["classes"][0]["iou"] == pytest.approx(counts[0, 0] / counts[0].sum())  # type: ignore[index]


def test_masks_of_a_rule_are_predicted_once_where_maps_are_not_kept(salty: CommandLine) -> None:
    store = salty.root / "runs" / "salt" / "baseline-s0" / "test" / "ruled.bin"
    with maps_of(salty, RULE, "off"):
        first = salty.json("ensemble")
        assert {path.name for path in store.parent.glob("*.bin")} == {"ruled.bin"}  # nor is anything else predicted
        before = store.stat().st_mtime_ns
        second = salty.json("ensemble")
        assert store.stat().st_mtime_ns == before
        assert Path(first["file"]).read_bytes() == Path(second["file"]).read_bytes()
        yaml = salty.root / "competitions" / "salt.yaml"
        yaml.write_text(yaml.read_text().replace("threshold: 0.3", "threshold: 0.4"))
        salty.run("ensemble")
        assert store.stat().st_mtime_ns > before


def test_unseen_images_are_predicted_against_their_own_sample(salty: CommandLine) -> None:
    files = salty.root / "unseen"
    write_salt(files, train=2, test=3)
    out = salty.root / "unseen.csv"
    assert salty.json("predict", "--data", str(files), "--out", str(out))["rows"] == 3
    assert len(pd.read_csv(out)) == 3


def test_two_runs_are_averaged_map_by_map(salty: CommandLine) -> None:
    salty.run("train", "--run", "other", "--set", "seed=5")
    made = salty.json("ensemble", "baseline-s0", "other", "--weight", "2", "--weight", "1")
    assert made["runs"] == ["baseline-s0", "other"]
    assert made["members"] == 8
    assert 0 <= made["score"] <= 1
    yaml = salty.root / "competitions" / "salt.yaml"
    yaml.write_text(SALT + "ensemble: {mean: geometric}\n")
    try:
        assert salty.json("ensemble", "baseline-s0", "other")["members"] == 8
    finally:
        yaml.write_text(SALT)


def test_what_an_ensemble_of_maps_cannot_give_is_refused(salty: CommandLine) -> None:
    assert "--combine rank" in salty.refused("ensemble", "--combine", "rank")
    assert salty.json("ensemble", "--combine", "mean")["members"] == 4
    assert salty.json("ensemble", "--combine", "greedy")["optimism"] is not None
    assert "ensemble.combine" in salty.refused("check", "--set", "ensemble.combine=rank")
    assert "ensemble.decision" in salty.refused("check", "--set", "ensemble.decision=threshold")


def test_runs_on_other_folds_are_averaged_without_a_score(salty: CommandLine) -> None:
    manifest = salty.root / "runs" / "salt" / "baseline-s0" / "run.json"
    before = manifest.read_text()
    shutil.copytree(manifest.parent, manifest.parent.with_name("elsewhere"))
    elsewhere = manifest.parent.with_name("elsewhere") / "run.json"
    elsewhere.write_text(before.replace(json.loads(before)["folds"], "0" * 16))
    runs = ("ensemble", "baseline-s0", "elsewhere")
    assert "--mixed-folds" in salty.refused(*runs)
    made = salty.json(*runs, "--mixed-folds")
    assert (made["score"], made["members"]) == (None, 8)
    assert "mixed folds: a plain mean without a score" in made["notes"]
    yaml = salty.root / "competitions" / "salt.yaml"
    yaml.write_text(SALT + "maps: {postprocess: {name: standard, threshold: tuned}}\n")
    try:
        assert "runs on different folds have no out-of-fold maps" in salty.refused(*runs, "--mixed-folds")
    finally:
        yaml.write_text(SALT)


def test_the_report_shows_masks_beside_their_truth(salty: CommandLine) -> None:
    made = salty.json("report", "--solution")
    assert [record["ensemble"] for record in made["test"]] == ["fold 0", "2 folds"]
    assert [record["members"] for record in made["test"]] == [2, 4]
    assert made["test"][-1]["test"] == pytest.approx(salty.graded())
    files = {Path(name).name for name in made["files"]}
    assert {"worst.png", "random.png", "growth.csv", "classes.csv", "training.png"} <= files
    assert [record["class"] for record in made["classes"]] == ["salt"]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Street frames with their cells of route and time of day; nothing trained."""
    root = tmp_path_factory.mktemp("street")
    colours = "{" + ", ".join(f"{name}: {list(rgb)}" for name, rgb in SIGNATE.items()) + "}"
    made = CommandLine.of(root, "street", STREET.replace("COLOURS", colours))
    files = write_street(root / "files", size=(48, 80), train={("Tokyo1", "day"): 6, ("Tokyo1", "night"): 6,
                                                               ("Saitama", "morning"): 3}, test=3)  # fmt: skip
    rows = []
    for path in sorted((files / "seg_train_annotations").glob("*.json")):
        about = json.loads(path.read_text())["attributes"]
        rows.append({"id": path.stem, "route": about["route"], "time": about["timeofday"]})
    pd.DataFrame(rows).to_csv(files / "frames.csv", index=False)
    (files / "sample.json").write_text(json.dumps({path.name: {} for path in (files / "seg_test_images").iterdir()}))
    made.run("download")
    return made


def test_classes_are_counted_and_masks_shown_before_training(street: CommandLine) -> None:
    found = street.json("inspect")
    share = {record["class"]: record["pixels"] for record in found["balance"]}
    assert set(share) == set(NAMES)
    assert sum(share.values()) == pytest.approx(1)
    assert share["lane"] > share["pedestrian"] > 0
    assert any(name.endswith("masks.png") for name in found["files"])


def test_every_step_is_tried_on_two_batches(street: CommandLine) -> None:
    assert street.json("train", "--smoke")["rows"] == 3


def test_ways_of_training_against_ways_of_predicting_are_one_table(street: CommandLine) -> None:
    found = street.json(
        "sweep", "stages.all.crop.name=random,squash", "maps.windows.name=full,grid,overlap", "--fold", "0"
    )
    assert len(found["rows"]) == 6
    assert len({row["run"] for row in found["rows"]}) == 2


def test_frames_are_stratified_trained_and_sent_as_runs(street: CommandLine) -> None:
    street.run("train", "--fold", "0")
    score = street.json("score")
    assert (score["metric"], score["rows"]) == ("iou_per_image", 5)
    made = street.json("ensemble")
    content = json.loads(Path(made["file"]).read_text())
    assert set(content) == {"test_000.jpg", "test_001.jpg", "test_002.jpg"}
    assert {name for image in content.values() for name in image} <= {"car", "pedestrian", "signal", "lane"}
    assert len(NAMES) == 20
