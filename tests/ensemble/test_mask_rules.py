"""Post-processing against scipy, on hand-made masks, and nested tuning that believes no luck."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kbench import registry
from kbench.data.table.table import Table
from kbench.ensemble import mask_rules
from kbench.ensemble.mask_rules import Rule, small_holes
from kbench.ensemble.mask_tuning import Outcome, neutral, tune, tunes
from kbench.errors import ConfigError
from kbench.inference import map_store
from kbench.inference.map_store import Row, Writing
from kbench.metrics.maps import image_counts
from kbench.metrics.metric import make_metric

EIGHT = np.ones((3, 3))
THIRDS = np.arange(12) % 3


def rule(names: tuple[str, ...] = ("salt",), task: str = "segmentation", **params: Any) -> Rule:
    made: Rule = registry.build("postprocess", "standard", params, _names=names, _task=task)
    return made


def picture(*lines: str) -> np.ndarray:
    return np.array([[sign != "." for sign in line] for line in lines], dtype=np.uint8)


def of_layer(layer: np.ndarray) -> np.ndarray:
    """Return [1, H, W] probabilities that say what a layer says."""
    return np.where(layer != 0, 0.9, 0.1).astype(np.float32)[None]


BLOBS = picture(
    "##......#",
    "##.....#.",
    ".........",
    "..#####..",
    "..#...#..",
    "..#.#.#..",
    "..#...#..",
    "..#####.#",
)


def test_objects_touch_by_corners_and_holes_do_not_leak_through_them() -> None:
    mask = rule(min_object=3).apply(of_layer(BLOBS))[0]
    expected = BLOBS.copy()
    expected[0, 8] = expected[1, 7] = expected[7, 8] = expected[5, 4] = 0
    np.testing.assert_array_equal(mask, expected)
    filled = rule(min_hole=9).apply(of_layer(BLOBS))[0]
    assert filled[3:8, 2:7].all()
    np.testing.assert_array_equal(rule(min_hole=8).apply(of_layer(BLOBS))[0], BLOBS)  # the hole has eight pixels
    diagonal = picture(".#...", "#.#..", ".#...", ".....")
    assert small_holes(diagonal, 2).sum() == 1
    np.testing.assert_array_equal(small_holes(picture("#.#", "#.#", "###"), 9), np.zeros((3, 3)))  # open at the top


def test_only_the_largest_object_stays() -> None:
    mask = rule(largest=True).apply(of_layer(BLOBS))[0]
    assert mask.sum() == 16
    assert mask[3:8, 2:7].sum() == 16


def test_an_image_with_too_little_is_empty_after_all_else() -> None:
    assert rule(empty=25).apply(of_layer(BLOBS)).sum() == 0
    assert rule(empty=24).apply(of_layer(BLOBS)).sum() == 24
    assert rule(empty=21, min_object=4).apply(of_layer(BLOBS)).sum() == 0
    assert rule(empty=20, min_object=4).apply(of_layer(BLOBS)).sum() == 20


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12))
def test_objects_and_holes_are_those_of_scipy(seed: int, least: int, hole: int) -> None:
    layer = (np.random.default_rng(seed).random((17, 13)) < 0.45).astype(np.uint8)
    expected = layer.copy()
    labels, count = ndimage.label(1 - layer)
    border = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    for number in range(1, count + 1):
        if number not in border and (labels == number).sum() < hole:
            expected[labels == number] = 1
    labels, count = ndimage.label(expected, EIGHT)
    for number in range(1, count + 1):
        if (labels == number).sum() < least:
            expected[labels == number] = 0
    np.testing.assert_array_equal(rule(min_object=least, min_hole=hole).apply(of_layer(layer))[0], expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["segmentation", "multi_label_segmentation"]))
def test_what_changes_nothing_is_the_plain_rule(seed: int, task: str) -> None:
    maps = np.random.default_rng(seed).dirichlet(np.ones(4), (9, 11)).transpose(2, 0, 1).astype(np.float32)
    names = ("a", "b", "c", "d")
    plain: Rule = registry.build("postprocess", "none", {}, _names=names, _task=task)
    before = maps.copy()
    np.testing.assert_array_equal(rule(names, task).apply(maps), plain.apply(maps))
    np.testing.assert_array_equal(rule(names, task, min_object=1, min_hole=1, empty=1).apply(maps), plain.apply(maps))
    np.testing.assert_array_equal(maps, before)
    rule(names, task, min_object=3, empty=9).apply(maps)
    np.testing.assert_array_equal(maps, before)


def test_pixels_that_are_taken_away_go_to_the_class_around_them() -> None:
    maps = np.zeros((3, 6, 6), dtype=np.float32)
    maps[0] = 0.5
    maps[1] = 0.3
    maps[2] = 0.2
    maps[2, 2, 2:4] = 0.6
    for params in ({"min_object": {"c": 3}}, {"empty": {"c": 3}}, {"min_hole": 3}):
        assert (rule(("a", "b", "c"), **params).apply(maps) == 0).all()
    maps[0, 2, 2:4] = 0.1  # "b" is more probable there, and would be as small
    assert (rule(("a", "b", "c"), min_object=3).apply(maps) == 0).all()
    assert rule(("a", "b", "c"), empty={"c": 2}).apply(maps)[2, 2] == 2
    assert (rule(("a", "b", "c"), bias={"c": 1.5}).apply(maps) == 2).all()
    assert (rule(("a", "b", "c"), min_object=40).apply(maps) == maps.argmax(0)).all()  # nothing would stay


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_what_is_filled_has_the_class_of_a_nearest_pixel_and_nothing_small_is_left(seed: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    maps = np.stack([ndimage.gaussian_filter(rng.random((26, 31)), 1.5) for _ in range(4)]).astype(np.float32)
    names = ("a", "b", "c", "d")
    before = maps.argmax(0)
    gone = np.zeros(before.shape, dtype=bool)
    for k in range(4):
        labels, _ = ndimage.label(before == k, EIGHT)
        gone |= (before == k) & (np.bincount(labels.ravel())[labels] < least)
    mask = rule(names, min_object=least).apply(maps)
    if gone.all():
        np.testing.assert_array_equal(mask, before)
        return
    np.testing.assert_array_equal(mask[~gone], before[~gone])
    distance = ndimage.distance_transform_edt(gone)
    for k in range(4):
        near = ndimage.distance_transform_edt((before != k) | gone) if ((before == k) & ~gone).any() else np.inf
        assert (np.broadcast_to(near - distance, gone.shape)[gone & (mask == k)] < 1).all()  # chamfer, not exact
        labels, count = ndimage.label(mask == k, EIGHT)
        assert all((labels == number).sum() >= least for number in range(1, count + 1))


@pytest.mark.parametrize("params", [{"min_object": 12}, {"empty": {"c": 60}}, {"largest": True},
                                    {"bias": {"c": 1.0, "b": -0.5}, "min_object": 12}])  # fmt: skip
def test_maps_kept_in_8_bits_give_the_masks_that_exact_ones_give(tmp_path: Path, params: dict[str, Any]) -> None:
    names = ("a", "b", "c")
    rng = np.random.default_rng(5)
    logits = 40 * np.stack([ndimage.gaussian_filter(rng.standard_normal((80, 90)), 5) * 5 for _ in names])
    logits[2] = -40
    logits[2, 40:43, 40:43] = logits[2, 60:62, 20:22] = logits.max() + 20  # sure specks: the other classes round to 0
    maps = np.exp(logits - logits.max(0))
    maps = (maps / maps.sum(0)).astype(np.float32)
    made = rule(names, **params)
    writing = Writing(tmp_path / "maps.json", np.array(["one"]), names, "segmentation", {}, ("mean",), True, made.apply)
    store = map_store.write(writing, iter([Row(maps, None)]))
    assert (store.maps(0).max(0) == 1).any()
    exact, kept = store.mask(0), made.apply(store.maps(0))
    assert (exact != kept).mean() < 0.005
    speck = (slice(60, 62), slice(20, 22))
    assert (exact[speck] != 2).all()
    np.testing.assert_array_equal(exact[speck], kept[speck])


def test_thresholds_are_of_classes_by_name() -> None:
    maps = np.full((2, 3, 3), 0.4, dtype=np.float32)
    mask = rule(("x", "y"), "multi_label_segmentation", threshold={"y": 0.3}).apply(maps)
    assert mask.reshape(2, -1).mean(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "task", "params", "what"),
    [
        (("a", "b"), "segmentation", {"threshold": 0.4}, "threshold for classes that exclude"),
        (("a",), "segmentation", {"bias": 0.4}, "bias for classes that may overlap"),
        (("a", "b"), "segmentation", {"min_object": {"c": 4}}, "names 'c'"),
        (("a", "b"), "segmentation", {"min_object": -1}, "min_object is '-1'"),
        (("a",), "segmentation", {"threshold": 1.5}, "threshold is '1.5'"),
        (("a",), "segmentation", {"min_object": "tuned"}, "min_object is not tuned yet"),
        (("a",), "segmentation", {"grid": {"size": [1]}}, "grid for 'size'"),
    ],
)
def test_values_that_cannot_be_are_refused(
    names: tuple[str, ...], task: str, params: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        rule(names, task, **params)


# -- tuning -----------------------------------------------------------------------------------------------------


def rows(n: int, names: tuple[str, ...], task: str) -> Table:
    return Table(np.array([f"{row:04}" for row in range(n)]), Path(), ((),) * n, task, names)


def speckled(row: int, k: int = 1, *, level: float = 0.62) -> tuple[np.ndarray, np.ndarray]:
    """Return [K, 24, 24] maps with false specks, and the [24, 24, K] truth: a square, in every third image none."""
    rng = np.random.default_rng(row)
    truth = np.zeros((24, 24, k), dtype=np.uint8)
    if row % 3:
        truth[4:16, 6:18] = 1
    maps = np.where(truth.transpose(2, 0, 1) == 1, level, 0.1).astype(np.float32)
    for _ in range(3):
        y, x = rng.integers(0, 23, 2)
        maps[:, y, x] = 0.8
    return maps, truth


def each(maps: Callable[[int], np.ndarray]) -> Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]:
    return lambda rows: ((row, maps(row)) for row in rows.tolist())


def tuned(params: dict[str, Any], n: int = 24, metric: str = "tgs_iou", **options: Any) -> tuple[Outcome, list[int]]:
    asked: list[int] = []

    def maps(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for row in reversed(wanted.tolist()):
            asked.append(row)
            yield row, speckled(row)[0]

    return (
        tune(
            maps, lambda row: speckled(row)[1], fold_of=np.arange(n) % 4, metric=make_metric(metric),
            table=rows(n, ("salt",), "segmentation"), params=params, **options,
        ),
        asked,
    )  # fmt: skip


def test_specks_are_found_to_be_too_small_and_the_gain_is_nested() -> None:
    params = {"min_object": "tuned", "threshold": "tuned", "grid": {"min_object": [4, 400]}}
    seen: list[tuple[int, int]] = []
    found, asked = tuned(params, advance=lambda done, total: seen.append((done, total)))
    assert found.outcome.fit == {"min_object": 4, "threshold": 0.5}
    assert found.before < 0.75
    assert found.outcome.nested.value == found.outcome.plain.value == 1
    assert found.gain is not None
    assert found.gain.low > 0
    assert found.gain.value == pytest.approx(1 - found.before)
    assert set(found.outcome.by_part) == {0, 1, 2, 3}
    assert found.candidates == 3 * 9
    assert len(asked) == 48  # every image twice, whatever the number of candidates
    assert seen[-1] == (48, 48)
    assert json.loads(json.dumps(found.as_json()))["params"] == found.outcome.fit
    rule(**found.outcome.fit)


def test_what_helps_one_fold_alone_gains_nothing_nested() -> None:
    # fold 0 wants a low threshold, the others a high one: what is best on all is not what fold 0 is scored with
    def maps(row: int) -> np.ndarray:
        return np.full((1, 8, 8), 0.45, dtype=np.float32)

    def truth(row: int) -> np.ndarray:
        return np.full((8, 8, 1), int(row % 4 == 0), dtype=np.uint8)

    found = tune(each(maps), truth, fold_of=np.arange(16) % 4, metric=make_metric("tgs_iou"),
                 table=rows(16, ("salt",), "segmentation"), params={"threshold": "tuned"})  # fmt: skip
    assert found.outcome.fit["threshold"] == 0.5
    assert (found.before, found.outcome.nested.value) == (0.75, 0.75)


def test_every_class_has_its_own_number_where_classes_stand_alone() -> None:
    levels = (0.35, 0.75)

    def maps(row: int) -> np.ndarray:
        real = speckled(row, 2)[1].transpose(2, 0, 1)
        found = np.where(real == 1, np.array(levels)[:, None, None], np.array([0.1, 0.6])[:, None, None])
        return found.astype(np.float32)

    found = tune(each(maps), lambda row: speckled(row, 2)[1], fold_of=THIRDS, metric=make_metric("mean_iou"),
                 table=rows(12, ("low", "high"), "multi_label_segmentation"),
                 params={"threshold": "tuned_per_class", "min_object": 2})  # fmt: skip
    assert found.outcome.nested.value == 1
    assert found.outcome.fit["threshold"]["low"] < 0.35
    assert 0.6 <= found.outcome.fit["threshold"]["high"] < 0.75
    assert found.outcome.fit["min_object"] == 2
    shared = tune(each(maps), lambda row: speckled(row, 2)[1], fold_of=THIRDS, metric=make_metric("mean_iou"),
                  table=rows(12, ("low", "high"), "multi_label_segmentation"),
                  params={"threshold": "tuned"})  # fmt: skip
    assert shared.outcome.nested.value is not None
    assert shared.outcome.nested.value < 1


def test_rare_classes_are_raised_where_classes_exclude_one_another() -> None:
    def maps(row: int) -> np.ndarray:
        real = speckled(row)[1][:, :, 0]
        rare = np.where(real == 1, 0.4, 0.1)
        return np.stack([1 - rare - 0.05, rare, np.full_like(rare, 0.05)]).astype(np.float32)

    found = tune(each(maps), lambda row: speckled(row)[1], fold_of=THIRDS, metric=make_metric("mean_iou"),
                 table=rows(12, ("ground", "sign", "sky"), "segmentation"),
                 params={"bias": "tuned_per_class", "min_object": "tuned", "grid": {"min_object": [3]}})  # fmt: skip
    assert found.before < 0.5
    assert found.outcome.nested.value == 1
    assert found.outcome.fit["min_object"] == 0
    assert found.outcome.fit["bias"].get("sign", 0) > found.outcome.fit["bias"].get("ground", 0)
    assert found.candidates == 2 * (1 + 3 * 6)


def test_changes_that_help_alone_are_not_made_together_where_that_harms() -> None:
    def maps(row: int) -> np.ndarray:  # either change alone brings the truth back, both together go too far
        rare = np.where(speckled(row)[1][:, :, 0] == 1, 0.42, 0.28)
        return np.stack([1 - rare, rare]).astype(np.float32)

    found = tune(each(maps), lambda row: speckled(row)[1], fold_of=THIRDS, metric=make_metric("mean_iou"),
                 table=rows(12, ("ground", "sign"), "segmentation"), params={"bias": "tuned_per_class"})  # fmt: skip
    assert found.before < 0.5
    assert found.outcome.nested.value == 1
    assert found.outcome.plain.value == 1


def test_many_rows_are_tuned_on_some_of_them_and_scored_on_all() -> None:
    found, asked = tuned({"min_object": "tuned", "grid": {"min_object": [4]}}, n=60, most=20)
    assert len(asked) == 20 + 60
    assert sorted(row % 4 for row in asked[:20]) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert found.outcome.fit == {"min_object": 4}
    assert found.outcome.nested.value == 1


def test_large_images_are_tuned_on_fewer_of_them() -> None:
    params = {"min_object": "tuned", "grid": {"min_object": [4]}}
    assert len(tuned(params, n=60, pixels=12 * 24 * 24)[1]) == 12 + 60
    found, asked = tuned(params, n=60, pixels=1)  # one of each fold always
    assert len(asked) == 4 + 60
    assert found.candidates == 2


def test_the_counts_are_those_of_what_each_fold_was_given() -> None:
    found, _ = tuned({"min_object": "tuned", "threshold": "tuned", "grid": {"min_object": [4, 400]}})
    for row in range(24):
        mask = rule(**found.outcome.by_part[row % 4]).apply(speckled(row)[0])
        np.testing.assert_array_equal(found.outcome.values[row], image_counts(mask, speckled(row)[1], n_classes=1))


def test_what_picks_alike_picks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    picked: list[int] = []
    pick = mask_rules._most_probable
    monkeypatch.setattr(mask_rules, "_most_probable", lambda *given: (picked.append(1), pick(*given))[1])
    maps = np.random.default_rng(0).random((3, 9, 9)).astype(np.float32)
    tune(each(lambda row: maps), lambda row: np.zeros((9, 9, 1), np.uint8), fold_of=np.zeros(2, int),
         metric=make_metric("mean_iou"), table=rows(2, ("a", "b", "c"), "segmentation"),
         params={"bias": "tuned", "min_object": "tuned", "grid": {"bias": [1.0], "min_object": [2, 3, 4]}})  # fmt: skip
    assert len(picked) <= 2 * (2 + 2)  # eight candidates of two biases, then what was before and what was found


def test_one_fold_is_tuned_nested_by_fifths() -> None:
    found = tune(each(lambda row: speckled(row)[0]), lambda row: speckled(row)[1], fold_of=np.zeros(9, int),
                 metric=make_metric("tgs_iou"), table=rows(9, ("salt",), "segmentation"),
                 params={"min_object": "tuned"})  # fmt: skip
    assert sorted(found.outcome.by_part) == [0, 1, 2, 3, 4]
    assert found.gain is not None
    assert found.outcome.fit["min_object"] > 0


def test_a_grid_that_is_too_large_or_idle_is_refused() -> None:
    with pytest.raises(ConfigError, match="2,250 candidates"):
        tuned(dict.fromkeys(("threshold", "min_object", "min_hole", "largest", "empty"), "tuned"))
    with pytest.raises(ConfigError, match="grid for 'min_hole'"):
        tuned({"min_object": "tuned", "grid": {"min_hole": [3]}})


def test_what_is_to_be_tuned_is_read_from_the_parameters() -> None:
    params = {"min_object": "tuned", "bias": "tuned_per_class", "min_hole": 4, "grid": {}}
    assert tunes(params) == {"min_object": "tuned", "bias": "tuned_per_class"}
    assert neutral(params) == {"min_object": 0, "bias": 0.0, "min_hole": 4}


# -- openings, conflicts, limits --------------------------------------------------------------------------------


def layered(**params):
    return registry.build(
        "postprocess", "standard", params, _names=("fast", "slow", "road"), _task="multi_label_segmentation"
    )


def test_an_opening_takes_away_what_is_thin_and_a_closing_fills_what_is_narrow() -> None:
    maps = np.zeros((3, 20, 30), np.float32)
    maps[0, 4:14, 3:13] = 1
    maps[0, 8, 13:25] = 1  # a line of one pixel
    maps[1] = maps[0]
    maps[1, 9, :13] = 0  # a gap of one pixel
    opened = layered(open={"fast": 3}).apply(maps)
    assert opened[0, 8, 14:].sum() == 0
    assert opened[0, 6:12, 5:11].all()
    assert opened[1].sum() == maps[1].sum()
    closed = layered(close={"slow": 3}).apply(maps)
    assert closed[1, 9, 4:12].all()
    assert closed[0].sum() == maps[0].sum()


def test_an_opening_keeps_what_goes_on_beyond_the_image() -> None:
    maps = np.zeros((3, 20, 20), np.float32)
    maps[0, :1] = 1  # the border of something
    assert layered(open=5).apply(maps)[0, 0].all()


def test_who_comes_first_clears_the_others_after_small_objects_are_gone() -> None:
    maps = np.zeros((3, 8, 8), np.float32)
    maps[0, 0, :2], maps[0, 4:, :4] = 1, 1  # a small object and a large one of `fast`
    maps[1:] = 1
    mask = layered(priority=[["fast", "*"], ["road", "slow"]], min_object=5).apply(maps)
    np.testing.assert_array_equal(mask[0], np.pad(np.ones((4, 4)), ((4, 0), (0, 4))))
    np.testing.assert_array_equal(mask[2], 1 - mask[0])  # the small object has cleared nothing
    assert mask[1].sum() == 0


@pytest.mark.parametrize("pairs", [[["fast", "fats"]], [["*", "fast"]], [["road", "road"]]])
def test_wrong_pairs_are_refused(pairs: list) -> None:
    with pytest.raises(ConfigError, match="priority"):
        layered(priority=pairs)


def test_classes_that_exclude_one_another_have_no_conflicts() -> None:
    with pytest.raises(ConfigError, match="exclude one another"):
        registry.build("postprocess", "standard", {"priority": [["a", "b"]]}, _names=("a", "b"), _task="segmentation")


def test_numbers_stay_within_their_limits() -> None:
    maps = np.array([[[-3.0, 2.0, 500.0]]], np.float32)
    for clamp, expected in (([0, None], [0, 2, 500]), ([None, 400], [-3, 2, 400]), ([0.5, 400], [0.5, 2, 400])):
        rule = registry.build("postprocess", "numbers", {"clamp": clamp}, _names=("t",), _task="dense_regression")
        found = rule.apply(maps)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[0, 0], np.float32(expected))
    with pytest.raises(ConfigError, match="clamp"):
        registry.build("postprocess", "numbers", {"clamp": [3, 1]}, _names=("t",), _task="dense_regression")
