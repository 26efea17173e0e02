"""What speaks against members and rules is said with what to type."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from kbench.config.section import Component
from kbench.data.table.table import Table
from kbench.metrics.metric import make_metric
from kbench.runs import doubts as module
from kbench.runs.doubts import blend_doubts, constant_score, doubts

LABELS = np.array([0, 0, 0, 1] * 5)


def table(task: str, targets: np.ndarray | None, names: tuple[str, ...]) -> Table:
    n = 20
    return Table(np.array([f"{row:03d}" for row in range(n)]), Path(), ((),) * n, task, names, targets)


def experiment(rows: Table, metric: str, decision: Component | None = None, **postprocess: Any) -> Any:
    """Return what the doubts ask of an experiment."""
    part = Component(name=postprocess.pop("name", "none"), **postprocess)
    maps, ensemble = SimpleNamespace(postprocess=part), SimpleNamespace(decision=decision)
    competition = SimpleNamespace(metric=Component(name=metric), ensemble=ensemble, maps=maps)
    folds = SimpleNamespace(ids=rows.ids, fold=np.arange(len(rows)) // 4 % 2)
    return SimpleNamespace(competition=competition, train=rows, folds=folds, groups=lambda some: None)


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "metric_of", lambda one: make_metric(one.competition.metric.name))


def classes() -> tuple[Any, Table]:
    rows = table("single_label", LABELS, ("left", "right"))
    return experiment(rows, "log_loss"), rows


def test_the_constant_of_classes_is_their_share() -> None:
    one, rows = classes()
    expected = log_loss(LABELS, np.tile([0.75, 0.25], (20, 1)))
    assert constant_score(one, None, rows) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_the_constant_of_numbers_is_their_mean() -> None:
    values = np.arange(20, dtype=np.float32)[:, None]
    rows = table("regression", values, ("age",))
    assert constant_score(experiment(rows, "rmse"), None, rows) == pytest.approx(values.std())  # type: ignore[arg-type]


def test_the_constant_of_labels_is_decided_too() -> None:
    tags = np.stack([LABELS == 0, LABELS == 1], axis=1).astype(np.float32)
    rows = table("multi_label", tags, ("a", "b"))
    found = constant_score(experiment(rows, "f2_samples", Component(name="threshold")), None, rows)  # type: ignore[arg-type]
    a, both = np.mean(np.where(LABELS == 0, 1.0, 0.0)), 5 / (5 + 1)  # all tags: precision 1/2, recall 1
    assert found == pytest.approx(max(a, both), abs=1e-6)


def test_the_constant_of_masks_is_the_commonest_class() -> None:
    truth = np.tile([[60, 30, 10]], (20, 1))
    rows = table("segmentation", None, ("road", "car", "sky"))
    judged = SimpleNamespace(targets=truth)
    assert constant_score(experiment(rows, "mean_iou"), judged, rows) == pytest.approx(0.6 / 3)  # type: ignore[arg-type]
    one = table("segmentation", None, ("salt",))
    empty = SimpleNamespace(targets=np.array([[0]] * 5 + [[9]] * 15))
    assert constant_score(experiment(one, "tgs_iou"), empty, one) == pytest.approx(5 / 20)  # type: ignore[arg-type]


def test_members_below_the_constant_are_named_and_left_out_by_what_is_typed() -> None:
    one, rows = classes()
    score = {"score": 0.4, "cv_mean": {"all-0": 0.9, "all-1": 0.5, "all-2": 0.4, "mean": 0.4}}
    (said,) = doubts(one, None, rows, score)  # type: ignore[arg-type]
    assert "all-0 0.9" in said
    assert "all-1" not in said.partition(";")[0]
    assert "`ensemble: {members: [all-1, all-2]}`" in said
    assert "log_loss 0.56234" in said
    assert doubts(one, None, rows, {**score, "cv_mean": {"all-1": 0.5, "all-2": 0.4}}) == []  # type: ignore[arg-type]


def test_a_run_below_the_constant_is_said_once() -> None:
    one, rows = classes()
    (said,) = doubts(one, None, rows, {"score": 0.9, "cv_mean": {"all-0": 0.9, "mean": 0.9}})  # type: ignore[arg-type]
    assert "the score is worse" in said
    assert "`kbench lr-find`" in said


def gain(member: str, adds: float, low: float, high: float, alone: float = 0.3) -> dict[str, Any]:
    return {"member": member, "weight": 0.5, "alone": alone, "adds": adds, "low": low, "high": high}


def test_a_member_that_clearly_makes_the_mean_worse_is_said() -> None:
    one, rows = classes()
    gains = [gain("base-s0/all-0", -0.2, -0.3, -0.1), gain("base-s0/all-1", 0.1, 0.05, 0.2),
             gain("base-s0/all-2", -0.1, -0.3, 0.1)]  # fmt: skip
    (said,) = blend_doubts(one, None, rows, {"score": 0.3}, gains, only={"cv_mean": {}})  # type: ignore[arg-type]
    assert "all-0 by 0.20000 [0.10000, 0.30000]" in said
    assert "`kbench ensemble --prune`" in said
    assert "`ensemble: {members: [all-1, all-2]}`" in said


@pytest.mark.parametrize(("fixed", "typed"), [({}, "`maps: {postprocess: none}`"),
                                               ({"min_object": 20}, "{name: standard, min_object: 20}}`")])  # fmt: skip
def test_a_post_process_that_clearly_loses_is_said(fixed: dict[str, Any], typed: str) -> None:
    rows = table("segmentation", None, ("salt",))
    judged = SimpleNamespace(targets=np.full((20, 1), 9))
    one = experiment(rows, "tgs_iou", name="standard", threshold="tuned", grid={"threshold": [0.4]}, **fixed)
    score = {"score": 0.7, "growth": [], "postprocess": {"gain": {"value": -0.05, "low": -0.08, "high": -0.02}}}
    (said,) = doubts(one, judged, rows, score)  # type: ignore[arg-type]
    assert "worse by 0.05000 [0.02000, 0.08000]" in said
    assert typed in said
    score["postprocess"]["gain"]["high"] = 0.01  # type: ignore[index]
    assert doubts(one, judged, rows, score) == []  # type: ignore[arg-type]
