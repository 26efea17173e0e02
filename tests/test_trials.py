"""Inputs on which kbench once did something wrong, each named after its folder of trials, with the true pixels of each
mask; the others stand beside what they are about (`grep -rn 'trial' tests`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_images import write_png

from kbench.commands.check import check
from kbench.commands.smoke import smoke
from kbench.data.images.cache import Resize
from kbench.errors import KbenchError
from kbench.runs import parts
from kbench.runs.experiment import open_experiment
from kbench.workspace import Choice

SIZE = (40, 48)
PIXELS = {
    4: 49,
    5: 81,
    6: 113,
    7: 149,
}  # radius of a disc -> points (x, y) with x^2 + y^2 <= r^2, Gauss's circle problem
RADII = {"a00": 6, "a01": 4, "a02": 7, "a03": 7, "a04": 5, "a05": 7}
TRUE = {name: PIXELS[radius] for name, radius in RADII.items()}
YAML = """
task: {task}
source: {{name: local, path: source}}
data:
  masks: {masks}
  classes: {classes}
  train: {train}
  test: {{images: test/images}}
folds: {{strategy: kfold, n: 2, seed: 1}}
metric: mean_iou
submission: {{format: {format}, sample: sample_submission.csv}}
input: {{size: 32}}
model: {{name: smp, backbone: resnet18, options: {{decoder: unet}}}}
train: {{batch_size: 4, augment: none, crop: native}}
stages:
  main: {{lr: 3e-3, schedule: {{name: constant, epochs: 1}}, keep: [last]}}
