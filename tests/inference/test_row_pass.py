from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from drawn_images import ArrayImages, drawn, write_images
from torch import nn

from kbench import records, registry
from kbench.data import seeds
from kbench.data.dataset import Normalise, Show
from kbench.data.images.augment import NO_AUGMENTATION
from kbench.data.images.cache import DirectImages, Images, Resize
from kbench.data.images.crops import centre, centred, random
from kbench.data.images.readers import image, remembering
from kbench.errors import PredictionError
from kbench.inference import row_pass as module
from kbench.inference.mean import ARITHMETIC, mean_of_task
from kbench.inference.predictions import array_path, load
from kbench.inference.row_pass import Job, Member, grouped, predict_members
from kbench.inference.views import Load, window_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # fork, Python 3.12
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # two workers on one core
]
ROWS, SIZE = 11, (8, 8)
SCALE = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
SETS = registry.names("views")


def network(seed: int, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return toy.TinyNet(outputs, dropout=0.5).eval()


def member(folder: Path, seed: int = 0, **changes: Any) -> Member:
    given: dict[str, Any] = {
        "name": f"m{seed}", "load": lambda: network(seed), "size": SIZE, "resize": "cover", "scale": SCALE,
        "precision": "fp32", "out": folder / f"m{seed}.json", "source": {"seed": seed},
        "augmentation": TOP_DOWN, "train_crop": RANDOM,
    }  # fmt: skip
    return Member(**{**given, **changes})


TOP_DOWN, RANDOM = registry.build("augmentation", "top_down", {}), random()


def job(views: str = "none", params: dict[str, Any] | None = None, *, arrays: Any = None, **changes: Any) -> Job:
    pictures = drawn(ROWS, size=(12, 15)) if arrays is None else arrays
    given: dict[str, Any] = {
        "ids": np.array([f"r{row:03d}" for row in range(len(pictures))]), "rows": np.arange(len(pictures)),
        "images": shared(lambda resize: ArrayImages(pictures, resize)), "names": ("a", "b", "c"),
        "task": "single_label", "views": registry.build("views", views, params or {}), "mean": ARITHMETIC,
        "device": toy.CPU, "batch_size": 4,
    }  # fmt: skip
    return Job(**{**given, **changes})


def shared(make: Callable[[Resize], Images]) -> Callable[[Resize], Images]:
    opened: dict[Resize, Images] = {}
    return lambda resize: opened.setdefault(resize, make(resize))


def done(work: Job, members: Sequence[Member]) -> list[np.ndarray]:
    assert list(predict_members(work, members))[-1] == len(work.rows)
    return [np.array(load(one.out).values) for one in members]


# -- what is predicted ---------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, pictures: Sequence[np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(pictures))
        return model(Normalise(**SCALE)(batch)).softmax(1).numpy()


def test_the_plain_view_is_the_model_on_the_centre_of_the_covered_image(tmp_path: Path) -> None:
    pictures = drawn(ROWS, size=(12, 15))
    (values,) = done(job(), [member(tmp_path)])
    show = Show(SIZE, centre())
    shown = [show(Resize("cover", *SIZE)(picture), np.random.default_rng(0))[0] for picture in pictures]
    np.testing.assert_allclose(values, by_hand(network(0), shown), atol=1e-6)


def test_draws_are_the_training_augmentation_seeded_by_the_row(tmp_path: Path) -> None:
    (values,) = done(job("random", {"n": 2}, seed=7), [member(tmp_path)])
    covered = [Resize("cover", *SIZE)(picture) for picture in drawn(ROWS, size=(12, 15))]
    plain, augmented = Show(SIZE, centre()), Show(SIZE, RANDOM, TOP_DOWN)
    views = [
        [(plain if position == 0 else augmented)(picture, seeds.generator(seeds.VIEW, 7, row, position))[0]
         for row, picture in enumerate(covered)]
        for position in range(3)
    ]  # fmt: skip
    expected = sum(by_hand(network(0), view) for view in views) / 3
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_draws_of_a_row_do_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    work = job("random")
    (whole,) = done(work, [member(tmp_path / "whole")])
    some = np.array([2, 7, 9])
    part = job("random", ids=work.ids[some], rows=some)
    (few,) = done(part, [member(tmp_path / "part")])
    np.testing.assert_allclose(few, whole[some], atol=1e-6)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_views_are_averaged_by_weight_in_both_means(tmp_path: Path, mean) -> None:
    work = job("random", {"n": 5}, mean=mean_of_task(mean, "single_label", 3))
    assert work.views[0].weight == 2
    (values,) = done(work, [member(tmp_path)])
    single = []
    for position in range(6):
        covered = [Resize("cover", *SIZE)(picture) for picture in drawn(ROWS, size=(12, 15))]
        show = Show(SIZE, centre()) if position == 0 else Show(SIZE, RANDOM, TOP_DOWN)
        shown = [show(p, seeds.generator(seeds.VIEW, 0, row, position))[0] for row, p in enumerate(covered)]
        single.append(by_hand(network(0), shown))
    weights = np.array([view.weight for view in work.views])
    if mean == "arithmetic":
        expected = np.average(single, axis=0, weights=weights)
    else:
        expected = np.exp(np.average(np.log(single), axis=0, weights=weights))
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)


