"""One pass over whole images gives what each model and view gives alone, whatever the sizes and the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kbench import registry
from kbench.ensemble import mask_rules
from kbench.errors import PredictionError
from kbench.inference import map_pass, map_store
from kbench.inference.map_pass import MapJob, MapMember, readings, sampled, stream, views_apart
from kbench.inference.map_store import Row, Writing
from kbench.inference.maps import MapMaker
from kbench.inference.mean import mean_of_task
from kbench.metrics.maps import image_counts
from kbench.models.outputs import Units

CPU = torch.device("cpu")
NAMES = ("a", "b", "c")
SCALE = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}


class Pixelwise(nn.Module):
    """A network without context: what it says of a pixel depends on that pixel and a seed."""

    def __init__(self, seed: int, outputs: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, outputs, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        self.conv.weight.data = torch.randn(self.conv.weight.shape, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


class Lopsided(Pixelwise):
    """A network that looks at the pixel on the left, so that views differ."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images + images.roll(1, -1))


def images(sizes: list[tuple[int, int]], channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, channels)).astype(np.uint8) for size in sizes]


def masks(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (*size, 1)) for size in sizes]


def maker(views: str = "none", *, windows: str = "full", geometric: bool = False, **params: object) -> MapMaker:
    return MapMaker(
        registry.build("windows", windows, params), registry.build("views", views, {}), "segmentation", CPU,
        mean_of_task("geometric" if geometric else "arithmetic", "segmentation", len(NAMES)),
    )  # fmt: skip


def member(seed: int, weight: float = 1.0, kind: type[nn.Module] = Lopsided) -> MapMember:
    return MapMember(f"fold {seed} all-0", lambda: kind(seed).eval(), SCALE, "fp32", weight)


def job(sizes: list[tuple[int, int]], make: MapMaker, *, truth: bool = True, most: int = 4) -> MapJob:
    return MapJob(np.arange(len(sizes)), images(sizes), masks(sizes) if truth else None, NAMES, make, most)


MIXED = [(9, 12), (7, 5), (9, 12), (9, 12), (7, 5)]


