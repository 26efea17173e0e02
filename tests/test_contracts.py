"""What must hold for every registered part of every kind; a new part is tested here without a line of its own."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from kbench import registry
from kbench.data.folds.folds import Cut, make_folds
from kbench.data.images.crops import Geometry
from kbench.data.table.table import Table
from kbench.ensemble.average import Stack
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.inference.predictions import Predictions
from kbench.inference.views import PLAIN
from kbench.metrics.maps import truth_of
from kbench.metrics.metric import make_metric
from kbench.models.layer_groups import layer_groups
from kbench.registry import Part
from kbench.submission.check import check_submission, write_submission
from kbench.tasks import is_dense
from kbench.training.losses.per_target import LossSum

NEEDED: dict[tuple[str, str], dict[str, Any]] = {  # parameters without a default
    ("source", "local"): {"path": "files"},
    ("source", "kaggle"): {"slug": "a-competition"},
    ("layout", "pattern"): {"regex": "(?P<id>.+)"},
    ("mask", "index"): {"folder": "masks"},
    ("mask", "colour"): {"folder": "masks", "colours": {"a": [0, 0, 0], "b": [255, 0, 0]}},
    ("mask", "values"): {"folder": "masks"},
    ("mask", "per_class"): {"folder": "masks/{class}"},
    ("mask", "instances"): {"folder": "masks/{id}", "label": r"(?P<label>.)\.png"},
    ("mask", "wkt"): {"csv": "polygons.csv"},
    ("mask", "geojson"): {"folder": "polygons", "label": "class"},
    ("loss", "sum"): {"parts": [{"name": "cross_entropy", "weight": 0.5}, "dice"]},
    ("loss", "ssim"): {"range": 1.0},
    ("windows", "resized"): {"scale": 0.5},  # one of two, so neither has to be given
    ("recipe", "progressive"): {"sizes": [64, 128]},
    ("augmentation", "pipeline"): {"transforms": ["HorizontalFlip"]},
    ("fold strategy", "predefined"): {"column": "fold"},  # one of two, so neither has to be given
}
TESTED = {
    "source", "layout", "reader", "fold strategy", "augmentation", "crop", "sampler", "metric", "model", "schedule",
    "optimizer", "loss", "step", "mix", "views", "combiner", "decision", "windows", "mask", "postprocess", "format",
    "recipe", "index",
}  # fmt: skip
PARTS = [registry.get(kind, name) for kind in registry.kinds() for name in registry.names(kind)]


def of(kind: str) -> Any:
    """Parametrise a test with the parts of a kind."""
    return pytest.mark.parametrize("name", registry.names(kind))


def params(kind: str, name: str) -> dict[str, Any]:
    """Return what a part cannot be built without."""
    if kind == "schedule" and "epochs" in registry.get(kind, name).parameters():
        return {"epochs": 3}
    return NEEDED.get((kind, name), {})


def build(kind: str, name: str, *given: Any, **injected: Any) -> Any:
    """Build a part from its defaults."""
    return registry.build(kind, name, params(kind, name), *given, **injected)


def table(task: str = "single_label", rows: int = 60, seed: int = 0) -> Table:
    """Return rows with three classes, tags or targets, groups of four rows, and a column of folds."""
    rng = np.random.default_rng(seed)
    targets: np.ndarray = np.arange(rows) % 3
    if task == "multi_label":
        targets = np.eye(3, dtype=np.float32)[targets]
    elif task == "regression":
        targets = rng.normal(size=(rows, 3)).astype(np.float32)
    ids = np.array([f"{row:04d}" for row in range(rows)])
    meta = pd.DataFrame(
        {"group": [f"g{row // 4}" for row in range(rows)], "fold": [str(row % 3) for row in range(rows)]}
    )
    return Table(ids, Path(), tuple((f"{name}.png",) for name in ids), task, ("a", "b", "c"), targets, meta=meta)


def counts(rows: int) -> np.ndarray:
    """Return [N, 3, 3] counts of pixels of three classes that are all right."""
    return np.stack([np.full((rows, 3), 7), np.zeros((rows, 3), int), np.zeros((rows, 3), int)], axis=2)


def tasks_of(part: Part) -> tuple[str, ...]:
    """Return the tasks a part is for, dense ones left out."""
    return tuple(part.meta.get("tasks", ())) or ("single_label", "multi_label", "regression")


# -- every part -------------------------------------------------------------------------------------------------


def test_every_kind_has_a_contract() -> None:
    assert set(registry.kinds()) == TESTED


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.kind}-{part.name}")
class TestPart:
    """What holds for a part of any kind."""

    def test_it_says_in_one_sentence_what_it_does(self, part: Part) -> None:
        first = inspect.getdoc(part.function).splitlines()[0]  # type: ignore[union-attr]
        assert first[0].isupper() or first[0] == "`"
        assert first.endswith(".")

    def test_every_parameter_has_a_type(self, part: Part) -> None:
        hints = typing.get_type_hints(part.function)
        assert set(inspect.signature(part.function).parameters) <= set(hints)

    def test_every_parameter_of_a_yaml_is_described(self, part: Part) -> None:
        text = inspect.getdoc(part.function) or ""
        missing = [name for name in part.parameters() if f"{name}:" not in text and f"`{name}`" not in text]
        others = [name for name in registry.names(part.kind) if f"`{name}`" in text and name != part.name]
        assert missing == [] or others or len(part.parameters()) == 1  # `basic` and a mirror: see there

    def test_its_defaults_are_of_its_own_types(self, part: Part) -> None:
        defaults = {
            name: parameter.default
            for name, parameter in part.parameters().items()
            if parameter.default is not parameter.empty
        }
        given = {**params(part.kind, part.name), **json.loads(json.dumps(defaults))}
        assert registry.bind(part.kind, part.name, given, where="here") == []

    def test_what_has_no_default_is_known_here(self, part: Part) -> None:
        needed = {name for name, parameter in part.parameters().items() if parameter.default is parameter.empty}
        assert needed <= set(params(part.kind, part.name))

    def test_its_name_can_be_written_in_a_yaml(self, part: Part) -> None:
        assert part.name.replace("_", "").isalnum()
        assert part.name == part.name.lower()


# -- where data comes from --------------------------------------------------------------------------------------


@of("source")
def test_a_source_fetches_sends_and_knows_its_solution(name: str, tmp_path: Path) -> None:
    source = build("source", name, _root=tmp_path)
    for method in ("fetch", "solution", "send", "status"):
        assert callable(getattr(source, method))
    assert source.solution(tmp_path) is None or isinstance(source.solution(tmp_path), Path)


@of("layout")
def test_a_layout_takes_a_request_and_nothing_else(name: str) -> None:
    function = registry.get("layout", name).function
    given = [item for item in inspect.signature(function).parameters.values() if item.kind is not item.KEYWORD_ONLY]
    assert [typing.get_type_hints(function)[item.name].__name__ for item in given] == ["Request"]
    assert typing.get_type_hints(function)["return"] is Table


@of("reader")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_reader_keeps_the_dtype_and_brings_the_channels(name: str, channels: int, dtype: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(dtype)
    cv2.imwrite(str(tmp_path / "a.png"), pixels if channels == 1 else pixels[:, :, ::-1])
    read = build("reader", name, _channels=channels)([tmp_path / "a.png"])
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


@of("fold strategy")
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_a_fold_strategy_puts_every_row_in_one_fold_and_depends_on_nothing_else(name: str, task: str) -> None:
    uses = registry.get("fold strategy", name).meta.get("uses", ("by", "group"))
    cut = Cut(3, 1, group="group" if "group" in uses and name != "predefined" else None)
    options = params("fold strategy", name)
    folds = make_folds(table(task), name, cut, options)
    counts = np.bincount(folds.fold)
    assert counts.sum() == 60
    assert len(counts) == 3
    assert counts.min() > 0
    np.testing.assert_array_equal(make_folds(table(task), name, cut, options).fold, folds.fold)
    if cut.group:
        assert pd.DataFrame({"g": table(task).column("group"), "f": folds.fold}).groupby("g")["f"].nunique().max() == 1


# -- what happens to an image -----------------------------------------------------------------------------------


@of("augmentation")
@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmentation_keeps_the_kind_of_the_image_and_draws_from_its_generator(name: str, channels: int) -> None:
    made = build("augmentation", name)
    image = np.random.default_rng(0).integers(0, 256, (16, 12, channels), dtype=np.uint8)
    for seed in range(5):
        if made.geometry is not None:
            first, second = (made.geometry(np.random.default_rng(seed)) for _ in range(2))
            assert isinstance(first, Geometry)
            assert first == second
            assert first.zoom > 0
            assert first.turns in range(4)
        if made.pixels is not None:
            before = image.copy()
            changed, mask = made.pixels(image, None, np.random.default_rng(seed))
            again, _ = made.pixels(image, None, np.random.default_rng(seed))
            assert (changed.dtype, changed.shape, mask) == (image.dtype, image.shape, None)
            np.testing.assert_array_equal(changed, again)
            np.testing.assert_array_equal(image, before)


@of("crop")
@pytest.mark.parametrize("image", [(32, 32), (32, 48), (61, 33)])
def test_a_crop_stays_inside_the_image(name: str, image: tuple[int, int]) -> None:
    crop = build("crop", name)
    assert crop.resize in ("cover", "exact", "keep")
    shown = (32, 32) if crop.resize == "exact" else image
    for seed in range(20):
        window = crop.window(shown, (32, 32), np.random.default_rng(seed))
        assert 0 <= window.top <= window.top + window.height <= shown[0]
        assert 0 <= window.left <= window.left + window.width <= shown[1]
        assert min(window.height, window.width) > 0
        assert window == crop.window(shown, (32, 32), np.random.default_rng(seed))


@of("sampler")
@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_a_sampler_visits_rows_that_are_there_as_many_in_every_epoch(name: str, task: str) -> None:
    rows = table(task)
    sampler = build("sampler", name, rows.targets, len(rows))
    epochs = [sampler(np.random.default_rng(seed)) for seed in range(4)]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert all(epoch.dtype == np.int64 and 0 <= epoch.min() <= epoch.max() < len(rows) for epoch in epochs)
    np.testing.assert_array_equal(epochs[0], sampler(np.random.default_rng(0)))


@of("mix")
@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_a_mix_keeps_shapes_and_sums_and_leaves_its_inputs_alone(name: str, kind: str) -> None:
    images = torch.rand(6, 3, 8, 10)
    targets = torch.arange(6) % 3 if kind == "classes" else torch.nn.functional.one_hot(torch.arange(6) % 3).float()
    before = images.clone(), targets.clone()
    mixed, soft = build("mix", name)(images, targets, np.random.default_rng(0), 3)
    assert mixed.shape == images.shape
    assert soft.shape == (6, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed.sum(), mixed.nan_to_num().sum())
    torch.testing.assert_close((images, targets), before)


@of("index")
def test_an_index_is_one_number_a_pixel_whatever_the_size(name: str) -> None:
    index = build("index", name)
    bands = np.random.default_rng(0).uniform(0.1, 0.9, (len(index.bands), 5, 7))
    values = index.value(*bands)
    assert values.shape == (5, 7)
    assert np.isfinite(values).all()
    assert values[2, 3] == index.value(*bands[:, 2:3, 3:4])[0, 0]


@of("views")
def test_the_first_view_is_the_plain_one_and_every_view_can_be_undone(name: str) -> None:
    views = build("views", name)
    batch = torch.rand(2, 3, 6, 8)
    assert views[0].load == PLAIN
    assert torch.equal(views[0].forward(batch), batch)
    assert len({view.name for view in views}) == len(views)
    assert all(view.weight > 0 for view in views)
    assert all(torch.equal(view.inverse(view.forward(batch)), batch) for view in views)


@of("combiner")
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_a_combiner_finds_weights_that_sum_to_one_and_none_is_negative(name: str, task: str) -> None:
    tasks = registry.get("combiner", name).meta.get("tasks", (task,))
    if task not in tasks:
        return
    rows = table(task)
    if task == "single_label":
        rows = replace(rows, target_names=("a", "b"), targets=np.arange(60) % 2)
    metric = {"single_label": "auc", "multi_label": "auc", "regression": "rmse"}[task]
    rng = np.random.default_rng(0)
    values = rng.random((3, 60, len(rows.target_names))).astype(np.float32)
    if task == "single_label":
        values /= values.sum(axis=2, keepdims=True)
    stack = Stack(("x", "y", "z"), values, np.full(3, 1 / 3), rows, np.arange(60) % 3, make_metric(metric))
    weights = build("combiner", name).weights(stack)
    assert weights.shape == (3,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(weights, build("combiner", name).weights(stack))


@of("decision")
def test_a_decision_is_found_on_rows_kept_as_json_and_applied_to_others(name: str) -> None:
    (task,) = registry.get("decision", name).meta["tasks"]
    rows = table(task)
    if task == "regression":
        rows = replace(rows, targets=np.rint(rows.targets))  # type: ignore[arg-type]
    metric = make_metric({"multi_label": "f2_samples", "regression": "quadratic_kappa"}[task])
    values = np.random.default_rng(1).random((60, 3)).astype(np.float32)
    decision = build("decision", name)
    found = decision.fit(metric, rows.targets, values, rows)
    again = json.loads(json.dumps(found))
    decided = decision.apply(values, again)
    assert decided.shape == values.shape
    assert decided.dtype == np.float32
    assert np.array_equal(decided, np.rint(decided))
    assert metric(rows.targets, decided, rows) >= metric(rows.targets, values, rows) - 1e-9
    np.testing.assert_array_equal(decision.apply(values[:7], again), decided[:7])


@of("windows")
def test_windows_give_back_a_constant_map_of_the_image_size(name: str) -> None:
    windows = build("windows", name)
    images = torch.zeros(2, 3, 70, 45)
    maps = windows.predict(lambda batch: torch.full((len(batch), 4, *batch.shape[-2:]), 0.25), images)
    assert maps.shape == (2, 4, 70, 45)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.full_like(maps, 0.25))


@of("mask")
def test_a_mask_kind_names_its_classes(name: str) -> None:
    kind = build("mask", name, _classes=("a", "b"))
    assert kind.names == ("a", "b")


@of("postprocess")
@pytest.mark.parametrize("task", ["segmentation", "multi_label_segmentation"])
def test_a_postprocess_takes_what_is_certain(name: str, task: str) -> None:
    if task not in registry.get("postprocess", name).meta.get("tasks", (task,)):
        return
    rule = build("postprocess", name, _names=("a", "b"), _task=task)
    sure = np.zeros((2, 40, 40), dtype=np.float32)
    sure[0, :, :20], sure[1, :, 20:] = 1, 1
    mask = rule.apply(sure)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, sure.argmax(0) if task == "segmentation" else sure.astype(np.uint8))


# -- training ---------------------------------------------------------------------------------------------------


@of("schedule")
@pytest.mark.parametrize("per_epoch", [1, 2, 7])
def test_a_schedule_tiles_its_steps_and_never_leaves_its_range(name: str, per_epoch: int) -> None:
    made = build("schedule", name, per_epoch)
    assert made.steps == made.epochs * per_epoch
    assert [cycle.index for cycle in made.cycles] == list(range(len(made.cycles)))
    steps = list(itertools.chain.from_iterable(range(cycle.first, cycle.last + 1) for cycle in made.cycles))
    assert steps == list(range(made.steps))
    history = [0.5] * made.epochs
    rates = [made.rate(step, 0.1, history) for step in range(made.steps)]
    assert all(0 <= rate <= 0.1 + 1e-12 for rate in rates)
    assert rates == [made.rate(step, 0.1, history) for step in range(made.steps)]
    assert max(rates) > 0
    momenta = [made.momentum(step) for step in range(made.steps)]
    assert all(momentum is None or 0 <= momentum < 1 for momentum in momenta)


@of("optimizer")
def test_an_optimizer_lowers_a_loss_and_knows_the_rate_of_each_group(name: str) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    layers = [[(f"w{index}", weight)] for index, weight in enumerate(weights)]
    optimizer = build("optimizer", name, layers, [0.01, 0.02], [0.0, 0.1])
    assert sorted({group["lr_max"] for group in optimizer.param_groups}) == [0.01, 0.02]
    for _ in range(5):
        optimizer.zero_grad()
        loss = sum((weight**2).sum() for weight in weights)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["lr_max"]
        optimizer.step()
    assert all(float((weight**2).sum().detach()) < 3 for weight in weights)


@of("loss")
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_a_loss_is_finite_and_has_a_gradient(name: str, scale: float) -> None:
    loss = build("loss", name, _counts=np.array([2, 2, 1]), _rows=5)
    logits = (torch.randn(5, 3) * scale).requires_grad_()
    fitting = []
    for target in (torch.arange(5) % 3, torch.nn.functional.one_hot(torch.arange(5) % 3).float()):
        try:
            found = loss(logits, target)
        except Exception as error:
            assert type(error).__name__ == "TrainingError"  # noqa: PT017
            continue
        fitting.append(found)
        assert isinstance(found, LossSum)
        assert math.isfinite(float(found.total.detach()))
        assert float(found.count) > 0
        [gradient] = torch.autograd.grad(found.total, logits, retain_graph=True)
        assert bool(torch.isfinite(gradient).all())
    assert fitting


@of("step")
def test_a_step_returns_a_loss_with_a_gradient(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    loss = registry.build("loss", "cross_entropy", {})
    found = build("step", name)(model, torch.rand(4, 3, 2, 2), torch.arange(4) % 3, loss)
    found.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@of("model")
def test_a_model_has_its_outputs_and_every_parameter_in_one_layer_group(name: str) -> None:
    model = build("model", name, 5, 2, _backbone="test_resnet", _size=(32, 48)).eval()
    dense = is_dense(registry.get("model", name).meta["tasks"][0])
    assert model(torch.rand(2, 2, 32, 48)).shape == ((2, 5, 32, 48) if dense else (2, 5))
    names = [parameter for layer in layer_groups(model) for parameter, _ in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(layer_groups(model)) > 2 or registry.get("model", name).meta.get("groups") == 1


# -- scores and submissions -------------------------------------------------------------------------------------


@of("metric")
def test_a_metric_says_its_direction_and_prefers_the_truth(name: str) -> None:
    part = registry.get("metric", name)
    assert isinstance(part.meta["maximise"], bool)
    for task in tasks_of(part):
        rows = table(task)
        metric = make_metric(name)
        if is_dense(task):
            right, wrong = counts(len(rows)), counts(len(rows))[:, :, [1, 2, 0]]
            if task == "dense_regression":  # known pixels, squares, absolute errors
                wrong = right + np.array([0, 9, 3])
            assert metric.better(metric(right[:, :, 0], right, rows), metric(right[:, :, 0], wrong, rows))
            continue
        assert rows.targets is not None
        truth = np.eye(3, dtype=np.float32)[rows.targets] if task == "single_label" else rows.targets
        wrong = np.roll(truth, 1, axis=1) if task != "regression" else truth + 3
        best, worst = metric(rows.targets, truth, rows), metric(rows.targets, wrong, rows)
        assert math.isfinite(best)
        assert math.isfinite(worst)
        assert metric.better(best, worst)
        assert not metric.better(worst, best)
        assert not metric.better(best, best)


@of("metric")
def test_a_metric_of_rows_is_the_mean_of_its_rows(name: str) -> None:
    metric = make_metric(name)
    if metric.per_row is None:
        pytest.skip("this metric is no mean over rows")
    rows = table(metric.tasks[0])
    values = np.random.default_rng(1).dirichlet(np.ones(3), len(rows)).astype(np.float32)
    if is_dense(rows.task):
        values = np.random.default_rng(1).integers(1, 9, (len(rows), 3, 3))
        rows = replace(rows, targets=truth_of(values, rows.task))
    assert rows.targets is not None
    each = metric.per_row(rows.targets, values, rows)
    assert each.shape == (len(rows),)
    assert metric(rows.targets, values, rows) == pytest.approx(each.mean())


@of("format")
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_a_format_writes_what_it_finds_no_fault_with(name: str, task: str, tmp_path: Path) -> None:
    rows = table(task)
    try:
        made = build("format", name, _names=rows.target_names, _task=task)
    except Exception as error:
        assert f"cannot write the task '{task}'" in str(error)  # noqa: PT017
        return
    values = np.random.default_rng(0).dirichlet(np.ones(3), len(rows)).astype(np.float32)
    predictions = Predictions(rows.ids, rows.target_names, values, task, {})
    order = np.random.default_rng(1).permutation(len(rows))
    wide = name in ("probabilities", "value")
    sample = pd.DataFrame({"id": rows.ids[order], **dict.fromkeys("abc" if wide else ["target"], 0.0)})
    frame = made.build(predictions, sample)
    assert list(frame.columns) == list(sample.columns)
    assert frame["id"].tolist() == sample["id"].tolist()
    assert made.problems(frame, sample) == []
    assert write_submission(tmp_path / f"s{made.suffix}", frame, sample=sample, format=made, gzip=False).is_file()
    assert made.parse(frame, sample).ids.tolist() == rows.ids.tolist()


@of("format")
@pytest.mark.parametrize("task", ["segmentation", "multi_label_segmentation"])
def test_a_format_of_masks_gives_back_what_it_was_given(name: str, task: str, tmp_path: Path) -> None:
    names, size = ("one",), (9, 14)
    try:
        made = build("format", name, _names=names, _task=task, _sizes=lambda image: size)
    except Exception as error:
        assert f"cannot write the task '{task}'" in str(error)  # noqa: PT017
        return
    layers = np.random.default_rng(0).integers(0, 2, (3, 1, *size)).astype(np.uint8)
    masks = MaskSet(np.array(["a", "b", "c"]), names, task, {}, lambda row: layers[row])
    sample = pd.DataFrame({"id": ["b", "c", "a"], "x": ""})
    file = write_submission(tmp_path / f"s{made.suffix}", made.build(masks, sample), sample=sample, format=made)
    read = made.parse(check_submission(file, sample, format=made), sample)
    assert read.ids.tolist() == ["a", "b", "c"]
    assert np.array_equal(np.stack([read[row] for row in range(3)]), layers)


@of("format")
@pytest.mark.parametrize("names", [("one",), ("a", "b", "c")])
def test_a_format_of_numbers_gives_back_what_it_was_given(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    size = (9, 14)
    try:
        made = build("format", name, _names=names, _task="dense_regression", _sizes=lambda image: size)
    except Exception as error:
        assert "cannot write the task 'dense_regression'" in str(error)  # noqa: PT017
        return
    values = np.random.default_rng(0).normal(size=(3, len(names), *size)).astype(np.float32)
    numbers = NumberSet(np.array(["a", "b", "c"]), names, "dense_regression", {}, lambda row: values[row])
    sample = pd.DataFrame({"id": ["b", "c", "a"], "x": ""})
    file = write_submission(tmp_path / f"s{made.suffix}", made.build(numbers, sample), sample=sample, format=made)
    read = made.parse(check_submission(file, sample, format=made), sample)
    assert (read.ids.tolist(), read.names, read.task) == (["a", "b", "c"], names, "dense_regression")
    assert np.array_equal(np.stack([read[row] for row in range(3)]), values)
