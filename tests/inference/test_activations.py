from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from drawn_images import drawn, write_images
from torch import nn

from kbench.data import seeds
from kbench.data.dataset import Draw, Normalise, Show, cut
from kbench.data.images.augment import side_on
from kbench.data.images.cache import DirectImages, Resize, cache_entries, clear_cache
from kbench.data.images.crops import centre, squash
from kbench.data.images.readers import image
from kbench.errors import ConfigError
from kbench.inference.activations import Drawn, RowLoader, Seen, Source, activations
from kbench.models.layer_groups import body_digest, is_split

ROWS = 9
SCALE = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
SEEN = Seen(Show((8, 8), centre()), SCALE, "fp32", True)
DRAWN = replace(SEEN, show=Show((8, 8), centre(), side_on()), drawn=Drawn(3, 5, ["centre", "side_on"]))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return toy.SplitNet().eval()


def source(folder: Path, *, pictures: np.ndarray | None = None, **changes: Any) -> Source:
    rows = write_images(folder / "images", drawn(ROWS) if pictures is None else pictures)
    given: dict[str, Any] = {
        "ids": np.array([f"r{row}" for row in range(ROWS)]), "rows": rows, "reader": "png", "folder": folder / "cache",
        "images": lambda resize: DirectImages(rows, image(_channels=3), resize), "device": toy.CPU, "batch_size": 4,
    }  # fmt: skip
    return Source(**{**given, **changes})


def by_hand(model: nn.Module, pictures: np.ndarray, show: Show = SEEN.show) -> np.ndarray:
    resize = Resize(show.crop.resize, *show.size)
    shown = np.stack([show(resize(picture), np.random.default_rng(0))[0] for picture in pictures])
    with torch.inference_mode():
        return model.features(Normalise(**SCALE)(torch.from_numpy(shown))).numpy()


def test_they_are_what_the_body_says_about_each_row_as_it_is_judged(tmp_path: Path) -> None:
    found = activations(source(tmp_path), network(), SEEN)
    assert (found.values.shape, found.values.dtype, found.fresh) == ((ROWS, 16), np.float32, True)
    np.testing.assert_allclose(found.values, by_hand(network(), drawn(ROWS)), atol=1e-6)


def test_augmented_draws_of_all_rows_follow_one_another(tmp_path: Path) -> None:
    found = activations(source(tmp_path), network(), DRAWN).values.reshape(3, ROWS, 16)
    resize = Resize(DRAWN.show.crop.resize, 8, 8)
    for version in range(3):
        shown = np.stack([
            DRAWN.show(resize(picture), seeds.generator(seeds.AUGMENT, 5, version, row, 0))[0]
            for row, picture in enumerate(drawn(ROWS))
        ])  # fmt: skip
        with torch.inference_mode():
            expected = network().features(Normalise(**SCALE)(torch.from_numpy(shown))).numpy()
        np.testing.assert_allclose(found[version], expected, atol=1e-6)
    assert not np.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("change", [
    replace(DRAWN, drawn=replace(DRAWN.drawn, **{name: value}))
    for name, value in {"count": 4, "seed": 6, "how": ["centre", {"side_on": {"rotate": 3}}]}.items()
] + [SEEN], ids=["count", "seed", "augmentation", "not drawn"])  # fmt: skip
def test_other_draws_never_meet_stale_activations(tmp_path: Path, change: Seen) -> None:
    activations(source(tmp_path), network(), DRAWN)
    assert activations(source(tmp_path), network(), change).fresh
    assert not activations(source(tmp_path), network(), DRAWN).fresh


def test_an_epoch_shows_one_of_the_draws_after_the_other() -> None:
    values = np.arange(12, dtype=np.float32).reshape(12, 1)  # 3 draws of 4 rows
    loader = RowLoader(values, None, room=1e9, looks=3)
    for epoch in range(7):
        batches = list(loader(cut(4, 3, lambda place, epoch=epoch: Draw(3 - place, (0, 9, 9, epoch, place)))))
        assert torch.cat([batch.images[0] for batch in batches]).flatten().tolist() == [
            epoch % 3 * 4 + row for row in (3, 2, 1, 0)
        ]


def test_they_are_made_once_for_every_head(tmp_path: Path) -> None:
    first, second = network(), network()
    nn.init.ones_(second.head[2].weight)
    made = activations(source(tmp_path), first, SEEN)
    again = activations(source(tmp_path), second, SEEN)
    assert (made.fresh, again.fresh, again.images_per_s) == (True, False, made.images_per_s)
    np.testing.assert_array_equal(made.values, again.values)