def alone(seed: int, image: np.ndarray, *, mirrored: bool = False) -> np.ndarray:
    """Return what one model says of one image, undoing the mirror."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    shown = (pixels - 0.5) / 0.25
    with torch.no_grad():
        made = Lopsided(seed)(shown.flip(-1) if mirrored else shown).softmax(1)
    return (made.flip(-1) if mirrored else made)[0].numpy()


def test_the_mean_is_that_of_all_models_and_views_on_images_of_any_size() -> None:
    rows = list(stream(job(MIXED, maker("flip"), most=2), [member(0, 0.5), member(1, 0.5), member(2)]))
    assert len(rows) == len(MIXED)
    for row, image in zip(rows, images(MIXED), strict=True):
        parts = [(alone(seed, image) + alone(seed, image, mirrored=True)) / 2 for seed in range(3)]
        expected = (0.5 * parts[0] + 0.5 * parts[1] + parts[2]) / 2
        np.testing.assert_allclose(row.maps, expected, atol=1e-5)


def test_small_images_before_large_ones_never_make_a_batch_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counting(Lopsided):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images) * images[0, 0].numel())
            return super().forward(images)

    sizes = [(5, 7), (40, 50), (5, 7), (40, 50), (40, 50), (5, 7)]
    whole = list(stream(job(sizes, maker(), most=6), [member(0)]))
    monkeypatch.setattr(map_pass, "pixels_at_once", lambda n_outputs: 2 * 40 * 50)
    parted = list(stream(job(sizes, maker(), most=6), [member(0, kind=Counting)]))
    assert max(seen) <= 2 * 40 * 50
    for one, other in zip(whole, parted, strict=True):
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-6)
        assert np.array_equal(one.worth, other.worth)  # type: ignore[arg-type]


def test_every_reading_is_worth_what_its_own_masks_are_worth() -> None:
    made = job(MIXED, maker("flip"))
    members = [member(0), member(1)]
    rows = list(stream(made, members))
    names = [name for name, *_ in readings(made, members)]
    assert names == ["fold 0 all-0, plain view", "fold 1 all-0, plain view", "fold 0 all-0", "fold 1 all-0",
                     "mean, plain view", "mean"]  # fmt: skip
    for row, image, mask in zip(rows, images(MIXED), masks(MIXED), strict=True):
        plain = [alone(seed, image) for seed in (0, 1)]
        both = [(alone(seed, image) + alone(seed, image, mirrored=True)) / 2 for seed in (0, 1)]
        ways = [*plain, *both, sum(plain) / 2, sum(both) / 2]
        assert row.worth is not None
        for found, maps in zip(row.worth, ways, strict=True):
            assert np.array_equal(found, image_counts(maps.argmax(0).astype(np.uint8), mask, n_classes=3))


def test_one_model_and_one_view_are_one_reading() -> None:
    made = job(MIXED, maker())
    assert readings(made, [member(0)]) == [("mean", None, False)]
    assert next(iter(stream(made, [member(0)]))).worth.shape == (1, 3, 3)  # type: ignore[union-attr]


def test_without_truth_nothing_is_measured() -> None:
    assert all(row.worth is None for row in stream(job(MIXED, maker(), truth=False), [member(0)]))


def test_the_geometric_mean_sums_to_one() -> None:
    rows = list(stream(job(MIXED, maker("flip", geometric=True)), [member(0), member(1)]))
    for row, image in zip(rows, images(MIXED), strict=True):
        logs = [np.log(alone(seed, image, mirrored=way)) for seed in (0, 1) for way in (False, True)]
        expected = np.exp(sum(logs) / 4)
        np.testing.assert_allclose(row.maps, expected / expected.sum(0), atol=1e-5)


def test_models_that_do_not_fit_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def counted(seed: int) -> MapMember:
        plain = member(seed)
        return MapMember(plain.name, lambda: (loaded.append(seed), plain.load())[1], SCALE, "fp32")

    whole = list(stream(job(MIXED, maker(), most=1), [counted(0), counted(1)]))
    assert sorted(loaded) == [0, 1]
    monkeypatch.setattr(map_pass, "free_memory", lambda device: 0.0)
    parts = list(stream(job(MIXED, maker(), most=1), [counted(0), counted(1)]))
    assert len(loaded) > 4
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.maps, other.maps)


def test_windows_and_views_go_together() -> None:
    members = [MapMember("one", lambda: Pixelwise(0).eval(), SCALE, "fp32")]
    whole = list(stream(job(MIXED, maker("d4")), members))
    cut = list(stream(job(MIXED, maker("d4", windows="overlap", size=4, stride=2)), members))
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-4)


def test_scales_bring_maps_back_to_the_size_of_the_image() -> None:
    rows = list(stream(job(MIXED, maker("scales")), [member(0)]))
    assert [row.maps.shape[1:] for row in rows] == MIXED


# -- what lies on disk -------------------------------------------------------------------------------------------


def writing(path: Path, task: str = "segmentation", *, keep: bool = True, names: tuple[str, ...] = NAMES) -> Writing:
    rule = None if task == "dense_regression" else mask_rules.none(_names=names, _task=task).apply
    return Writing(path / "maps.json", np.array(["a", "b"]), names, task, {"from": "here"}, ("mean",), keep, rule)


def rows(classes: int = 3) -> list[Row]:
    rng = np.random.default_rng(2)
    maps = [rng.random((classes, *size)).astype(np.float32) for size in ((5, 8), (3, 2))]
    return [Row(part / part.sum(0), np.full((1, classes, 3), place)) for place, part in enumerate(maps)]


def test_a_store_gives_back_masks_exactly_and_maps_to_8_bits(tmp_path: Path) -> None:
    store = map_store.write(writing(tmp_path), iter(rows()))
    for place, row in enumerate(rows()):
        assert np.array_equal(store.mask(place), row.maps.argmax(0))
        np.testing.assert_allclose(store.maps(place), row.maps, atol=0.5 / 255 + 1e-6)
        assert np.array_equal(store.worth[:, place], row.worth)  # type: ignore[index]
    assert store.masks().layers(1).sum() == 6
    assert (store.source, store.readings) == ({"from": "here"}, ("mean",))


def test_units_of_a_dense_regression_are_kept_as_they_are(tmp_path: Path) -> None:
    made = [Row(row.maps * 300, None) for row in rows(1)]
    store = map_store.write(writing(tmp_path, "dense_regression", names=("y",)), iter(made))
    assert np.array_equal(store.maps(0), made[0].maps)
    assert store.worth is None


def test_maps_that_were_not_kept_are_asked_for_in_vain(tmp_path: Path) -> None:
    store = map_store.write(writing(tmp_path, keep=False), iter(rows()))
    assert np.array_equal(store.mask(0), rows()[0].maps.argmax(0))
    with pytest.raises(PredictionError, match="were not kept"):
        store.maps(0)


def test_a_store_whose_writing_was_cut_off_does_not_exist(tmp_path: Path) -> None:
    map_store.write(writing(tmp_path), iter(rows()))

    def cut_off() -> object:
        yield rows()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_store.write(writing(tmp_path), cut_off())  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match="no predicted maps"):
        map_store.load(tmp_path / "maps.json")


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    store = map_store.write(writing(tmp_path), iter(rows()))
    content = bytearray(store.path.with_suffix(".bin").read_bytes())
    content[5] ^= 1
    store.path.with_suffix(".bin").write_bytes(content)
    with pytest.raises(PredictionError, match="damaged"):
        map_store.load(store.path)


def test_pixels_of_members_and_single_views_are_in_target_units() -> None:
    units = Units((80.0,) * 3, (50.0, 5.0, 1.0))
    task, sizes = "dense_regression", [(9, 12)]
    make = MapMaker(
        registry.build("windows", "full", {}), registry.build("views", "flip", {}), task, CPU,
        mean_of_task("arithmetic", task, 3),
    )  # fmt: skip
    one = replace(member(0), units=units)
    truth = [np.random.default_rng(2).normal(80, 50, (9, 12, 3)).astype(np.float32)]
    pixels = replace(job(sizes, make, truth=False), masks=truth)
    [row] = list(stream(pixels, [one]))
    [(_, sample)] = list(sampled(pixels, [one], pixels=9 * 12))
    np.testing.assert_allclose(sample.values[0], row.maps.reshape(3, -1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(sample.truth, truth[0].transpose(2, 0, 1).reshape(3, -1))
    [(_, views)] = list(views_apart(pixels, one))
    np.testing.assert_allclose(views.mean(0), row.maps, rtol=1e-5, atol=1e-4)
