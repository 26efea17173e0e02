"""Members that share a frozen body: it runs once per view, and nothing changes in what they predict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from drawn_images import ArrayImages, drawn
from torch import nn

from kbench import registry
from kbench.data.images.crops import random
from kbench.inference.mean import mean_of_task
from kbench.inference.predictions import load
from kbench.inference.row_pass import Job, Member, predict_members
from kbench.inference.views import PLAIN, View, is_plain
from kbench.models.layer_groups import body_digest

ROWS = 11
TRIED = 2  # looks at one image while batch norms are folded: before and after
SCALE = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
AUGMENTATION, CROP = registry.build("augmentation", "top_down", {}), random()


class Counted(toy.SplitNet):
    """Counts the images its body sees."""

    seen = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        Counted.seen += len(images)
        return super().features(images)


@pytest.fixture(autouse=True)
def from_zero() -> None:
    Counted.seen = 0


def network(head: int) -> nn.Module:
    """The same body with a head of its own."""
    torch.manual_seed(0)
    model = Counted(3)
    torch.manual_seed(head)
    nn.init.normal_(model.head[2].weight)
    return model.eval()


def member(folder: Path, head: int, *, shared: bool, **changes: Any) -> Member:
    given: dict[str, Any] = {
        "name": f"m{head}", "load": lambda: network(head), "size": (8, 8), "resize": "cover", "scale": SCALE,
        "precision": "fp32", "out": folder / f"m{head}.json", "source": {"head": head}, "augmentation": AUGMENTATION,
        "train_crop": CROP, "body": body_digest(network(0)) if shared else "",
        "head": lambda model: copy.deepcopy(network(head).head) if shared else None,
    }  # fmt: skip
    return Member(**{**given, **changes})


def job(views: str, *, task: str = "single_label", mean: Any = "arithmetic") -> Job:
    pictures = drawn(ROWS, size=(12, 15))
    return Job(
        ids=np.array([f"r{row:03d}" for row in range(ROWS)]), rows=np.arange(ROWS),
        images=lambda resize: ArrayImages(pictures, resize), names=("a", "b", "c"), task=task,
        views=registry.build("views", views, {}), mean=mean_of_task(mean, task, 3), device=toy.CPU, batch_size=4,
    )  # fmt: skip


def done(work: Job, members: Sequence[Member]) -> list[np.ndarray]:
    assert list(predict_members(work, members))[-1] == len(work.rows)
    return [np.array(load(one.out).values) for one in members]


@pytest.mark.parametrize("views", ["none", "flip", "random", "d4"])
@pytest.mark.parametrize(("task", "mean"), [("single_label", "geometric"), ("multi_label", "arithmetic"),
                                            ("regression", "arithmetic")])  # fmt: skip
def test_members_of_one_body_predict_to_the_bit_what_each_model_alone_does(
    tmp_path: Path, views: str, task: str, mean: str
) -> None:
    work = job(views, task=task, mean=mean)
    together = done(work, [member(tmp_path / "a", head, shared=True) for head in range(3)])
    for head in range(3):
        (alone,) = done(work, [member(tmp_path / "b", head, shared=False)])
        np.testing.assert_array_equal(together[head], alone)


@pytest.mark.parametrize(("views", "count"), [("none", 1), ("flip", 2), ("random", 5)])
def test_the_body_runs_once_per_view_whatever_the_number_of_heads(tmp_path: Path, views: str, count: int) -> None:
    done(job(views), [member(tmp_path, head, shared=True) for head in range(6)])
    assert Counted.seen == ROWS * count + TRIED


def test_another_precision_or_normalisation_is_another_family(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"precision": "bf16"}, {"scale": {**SCALE, "mean": [0.1, 0.2, 0.3]}}]
    members = [member(tmp_path / str(head), head, shared=True, **more) for head, more in enumerate(changes)]
    together = done(job("none"), members)
    assert Counted.seen == (ROWS + TRIED) * 3
    for head, more in enumerate(changes):
        (alone,) = done(job("none"), [member(tmp_path / "b", head, shared=True, **more)])
        np.testing.assert_array_equal(together[head], alone)


def known(value: float) -> np.ndarray:
    return np.full((ROWS, 16), value, dtype=np.float32)


def test_the_plain_view_is_looked_up_where_it_is_precomputed(tmp_path: Path) -> None:
    members = [member(tmp_path, head, shared=True, precomputed=lambda model: known(0.5)) for head in range(2)]
    values = done(job("none"), members)
    assert Counted.seen == 0
    with torch.inference_mode():
        expected = network(1).head(torch.from_numpy(known(0.5))).softmax(1).numpy()
    np.testing.assert_allclose(values[1], expected, atol=1e-6)


def test_rows_are_looked_up_by_their_number_in_the_table(tmp_path: Path) -> None:
    lines = np.arange(ROWS * 16, dtype=np.float32).reshape(ROWS, 16) / 100
    rows = np.array([7, 2, 9])
    work = replace(job("none"), rows=rows, ids=np.array(["a", "b", "c"]))
    (values,) = done(work, [member(tmp_path, 0, shared=True, precomputed=lambda model: lines)])
    with torch.inference_mode():
        expected = network(0).head(torch.from_numpy(lines[rows])).softmax(1).numpy()
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_other_views_still_run_the_body(tmp_path: Path) -> None:
    done(job("flip"), [member(tmp_path, head, shared=True, precomputed=lambda model: known(0.5)) for head in range(3)])
    assert Counted.seen == ROWS + TRIED


def test_a_member_that_is_not_precomputed_does_not_depend_on_one_that_is(tmp_path: Path) -> None:
    (alone,) = done(job("flip"), [member(tmp_path / "a", 0, shared=True)])
    members = [
        member(tmp_path / "b", 0, shared=True),
        member(tmp_path / "b", 1, shared=True, precomputed=lambda model: known(0.5)),
    ]
    np.testing.assert_array_equal(done(job("flip"), members)[0], alone)


def test_the_plain_view_is_the_one_that_changes_nothing() -> None:
    assert is_plain(View("any", PLAIN))
    assert [is_plain(view) for view in registry.build("views", "flip", {})] == [True, False]
    assert [is_plain(view) for view in registry.build("views", "random", {"n": 2})] == [True, False, False]
    assert not any(is_plain(view) for view in registry.build("views", "five_crop", {})[1:])
