"""Members of a segmentation: weighed, pruned and looked at apart, though their maps are never all in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from streets import write_street

import kbench
from kbench.commands.ensemble import ensemble
from kbench.commands.train import train
from kbench.data.dataset import Normalise
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.submission.check import check_submission, read_sample
from kbench.workspace import Choice

CPU = TrainOptions(device="cpu")
SNAPSHOTS = (
    "stages.all.schedule={name: sgdr, cycles: 3, cycle_len: 2}", "stages.all.keep=[cycles]", "tta=flip",
    "stages.all.lr=0.02",
)  # fmt: skip
NAMES = {f"baseline-s0/all-{cycle}" for cycle in range(3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("street")
    write_street(root)
    trained = train(open_experiment(Choice("street", assignments=SNAPSHOTS, workspace=root)), "all", CPU)
    assert trained["trained"] == [0, 1]
    return root


def combined(root: Path, *more: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `kbench ensemble` returns, and the lineage."""
    choice = Choice("street", assignments=(*SNAPSHOTS, *more), workspace=root)
    made = ensemble(choice, [], EnsembleOptions(device="cpu", **options))
    file = Path(made["file"])
    return made, json.loads(file.with_name(f"{file.stem}.lineage.json").read_text())["lineage"]


def by_hand(root: Path, weights: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the masks of the weighted mean over members and both views, with models alone."""
    run = kbench.open_run("baseline-s0", competition="street", workspace=root)
    masks = {}
    for row, name in enumerate(run.test.ids):
        image = torch.from_numpy(cv2.imread(str(run.test.root / run.test.images[row][0]))[:, :, ::-1].copy())[None]
        total = torch.zeros(2, 16, 16)
        for fold in (0, 1):
            for member in run.members(fold):
                checkpoint = run.snapshot(fold, member)
                shown = Normalise(**checkpoint.info["scale"])(image)
                with torch.inference_mode():
                    model = run.model(fold, member)
                    plain, turned = model(shown).softmax(1), model(shown.flip(3)).softmax(1).flip(3)
                total += weights[f"baseline-s0/{member}"] / 2 * (plain + turned)[0] / 2
        masks[str(name)] = total.argmax(0).numpy().astype(np.uint8)
    return masks


@pytest.mark.parametrize("combine", ["weights", "greedy"])
def test_weights_are_found_scored_nested_and_sent(root: Path, combine: str) -> None:
    made, lineage = combined(root, combine=combine)
    assert set(made["weights"]) == NAMES
    assert sum(made["weights"].values()) == pytest.approx(1)
    assert {gain["member"] for gain in made["gains"]} == NAMES
    assert made["plain"]["value"] >= 0
    assert made["optimism"] == pytest.approx(made["plain"]["value"] - made["score"])
    assert lineage["combine"] == {"name": combine, "weights": made["weights"]}
    assert len(lineage["members"]) == len(lineage["weights"])
    assert sum(lineage["weights"]) == pytest.approx(1)
    for member, weight in zip(lineage["members"], lineage["weights"], strict=True):
        name = f"{member['run']}/{member['stage']}-{member['tag']}"
        assert weight == pytest.approx(made["weights"][name] / 2)  # of two folds
    experiment = open_run(Choice("street", run="baseline-s0", workspace=root)).experiment
    sample = read_sample(experiment.sample)
    sent = experiment.format.parse(check_submission(Path(made["file"]), sample, format=experiment.format), sample)
    for row, name in enumerate(sent.ids):
        np.testing.assert_array_equal(sent[row], by_hand(root, made["weights"])[str(name)])


def test_a_member_of_weight_zero_is_left_out(root: Path) -> None:
    made, lineage = combined(root, prune=True)
    kept = {name for name, weight in made["weights"].items() if weight > 0}
    assert kept
    assert {f"{one['run']}/{one['stage']}-{one['tag']}" for one in lineage["members"]} == kept


def test_the_plain_mean_has_a_weight_for_every_member(root: Path) -> None:
    made, lineage = combined(root)
    assert made["weights"] is None
    assert made["gains"] == []
    assert lineage["weights"] == [pytest.approx(1 / 6)] * 6
    assert lineage["format"]["name"] == "rle"
    assert lineage["combine"] == {"name": "mean", "weights": None}


def test_views_of_maps_are_seen_apart_and_their_mean_is_what_is_kept(root: Path) -> None:
    run = open_run(Choice("street", run="baseline-s0", assignments=SNAPSHOTS, workspace=root))
    stack = run.views(0, "all-2", device="cpu")
    assert stack.views[0] == "plain"
    assert stack[0].shape == (2, 2, 16, 16)
    assert not np.allclose(stack[0][0], stack[0][1])
    np.testing.assert_allclose(stack.mean_of(0), stack[0].mean(0), atol=1e-6)
    readings = run.out_of_fold(device="cpu").score["table"][0]
    assert {"all-0", "all-1", "all-2", "mean"} <= set(readings)


def test_two_runs_of_maps_are_weighed_together(root: Path) -> None:
    choice = Choice("street", run="other", assignments=(*SNAPSHOTS, "stages.all.lr=0.05"), workspace=root)
    train(open_experiment(choice), "all", CPU)
    made = ensemble(Choice("street", assignments=SNAPSHOTS, workspace=root), ["baseline-s0", "other"],
                    EnsembleOptions(device="cpu", combine="weights"))  # fmt: skip
    assert set(made["weights"]) == NAMES | {f"other/all-{cycle}" for cycle in range(3)}
    assert 0 <= made["score"] <= 1