def test_the_geometric_mean_of_tags_is_not_made_to_sum_to_one(tmp_path: Path) -> None:
    (values,) = done(
        job("flip", task="multi_label", mean=mean_of_task("geometric", "multi_label", 3)), [member(tmp_path)]
    )
    assert np.abs(values.sum(1) - 1).max() > 0.01


def test_the_geometric_mean_of_a_regression_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="geometric"):
        mean_of_task("geometric", "regression", 3)


def test_values_of_a_regression_are_averaged_as_they_are(tmp_path: Path) -> None:
    (values,) = done(job("flip", task="regression"), [member(tmp_path)])
    assert values.min() < 0


class Where(nn.Module):
    """Answers with its input, [B, 3, H, W]: a segmenter that marks what it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize("shape", [(20, 20), (20, 31), (31, 20)])
@pytest.mark.parametrize("resize", ["cover", "exact"])
def test_five_crops_are_the_centre_and_the_corners_of_a_larger_image(tmp_path: Path, shape, resize) -> None:
    pictures = [np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)]
    seen: list[np.ndarray] = []

    class Looking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((images[0] * 0.25 + 0.5).mul(255).round().permute(1, 2, 0).numpy().astype(np.uint8))
            return images.mean((2, 3))

    work = job("five_crop", {"margin": 1.5}, arrays=pictures)
    done(work, [member(tmp_path, load=Looking, size=(10, 10), resize=resize)])
    larger, plain = Resize(resize, 15, 15)(pictures[0]), Resize(resize, 10, 10)(pictures[0])
    window = centred(plain.shape[:2], (10, 10))
    top, left = int(window.top), int(window.left)
    expected = [plain[top : top + 10, left : left + 10], larger[:10, :10], larger[:10, -10:], larger[-10:, :10],
                larger[-10:, -10:]]  # fmt: skip
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({view.tobytes() for view in seen}) == 5


@pytest.mark.parametrize("corner", ["centre", "top_left", "top_right", "bottom_left", "bottom_right"])
def test_windows_lie_inside_the_image(corner) -> None:
    window = window_of(Load(corner), None, (8, 9))((20, 30), (8, 9), np.random.default_rng(0))
    assert 0 <= window.top <= 12
    assert 0 <= window.left <= 21
    assert (window.height, window.width) == (8, 9)


# -- many models at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_members_in_one_pass_predict_what_each_predicts_alone(tmp_path: Path, name: str) -> None:
    together = done(job(name), [member(tmp_path / "together", seed) for seed in range(3)])
    alone = [done(job(name), [member(tmp_path / "alone", seed)])[0] for seed in range(3)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_members_of_different_sizes_and_scales_predict_what_each_predicts_alone(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"size": (6, 9)}, {"scale": {**SCALE, "mean": [0.1, 0.2, 0.3]}}, {"resize": "exact"},
        {"augmentation": NO_AUGMENTATION, "train_crop": centre()},
    ]  # fmt: skip
    together = done(job("random"), [member(tmp_path / "a", seed, **more) for seed, more in enumerate(changes)])
    for seed, more in enumerate(changes):
        (alone,) = done(job("random"), [member(tmp_path / "b", seed, **more)])
        np.testing.assert_array_equal(together[seed], alone)


class Counting:
    """A reader that counts its decodes by row."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self._read = image(_channels=3)

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        self.reads.append(paths[0].stem)
        return self._read(paths)


@pytest.mark.parametrize("name", SETS)
def test_every_image_is_decoded_once_whatever_the_number_of_views_and_members(tmp_path: Path, name: str) -> None:
    rows = write_images(tmp_path / "images", drawn(ROWS, size=(12, 15)))
    counting = Counting()
    reader = remembering(counting)
    work = job(name, images=shared(lambda resize: DirectImages(rows, reader, resize)))
    done(work, [member(tmp_path, seed) for seed in range(3)])
    assert sorted(counting.reads)[-ROWS + 1 :] == [f"{row:04d}" for row in range(1, ROWS)]
    assert len(counting.reads) == ROWS


def test_members_of_one_size_go_in_one_pass_unless_their_own_augmentation_is_drawn(tmp_path: Path) -> None:
    other = registry.build("augmentation", "top_down", {})
    members = [member(tmp_path, 0), member(tmp_path, 1, augmentation=other), member(tmp_path, 2, size=(4, 4))]
    assert [len(group) for group in grouped(members, drawn=False)] == [2, 1]
    assert [len(group) for group in grouped(members, drawn=True)] == [1, 1, 1]