tta: none
"""
TGS = "{name: rle, convention: tgs}"


def disc(radius: float, row: int = 20, column: int = 24) -> np.ndarray:
    """[40, 48] bool."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def runs(mask: np.ndarray) -> str:
    """Return run lengths as in TGS: numbered from 1, down the columns."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel(), [False]]).astype(np.int8)))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


def written(
    root: Path, sample: str, *, images: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray] | None = None,
    tables: Mapping[str, str] | None = None, task: str = "segmentation",
    kind: str = "{name: index, folder: train/masks}",
    classes: str = "[blob]", train: str = "{images: train/images}", format: str = TGS,
) -> Choice:  # fmt: skip
    """Write a competition of 40 x 48 pixels: images by file name, masks by file name, and tables."""
    data = root / "data" / "trial"
    for folder, pictures in (("train/images", images), ("test/images", {"t0.png": disc(5), "t1.png": disc(6)})):
        for name, mask in pictures.items():
            write_png(
                data / folder / f"{Path(name).stem}.png", np.dstack([np.where(mask, 200, 20).astype(np.uint8)] * 3)
            )
            if not name.endswith(".png"):
                (data / folder / f"{Path(name).stem}.png").rename(data / folder / name)
    for name, mask in (masks or {}).items():
        (data / "train/masks").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(data / "train/masks" / name), mask, [cv2.IMWRITE_JPEG_QUALITY, 90])
    for name, text in {**(tables or {}), "sample_submission.csv": sample}.items():
        (data / name).write_text(text)
    (root / "competitions").mkdir()
    text = YAML.format(task=task, masks=kind, classes=classes, train=train, format=format)
    (root / "competitions" / "trial.yaml").write_text(text)
    return Choice("trial", workspace=root)


def pixels(choice: Choice, value: int = 1) -> dict[str, list[int]]:
    """Return, per training row, how many pixels of its mask have a value, layer by layer."""
    experiment = open_experiment(choice)
    cache = experiment.workspace.cache()
    masks = parts.opened_masks(experiment.competition, experiment.train, cache, what="training")(Resize("keep", 0, 0))
    return {
        str(name): (np.asarray(masks[row]) == value).sum((0, 1)).tolist()
        for row, name in enumerate(experiment.train.ids)
    }


def of_one(true: Mapping[str, int]) -> dict[str, list[int]]:
    return {name: [count] for name, count in true.items()}


SAMPLE = "id,rle_mask\nt0,\nt1,\n"
SCENES = {f"{name}.png": disc(radius) for name, radius in RADII.items()}


def test_the_discs_are_what_geometry_says() -> None:
    assert {radius: int(disc(radius).sum()) for radius in PIXELS} == PIXELS


@pytest.mark.slow
def test_rle_leading_zeros(tmp_path: Path) -> None:
    names = ("025", "050", "075", "100", "125", "150")
    true = dict(zip(names, (49, 149, 149, 81, 149, 113), strict=True))
    scenes = {name: disc(radius) for name, radius in zip(names, (4, 7, 7, 5, 7, 6), strict=True)}
    table = "\n".join(["id,rle", *(f"{int(name)},{runs(mask)}" for name, mask in scenes.items())]) + "\n"
    images = {f"{name}.png": mask for name, mask in scenes.items()}
    choice = written(tmp_path, SAMPLE, images=images, tables={"rle.csv": table}, kind=f"{TGS[:-1]}, csv: rle.csv}}")
    with pytest.raises(KbenchError, match="3 names of no image: '25', '50', '75'; '25' may mean '025'"):
        check(choice, images=False, every=False)
    right = "\n".join(["id,rle", *(f"{name},{runs(mask)}" for name, mask in scenes.items())]) + "\n"
    (tmp_path / "data/trial/rle.csv").write_text(right)
    assert check(choice, images=True, every=False)["masks"] == ["blob: 6 of 6 images"]
    assert pixels(choice) == of_one(true)


def test_same_stem(tmp_path: Path) -> None:
    true = {"x.jpg": 49, "x.png": 149, "y3.png": 149, "y4.png": 81, "y5.png": 149, "y6.png": 113}
    radius = {count: radius for radius, count in PIXELS.items()}
    scenes = {name: disc(radius[count]) for name, count in true.items()}
    table = "\n".join(["id,rle_mask", *(f"{name},{runs(mask)}" for name, mask in scenes.items())]) + "\n"
    choice = written(tmp_path, SAMPLE, images=scenes, tables={"train.csv": table}, kind=TGS,
                     train="{csv: train.csv, images: train/images}")  # fmt: skip
    check(choice, images=True, every=False)
    assert pixels(choice) == of_one(true)


@pytest.mark.slow
def test_class_ends_like_another(tmp_path: Path) -> None:
    dead = dict(zip(RADII, (7, 4, 7, 7, 6, 5), strict=True))
    lines = [
        line
        for name in RADII
        for line in (f"{name}_cell,{runs(disc(RADII[name]))}", f"{name}_dead_cell,{runs(disc(dead[name], 14, 12))}")
    ]
    sample = "id,rle\nt0_cell,\nt0_dead_cell,\nt1_cell,\nt1_dead_cell,\n"
    choice = written(
        tmp_path, sample, images=SCENES, tables={"rle.csv": "\n".join(["key,rle", *lines]) + "\n"},
        task="multi_label_segmentation", classes="[cell, dead_cell]",
        kind='{name: rle, convention: tgs, csv: rle.csv, key: "{id}_{class}", column: rle}',
        format='{name: rle, convention: tgs, id: "{id}_{class}"}',
    )  # fmt: skip
    said = check(choice, images=True, every=False)
    assert (said["masks"], said["sample"]) == (["cell: 6 of 6 images", "dead_cell: 6 of 6 images"], 4)
    assert pixels(choice) == {name: [TRUE[name], PIXELS[dead[name]]] for name in RADII}
    assert smoke(choice, device="cpu")["rows"] == 4


@pytest.mark.slow
def test_sample_several_rows(tmp_path: Path) -> None:
    lung = dict(zip(RADII, (0, 4, 0, 7, 0, 5), strict=True))
    cells = {name: (runs(disc(RADII[name])), runs(disc(lung[name], 14, 12)) if lung[name] else "") for name in RADII}
    lines = [
        f"{name},{label},{cell}"
        for name, both in cells.items()
        for label, cell in zip(("liver", "lung"), both, strict=True)
    ]
    sample = "id,class,predicted\nt0,liver,\nt0,lung,\nt1,liver,\nt1,lung,\n"
    choice = written(
        tmp_path, sample, images=SCENES, tables={"train.csv": "\n".join(["id,class,segmentation", *lines]) + "\n"},
        task="multi_label_segmentation", classes="[liver, lung]",
        kind="{name: rle, convention: tgs, csv: train.csv, label: class, column: segmentation}",
        format="{name: rle, convention: tgs, label: class}",
    )  # fmt: skip
    said = check(choice, images=True, every=False)
    assert (said["masks"], said["sample"]) == (["liver: 6 of 6 images", "lung: 3 of 6 images"], 4)
    assert pixels(choice) == {name: [TRUE[name], PIXELS.get(lung[name], 0)] for name in RADII}
    assert smoke(choice, device="cpu")["rows"] == 4
    text = (tmp_path / "competitions/trial.yaml").read_text()
    other = text.replace("label: class}, sample", 'id: "{id}_{class}"}, sample')
    (tmp_path / "competitions/trial.yaml").write_text(other)
    with pytest.raises(KbenchError) as refused:
        check(choice, images=False, every=False)
    assert "label: class" in str(refused.value)
    assert "--force" not in str(refused.value)


@pytest.mark.parametrize("kind", ["rest: blob", "values: {blob: 1}, rest: blob"])
def test_instances_rest(tmp_path: Path, kind: str) -> None:
    true = {}
    masks = {}
    for row, (name, radius) in enumerate(RADII.items()):
        mask = disc(4, 8, 8).astype(np.uint16) * (40000 + row if row else 2)
        mask[disc(radius)] = 300 * row if row else 1
        masks[f"{name}.png"] = mask
        true[name] = 49 + PIXELS[radius]
    choice = written(tmp_path, SAMPLE, images=SCENES, masks=masks, kind=f"{{name: index, folder: train/masks, {kind}}}")
    check(choice, images=True, every=False)
    assert pixels(choice) == of_one(true)


def test_jpeg_masks(tmp_path: Path) -> None:
    masks = {f"{name}.jpg": disc(radius).astype(np.uint8) * 255 for name, radius in RADII.items()}
    choice = written(tmp_path, SAMPLE, images=SCENES, masks=masks, kind="{name: per_class, folder: train/masks}")
    stored = cv2.imread(str(tmp_path / "data/trial/train/masks/a00.jpg"), cv2.IMREAD_GRAYSCALE)
    assert (stored != 0).sum() > 113
    check(choice, images=True, every=False)
    assert pixels(choice) == of_one(TRUE)


def test_void_in_one_class(tmp_path: Path) -> None:
    masks, void = {}, {}
    for name, radius in RADII.items():
        ring = disc(radius + 2) & ~disc(radius)
        masks[f"{name}.png"] = np.where(disc(radius), 1, np.where(ring, 255, 0)).astype(np.uint8)
        void[name] = int(ring.sum())
    choice = written(tmp_path, SAMPLE, images=SCENES, masks=masks)
    with pytest.raises(KbenchError, match=r"a00\.png' has the values 0, 1, 255.*ignore: \[255\]"):
        check(choice, images=True, every=False)
    text = (tmp_path / "competitions/trial.yaml").read_text()
    (tmp_path / "competitions/trial.yaml").write_text(text.replace("train/masks}", "train/masks, ignore: [255]}"))
    check(choice, images=True, every=False)
    assert (pixels(choice), pixels(choice, 255)) == (of_one(TRUE), of_one(void))


@pytest.mark.slow
def test_sample_ids_no_image(tmp_path: Path) -> None:  # the trial sample-ids-no-image
    masks = {f"{name}.png": disc(radius).astype(np.uint8) for name, radius in RADII.items()}
    choice = written(tmp_path, "id,rle_mask\nt0.png,\nt1.png,\n", images=SCENES, masks=masks)
    with pytest.raises(KbenchError, match=r"2 ids of the sample are no test row: 't0\.png', 't1\.png'") as refused:
        check(choice, images=False, every=False)
    assert '`submission: {format: {id: "{id}.png"}}` would fit' in str(refused.value)
    with pytest.raises(KbenchError, match=r"no row of the sample|no test row|t0\.png"):
        smoke(choice, device="cpu")
    said = Choice("trial", assignments=('submission.format.id="{id}.png"',), workspace=tmp_path)
    assert check(said, images=False, every=False)["sample"] == 2
    assert smoke(said, device="cpu")["rows"] == 2
