"""What no change of the code's shape may change: identities of trainings, folds, scores and submissions.

Everything is done by the command line and read from the files it writes, so that modules may move. Where a command
changes, the functions under "the command line" are the one place to follow it. What is expected lies in
`golden/golden.json` and in the submissions beside it, and is made anew, from the checkout `kbench` is imported from, by

    python tests/test_golden.py --write
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import processes
import pytest
from streets_and_salt import NAMES, SIGNATE, scene, write_salt, write_street
from tiffs import tiff

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = sorted(path.stem for path in (ROOT / "competitions").glob("*.yaml"))

# Every processor adds up in another order, and training makes such differences larger: with ReLUs, max pools and batch
# norms of few values, as in a small ResNet, to a tenth of a score in two epochs. The networks here are smooth ones
# (ConvNeXt, no norm in the decoder), in fp32. Between AVX-512 and AVX2 (ATEN_CPU_CAPABILITY=avx2 and
# ONEDNN_MAX_CPU_ISA=AVX2) scores then differ by 1e-5 at most, probabilities by 1e-6, and one pixel of 10,000.
RELATIVE, ABSOLUTE = 1e-4, 2e-5
PROBABILITY = 1e-4
SAME_PIXELS = 0.999


# -- the command line ---------------------------------------------------------------------------------------------


def run(root: Path, *words: str, code: int = 0) -> str:
    """Run a command of kbench in a workspace, on one thread; return what it wrote to stdout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KBENCH_", "KAGGLE_"))}
    done = processes.kbench(*words, cwd=root, env={**kept, "OMP_NUM_THREADS": "1"})
    assert done.returncode == code, f"kbench {' '.join(words)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def identity(root: Path, name: str, run_name: str = "baseline-s0") -> dict[str, str]:
    """Return the hashes a run is known by."""
    manifest = json.loads((root / "runs" / name / run_name / "run.json").read_text())
    return {key: manifest[key] for key in ("training", "contract", "folds")}


def identity_untrained(root: Path, name: str) -> dict[str, str]:
    """Return the hashes of a training that never begins: the run is made, then the device is found missing."""
    run(root, "train", "-c", name, "--fold", "0", "--device", "cuda:99", code=1)
    return identity(root, name)


def trained(root: Path, name: str, *words: str, run_name: str = "baseline-s0") -> dict[str, Any]:
    """Train, score and ensemble a run; return its facts."""
    told = json.loads(run(root, "train", "-c", name, "--run", run_name, "--device", "cpu", *words, "--json"))
    score = json.loads(run(root, "score", "-c", name, "--run", run_name, "--device", "cpu", "--json"))
    made = json.loads(run(root, "ensemble", run_name, "-c", name, "--device", "cpu", "--json"))
    assert json.loads((root / "runs" / name / run_name / "score.json").read_text()) == score
    submission = root / "submissions" / name / f"{run_name}.csv"
    assert Path(made["file"]).samefile(submission)
    record = json.loads(submission.with_name(f"{run_name}.lineage.json").read_text())
    assert record["sha256"] == hashlib.sha256(submission.read_bytes()).hexdigest()
    lineage = record["lineage"]
    for member in lineage["members"]:
        member.pop("weights", None)  # checksum of the file: other processors, other bits
    facts = {
        "identity": identity(root, name, run_name),
        "folds file": fold_file(root, name),
        "rates": told["rates"],
        "score": {key: value for key, value in score.items() if key != "doubts"},  # numbers in words
        "ensemble": {key: made[key] for key in made if key not in ("file", "doubts")},
        "lineage": {key: lineage[key] for key in lineage if key != "commit"},
        "submission": hashlib.sha256("\n".join(rows_of(submission)).encode()).hexdigest(),  # ids in their order
    }
    assert lineage["hashes"] == {run_name: facts["identity"]["training"]}
    return facts