@pytest.mark.parametrize("free", [1.0, 5_000.0, 1e12])
def test_models_that_do_not_fit_together_make_more_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    expected = [done(job(), [member(tmp_path / "alone", seed)])[0] for seed in range(4)]
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    alive: list[int] = []

    def loading(seed: int) -> Callable[[], nn.Module]:
        return lambda: (alive.append(seed), network(seed))[1]

    members = [member(tmp_path / "few", seed, load=loading(seed)) for seed in range(4)]
    steps = list(predict_members(job(), members))
    assert alive == [0, 1, 2, 3]
    size = sum(value.numel() * value.element_size() for value in network(0).state_dict().values())
    passes = {1.0: 4, 5_000.0: -(-4 // (int(2_500 // size) + 1)), 1e12: 1}[free]
    assert steps.count(ROWS) == passes
    for seed in range(4):
        np.testing.assert_array_equal(load(members[seed].out).values, expected[seed])


def test_free_memory_is_known() -> None:
    assert 1e8 < module.free_memory(toy.CPU) < 1e14


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_loader_workers_changes_nothing(tmp_path: Path, workers: int) -> None:
    (one,) = done(job("random"), [member(tmp_path / "a")])
    (other,) = done(job("random", workers=workers), [member(tmp_path / "b")])
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["none", "d4", "five_crop"])
def test_a_batch_that_does_not_fit_into_memory_is_predicted_in_parts(tmp_path: Path, name: str) -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.model(images)

    (expected,) = done(job(name), [member(tmp_path / "whole")])
    (values,) = done(job(name), [member(tmp_path / "parts", load=Hungry)])
    np.testing.assert_allclose(values, expected, atol=1e-6)


# -- where predictions go ------------------------------------------------------------------------------------------


def test_predictions_lie_in_a_memory_mapped_file_from_the_first_batch_on(tmp_path: Path) -> None:
    running = predict_members(job(), [member(tmp_path)])
    next(running)
    raw = np.load(array_path(tmp_path / "m0.json"), mmap_mode="r")
    assert raw.shape == (ROWS, 3)
    assert (raw[:4].sum(1) > 0.99).all()
    assert not raw[4:].any()
    list(running)
    assert isinstance(load(tmp_path / "m0.json").values, np.memmap)


def test_predictions_say_where_they_come_from(tmp_path: Path) -> None:
    done(job(), [member(tmp_path, 3)])
    found = load(tmp_path / "m3.json")
    assert found.source == {"seed": 3}
    assert found.names == ("a", "b", "c")
    assert list(found.ids) == list(job().ids)


def test_predictions_given_up_in_the_middle_do_not_exist(tmp_path: Path) -> None:
    running = predict_members(job(), [member(tmp_path, seed) for seed in range(2)])
    next(running)
    running.close()
    assert not list(tmp_path.glob("*.json"))


def test_older_predictions_do_not_count_once_new_ones_are_begun(tmp_path: Path) -> None:
    done(job(), [member(tmp_path)])
    running = predict_members(job(), [member(tmp_path, load=lambda: network(9))])
    next(running)
    running.close()
    assert records.read_seal(tmp_path / "m0.json", verify="size") is None
    with pytest.raises(PredictionError):
        load(tmp_path / "m0.json")


def test_a_killed_prediction_leaves_nothing_that_counts(tmp_path: Path) -> None:
    done(job(), [member(tmp_path)])
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        running = predict_members(job(), [member(tmp_path, load=lambda: network(9))])
        next(running)
        next(running)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert records.read_seal(tmp_path / "m0.json", verify="size") is None
    (values,) = done(job(), [member(tmp_path)])
    assert (values.sum(1) > 0.99).all()


def test_a_model_that_answers_nonsense_leaves_no_sealed_predictions(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 3), torch.nan)

    with pytest.raises(PredictionError, match="nan"):
        list(predict_members(job(), [member(tmp_path, load=Broken)]))
    assert not (tmp_path / "m0.json").exists()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    class Endless:
        """More images than fit in memory: made when they are asked for."""

        def __len__(self) -> int:
            return 200_000

        def __getitem__(self, row: int) -> np.ndarray:
            return np.full((8, 8, 3), row % 256, np.uint8)

    rows = np.arange(200_000)
    ids = np.array([f"r{row:06d}" for row in rows])
    work = job(ids=ids, rows=rows, images=lambda resize: Endless(), batch_size=16)
    running = predict_members(work, [member(tmp_path)])
    for _ in range(3):
        assert next(running) > 0
    running.close()
    assert array_path(tmp_path / "m0.json").stat().st_size > 200_000 * 3 * 4