def test_the_model_keeps_its_mode_and_its_running_statistics(tmp_path: Path) -> None:
    model = network().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activations(source(tmp_path), model, SEEN)
    assert (model.training, model.norm.training, model.head.training) == (True, False, True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def _another_pixel(folder: Path) -> Source:
    pictures = drawn(ROWS)
    pictures[3, 5, 5] = 255 - pictures[3, 5, 5]
    return source(folder, pictures=pictures)


def _other_body(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.conv.bias[0] += 1
    return model


def _other_statistics(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.norm.running_mean[0] += 1
    return model


def _other_structure(model: nn.Module) -> nn.Module:
    model.conv.padding_mode = "reflect"  # the same weights, another function
    return model


SOURCES: dict[str, Callable[[Path], Source]] = {
    "another pixel": _another_pixel,
    "another order of the images": lambda folder: replace(source(folder), rows=source(folder).rows[::-1]),
    "other ids": lambda folder: replace(source(folder), ids=np.array([f"q{row}" for row in range(ROWS)])),
    "another reader or plug-in": lambda folder: replace(source(folder), reader=["png", "another hash"]),
}
WAYS: dict[str, Seen] = {
    "size": replace(SEEN, show=Show((6, 8), centre())),
    "crop": replace(SEEN, show=Show((8, 8), squash())),
    "normalisation": replace(SEEN, scale={**SCALE, "mean": [0.5, 0.5, 0.4]}),
    "precision": replace(SEEN, precision="bf16"),
    "memory format": replace(SEEN, channels_last=False),
}
BODIES = {"weights": _other_body, "statistics": _other_statistics, "structure": _other_structure}


@pytest.mark.parametrize("change", SOURCES)
def test_other_rows_of_the_same_number_never_meet_stale_activations(tmp_path: Path, change: str) -> None:
    activations(source(tmp_path), network(), SEEN)
    assert activations(SOURCES[change](tmp_path), network(), SEEN).fresh


@pytest.mark.parametrize("change", WAYS)
def test_images_seen_another_way_never_meet_stale_activations(tmp_path: Path, change: str) -> None:
    activations(source(tmp_path), network(), SEEN)
    assert activations(source(tmp_path), network(), WAYS[change]).fresh


@pytest.mark.parametrize("change", BODIES)
def test_another_body_never_meets_stale_activations(tmp_path: Path, change: str) -> None:
    activations(source(tmp_path), network(), SEEN)
    assert activations(source(tmp_path), BODIES[change](network()), SEEN).fresh


@pytest.mark.parametrize("damage", ["no json", "half the array", "half the json", "other numbers"])
def test_half_written_ones_are_made_again(tmp_path: Path, damage: str) -> None:
    made = np.array(activations(source(tmp_path), network(), SEEN).values)
    (array,) = (tmp_path / "cache" / "activations").glob("*.npy")
    description = array.with_suffix(".json")
    if damage == "no json":
        description.unlink()
        array.write_bytes(b"\0" * array.stat().st_size)
    elif damage == "other numbers":
        path = next((tmp_path / "cache" / "activations").glob("*.npy"))
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    elif damage == "half the array":
        array.write_bytes(array.read_bytes()[: array.stat().st_size // 2])
    else:
        description.write_bytes(description.read_bytes()[:40])
    again = activations(source(tmp_path), network(), SEEN)
    assert again.fresh
    np.testing.assert_array_equal(again.values, made)


def _in_process(known: Source, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(activations(known, network(), SEEN).fresh)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_ask_at_once_make_them_once(tmp_path: Path) -> None:
    known = source(tmp_path)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=_in_process, args=(known, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(list((tmp_path / "cache" / "activations").glob("*.npy"))) == 1
    assert True in answers


def test_the_cache_shows_and_clears_them(tmp_path: Path) -> None:
    activations(source(tmp_path), network(), SEEN)
    (entry,) = cache_entries(tmp_path / "cache")
    assert (entry.what, entry.rows, entry.resize) == ("activations", ROWS, ["cover", 8, 8])
    assert entry.bytes > ROWS * 16 * 4
    assert clear_cache(tmp_path / "cache") >= entry.bytes
    assert cache_entries(tmp_path / "cache") == []


def test_a_model_that_is_not_split_is_an_error_in_three_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be precomputed") as found:
        activations(source(tmp_path), toy.TinyNet(), SEEN)
    assert "features(images)" in found.value.expected
    assert "precompute: true" in found.value.todo


def test_a_head_that_is_not_the_whole_last_group_is_no_split() -> None:
    model = toy.SplitNet()
    assert is_split(model)
    model.layer_prefixes = [["conv."], ["norm.", "head."]]
    assert not is_split(model)


def test_the_digest_of_a_body_does_not_depend_on_head_mode_or_layout() -> None:
    model = network()
    before = body_digest(model)
    nn.init.zeros_(model.head[2].weight)
    model.train().to(memory_format=torch.channels_last)
    assert body_digest(model) == before != body_digest(network(1))


@pytest.mark.parametrize("room", [1e12, 0.0], ids=["in memory", "from disk"])
def test_rows_are_loaded_as_planned_with_their_targets(tmp_path: Path, room: float) -> None:
    values = activations(source(tmp_path), network(), SEEN).values
    targets = np.arange(ROWS, dtype=np.int64)
    loader = RowLoader(values, targets, room=room)
    batches = list(loader(cut(5, 2, lambda place: Draw(7 - place))))
    assert [batch.rows.tolist() for batch in batches] == [[7, 6], [5, 4], [3]]
    assert torch.cat([batch.target for batch in batches]).tolist() == [7, 6, 5, 4, 3]
    np.testing.assert_array_equal(torch.cat([batch.images[0] for batch in batches]), values[[7, 6, 5, 4, 3]])
    assert isinstance(loader._values, np.memmap) == (room == 0.0)


def test_rows_of_several_labels_are_loaded_with_theirs_unknown_ones_too() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    targets = np.array([[0, 1], [1, np.nan], [1, 1], [0, 0]], dtype=np.float32)
    batches = list(RowLoader(values, targets, room=1e9)(cut(4, 3, lambda place: Draw(3 - place))))
    assert [batch.target.dtype for batch in batches] == [torch.float32] * 2
    np.testing.assert_array_equal(torch.cat([batch.target for batch in batches]), targets[::-1])
    np.testing.assert_array_equal(torch.cat([batch.images[0] for batch in batches]), values[::-1])