def fold_file(root: Path, name: str) -> dict[str, Any]:
    """Return the checksum of a fold file, and what its manifest says but for warnings, whose words may change."""
    csv_file = root / "folds" / f"{name}.csv"
    manifest = json.loads(csv_file.with_suffix(".json").read_text())
    del manifest["warnings"]
    return {"sha256": hashlib.sha256(csv_file.read_bytes()).hexdigest(), **manifest}


def rows_of(path: Path) -> dict[str, list[str]]:
    """Return the rows of a CSV by their first column, the header as `id`."""
    with open(path, newline="") as handle:
        return {row[0]: row[1:] for row in csv.reader(handle)}


# -- data of every shipped competition ------------------------------------------------------------------------------


def table(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with open(path, "w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([header, *rows])


def photographs(folder: Path, names: list[str], suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (len(names), 20, 24, 3), dtype=np.uint8)
    for name, image in zip(names, noise, strict=True):
        assert cv2.imwrite(str(folder / f"{name}{suffix}"), image)


def digits_data(root: Path, name: str) -> None:
    run(root, "download", name)


def camvid_data(root: Path, name: str) -> None:
    data, rows = root / "data" / name, []
    for folder in ("train/images", "train/masks", "test/images"):
        (data / folder).mkdir(parents=True)
    for number, route in enumerate(("0001TP", "0006R0")):
        for frame in range(24):
            mask = scene(number, frame, (32, 48)) % 12
            rows.append([f"{route}_{30 * frame:06d}", route, 30 * frame, "day" if number else "dusk"])
            assert cv2.imwrite(str(data / "train" / "masks" / f"{rows[-1][0]}.png"), mask)
            assert cv2.imwrite(str(data / "train" / "images" / f"{rows[-1][0]}.jpg"), np.stack([mask] * 3, 2) * 20)
    table(data / "train.csv", ["image", "route", "frame", "light"], rows)


def dogs_data(root: Path, name: str) -> None:
    ids = [f"{number * 7919 % 997:032x}" for number in range(40)]
    photographs(root / "data" / name / "train", ids)
    breeds = ("beagle", "borzoi", "pug", "saluki")
    table(root / "data" / name / "labels.csv", ["id", "breed"], [[x, breeds[i % 4]] for i, x in enumerate(ids)])


def cats_data(root: Path, name: str) -> None:
    photographs(root / "data" / name / "train", [f"{kind}.{n}" for kind in ("cat", "dog") for n in range(15)])


def planet_data(root: Path, name: str) -> None:
    ids = [f"train_{number}" for number in range(40)]
    photographs(root / "data" / name / "train-jpg", ids)
    tags = [" ".join(("clear", "haze", "road", "water")[k] for k in range(4) if i % (k + 2) == 0) for i in range(40)]
    rows: list[list[object]] = [[x, y or "primary"] for x, y in zip(ids, tags, strict=True)]
    table(root / "data" / name / "train_v2.csv", ["image_name", "tags"], rows)


def signate_data(root: Path, name: str) -> None:
    write_street(root / "data" / name, size=(32, 48))


def salt_data(root: Path, name: str) -> None:
    write_salt(root / "data" / name, train=40, test=5)


def sentinel_data(root: Path, name: str) -> None:
    data = root / "data" / name
    noise, rows = np.random.default_rng(0), list[list[object]]()
    for number in range(20):
        chip = f"{number * 7919 % 997:08x}"
        rows.append([chip, "train", number % 2 * 32, number // 2 * 32])
        for folder, ending, bands in (
            ("train_features", "_S1", 2),
            ("train_features", "_S2", 11),
            ("train_target", "", 1),
        ):
            (data / folder).mkdir(parents=True, exist_ok=True)
            (data / folder / f"{chip}{ending}.tif").write_bytes(tiff(noise.random((8, 8, bands)).astype(np.float32)))
    table(data / "train.csv", ["chip_id", "split", "x", "y"], rows)


def biomass_data(root: Path, name: str) -> None:
    data, pixels = root / "data" / name, tiff(np.zeros((8, 8), np.float32))
    rows = []
    for number in range(20):
        chip = f"{number * 7919 % 997:08x}"
        rows.append([f"{chip}_S1_00.tif", chip, "S1", "train", "September"])
        for folder, ending in [("train_agbm", "agbm"), *(("train_features", f"S1_{month:02d}") for month in range(12))]:
            (data / folder).mkdir(parents=True, exist_ok=True)
            (data / folder / f"{chip}_{ending}.tif").write_bytes(pixels)
    table(data / "features_metadata.csv", ["filename", "chip_id", "satellite", "split", "month"], rows)


def dstl_data(root: Path, name: str) -> None:
    data, pixels = root / "data" / name, tiff(np.zeros((8, 8), np.uint16))
    rows, grid = [], []
    for place in (f"6{number * 10:03d}_{number % 5}_{number % 3}" for number in range(10)):
        grid.append([place, 0.009, -0.009])
        rows += [[place, k, "MULTIPOLYGON EMPTY"] for k in range(1, 11)]
        for file in (f"three_band/{place}", *(f"sixteen_band/{place}_{band}" for band in "PMA")):
            (data / file).parent.mkdir(parents=True, exist_ok=True)
            (data / f"{file}.tif").write_bytes(pixels)
    table(data / "train_wkt_v4.csv", ["ImageId", "ClassType", "MultipolygonWKT"], rows)
    table(data / "grid_sizes.csv", ["", "Xmax", "Ymin"], grid)


DATA: dict[str, Callable[[Path, str], None]] = {
    "biomassters": biomass_data,
    "camvid": camvid_data,
    "digits": digits_data,
    "dog-breed-identification": dogs_data,
    "dogs-vs-cats-redux-kernels-edition": cats_data,
    "dstl-satellite-imagery-feature-detection": dstl_data,
    "planet-understanding-the-amazon-from-space": planet_data,
    "sentinel-dense-regression": sentinel_data,
    "signate-ai-edge": signate_data,
    "tgs-salt-identification-challenge": salt_data,
}


def workspace(root: Path, **yamls: str) -> Path:
    (root / "competitions").mkdir(parents=True)
    for name, text in yamls.items():
        (root / "competitions" / f"{name}.yaml").write_text(text)
    return root


def shipped(root: Path, name: str) -> dict[str, Any]:
    """Return the hashes of a shipped competition on data that looks like its own; digits are the real ones."""
    workspace(root, **{name: (ROOT / "competitions" / f"{name}.yaml").read_text()})
    DATA[name](root, name)
    return {**identity_untrained(root, name), "folds file": fold_file(root, name)}


# -- trainings --------------------------------------------------------------------------------------------------------

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
input: {size: 32, channels: 1}
model: {backbone: test_convnext}
train: {batch_size: 32, optimizer: adamw, lr: 2e-3, precision: fp32}
stages:
  cycles: {schedule: {name: sgdr, cycles: 2, cycle_len: 1}, keep: [cycles]}
tta: flip
"""
STREET = """
task: segmentation
source: {name: local, path: files}
data:
  layout: {name: csv, annotations: "seg_train_annotations/{id}.json"}
  masks: {name: colour, folder: seg_train_annotations, suffix: .png, colours: COLOURS}
  classes: CLASSES
  train: {images: seg_train_images}
  test: {images: seg_test_images}
  metadata: [attributes.route, attributes.timeofday, frameIndex]
folds: {strategy: stratified, n: 3, by: [attributes.route, attributes.timeofday], seed: 42}
metric: mean_iou
submission: {format: {name: rle, id: "{id}_{class_index}"}, sample: sample.csv}
input: {size: 64}
model:
  name: smp
  backbone: test_convnext
  options: {decoder_channels: [64, 32, 32, 16, 16], decode: {decoder_use_norm: identity}}
train:
  batch_size: 4
  optimizer: {name: adamw, eps: 1e-3}
  lr: 0.01
  precision: fp32
  augment: {name: strong, rotate: 5}
  crop: {name: native, classes: [pedestrian, signal], prefer: 0.5}
  loss: {name: sum, parts: [{name: cross_entropy, class_weights: balanced}, {name: jaccard, classes: present}]}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 1}, keep: [cycles]}
tta: flip
""".replace("COLOURS", json.dumps({name: list(rgb) for name, rgb in SIGNATE.items()})).replace(
    "CLASSES", json.dumps(NAMES)
)
SALT = """
task: segmentation
source: {name: local, path: files}
data:
  layout: {name: csv, join: [depths.csv]}
  masks: {name: rle, convention: tgs, column: rle_mask}
  classes: [salt]
  train: {csv: train.csv, images: train/images, suffix: .png}
  test: {csv: sample_submission.csv, images: test/images, suffix: .png}
  metadata: [z]
folds: {strategy: stratified, n: 2, by: [coverage], seed: 42}
metric: tgs_iou
submission: {format: {name: rle, convention: tgs}, sample: sample_submission.csv}
input: {size: 64}
model:
  name: smp
  backbone: test_convnext
  options: {decoder_channels: [64, 32, 32, 16, 16], decoder_attention: scse, decode: {decoder_use_norm: identity}}
train: {batch_size: 4, optimizer: {name: adamw, eps: 1e-3}, lr: 0.01, precision: fp32, crop: random, augment: side_on}
stages:
  start: {loss: bce, schedule: {name: one_cycle, epochs: 1}}
  cycles:
    loss: {name: sum, parts: [{name: bce}, {name: lovasz, weight: 0.5}]}
    schedule: {name: sgdr, cycles: 2, cycle_len: 1}
    keep: [cycles]
tta: flip
maps: {postprocess: {name: standard, threshold: tuned, empty: tuned, grid: {threshold: [0.4, 0.6], empty: [0, 500]}}}
"""
SHORTER = ("model.backbone=test_convnext", "train.precision=fp32", "stages.start.schedule.epochs=1",
           "stages.cycles.schedule.cycle_len=1", "stages.start.range_test.divide=7")  # fmt: skip


def digits(root: Path) -> dict[str, Any]:
    """Three folds of a small network on the real digits."""
    workspace(root, short=SHORT)
    run(root, "download", "short")
    return trained(root, "short", "--fold", "all")


def shipped_digits(root: Path) -> dict[str, Any]:
    """One fold of the shipped digits, shortened, on the committed folds; the rate is found."""
    workspace(root, digits=(ROOT / "competitions" / "digits.yaml").read_text())
    run(root, "download", "digits")
    shutil.copytree(ROOT / "folds", root / "folds")
    words = [word for assignment in SHORTER for word in ("--set", assignment)]
    return trained(root, "digits", "--fold", "3", *words, run_name="shorter")


def street(root: Path) -> dict[str, Any]:
    """Street frames with colour masks, folds by route and time of day, two snapshots, mirrored views."""
    workspace(root, street=STREET)
    drives = {("Tokyo1", "day"): 6, ("Tokyo1", "night"): 6, ("Saitama", "morning"): 3}
    files = write_street(root / "files", size=(48, 80), train=drives, test=3)
    ids = [f"{path.stem}_{number}" for path in sorted((files / "seg_test_images").iterdir()) for number in range(20)]
    table(files / "sample.csv", ["id", "rle"], [[one, ""] for one in ids])
    run(root, "download", "street")
    return trained(root, "street", "--fold", "all")


def salt(root: Path) -> dict[str, Any]:
    """Salt bodies, run-length texts, a post-process with tuned numbers."""
    workspace(root, salt=SALT)
    write_salt(root / "files", train=20, test=6)
    run(root, "download", "salt")
    return trained(root, "salt", "--fold", "all")


TRAININGS = {"digits": digits, "shipped_digits": shipped_digits, "street": street, "salt": salt}
SUBMISSIONS = {"digits": "short/baseline-s0", "shipped_digits": "digits/shorter", "street": "street/baseline-s0",
               "salt": "salt/baseline-s0"}  # fmt: skip
PIXELS = {"street": (48 * 80, len(NAMES)), "salt": (101 * 101, 1)}


# -- comparing --------------------------------------------------------------------------------------------------------


def decoded(text: str, pixels: int) -> np.ndarray:
    """Return [pixels] bool of runs `start length ...`, starts counted from 1."""
    mask = np.zeros(pixels, dtype=bool)
    numbers = list(map(int, text.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask


def masks_of(rows: Mapping[str, list[str]], pixels: int, classes: int) -> np.ndarray:
    """Return [images, classes, pixels] bool of a submission of masks."""
    masks = [decoded(values[0], pixels) for name, values in rows.items() if name != "id"]
    return np.stack(masks).reshape(-1, classes, pixels)


def differences(golden: Any, found: Any, where: str = "") -> Iterator[str]:
    """Yield what differs: texts and whole numbers must be equal, others about so; what is new in mappings may be."""
    if isinstance(golden, dict) and isinstance(found, dict):
        for key, value in golden.items():
            yield from differences(value, found.get(key), f"{where}.{key}")
    elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        for place, pair in enumerate(zip(golden, found, strict=True)):
            yield from differences(*pair, f"{where}.{place}")
    elif isinstance(golden, float) and isinstance(found, float | int):
        if golden != pytest.approx(found, rel=RELATIVE, abs=ABSOLUTE):
            yield f"{where}: {golden!r} -> {found!r}"
    elif golden != found:
        yield f"{where}: {golden!r} -> {found!r}"


def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text())
    return content


def test_the_committed_folds_of_the_digits_are_what_they_were() -> None:
    assert fold_file(ROOT, "digits") == expected()["shipped"]["digits"]["folds file"]


def test_every_shipped_competition_has_data_here() -> None:
    assert sorted(DATA) == SHIPPED == sorted(expected()["shipped"])


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_a_shipped_training_is_known_by_the_same_hashes(name: str, tmp_path: Path) -> None:
    changed = list(differences(expected()["shipped"][name], shipped(tmp_path, name)))
    assert not changed, "\n".join(changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_has_the_same_score_and_submission(name: str, tmp_path: Path) -> None:
    facts = TRAININGS[name](tmp_path)
    changed = list(differences(expected()["trained"][name], facts))
    assert not changed, "\n".join(changed)
    golden = rows_of(GOLDEN / f"golden-{name}.csv")
    found = rows_of(tmp_path / "submissions" / f"{SUBMISSIONS[name]}.csv")
    assert found["id"] == golden["id"]
    if name in PIXELS:
        masks = [masks_of(rows, *PIXELS[name]) for rows in (golden, found)]
        assert (masks[0] == masks[1]).all(axis=1).mean() >= SAME_PIXELS
    else:
        ids = [one for one in golden if one != "id"]
        values = [np.array([rows[one] for one in ids], dtype=np.float64) for rows in (golden, found)]
        np.testing.assert_allclose(values[1], values[0], rtol=0, atol=PROBABILITY)


# -- making anew ------------------------------------------------------------------------------------------------------


def write() -> None:
    """Write what is expected from what the code does now."""
    content: dict[str, Any] = {"shipped": {}, "trained": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in SHIPPED:
            content["shipped"][name] = shipped(Path(folder, "shipped", name), name)
        for name, train in TRAININGS.items():
            content["trained"][name] = train(Path(folder, name))
            rows = rows_of(Path(folder, name, "submissions", f"{SUBMISSIONS[name]}.csv"))
            kept = [[one, *values] for one, values in rows.items()]
            if name not in PIXELS:
                kept = [kept[0], *([one, *(f"{float(x):.6f}" for x in values)] for one, *values in kept[1::6])]
            table(GOLDEN / f"golden-{name}.csv", kept[0], kept[1:])
    (GOLDEN / "golden.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help="replace what is expected")
    parser.parse_args()
    write()
