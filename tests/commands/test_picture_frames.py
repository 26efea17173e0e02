"""Images that carry an orientation, or are very large, with masks (trials `exif-stored-frame`, `tiff-orientation` and
`png-over-limit`)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiffs import tiff

from kbench.commands.check import check
from kbench.commands.inspect import inspect
from kbench.commands.smoke import smoke
from kbench.data.images.cache import Resize
from kbench.errors import ConfigError, KbenchError
from kbench.runs import parts
from kbench.runs.experiment import Experiment, open_experiment
from kbench.workspace import Choice

KEEP = Resize("keep", 0, 0)
YAML = """
task: segmentation
source: {name: local, path: source}
data:
  masks: {name: index, folder: train/masks}
  classes: [blob]
  train: {csv: train.csv, images: train/images}
  test: {images: test/images}
folds: {strategy: kfold, n: 2, seed: 1}
metric: mean_iou
submission: {format: {name: rle, convention: tgs}, sample: sample_submission.csv}
input: {size: 32}
model: {name: smp, backbone: resnet18, options: {decoder: unet}}
train: {batch_size: 4, augment: none, crop: native}
stages:
  main: {lr: 3e-3, schedule: {name: constant, epochs: 1}, keep: [last]}
tta: none
"""
PIXELS = {f"a{row}": (6 + row) * (8 + row) for row in range(4)}  # of each blob


def blob(row: int, *, height: int = 40, width: int = 48) -> np.ndarray:
    """[H, W] bool, a rectangle off the middle."""
    mask = np.zeros((height, width), dtype=bool)
    mask[3 : 9 + row, 5 : 13 + row] = True
    return mask


def jpeg(mask: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    with io.BytesIO() as file:
        Image.fromarray(np.where(mask, 200, 20).astype(np.uint8)).save(file, "JPEG", exif=exif, quality=100)
        return file.getvalue()


def tif(mask: np.ndarray, orientation: int) -> bytes:
    return tiff(np.repeat(np.where(mask, 200, 20).astype(np.uint8)[:, :, None], 3, 2), orientation=orientation)


def written(
    root: Path, suffix: str, image: Callable[[np.ndarray], bytes], mask: Callable[[np.ndarray], np.ndarray], **size: int
) -> Path:
    """Write a competition of four images and two test images; return the workspace."""
    data = root / "data" / "frames"
    for folder in ("train/images", "train/masks", "test/images"):
        (data / folder).mkdir(parents=True)
    for row in range(4):
        drawn = blob(row, **(size if row == 0 else {}))
        (data / f"train/images/a{row}{suffix}").write_bytes(image(drawn))
        assert cv2.imwrite(str(data / f"train/masks/a{row}.png"), mask(drawn).astype(np.uint8) * 255)
    for row in range(2):
        (data / f"test/images/t{row}{suffix}").write_bytes(image(blob(row)))
    (data / "train.csv").write_text("id\na0\na1\na2\na3\n")
    (data / "sample_submission.csv").write_text("id,rle_mask\nt0,\nt1,\n")
    (root / "competitions").mkdir()
    (root / "competitions" / "frames.yaml").write_text(YAML)
    return root


def choice(root: Path, orientation: str = "apply") -> Choice:
    return Choice("frames", assignments=(f"input.orientation={orientation}",), workspace=root)


def overlaps(setup: Experiment) -> dict[str, tuple[int, float]]:
    """Return, per image, the pixels of its mask and the share of the blob's pixels that lie on it."""
    images = parts.opened_images(setup.competition, setup.train, setup.workspace.cache(), what="training")(KEEP)
    masks = parts.opened_masks(setup.competition, setup.train, setup.workspace.cache(), what="training")(KEEP)
    found = {}
    for row, name in enumerate(setup.train.ids):
        bright, mask = images[row][:, :, 0] > 110, masks[row][:, :, 0] == 1
        found[str(name)] = (int(mask.sum()), float((bright & mask).sum() / bright.sum()))
    return found


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_masks_of_the_stored_frame_are_warned_of_and_an_option_says_which_it_is(
    tmp_path: Path, orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = written(tmp_path, ".jpg", lambda mask: jpeg(mask, orientation), lambda mask: mask)
    check(choice(root), images=True, every=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "4 images are turned as their files say, and their masks are not: 'train/images/a0.jpg'" in said
    assert "input: {orientation: ignore}" in said
    check(choice(root, "ignore"), images=True, every=False)
    assert "turned" not in capsys.readouterr().err
    found = overlaps(open_experiment(choice(root, "ignore")))
    assert {name: pixels for name, (pixels, _) in found.items()} == PIXELS
    assert all(share == 1 for _, share in found.values())
    mixed = overlaps(open_experiment(choice(root)))
    assert all(share < 1 for _, share in mixed.values()), "the frames are not mixed up"


def test_images_that_are_upright_are_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path, ".jpg", lambda mask: jpeg(mask, 1), lambda mask: mask)
    check(choice(root), images=True, every=False)
    assert "turned" not in capsys.readouterr().err


@pytest.mark.parametrize("frame", ["stored", "upright"])
@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_a_tiff_has_one_size_everywhere_and_an_option_says_which(tmp_path: Path, frame: str, orientation: int) -> None:
    ways = {5: lambda mask: mask.T, 6: lambda mask: np.rot90(mask, -1), 8: np.rot90}
    turn = ways[orientation] if frame == "upright" else (lambda mask: mask)
    root = written(tmp_path, ".tif", lambda mask: tif(mask, orientation), turn)
    right, wrong = ("apply", "ignore") if frame == "upright" else ("ignore", "apply")
    check(choice(root, right), images=True, every=False)
    setup = open_experiment(choice(root, right))
    assert overlaps(setup) == {name: (pixels, 1.0) for name, pixels in PIXELS.items()}
    assert setup.test_size("t0") == ((48, 40) if frame == "upright" else (40, 48))
    with pytest.raises(ConfigError) as refused:
        check(choice(root, wrong), images=False, every=False)
    assert "'train/masks/a0.png'" in refused.value.what
    if wrong == "apply":
        assert f"orientation {orientation}" in refused.value.what
        assert "input: {orientation: ignore}" in refused.value.what
    with pytest.raises(KbenchError, match="40"):
        overlaps(open_experiment(choice(root, wrong)))


def test_a_trial_run_of_the_right_frame_ends_in_a_submission(tmp_path: Path) -> None:
    root = written(tmp_path, ".tif", lambda mask: tif(mask, 6), lambda mask: np.rot90(mask, -1))
    assert smoke(choice(root), device="cpu")["rows"] == 2


def test_an_image_of_180_million_pixels_is_read_like_any_other(tmp_path: Path) -> None:
    def png(mask: np.ndarray) -> bytes:
        return bytes(
            cv2.imencode(".png", np.where(mask, 200, 20).astype(np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        )

    root = written(tmp_path, ".png", png, lambda mask: mask, height=13_400, width=13_400)
    own = choice(root)
    check(own, images=True, every=False)
    assert {row["class"]: row["images"] for row in inspect(own, fold=0, samples=1)["balance"]}["blob"] == 4
    with pytest.raises(
        ConfigError, match=r"2 files with more than 100,000,000 pixels \(input.max_pixels\): 'train/images/a0"
    ):
        check(Choice("frames", assignments=("input.max_pixels=100000000",), workspace=root), images=False, every=False)
